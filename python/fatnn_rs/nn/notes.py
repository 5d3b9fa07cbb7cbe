"""Notes that ``prepare`` leaves on a model: why a layer stays float, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["notes_of", "short_list", "write_notes"]

#: Attribute of a prepared model: name of a layer → note.
_ATTRIBUTE = "_fatnn_notes"

#: Maximum number of layers that a message names per reason.
_MAX_NAMES = 8


def write_notes(
    model: nn.Module, left_float: Mapping[str, str], problems: Mapping[str, str]
) -> None:
    """Store notes on a model.

    Parameters
    ----------
    model
        A prepared model.
    left_float
        Layer → why it stays float.
    problems
        Quantized layer → why it computes in float, or why it does not run.
    """
    notes = {name: f"stays float: {why}" for name, why in left_float.items()}
    vars(model)[_ATTRIBUTE] = notes | dict(problems)


def notes_of(model: nn.Module) -> dict[str, str]:
    """Return the notes of a prepared model; empty for other models."""
    return dict(vars(model).get(_ATTRIBUTE, {}))


def short_list(reasons: Mapping[str, str]) -> str:
    """Return text that names the first few layers of each reason."""
    together: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        together.setdefault(reason, []).append(repr(name))
    parts = []
    for reason, names in together.items():
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        parts.append(f"{', '.join(names[:_MAX_NAMES])}{more} ({reason})")
    return "; ".join(parts)
