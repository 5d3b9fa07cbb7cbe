"""The float operations of a graph: one row each, run by torch's own functions.

A row's ``bind`` turns a node into a function of its input tensors. The same function is what a network runs and what
the conversion evaluates to find integer thresholds, and it is the function the eager module itself calls, so the bits
agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fatnn_rs.convert.graph import Node

__all__ = ["FLOAT_OPS", "FloatOp"]

Tensors = Mapping[str, Tensor]
Function = Callable[..., Any]


def _always(node: Node, tensors: Tensors) -> bool:
    return True


def _never(node: Node, tensors: Tensors) -> bool:
    return False


@dataclass(frozen=True)
class FloatOp:
    """One float operation.

    Attributes
    ----------
    bind
        Node and its tensors (by role) → function of the input tensors.
    attrs
        Name → type of what it needs: ``int``, ``float``, ``bool``, ``str``, or ``list`` of integers.
    tensors
        Role → whether it must be there; all are float32.
    inputs
        How many values it reads; None for one or more.
    kind
        ``"scalar"``: the same function of every element; ``"channel"``: one function per channel; ``"pool"``: maximum
        over windows; ``"shape"``: moves elements only; ``"other"``.
    rising
        For scalar and channel functions: whether it never decreases, in any channel.
    layout
        Whether the order of summation may depend on the memory format, so that the eager model's must be kept.
    """

    bind: Callable[[Node, Tensors], Function]
    attrs: Mapping[str, type] = field(default_factory=dict)
    tensors: Mapping[str, bool] = field(default_factory=dict)
    inputs: int | None = 1
    kind: str = "other"
    rising: Callable[[Node, Tensors], bool] = _never
    layout: bool = False


def _conv(function: Function) -> Callable[[Node, Tensors], Function]:
    def bind(node: Node, tensors: Tensors) -> Function:
        weight, bias, attrs = tensors["weight"], tensors.get("bias"), node.attrs
        padding = attrs["padding"]
        return lambda x: function(x, weight, bias, attrs["stride"], padding, attrs["dilation"], attrs["groups"])

    return bind


def _linear(node: Node, tensors: Tensors) -> Function:
    weight, bias = tensors["weight"], tensors.get("bias")
    return lambda x: functional.linear(x, weight, bias)


def _batch_norm(node: Node, tensors: Tensors) -> Function:
    mean, var = tensors["mean"], tensors["var"]
    weight, bias, eps = tensors.get("weight"), tensors.get("bias"), node.attrs["eps"]
    return lambda x: functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)


def _batch_norm_rises(node: Node, tensors: Tensors) -> bool:
    weight = tensors.get("weight")
    return weight is None or bool((weight >= 0).all())


def _hardtanh(node: Node, tensors: Tensors) -> Function:
    low, high = node.attrs["min_val"], node.attrs["max_val"]
    return lambda x: functional.hardtanh(x, low, high)


def _leaky_relu(node: Node, tensors: Tensors) -> Function:
    slope = node.attrs["negative_slope"]
    return lambda x: functional.leaky_relu(x, slope)


def _prelu(node: Node, tensors: Tensors) -> Function:
    weight = tensors["weight"]
    return lambda x: functional.prelu(x, weight)


def _prelu_rises(node: Node, tensors: Tensors) -> bool:
    return bool((tensors["weight"] >= 0).all())


def _channel_view(node: Node, values: Tensor) -> Tensor:
    return values.view(-1, *([1] * int(node.attrs["trailing"])))


def _channel_scale(node: Node, tensors: Tensors) -> Function:
    scale = _channel_view(node, tensors["scale"])
    return lambda x: x * scale


def _channel_bias(node: Node, tensors: Tensors) -> Function:
    bias = _channel_view(node, tensors["bias"])
    return lambda x: x + bias


def _max_pool(function: Function) -> Callable[[Node, Tensors], Function]:
    def bind(node: Node, tensors: Tensors) -> Function:
        a = node.attrs
        return lambda x: function(x, a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])

    return bind


def _max_pool2d(node: Node, tensors: Tensors) -> Function:
    """Pool with channels last, where torch is several times faster; a maximum is the same in every memory format."""
    pool = _max_pool(functional.max_pool2d)(node, tensors)
    return lambda x: pool(x.contiguous(memory_format=torch.channels_last))


def _avg_pool1d(node: Node, tensors: Tensors) -> Function:
    a = node.attrs
    return lambda x: functional.avg_pool1d(
        x, a["kernel"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"]
    )


def _avg_pool2d(node: Node, tensors: Tensors) -> Function:
    a = node.attrs
    divisor = a["divisor"] or None
    return lambda x: functional.avg_pool2d(
        x, a["kernel"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"], divisor
    )


def _adaptive(function: Function) -> Callable[[Node, Tensors], Function]:
    def bind(node: Node, tensors: Tensors) -> Function:
        # Zero stands for "as the input" (None in torch).
        size = [value or None for value in node.attrs["size"]]
        return lambda x: function(x, size[0] if len(size) == 1 else size)

    return bind


def _flatten(node: Node, tensors: Tensors) -> Function:
    start, end = node.attrs["start"], node.attrs["end"]
    return lambda x: torch.flatten(x, start, end)


def _pad(node: Node, tensors: Tensors) -> Function:
    pad, mode, value = node.attrs["pad"], node.attrs["mode"], node.attrs["value"]
    if mode == "constant":
        return lambda x: functional.pad(x, pad, mode, value)
    return lambda x: functional.pad(x, pad, mode)


def _mean(node: Node, tensors: Tensors) -> Function:
    dims, keepdim = node.attrs["dims"], node.attrs["keepdim"]
    return lambda x: x.mean(dims, keepdim)


def _cat(node: Node, tensors: Tensors) -> Function:
    dim = node.attrs["dim"]
    return lambda *values: torch.cat(values, dim)


def _constant(node: Node, tensors: Tensors) -> Function:
    value = tensors["value"]
    return lambda: value


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _reshape_like(y: Tensor, x: Tensor) -> Tensor:
    return y.reshape(*x.shape[:-1], y.shape[-1])


_CONV = {"stride": list, "padding": list, "dilation": list, "groups": int, "layout": str}
_POOL = {"kernel": list, "stride": list, "padding": list, "ceil_mode": bool}
_WEIGHTED = {"weight": True, "bias": False}

#: Every float operation a file may hold.
FLOAT_OPS: dict[str, FloatOp] = {
    "conv1d": FloatOp(_conv(functional.conv1d), _CONV, _WEIGHTED, layout=True),
    "conv2d": FloatOp(_conv(functional.conv2d), _CONV, _WEIGHTED, layout=True),
    "linear": FloatOp(_linear, {"layout": str}, _WEIGHTED, layout=True),
    "batch_norm": FloatOp(
        _batch_norm,
        {"eps": float, "layout": str},
        {"mean": True, "var": True, **dict.fromkeys(("weight", "bias"), False)},
        kind="channel",
        rising=_batch_norm_rises,
        layout=True,
    ),
    "relu": FloatOp(lambda node, tensors: torch.relu, kind="scalar", rising=_always),
    "hardtanh": FloatOp(_hardtanh, {"min_val": float, "max_val": float}, kind="scalar", rising=_always),
    "leaky_relu": FloatOp(
        _leaky_relu,
        {"negative_slope": float},
        kind="scalar",
        rising=lambda node, tensors: bool(node.attrs["negative_slope"] >= 0),
    ),
    "prelu": FloatOp(_prelu, {"shared": bool}, {"weight": True}, kind="channel", rising=_prelu_rises),
    "channel_scale": FloatOp(_channel_scale, {"trailing": int}, {"scale": True}, kind="channel"),
    "channel_bias": FloatOp(_channel_bias, {"trailing": int}, {"bias": True}, kind="channel", rising=_always),
    "max_pool1d": FloatOp(_max_pool(functional.max_pool1d), {**_POOL, "dilation": list}, kind="pool"),
    "max_pool2d": FloatOp(_max_pool2d, {**_POOL, "dilation": list}, kind="pool"),
    "avg_pool1d": FloatOp(_avg_pool1d, {**_POOL, "count_include_pad": bool, "layout": str}, layout=True),
    "avg_pool2d": FloatOp(
        _avg_pool2d, {**_POOL, "count_include_pad": bool, "divisor": int, "layout": str}, layout=True
    ),
    "adaptive_avg_pool1d": FloatOp(
        _adaptive(functional.adaptive_avg_pool1d), {"size": list, "layout": str}, layout=True
    ),
    "adaptive_avg_pool2d": FloatOp(
        _adaptive(functional.adaptive_avg_pool2d), {"size": list, "layout": str}, layout=True
    ),
    "mean": FloatOp(_mean, {"dims": list, "keepdim": bool, "layout": str}, layout=True),
    "flatten": FloatOp(_flatten, {"start": int, "end": int}, kind="shape"),
    "rows": FloatOp(lambda node, tensors: _rows, kind="shape"),
    "reshape_like": FloatOp(lambda node, tensors: _reshape_like, inputs=2, kind="shape"),
    "pad": FloatOp(_pad, {"pad": list, "mode": str, "value": float}),
    "add": FloatOp(lambda node, tensors: torch.add, inputs=2),
    "cat": FloatOp(_cat, {"dim": int}, inputs=None),
    "constant": FloatOp(_constant, {}, {"value": True}, inputs=0),
}
