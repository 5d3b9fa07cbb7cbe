"""The levels that codes stand for: kinds of activations and of weights in the engine.

Activations, named by a node's attribute ``act``:

- ``"full"``: {-1, 0, +1}. Signs, {-1, +1}, are in this kind, because padding adds 0.
- ``"half"``: {0, 1, 2}, stored minus one.
- ``"uint2"``: {0, 1, 2, 3}.
- ``"binary"``: {0, 1}, stored like half range; kernels read one bit.

Weights are {-1, 0, +1} (binary weights are a subset) or two-bit, {-3, -1, +1, +3}.
"""

from __future__ import annotations

from torch import Tensor

from fatnn_rs.convert.graph import Dtype

__all__ = [
    "ACT_LEVELS",
    "WEIGHT_LEVELS",
    "act_kind",
    "code_type",
    "coded_levels",
    "codes_dtype",
    "is_two_bit",
    "stored",
    "weight_kind",
]

#: Kind → levels. The first kind that holds all levels of a quantizer is used.
ACT_LEVELS: dict[str, tuple[int, ...]] = {
    "binary": (0, 1),
    "half": (0, 1, 2),
    "uint2": (0, 1, 2, 3),
    "full": (-1, 0, 1),
}

#: The sets that hold the levels of weights.
WEIGHT_LEVELS: tuple[tuple[int, ...], ...] = ((-1, 0, 1), (-3, -1, 1, 3))


def act_kind(levels: tuple[int, ...]) -> str | None:
    """Find the first kind of activations that has all these levels; None if there is none."""
    fitting = (kind for kind, known in ACT_LEVELS.items() if set(levels) <= set(known))
    return next(fitting, None) if levels else None


#: Kind of activations → type of its packed codes.
_CODES = {"full": "ternary", "half": "ternary", "uint2": "two-bit", "binary": "binary"}


def codes_dtype(kind: str, channels: int, groups: int) -> Dtype:
    """Return the type of a value that holds packed activations of a kind."""
    return {"codes": _CODES[kind], "channels": channels, "groups": groups}


def code_type(kind: str) -> str:
    """Return the type of the packed codes of a kind of activations."""
    return _CODES[kind]


def coded_levels(kind: str) -> tuple[int, ...]:
    """Return the levels that a kind's codes can hold; its thresholds lie between them."""
    return ACT_LEVELS["half" if kind == "binary" else kind]


def stored(levels: Tensor, kind: str) -> Tensor:
    """Turn levels into the codes to pack: half range and binary are stored minus one."""
    return levels - 1 if kind in ("half", "binary") else levels


def is_two_bit(weight: Tensor) -> bool:
    """Whether weight codes are two-bit rather than ternary: any is -3 or +3."""
    return bool((weight.abs() > 1).any())


def weight_kind(weight: Tensor) -> str:
    """Return the narrowest type that holds weights: ``"binary"``, ``"ternary"`` or ``"two-bit"``.

    The conversion asks once and keeps the answer in :attr:`fatnn_rs.convert.graph.Graph.dtypes`.
    """
    return "two-bit" if is_two_bit(weight) else "ternary" if bool((weight == 0).any()) else "binary"
