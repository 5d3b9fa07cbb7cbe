"""Remove unread nodes, and compute equal values once."""

from __future__ import annotations

import torch

from fatnn_rs.convert.graph import Graph, Node, refs
from fatnn_rs.operations import form_of

__all__ = ["drop_unread", "share_leading_shapes", "share_quantizers"]


def drop_unread(graph: Graph) -> None:
    """Remove unread nodes and unused tensors; inputs and assertions stay."""
    read = {ref.name for ref in refs(graph.outputs)}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        asserts = node.op == "torch" and "assert" in str(node.attrs["target"])
        if node.op == "input" or node.name in read or asserts:
            kept.append(node)
            read.update(node.inputs)
    graph.nodes = kept[::-1]
    named = {name for node in graph.nodes for name in node.tensors.values()}
    graph.tensors = {name: tensor for name, tensor in graph.tensors.items() if name in named}
    graph.dtypes = {name: dtype for name, dtype in graph.dtypes.items() if name in named}


def share_quantizers(graph: Graph) -> None:
    """Merge quantizers of one value that have equal thresholds and groups."""
    first: dict[tuple[object, ...], Node] = {}
    for node in list(graph.nodes):
        if node.op != "act_quant":
            continue
        steps = graph.tensors[node.tensors["steps"]]
        key = (
            node.inputs[0],
            tuple(steps.view(torch.int32).tolist()),
            node.attrs["groups"],
            node.attrs["act"],
        )
        other = first.setdefault(key, node)
        if other is not node:
            graph.rename_value(node.name, other.name)
            other.attrs["layers"] = other.attrs["layers"] + node.attrs["layers"]
            graph.nodes.remove(node)


def share_leading_shapes(graph: Graph) -> None:
    """Make a chain of linear layers over [..., C] take its leading sizes from its first input.

    Otherwise every layer's input would have two readers: one for its values, one for its shape.
    """
    nodes = graph.index()
    for node in graph.nodes:
        if node.op != "reshape_like":
            continue
        source = nodes[node.inputs[1]]
        while form_of(source.op) in ("scalar", "channel"):
            source = nodes[source.inputs[0]]
        if source.op == "reshape_like":
            node.inputs[1] = source.inputs[1]
