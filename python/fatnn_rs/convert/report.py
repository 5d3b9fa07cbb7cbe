"""What a converted network runs where, and why: :class:`Report`."""

from __future__ import annotations

import json
import math
from collections.abc import Container
from dataclasses import asdict, dataclass

from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.convert.ops_code import CODE_OPS
from fatnn_rs.convert.table import render

__all__ = ["Report", "ReportRow", "macs", "make_report", "packed_weight_bytes"]

#: Trits in a byte of the file.
TRITS = 5

#: Convolutions and linear layers on codes.
_TERNARY = ("conv_codes", "conv_float")


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
        ``"rust codes -> codes"``, ``"rust codes -> float"``, ``"rust float -> codes"``, ``"rust float -> float"`` (in a
        segment of the engine) or ``"torch"``.
    shape
        Of the result at the example inputs.
    macs
        Multiply-accumulates per example batch.
    packed_bytes
        Of its ternary weights in a file.
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
class Report:
    """A converted network, node by node. Print it, or take ``to_json()``."""

    rows: tuple[ReportRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def layers_ternary(self) -> int:
        """Convolutions and linear layers that run on codes."""
        return sum(row.op in _TERNARY for row in self.rows)

    @property
    def bytes_packed(self) -> int:
        """Bytes of all ternary weights in a file."""
        return sum(row.packed_bytes for row in self.rows)

    @property
    def macs_ternary(self) -> int:
        """Multiply-accumulates on codes."""
        return sum(row.macs for row in self.rows if row.op in _TERNARY)

    @property
    def macs_float(self) -> int:
        """Multiply-accumulates in float layers that the conversion knows."""
        return sum(row.macs for row in self.rows if row.op not in _TERNARY)

    @property
    def unsaveable(self) -> tuple[str, ...]:
        """Names of the torch nodes that a file cannot hold."""
        return tuple(row.name for row in self.rows if row.op.startswith("torch: "))

    def to_json(self) -> str:
        """Return the whole report as JSON."""
        return json.dumps({**asdict(self), "macs_ternary": self.macs_ternary, "macs_float": self.macs_float}, indent=2)

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
        table = render(["node", "op", "runs", "shape", "MACs", "bytes", "note"], cells, right=(4, 5))
        lines = [
            table,
            f"{self.layers_ternary} ternary layers: {self.macs_ternary:,} of {self.macs_ternary + self.macs_float:,} "
            f"MACs; ternary weights take {self.bytes_packed:,} bytes",
        ]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def _runs(node: Node, in_engine: bool) -> str:
    row = CODE_OPS.get(node.op)
    if row is None:
        return "rust float -> float" if in_engine else "torch"
    return f"rust {'codes' if row.takes_codes else 'float'} -> {'codes' if row.makes_codes else 'float'}"


def macs(graph: Graph, node: Node) -> int:
    """Multiply-accumulates of a convolution or linear layer at the example's shape; 0 for anything else."""
    weight = graph.tensor(node, "weight")
    if node.op not in ("conv_codes", "conv_float", "conv1d", "conv2d", "linear") or weight is None:
        return 0
    return math.prod(node.shape) * math.prod(weight.shape[1:])


def packed_weight_bytes(graph: Graph, node: Node) -> int:
    """Bytes of a node's ternary weights, five to a byte."""
    weight = graph.tensor(node, "weight")
    return 0 if node.op not in ("conv_codes", "conv_float") or weight is None else -(-weight.numel() // TRITS)


def make_report(graph: Graph, in_engine: Container[str] = ()) -> Report:
    """Describe every node of a graph but its inputs; ``in_engine``: names of those in the engine's segments."""
    rows = [
        ReportRow(
            name=node.layer or node.name,
            op=f"torch: {node.attrs['target']}" if node.op == "torch" else node.op,
            runs=_runs(node, node.name in in_engine),
            shape=node.shape,
            macs=macs(graph, node),
            packed_bytes=packed_weight_bytes(graph, node),
            note=node.note,
        )
        for node in graph.nodes
        if node.op != "input"
    ]
    return Report(tuple(rows), tuple(graph.notes))
