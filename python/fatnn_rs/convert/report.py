"""Make the :class:`~fatnn_rs.report.Report` of a graph in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from fatnn_rs.convert.engine import Reason, Segment
from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.convert.schema import graph_to_json
from fatnn_rs.overview import Profile
from fatnn_rs.report import (
    RULES,
    NotFused,
    Report,
    ReportRow,
    macs,
    missing_operations,
    packed_weight_bytes,
    runs,
)

__all__ = ["Report", "ReportRow", "label", "make_report"]


def make_report(
    graph: Graph,
    parts: Sequence[Node | Segment] = (),
    why: Mapping[str, Reason] | None = None,
    profile: Profile | None = None,
) -> Report:
    """Describe every node of a graph except its inputs.

    Parameters
    ----------
    graph
        The graph to describe.
    parts
        Its segments and single nodes.
    why
        Node name → why it is in no segment.
    profile
        Measured times.
    """
    segments = [part for part in parts if isinstance(part, Segment)]
    inside = {node.name for segment in segments for node in segment.nodes}
    why, index = why or {}, graph.index()
    rows = []
    for node in graph.nodes:
        if node.op == "input":
            continue
        weight = graph.tensor(node, "weight")
        shape = None if weight is None else tuple(weight.shape)
        reads = [index[name].shape for name in node.inputs]
        where = runs(node.op, node.name in inside)
        rule, reason = why.get(node.name, ("", "")) if where == "torch" else ("", "")
        if is_tuple_item(node, index):
            rule, reason = "part", RULES["part"]
        rows.append(
            ReportRow(
                name=node.layer or node.name,
                op=label(node) if node.op != "torch" else f"torch: {label(node)}",
                runs=where,
                shape=node.shape,
                macs=node.macs or macs(node.op, node.shape, shape, reads, node.attrs),
                packed_bytes=packed_weight_bytes(
                    node.op, shape, "" if weight is None else graph.dtype(node, "weight")
                ),
                note=node.note,
                rule=rule,
                reason=reason,
            )
        )
    not_fused = [NotFused(*found) for segment in segments for found in segment.network.not_fused]
    return Report(
        tuple(rows),
        tuple(graph.notes),
        tuple(not_fused),
        segments=len(segments),
        cuts=_cuts(parts, index),
        missing=missing_from_engine(graph),
        outputs=_unsaveable_outputs(graph),
        profile=profile,
    )


def label(node: Node) -> str:
    """Return a node's operation, or the function that a torch node calls."""
    return str(node.attrs["target"]) if node.op == "torch" else node.op


def is_tuple_item(node: Node, index: Mapping[str, Node]) -> bool:
    """Whether a node only takes one of a torch node's several results."""
    return (
        node.op == "torch"
        and node.attrs["target"] == "getitem"
        and len(node.inputs) == 1
        and index[node.inputs[0]].op == "torch"
    )


def missing_from_engine(graph: Graph) -> dict[str, int]:
    """Count, by name, the operations that keep a graph from running without torch."""
    index = graph.index()
    return missing_operations(
        (label(node), json.dumps(node.attrs), [index[name].shape for name in node.inputs])
        if node.op != "torch"
        else (label(node), None, [])
        for node in graph.nodes
        if not is_tuple_item(node, index)
    )


def _cuts(parts: Sequence[Node | Segment], index: Mapping[str, Node]) -> dict[str, int]:
    """Count, for each operation, the gaps between segments that contain it."""
    cuts: Counter[str] = Counter()
    gap: set[str] | None = None  # None before the first segment
    for part in parts:
        if isinstance(part, Segment):
            cuts.update(sorted(gap or ()))
            gap = set()
        elif gap is not None and not is_tuple_item(part, index):
            gap.add(label(part))
    return dict(cuts)


def _unsaveable_outputs(graph: Graph) -> str:
    try:
        graph_to_json(graph)
    except TypeError as error:
        return str(error)
    return ""
