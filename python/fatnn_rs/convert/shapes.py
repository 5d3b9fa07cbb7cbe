"""Which values have one shape in every run: the core's shape rules on sizes that inputs leave free.

Equal shapes at the example prove little: a parameter of shape [1, C, H, W] equals a map at batch 1
only, a mean that keeps its dimensions equals a map of one pixel only.
"""

from __future__ import annotations

import json
from typing import Any

from fatnn_rs import _core
from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.operations import OPERATIONS

__all__ = ["Shape", "run_time_shapes", "same_shape"]

#: Sizes: numbers, and negative numbers for sizes that differ between runs. Equal ones are equal in every run.
Shape = tuple[int, ...]


def _described(node: Node) -> dict[str, Any]:
    """Describe a node to the core; what only a conversion knows has the shape of what it becomes, or its own."""
    op, attrs = node.op, node.attrs
    if op == "act_quant":
        op = "quantize"
    elif op == "ternary":
        op, attrs = "conv_float", {**attrs, "relu": False}
    if op not in OPERATIONS:
        attrs = {}
    return {
        "name": node.name,
        "op": op,
        "inputs": node.inputs,
        "attrs": {key: value for key, value in attrs.items() if key != "layers"},
        "tensors": node.tensors,
        "shape": list(node.shape),
    }


def run_time_shapes(graph: Graph) -> dict[str, Shape]:
    """Find every value's shape; of codes, that of the values they stand for.

    Returns
    -------
    dict
        By name of the value.
    """
    described = json.dumps(
        {"nodes": [_described(node) for node in graph.nodes], "outputs": {"list": []}}
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in graph.tensors.items()}
    return {
        name: tuple(sizes) for name, sizes in _core.shapes_in_every_run(described, shapes).items()
    }


def same_shape(graph: Graph, node: Node, shapes: dict[str, Shape] | None = None) -> bool:
    """Whether all values that a node reads have one shape in every run, so that nothing is broadcast."""
    shapes = run_time_shapes(graph) if shapes is None else shapes
    return len({shapes[name] for name in node.inputs}) == 1
