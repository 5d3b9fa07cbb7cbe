"""Shapes with dynamic sizes, by the core's shape rules: which values always have equal shapes.

Equal shapes at the example are not enough. A parameter of shape [1, C, H, W] has a map's shape only
at batch 1; a mean that keeps its dimensions has it only at one pixel.
"""

from __future__ import annotations

import json
from typing import Any

from fatnn_rs import _core
from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.operations import OPERATIONS

__all__ = ["Shape", "run_time_shapes", "same_shape"]

#: Sizes; a negative number stands for a size that differs between runs. Equal numbers stand for
#: sizes that are equal in every run.
Shape = tuple[int, ...]


def _described(node: Node) -> dict[str, Any]:
    """Describe a node to the core, with intermediate operations as what they become."""
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
    """Compute every value's shape; for codes, that of the values they stand for.

    Returns
    -------
    dict
        Name of a value → its shape.
    """
    described = json.dumps(
        {"nodes": [_described(node) for node in graph.nodes], "outputs": {"list": []}}
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in graph.tensors.items()}
    return {
        name: tuple(sizes) for name, sizes in _core.shapes_in_every_run(described, shapes).items()
    }


def same_shape(graph: Graph, node: Node, shapes: dict[str, Shape] | None = None) -> bool:
    """Whether all inputs of a node have equal shapes in every run, so nothing is broadcast."""
    shapes = run_time_shapes(graph) if shapes is None else shapes
    return len({shapes[name] for name in node.inputs}) == 1
