"""What a prepared model says about its layers: why one stays float, or what is odd about it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["notes_of", "short_list", "write_notes"]

#: Attribute of a prepared model: name of a layer → remark.
_ATTRIBUTE = "_fatnn_notes"

#: Layers that a message names with one reason.
_NAMED = 8


def write_notes(model: nn.Module, left: Mapping[str, str], problems: Mapping[str, str]) -> None:
    """Note on a model why layers stay float, and which compute in float all the same."""
    notes = {name: f"stays float: {why}" for name, why in left.items()}
    vars(model)[_ATTRIBUTE] = notes | dict(problems)


def notes_of(model: nn.Module) -> dict[str, str]:
    """Return the notes of a model that was prepared; empty otherwise."""
    return dict(vars(model).get(_ATTRIBUTE, {}))


def short_list(reasons: Mapping[str, str]) -> str:
    """List layers by reason, a few of each."""
    together: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        together.setdefault(reason, []).append(repr(name))
    parts = []
    for reason, names in together.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        parts.append(f"{', '.join(names[:_NAMED])}{more} ({reason})")
    return "; ".join(parts)
