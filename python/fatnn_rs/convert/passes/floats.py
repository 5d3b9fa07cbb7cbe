"""Lower ternary layers with float results, and quantizers of float values.

A ternary layer becomes ``conv_float``. Its epilogue takes as many of the float functions after it
(scale, bias, BatchNorm) as one fused multiply-add reproduces bit for bit
(:mod:`fatnn_rs.convert.fma`), then a residual addition, then a ReLU. The rest stays in torch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from torch import Tensor

from fatnn_rs.convert.fma import sample, single_fma
from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.convert.levels import ACT_LEVELS
from fatnn_rs.convert.passes import maps
from fatnn_rs.convert.passes.edit import GraphEdit
from fatnn_rs.convert.shapes import Shape, run_time_shapes, same_shape
from fatnn_rs.convert.thresholds import accumulator_range
from fatnn_rs.convert.torch_ops import bind
from fatnn_rs.convert.torch_ops.floats import FLOAT_OPS

__all__ = ["lower_rest"]


def lower_rest(graph: Graph) -> None:
    """Replace every remaining ``ternary`` and ``act_quant`` node."""
    edit = GraphEdit(graph)
    # Fusing a node into a layer changes neither the name nor the shape of its value.
    shapes = functools.cache(lambda: run_time_shapes(graph))
    for node in [node for node in graph.nodes if node.op == "ternary"]:
        _lower_layer(edit, node, shapes)
    edit.finish()
    for node in graph.nodes:
        if node.op == "act_quant":
            node.op, node.call = "quantize", None
            node.layer = ", ".join(node.attrs.pop("layers"))


def _affine_after(edit: GraphEdit, node: Node) -> list[Node]:
    """Return the chain of affine nodes after ``node``, each the only reader of the previous."""
    found: list[Node] = []
    reader = edit.only_reader(node.name)
    while reader is not None and reader.op in FLOAT_OPS and FLOAT_OPS[reader.op].affine:
        found.append(reader)
        reader = edit.only_reader(reader.name)
    return found


def _compose(graph: Graph, nodes: list[Node]) -> Callable[[Tensor], Tensor]:
    stages = [bind(graph, node) for node in nodes]

    def run(x: Tensor) -> Tensor:
        for stage in stages:
            x = stage(x)
        return x

    return run


#: Number of points at which a function is tried first.
_FEW = 16


def _find_epilogue(
    graph: Graph, node: Node, tail: list[Node], blocks: Node | None
) -> tuple[list[Node], dict[str, Tensor]]:
    """Find the longest prefix of ``tail`` that one fused multiply-add reproduces, and its factors.

    Parameters
    ----------
    node
        The ternary product.
    tail
        Affine nodes after it.
    blocks
        The ``depth_to_space`` between them, or None. All pixels of a block share the factors of
        their channel.

    Returns
    -------
    tuple
        The fused nodes, and the tensors: role (``"scale"`` or ``"bias"``) → values.
    """
    if not tail:
        return [], {}
    weight = graph.tensors[node.tensors["weight"]]
    low, high = accumulator_range(weight, ACT_LEVELS[node.attrs["act"]])
    if blocks is not None:
        low, high = maps.reduce_blocks(low, blocks, False), maps.reduce_blocks(high, blocks, True)
    few, points = sample(low, high, _FEW), None
    for length in range(len(tail), 0, -1):
        function, dims = _compose(graph, tail[:length]), node.attrs["dims"]
        if single_fma(function, few, dims) is None:  # most wrong pairs show at a few points
            continue
        points = sample(low, high) if points is None else points
        pair = single_fma(function, points, dims)
        if pair is None:
            continue
        named = {"scale": pair[0]} if pair[1] is None else {"scale": pair[0], "bias": pair[1]}
        if blocks is not None:
            named = {
                role: maps.repeat_channels(values, blocks.attrs) for role, values in named.items()
            }
        return tail[:length], named
    return [], {}


def _lower_layer(edit: GraphEdit, node: Node, shapes: Callable[[], dict[str, Shape]]) -> None:
    graph, blocks = edit.graph, maps.blocks_after(edit.only_reader(node.name))
    tail = _affine_after(edit, blocks or node)
    fused, factors = _find_epilogue(graph, node, tail, blocks)
    residual: list[str] = []
    relu = False
    if len(fused) < len(tail):
        left = ", ".join(step.op for step in tail[len(fused) :])
        node.note = f"{left} stays in torch: one fused multiply-add does not reproduce it"
    last = fused[-1] if fused else (blocks or node)
    reader = edit.only_reader(last.name)
    adds = blocks is None and reader is not None and reader.op == "add"
    if adds and reader is not None and _same_shapes(graph, reader, shapes()):
        residual = [name for name in reader.inputs if name != last.name]
        fused.append(reader)
        last, reader = reader, edit.only_reader(reader.name)
    if reader is not None and reader.op == "relu":
        relu = True
        fused.append(reader)
        last = reader
    name, shape = (last.name, last.shape) if blocks is None else (node.name, node.shape)
    made = Node(name, "conv_float", node.inputs + residual, {**node.attrs, "relu": relu})
    made.layer, made.shape = node.layer, shape
    layers = [step.layer or step.op for step in fused if step.layer != node.layer]
    made.note = "; ".join(
        note
        for note in (f"epilogue holds {', '.join(layers)}" if layers else "", node.note)
        if note
    )
    weight, dtype = graph.tensors[node.tensors["weight"]], graph.dtype(node, "weight")
    made.tensors = {"weight": graph.add_tensor(f"{node.layer}.codes", weight, dtype, own=True)}
    for role, tensor in factors.items():
        made.tensors[role] = graph.add_tensor(f"{node.layer}.{role}", tensor)
    if blocks is None:
        edit.replace((node, *fused), last, [made])
    else:
        moved = dataclasses.replace(blocks, name=last.name)
        edit.replace((node, blocks, *fused), last, [made, moved])


def _same_shapes(graph: Graph, add: Node, shapes: dict[str, Shape]) -> bool:
    """Whether an addition has two different operands that never broadcast."""
    left, right = add.inputs
    return left != right and same_shape(graph, add, shapes)
