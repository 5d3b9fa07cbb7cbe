"""What a converted network runs where, and why: :class:`Report`. Needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fatnn_rs import _core
from fatnn_rs.operations import OPERATIONS, products_of
from fatnn_rs.table import render

__all__ = ["NotFused", "Report", "ReportRow", "macs", "packed_weight_bytes", "runs"]

#: Layers that a line about what was not fused names.
NAMED = 4


@dataclass(frozen=True)
class ReportRow:
    """One node.

    Attributes
    ----------
    name
        The layer it came from, or the node's own name.
    op
        What it does.
    runs
        ``"rust codes -> codes"``, ``"rust codes -> float"``, ``"rust float -> codes"``, ``"rust
        float -> float"`` (in a segment of the engine) or ``"torch"``.
    shape
        Of the result at the example inputs.
    macs
        Multiply-accumulates per example batch.
    packed_bytes
        Of its ternary, two-bit or int8 weights in a file.
    note
        What was fused, or why it runs as it does.
    """

    name: str
    op: str
    runs: str
    shape: tuple[int, ...]
    macs: int
    packed_bytes: int
    note: str


@dataclass(frozen=True)
class NotFused:
    """A layer that the engine runs on its own, where it could run inside another.

    Attributes
    ----------
    layer
        The layer, or the node's own name.
    rewrite
        Name of the engine's rewrite: ``"fuse_elementwise"``, ``"fuse_max_pool"``,
        ``"fuse_bounds"``, ``"fuse_shortcut"`` or ``"fuse_quantizer"``.
    reason
        Why, as what follows "because".
    """

    layer: str
    rewrite: str
    reason: str


@dataclass(frozen=True)
class Report:
    """A converted network, node by node. Print it, or take ``to_json()``."""

    rows: tuple[ReportRow, ...]
    notes: tuple[str, ...] = ()
    not_fused: tuple[NotFused, ...] = ()

    def _multiplying(self, what: str) -> list[ReportRow]:
        return [row for row in self.rows if products_of(row.op) == what]

    @property
    def layers_ternary(self) -> int:
        """Convolutions and linear layers that run on codes."""
        return len(self._multiplying("codes"))

    @property
    def bytes_packed(self) -> int:
        """Bytes of all weights of layers on codes in a file."""
        return sum(row.packed_bytes for row in self._multiplying("codes"))

    @property
    def layers_int8(self) -> int:
        """Convolutions and linear layers that run on 8-bit integers."""
        return len(self._multiplying("int8"))

    @property
    def bytes_int8(self) -> int:
        """Bytes of all int8 weights in a file."""
        return sum(row.packed_bytes for row in self._multiplying("int8"))

    @property
    def macs_ternary(self) -> int:
        """Multiply-accumulates on codes."""
        return sum(row.macs for row in self._multiplying("codes"))

    @property
    def macs_float(self) -> int:
        """Multiply-accumulates in float layers that the conversion knows."""
        return sum(row.macs for row in self._multiplying("float"))

    @property
    def macs_int8(self) -> int:
        """Multiply-accumulates on 8-bit integers."""
        return sum(row.macs for row in self._multiplying("int8"))

    @property
    def unsaveable(self) -> tuple[str, ...]:
        """Names of the torch nodes that a file cannot hold."""
        return tuple(row.name for row in self.rows if row.op.startswith("torch: "))

    def to_json(self) -> str:
        """Return the whole report as JSON."""
        macs = {
            "macs_ternary": self.macs_ternary,
            "macs_int8": self.macs_int8,
            "macs_float": self.macs_float,
        }
        return json.dumps({**asdict(self), **macs}, indent=2)

    def __str__(self) -> str:
        cells = [
            [
                row.name,
                row.op,
                row.runs,
                "x".join(map(str, row.shape)),
                f"{row.macs:,}" if row.macs else "",
                f"{row.packed_bytes:,}" if row.packed_bytes else "",
                row.note,
            ]
            for row in self.rows
        ]
        table = render(
            ["node", "op", "runs", "shape", "MACs", "bytes", "note"], cells, right=(4, 5)
        )
        total = self.macs_ternary + self.macs_int8 + self.macs_float
        lines = [
            table,
            f"{self.layers_ternary} ternary layers: {self.macs_ternary:,} of {total:,} MACs; ternary weights take "
            f"{self.bytes_packed:,} bytes",
        ]
        if self.layers_int8:
            lines.append(
                f"{self.layers_int8} int8 layers: {self.macs_int8:,} of {total:,} MACs; int8 weights take "
                f"{self.bytes_int8:,} bytes"
            )
        together: dict[tuple[str, str], list[str]] = {}
        for found in self.not_fused:
            together.setdefault((found.rewrite, found.reason), []).append(found.layer)
        for (rewrite, reason), layers in together.items():
            more = f" and {len(layers) - NAMED} more" if len(layers) > NAMED else ""
            lines.append(
                f"not fused: {', '.join(layers[:NAMED])}{more} ({rewrite}), because {reason}"
            )
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def runs(op: str, in_engine: bool) -> str:
    """Who runs an operation, and what it reads and makes; ``in_engine``: whether the engine has a float operation."""
    row = OPERATIONS.get(op)
    if row is not None and (row.reads_codes or row.makes_codes):
        return f"rust {row.signature}"
    return "rust float -> float" if in_engine else "torch"


def macs(
    op: str,
    shape: Sequence[int],
    weight: Sequence[int] | None,
    read: Sequence[int],
    input_products: int | None,
) -> int:
    """Multiply-accumulates of a convolution or linear layer; 0 for anything else.

    Parameters
    ----------
    shape, weight, read
        Shapes of its result, of its weight and of what it reads.
    input_products
        Its attribute of that name: products per element that it reads.
    """
    return _core.macs(op, shape, weight, read, input_products) if op in OPERATIONS else 0


def packed_weight_bytes(op: str, weight: Sequence[int] | None, dtype: str) -> int:
    """Bytes in a file of weights of such a shape and type, where they are codes or int8."""
    if weight is None or products_of(op) not in ("codes", "int8"):
        return 0
    return _core.file_bytes(dtype, math.prod(weight))
