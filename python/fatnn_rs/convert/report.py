"""The :class:`~fatnn_rs.report.Report` of a graph in memory."""

from __future__ import annotations

from collections.abc import Container, Iterable

from fatnn_rs.convert.graph import Graph
from fatnn_rs.report import NotFused, Report, ReportRow, macs, packed_weight_bytes, runs

__all__ = ["Report", "ReportRow", "make_report"]


def make_report(
    graph: Graph, in_engine: Container[str] = (), not_fused: Iterable[tuple[str, str, str]] = ()
) -> Report:
    """Describe every node of a graph but its inputs.

    ``in_engine``: names of those in the engine's segments; ``not_fused``: what these say of
    themselves.
    """
    rows, index = [], graph.index()
    for node in graph.nodes:
        if node.op == "input":
            continue
        weight = graph.tensor(node, "weight")
        shape = None if weight is None else tuple(weight.shape)
        read = index[node.inputs[0]].shape if node.inputs else ()
        rows.append(
            ReportRow(
                name=node.layer or node.name,
                op=f"torch: {node.attrs['target']}" if node.op == "torch" else node.op,
                runs=runs(node.op, node.name in in_engine),
                shape=node.shape,
                macs=macs(node.op, node.shape, shape, read, node.attrs.get("input_products")),
                packed_bytes=packed_weight_bytes(
                    node.op, shape, "" if weight is None else graph.dtype(node, "weight")
                ),
                note=node.note,
            )
        )
    return Report(tuple(rows), tuple(graph.notes), tuple(NotFused(*found) for found in not_fused))
