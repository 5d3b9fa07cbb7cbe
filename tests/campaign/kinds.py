"""The kinds of trial by name."""

from __future__ import annotations

from campaign.runner import Kind, Limits

#: Limits of one trial, by the name of its kind.
KINDS = {
    "networks": Limits(cpu_seconds=90.0),
    "files": Limits(cpu_seconds=30.0),
    "ops": Limits(cpu_seconds=30.0),
}


def prepare_kind(name: str, folder: str) -> Kind:
    """Import the module of a kind; ``folder`` is for the files that it needs."""
    if name == "networks":
        from campaign import networks as module
    elif name == "files":
        from campaign import files as module  # type: ignore[no-redef]
        from campaign import forged

        forged.make_bases(folder)
    else:
        from campaign import calls as module  # type: ignore[no-redef]
    return Kind(module.trial, module.reproduction, KINDS[name])
