"""Which values have one shape whatever the inputs: sizes as expressions of the inputs' sizes.

Equal shapes at the example prove little: a parameter of shape [1, C, H, W] equals a map at batch 1 only, a mean that
keeps its dimensions equals a map of one pixel only. Here every size is a constant or an expression of the sizes of the
inputs that stay free, in a normal form, so that equal expressions are equal sizes in every run. What is not understood
gets a size of its own, equal to nothing else: two sizes may be equal and not be found so, never the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.operations import form_of

__all__ = ["Size", "run_time_shapes", "same_shape"]


@dataclass(frozen=True)
class Size:
    """``base + offset``; a constant where there is no base."""

    base: Any
    offset: int = 0


Shape = tuple[Size, ...]


def _constant(value: int) -> Size:
    return Size(None, int(value))


def _divided(size: Size, add: int, by: int) -> Size:
    """``floor((size + add) / by)``."""
    whole, rest = divmod(size.offset + add, by)
    if size.base is None or by == 1:
        return Size(size.base, whole)
    return Size(("floor", size.base, rest, by), whole)


def _window(size: Size, kernel: int, stride: int, padding: int, dilation: int) -> Size:
    """Size after a convolution or pool: ``floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1``."""
    made = _divided(size, 2 * padding - dilation * (kernel - 1) - 1, stride)
    return Size(made.base, made.offset + 1)


def _combined(kind: str, sizes: Shape) -> Size:
    """Sum or product of sizes."""
    function: Callable[[list[int]], int] = sum if kind == "sum" else math.prod
    if all(size.base is None for size in sizes):
        return _constant(function([size.offset for size in sizes]))
    return Size((kind, sizes))


def _slid(graph: Graph, node: Node, x: Shape) -> Shape:
    """Convolutions of floats, with float or int8 weights."""
    weight = graph.tensors[node.tensors["weight"]]
    a = node.attrs
    windows = zip(weight.shape[2:], a["stride"], a["padding"], a["dilation"], strict=True)
    spatial = (_window(size, *window) for size, window in zip(x[2:], windows, strict=True))
    return (x[0], _constant(weight.shape[0]), *spatial)


def _ternary(graph: Graph, node: Node, x: Shape) -> Shape:
    """Convolutions of codes; those of linear layers cover the map."""
    a, channels = node.attrs, _constant(graph.tensors[node.tensors["weight"]].shape[0])
    dims = a["dims"]
    if dims == 0:
        return (x[0], channels)
    windows = [list(zip(a["kernel"], a["stride"], a["padding"], a["dilation"], strict=True))[i] for i in range(2)]
    return (x[0], channels, *(_window(size, *window) for size, window in zip(x[2:], windows[-dims:], strict=True)))


def _pool(graph: Graph, node: Node, x: Shape) -> Shape:
    a, dims = node.attrs, len(x) - 2
    keys = [a["kernel"], a["stride"], a["padding"], a.get("dilation", [1] * len(a["kernel"]))]
    windows = list(zip(*keys, strict=True))[-dims:]
    made = []
    for axis, (size, (kernel, stride, padding, dilation)) in enumerate(zip(x[2:], windows, strict=True)):
        if not a["ceil_mode"]:
            made.append(_window(size, kernel, stride, padding, dilation))
        elif size.base is None:
            made.append(_constant(node.shape[2 + axis]))
        else:
            made.append(Size(("ceil", size, kernel, stride, padding, dilation)))
    return (*x[:2], *made)


def _adaptive(graph: Graph, node: Node, x: Shape) -> Shape:
    sizes = node.attrs["size"]
    return (*x[:2], *(_constant(want) if want else size for want, size in zip(sizes, x[2:], strict=True)))


def _mean(graph: Graph, node: Node, x: Shape) -> Shape:
    gone = {dim % len(x) for dim in node.attrs["dims"]}
    if node.attrs["keepdim"]:
        return tuple(_constant(1) if i in gone else size for i, size in enumerate(x))
    return tuple(size for i, size in enumerate(x) if i not in gone)


def _flatten(graph: Graph, node: Node, x: Shape) -> Shape:
    start, end = node.attrs["start"] % len(x), node.attrs["end"] % len(x)
    return (*x[:start], _combined("product", x[start : end + 1]), *x[end + 1 :])


def _pad(graph: Graph, node: Node, x: Shape) -> Shape:
    around, sizes = node.attrs["pad"], list(x)
    for i in range(len(around) // 2):
        size = sizes[-1 - i]
        sizes[-1 - i] = Size(size.base, size.offset + around[2 * i] + around[2 * i + 1])
    return tuple(sizes)


def _add(graph: Graph, node: Node, x: Shape, y: Shape) -> Shape | None:
    return x if x == y else None


def _cat(graph: Graph, node: Node, *values: Shape) -> Shape:
    dim = node.attrs["dim"] % len(values[0])
    sizes = list(values[0])
    sizes[dim] = _combined("sum", tuple(value[dim] for value in values))
    return tuple(sizes)


def _linear(graph: Graph, node: Node, x: Shape) -> Shape:
    return (*x[:-1], _constant(graph.tensors[node.tensors["weight"]].shape[0]))


def _like_first(graph: Graph, node: Node, x: Shape) -> Shape:
    return x


#: Operation → shape of its result from those of its inputs; None where it cannot say. Functions of
#: single elements and of channels, which are not here, keep the shape.
_RULES: dict[str, Callable[..., Shape | None]] = {
    "act_quant": _like_first,
    "quantize": _like_first,
    "conv1d": _slid,
    "conv2d": _slid,
    "conv1d_int8": _slid,
    "conv2d_int8": _slid,
    "ternary": _ternary,
    "conv_codes": _ternary,
    "conv_float": _ternary,
    "max_pool1d": _pool,
    "max_pool2d": _pool,
    "avg_pool1d": _pool,
    "avg_pool2d": _pool,
    "max_pool_codes": _pool,
    "adaptive_avg_pool1d": _adaptive,
    "adaptive_avg_pool2d": _adaptive,
    "linear": _linear,
    "linear_int8": _linear,
    "mean": _mean,
    "flatten": _flatten,
    "flatten_leading": lambda graph, node, x: (_combined("product", x[:-1]), x[-1]),
    "reshape_like": lambda graph, node, y, x: (*x[:-1], y[-1]),
    "pad": _pad,
    "add": _add,
    "cat": _cat,
    "constant": lambda graph, node: tuple(map(_constant, graph.tensors[node.tensors["value"]].shape)),
}


def _input(node: Node) -> Shape:
    """Sizes of an input: the batch and whatever else no call checks are free."""
    held = {*node.attrs["fixed"], node.attrs["channel_dim"] or -1}
    return tuple(_constant(size) if i in held else Size((node.name, i)) for i, size in enumerate(node.shape))


def _rule(op: str) -> Callable[..., Shape | None] | None:
    return _like_first if form_of(op) in ("scalar", "channel") else _RULES.get(op)


def run_time_shapes(graph: Graph) -> dict[str, Shape]:
    """Find every value's shape; of codes, that of the values they stand for.

    Returns
    -------
    dict
        By name of the value. Equal sizes are equal in every run.
    """
    shapes: dict[str, Shape] = {}
    for node in graph.nodes:
        made: Shape | None = None
        if node.op == "input":
            made = _input(node)
        elif (rule := _rule(node.op)) is not None:
            inputs = [shapes[name] for name in node.inputs]
            # The second value that a convolution reads is added to its result, which does not change its shape.
            try:
                made = rule(graph, node, *(inputs[:1] if node.op == "conv_float" else inputs))
            except (ArithmeticError, LookupError, TypeError, ValueError):
                made = None  # a graph from a file may be nonsense; whoever runs the node says so
        if made is None or len(made) != len(node.shape):
            made = tuple(Size((node.name, i)) for i in range(len(node.shape)))
        shapes[node.name] = made
    return shapes


def same_shape(graph: Graph, node: Node, shapes: dict[str, Shape] | None = None) -> bool:
    """Whether all values that a node reads have one shape in every run, so that nothing is broadcast."""
    shapes = run_time_shapes(graph) if shapes is None else shapes
    return len({shapes[name] for name in node.inputs}) == 1
