"""The rungs of the ladder: the precisions that are compared, in the table :data:`RUNGS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fatnn_rs import _core

__all__ = ["FLOAT32", "INT8", "POPCOUNT", "RUNGS", "WEIGHTS", "Rung"]


#: Type of weights → levels.
WEIGHTS: dict[str, tuple[int, ...]] = {
    "ternary": (-1, 0, 1),
    "two-bit": (-3, -1, 1, 3),
    "binary": (-1, 1),
}


@dataclass(frozen=True)
class Rung:
    """One precision on one family of kernels.

    Attributes
    ----------
    title
        Name in tables.
    kind
        Type of the layers: ``"float32"``, ``"int8"`` or ``"codes"``.
    weight_bits, act_bits
        Bits per weight and per activation, for tables.
    passes
        Passes over N bits that an inner product of N values takes in theory, by counting bits; None
        if the kernel does not count bits.
    weight
        Key of :data:`WEIGHTS`.
    levels
        Levels of the activations.
    act
        Key of :data:`fatnn_rs.convert.levels.ACT_LEVELS` with these levels.
    family
        Kernel family.
    config
        ``weight`` and ``act`` of :class:`fatnn_rs.TernaryConfig`, for networks.
    accuracy
        Row of the comparison of quantizers (``benches/quantizers``) with this precision; empty if
        there is none.
    capped
        Whether ``FATNN_ISA`` limits its instruction set.
    """

    title: str
    kind: str
    weight_bits: str
    act_bits: str
    passes: int | None = None
    weight: str = ""
    levels: tuple[int, ...] = ()
    act: str = ""
    family: str = ""
    config: Mapping[str, str] = field(default_factory=dict)
    accuracy: str = ""
    capped: bool = True

    @property
    def executed(self) -> int | None:
        """Passes over N bits that the kernel makes; None if no kernel counts bits here."""
        rows = self._kernel_rows()
        return rows[0]["passes"] if rows else None

    def kernels(self) -> list[str]:
        """Names of this machine's kernels of the family, for its best instruction set."""
        rows = self._kernel_rows()
        return [row["name"] for row in rows if row["isa"] == rows[0]["isa"]]

    def _kernel_rows(self) -> list[dict[str, Any]]:
        if self.kind != "codes":
            return []
        codes = np.array(WEIGHTS[self.weight], np.int8)
        return [row for row in _core.kernels_for(codes, self.act) if row["family"] == self.family]

    def why_missing(self) -> str:
        """Say why no kernel runs it here."""
        levels = "{" + ", ".join(map(str, self.levels)) + "}"
        return (
            f"no {self.family} kernel here runs {self.weight} weights with activations {levels} "
            f"(act {self.act!r})"
        )


_TERNARY = {"weight": "fatnn", "act": "ternary"}
_UINT2 = {"weight": "fatnn", "act": "uint2"}


def _ternary(title: str, family: str, passes: int | None = None) -> Rung:
    levels = (0, 1, 2)
    return Rung(
        title,
        "codes",
        "ternary",
        "ternary",
        passes,
        "ternary",
        levels,
        "half",
        family,
        _TERNARY,
        "fatnn",
    )


def _uint2(title: str, family: str, passes: int | None = None) -> Rung:
    levels = (0, 1, 2, 3)
    return Rung(
        title,
        "codes",
        "ternary",
        "2 bits",
        passes,
        "ternary",
        levels,
        "uint2",
        family,
        _UINT2,
        "fatnn-uint2",
    )


#: Rungs that others are compared with.
FLOAT32, INT8, POPCOUNT = "float32", "int8", "ternary-popcount"

#: Name → rung, from the most bits to the fewest.
RUNGS: dict[str, Rung] = {
    FLOAT32: Rung("float32", "float32", "32 bits", "32 bits", accuracy="float", capped=False),
    INT8: Rung("int8", "int8", "8 bits", "8 bits"),
    "dorefa-popcount": Rung(
        "2-bit weights, 2-bit activations (DoReFa), popcount",
        "codes",
        "2 bits",
        "2 bits",
        4,
        "two-bit",
        (0, 1, 2, 3),
        "uint2",
        "popcount",
        {"weight": "dorefa", "act": "uint2"},
        "dorefa",
    ),
    "uint2-popcount": _uint2("ternary weights, 2-bit activations, popcount", "popcount", 2),
    "uint2-table": _uint2("ternary weights, 2-bit activations, product table", "table"),
    "uint2-matrix": _uint2("ternary weights, 2-bit activations, matrix unit", "matrix"),
    POPCOUNT: _ternary("ternary (FATNN), popcount", "popcount", 2),
    "ternary-table": _ternary("ternary (FATNN), product table", "table"),
    "ternary-matrix": _ternary("ternary (FATNN), matrix unit", "matrix"),
    "ternary-binary": Rung(
        "ternary weights, binary activations, popcount",
        "codes",
        "ternary",
        "binary",
        1,
        "ternary",
        (0, 1),
        "binary",
        "popcount",
        {"weight": "fatnn", "act": "binary"},
    ),
    "binary": Rung(
        "binary, popcount",
        "codes",
        "binary",
        "binary",
        1,
        "binary",
        (0, 1),
        "binary",
        "popcount",
        {"weight": "binary", "act": "binary"},
        "binary",
    ),
}
