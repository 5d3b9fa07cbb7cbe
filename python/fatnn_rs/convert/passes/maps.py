"""Interpolation and ``depth_to_space``: shared sizes, and quantizers moved before them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fatnn_rs import _core
from fatnn_rs.convert.graph import Graph, Node, refs
from fatnn_rs.convert.lower.transposed import repeat_channels
from fatnn_rs.convert.shapes import run_time_shapes
from fatnn_rs.operations import makes_codes

__all__ = [
    "blocks_after",
    "on_codes",
    "quantize_before_nearest",
    "reduce_blocks",
    "repeat_channels",
    "share_map_sizes",
]


def share_map_sizes(graph: Graph) -> None:
    """Let interpolations take their size from an equally large value that others read anyway.

    A value with an additional reader cannot be fused into its other reader.
    """
    interpolations = [
        node
        for node in graph.nodes
        if node.op.startswith("interpolate_") and not makes_codes(node.op) and len(node.inputs) > 1
    ]
    if not interpolations:
        return
    shapes, users, index = run_time_shapes(graph), graph.users(), graph.index()
    returned = {ref.name for ref in refs(graph.outputs)}
    for node in interpolations:
        source = node.inputs[1]
        wanted = shapes[source]
        for other in graph.nodes:
            if other is node:
                break
            found = shapes[other.name]
            if len(found) != len(wanted) or found[2:] != wanted[2:]:
                continue
            others = len(users[other.name]) > 1 or other.name in returned or other.op == "input"
            if others and index[other.name].dtype == "float32" and not makes_codes(other.op):
                node.inputs[1] = other.name
                break


def commutes_with_quantizer(index: Mapping[str, Node], node: Node) -> bool:
    """Whether an operation only moves pixels, so that they may be quantized before it."""
    if node.op == "depth_to_space":
        return bool(node.attrs["mode"] == "DCR")
    if node.op != "interpolate_nearest":
        return False
    shapes = [index[name].shape for name in node.inputs]
    return _core.engine_refusal(node.op, json.dumps(node.attrs), shapes) is None


def _reads_layout(step: Node) -> bool:
    """Whether the memory format of the floats may decide which pixels torch takes."""
    return step.op == "interpolate_nearest" and any(f % 1 for f in step.attrs["factors"])


def on_codes(step: Node, source: Node, name: str) -> Node:
    """Return a node that does to codes what ``step`` does to floats."""
    dtype: Any = source.dtype
    if step.op == "depth_to_space":
        height, width = step.attrs["block"]
        pixels = height * width
        dtype = {
            **dtype,
            "channels": dtype["channels"] // pixels,
            "groups": dtype["groups"] // pixels,
        }
    return Node(
        name,
        f"{step.op}_codes",
        [source.name, *step.inputs[1:]],
        {key: value for key, value in step.attrs.items() if key != "layout" or _reads_layout(step)},
        layer=step.layer,
        shape=step.shape,
        dtype=dtype,
    )


def quantize_before_nearest(graph: Graph) -> None:
    """Move quantizers before nearest interpolation: there are fewer values to quantize."""
    for node in [node for node in graph.nodes if node.op == "act_quant"]:
        while True:
            index, users = graph.index(), graph.users()
            step = index[node.inputs[0]]
            if (
                step.op != "interpolate_nearest"
                or len(users[step.name]) > 1
                or not commutes_with_quantizer(index, step)
            ):
                break
            name = node.name
            small = graph.fresh_name(f"{name}_small")
            node.inputs, node.shape = [step.inputs[0]], index[step.inputs[0]].shape
            graph.nodes.remove(node)
            graph.nodes[graph.nodes.index(step)] = node
            node.name = small
            made = on_codes(step, node, name)
            graph.nodes.insert(graph.nodes.index(node) + 1, made)


def blocks_after(reader: Node | None) -> Node | None:
    """Return ``reader`` if it is the ``depth_to_space`` of a transposed convolution, or None."""
    fits = reader is not None and reader.op == "depth_to_space" and reader.attrs["mode"] == "DCR"
    return reader if fits else None


def reduce_blocks(values: Tensor, blocks: Node, largest: bool) -> Tensor:
    """Return each channel's minimum or maximum over the pixels of a block."""
    height, width = blocks.attrs["block"]
    parts = values.reshape(blocks.attrs["groups"], height * width, -1)
    return (parts.amax(1) if largest else parts.amin(1)).flatten()
