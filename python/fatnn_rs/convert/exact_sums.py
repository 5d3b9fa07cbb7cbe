"""Sums that are exact in any order, because they add multiples of few steps.

The engine and torch add in different orders, so a sum of arbitrary floats stays in torch. After
``fake_quantize``, values are codes times a step, and both have few bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.operations import form_of

__all__ = ["exact_sums"]

#: Bits of a float32 and of a float64 number.
_FLOAT32, _FLOAT64 = 24, 53

#: Largest number of elements that a mean in float64 may sum. Sizes may differ from the example's.
_MAX_COUNT = 1 << 32


@dataclass(frozen=True)
class _Multiples:
    """Values that are integer multiples of ``unit``, a power of two, and at most ``largest``."""

    unit: float
    largest: float

    def has_exact_sum(self, count: int, bits: int) -> bool:
        """Whether a sum of ``count`` values needs at most ``bits`` bits in every order."""
        return count * self.largest <= self.unit * 2.0**bits


def _of_quantizer(node: Node) -> _Multiples:
    step = float(np.float32(node.attrs["step_size"]))
    numerator, denominator = step.as_integer_ratio()
    # The lowest set bit of the step.
    unit = (numerator & -numerator) / denominator
    return _Multiples(unit, max(-node.attrs["low"], node.attrs["high"]) * step)


def _joined(parts: list[_Multiples]) -> _Multiples:
    return _Multiples(min(p.unit for p in parts), max(p.largest for p in parts))


def exact_sums(graph: Graph) -> set[str]:
    """Return the names of means and average pools that are the same in every order of additions."""
    known: dict[str, _Multiples] = {}
    found: set[str] = set()
    for node in graph.nodes:
        if node.op == "fake_quantize":
            known[node.name] = _of_quantizer(node)
            continue
        parts = [known[name] for name in node.inputs if name in known]
        if not parts or len(parts) != len(node.inputs):
            continue
        values = _joined(parts)
        if node.op == "relu" or form_of(node.op) in ("shape", "select", "pool"):
            known[node.name] = values
        elif (limits := _limits(node)) is not None and values.has_exact_sum(*limits):
            found.add(node.name)
    return found


def _limits(node: Node) -> tuple[int, int] | None:
    """Return how many elements a node sums, and in how many bits; None if it sums nothing."""
    if node.op == "mean" and node.attrs.get("float64"):
        return _MAX_COUNT, _FLOAT64
    if node.op in ("avg_pool1d", "avg_pool2d"):
        return math.prod(node.attrs["kernel"]), _FLOAT32
    return None
