"""Strides of views whose memory is not dense, such as a slice.

Most values have a memory format that a node's ``layout`` names. A slice or an expanded tensor has
none: its strides come from the tensor that it views. If a function whose bits depend on strides
reads such a view, the view gets the ``layout`` of that tensor and runs in torch.
"""

from __future__ import annotations

from collections.abc import Container

from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.operations import OPERATIONS, form_of

__all__ = ["is_view", "keep_strides"]


def is_view(node: Node) -> bool:
    """Whether a node's result may share the memory of its first input."""
    return form_of(node.op) == "shape" and (len(node.inputs) == 1 or "layout" in node.attrs)


def keep_strides(graph: Graph, layouts: dict[str, str], composed: Container[str]) -> set[str]:
    """Mark the views on which the bits of another node depend.

    Parameters
    ----------
    graph
        Changed in place.
    layouts
        Value name → memory format in the model, of the values that the model has, too.
    composed
        Names of the results of compositions.

    Returns
    -------
    set[str]
        Results of compositions whose strides in the model matter: these calls cannot be composed,
        because other operations give other strides.
    """
    index, found = graph.index(), set[str]()
    for node in graph.nodes:
        row = OPERATIONS.get(node.op)
        if node.op == "input" or (row is not None and row.exactness == "exact"):
            continue
        for name in node.inputs:
            if layouts.get(name) == "any":
                found |= _mark(index[name], index, layouts, composed)
    return found


def _mark(
    node: Node, index: dict[str, Node], layouts: dict[str, str], composed: Container[str]
) -> set[str]:
    """Give the view that made a value the memory format of the tensor that it views.

    Returns the name of the composition's result that it views instead, if any.
    """
    while node.name not in composed and form_of(node.op) == "shape":
        source = node.inputs[0]
        layout = layouts.get(source, "any")
        if layout != "any":
            if "layout" in OPERATIONS[node.op].attrs:
                node.attrs["layout"] = "|".join([layout, *["any"] * (len(node.inputs) - 1)])
            return set()
        node = index[source]
    return {node.name} if node.name in composed else set()
