"""What codes stand for: the kinds of activations and of weights that the engine has.

Activations are ``"full"`` ({-1, 0, +1}), ``"half"`` ({0, 1, 2}, stored less one), ``"uint2"`` ({0,
1, 2, 3}) or ``"binary"`` ({0, 1}, stored as those of half range, of which a kernel reads one bit);
signs, {-1, +1}, are two levels of the full range, for padding gives them a third. Weights are {-1,
0, +1}, of which binary ones are a part, or of two bits, {-3, -1, +1, +3}. In a graph the attribute
``act`` of a node names its activations.
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


#: Kind of activations → the codes that it is packed as.
_CODES = {"full": "ternary", "half": "ternary", "uint2": "two-bit", "binary": "binary"}


def codes_dtype(kind: str, channels: int, groups: int) -> Dtype:
    """Return the type of a value of such activations, packed."""
    return {"codes": _CODES[kind], "channels": channels, "groups": groups}


def code_type(kind: str) -> str:
    """Return the type of the codes of such activations."""
    return _CODES[kind]


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
    """Return the narrowest type that holds weights: ``"binary"``, ``"ternary"`` or ``"two-bit"``.

    The conversion asks once, and notes the answer in :attr:`fatnn_rs.convert.graph.Graph.dtypes`.
    """
    return "two-bit" if is_two_bit(weight) else "ternary" if bool((weight == 0).any()) else "binary"
