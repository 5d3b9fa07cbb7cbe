"""The kinds of trial by name."""

from __future__ import annotations

from campaign.runner import Kind, Limits

#: Name → limits of one trial.
KINDS = {
    "networks": Limits(cpu_seconds=90.0),
    "files": Limits(cpu_seconds=30.0),
    "ops": Limits(cpu_seconds=30.0),
}


def prepare_kind(name: str, folder: str) -> Kind:
    """Import a kind's module; what it needs is put into ``folder``."""
    if name == "networks":
        from campaign import networks as module
    elif name == "files":
        from campaign import files as module  # type: ignore[no-redef]

        module.make_bases(folder)  # type: ignore[attr-defined]
    else:
        from campaign import ops as module  # type: ignore[no-redef]
    return Kind(module.trial, module.reproduction, KINDS[name])
