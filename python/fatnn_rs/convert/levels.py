"""What codes stand for: the kinds of activations and of weights that the engine has.

Activations are ``"full"`` ({-1, 0, +1}), ``"half"`` ({0, 1, 2}, stored less one), ``"uint2"`` ({0, 1, 2, 3}) or
``"binary"`` ({0, 1}, stored as those of half range, of which a kernel reads one bit); signs, {-1, +1}, are two levels
of the full range, for padding gives them a third. Weights are {-1, 0, +1}, of which binary ones are a part, or of two
bits, {-3, -1, +1, +3}. In a graph, ``half_range`` tells full range from the others, and an attribute ``act`` is there
for ``"uint2"`` and ``"binary"`` only: networks of ternary codes do without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = [
    "ACT_LEVELS",
    "WEIGHT_LEVELS",
    "act_attrs",
    "act_kind",
    "act_of",
    "code_type",
    "coded_levels",
    "is_two_bit",
    "stored",
    "weight_kind",
]

#: Kind → levels, in order of preference where levels are a part of several.
ACT_LEVELS: dict[str, tuple[int, ...]] = {
    "binary": (0, 1),
    "half": (0, 1, 2),
    "uint2": (0, 1, 2, 3),
    "full": (-1, 0, 1),
}

#: What weights may be, or a part of it.
WEIGHT_LEVELS: tuple[tuple[int, ...], ...] = ((-1, 0, 1), (-3, -1, 1, 3))


def act_kind(levels: tuple[int, ...]) -> str | None:
    """Find the kind of activations whose levels hold these; None where none does."""
    fitting = (kind for kind, known in ACT_LEVELS.items() if set(levels) <= set(known))
    return next(fitting, None) if levels else None


def act_attrs(kind: str) -> dict[str, Any]:
    """Return the attributes by which a node of a graph names a kind of activations."""
    return {"half_range": kind != "full"} | ({"act": kind} if kind in ("uint2", "binary") else {})


def act_of(attrs: Mapping[str, Any]) -> str:
    """Return the kind of activations that a node's attributes name."""
    return str(attrs.get("act", "half" if attrs["half_range"] else "full"))


def code_type(attrs: Mapping[str, Any]) -> str:
    """Return the type of the codes that a node of such attributes reads or makes."""
    return {"uint2": "two-bit", "binary": "binary"}.get(attrs.get("act", ""), "ternary")


def coded_levels(kind: str) -> tuple[int, ...]:
    """Return the levels that a kind's codes have room for, between which its thresholds lie."""
    return ACT_LEVELS["half" if kind == "binary" else kind]


def stored(levels: Tensor, kind: str) -> Tensor:
    """Levels as the codes that are packed: half range has one less."""
    return levels - 1 if kind in ("half", "binary") else levels


def is_two_bit(weight: Tensor) -> bool:
    """Whether weight codes take two bits, rather than being ternary: where one is -3 or +3."""
    return bool((weight.abs() > 1).any())


def weight_kind(weight: Tensor) -> str:
    """Return what weight codes are: ``"two-bit"``, ``"ternary"``, or, where none is 0, ``"binary"``."""
    return "two-bit" if is_two_bit(weight) else "ternary" if bool((weight == 0).any()) else "binary"
