"""The float operations of a graph as torch runs them, one row each.

A row's ``bind`` turns a node into a function of its input tensors. A network runs that function,
and the conversion evaluates it to find integer thresholds. It is the function that the eager module
calls, so the bits agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs.convert.graph import Node
from fatnn_rs.convert.int8_function import lookup
from fatnn_rs.convert.scalar import SCALARS, ScalarFunction
from fatnn_rs.convert.torch_ops import spatial
from fatnn_rs.nn.exact_mean import exact_mean

__all__ = ["FLOAT_OPS", "FloatOp"]

Tensors = Mapping[str, Tensor]
Function = Callable[..., Any]


def _always(node: Node, tensors: Tensors) -> bool:
    return True


def _never(node: Node, tensors: Tensors) -> bool:
    return False


@dataclass(frozen=True)
class FloatOp:
    """How torch runs one float operation.

    Attributes
    ----------
    bind
        Takes a node and its tensors by role; returns a function of the input tensors.
    nondecreasing
        Of elementwise and channel functions: whether they are nondecreasing in every channel.
    affine
        Whether it only multiplies each channel by a constant, adds one, or both.
    """

    bind: Callable[[Node, Tensors], Function]
    nondecreasing: Callable[[Node, Tensors], bool] = _never
    affine: bool = False


def _scalar(scalar: ScalarFunction) -> FloatOp:
    return FloatOp(scalar.bind, lambda node, tensors: scalar.nondecreasing(node.attrs))


def _conv(function: Function) -> Callable[[Node, Tensors], Function]:
    def bind(node: Node, tensors: Tensors) -> Function:
        weight, bias, attrs = tensors["weight"], tensors.get("bias"), node.attrs
        padding = attrs["padding"]
        return lambda x: function(
            x, weight, bias, attrs["stride"], padding, attrs["dilation"], attrs["groups"]
        )

    return bind


def _linear(node: Node, tensors: Tensors) -> Function:
    # With a weight that records gradients, torch folds positions of a strided input.
    weight, bias = nn.Parameter(tensors["weight"]), tensors.get("bias")
    return lambda x: functional.linear(x, weight, bias).detach()


def _batch_norm(node: Node, tensors: Tensors) -> Function:
    mean, var = tensors["mean"], tensors["var"]
    weight, bias, eps = tensors.get("weight"), tensors.get("bias"), node.attrs["eps"]
    return lambda x: functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)


def _batch_norm_nondecreasing(node: Node, tensors: Tensors) -> bool:
    weight = tensors.get("weight")
    return weight is None or bool((weight >= 0).all())


def _prelu(node: Node, tensors: Tensors) -> Function:
    weight = tensors["weight"]
    return lambda x: functional.prelu(x, weight)


def _lookup(node: Node, tensors: Tensors) -> Function:
    table, attrs = tensors["table"], node.attrs
    step = torch.tensor(attrs["step_size"], dtype=torch.float32, device="cpu")
    return lambda x: lookup(x, table, step, attrs["low"], attrs["high"])


def _prelu_nondecreasing(node: Node, tensors: Tensors) -> bool:
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
        return lambda x: function(
            x, a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"]
        )

    return bind


def _max_pool2d(node: Node, tensors: Tensors) -> Function:
    """Pool in channels-last memory, where torch is several times faster; maxima are the same."""
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
        # 0 means "the size of the input", which is None in torch.
        size = [value or None for value in node.attrs["size"]]
        return lambda x: function(x, size[0] if len(size) == 1 else size)

    return bind


def _flatten(node: Node, tensors: Tensors) -> Function:
    start, end = node.attrs["start"], node.attrs["end"]
    return lambda x: torch.flatten(x, start, end)


def _reshape(node: Node, tensors: Tensors) -> Function:
    shape = node.attrs["shape"]
    return lambda x: x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def _squeeze(node: Node, tensors: Tensors) -> Function:
    dim = node.attrs["dim"]
    return lambda x: x.squeeze(dim)


def _unsqueeze(node: Node, tensors: Tensors) -> Function:
    dim = node.attrs["dim"]
    return lambda x: x.unsqueeze(dim)


def _permute(node: Node, tensors: Tensors) -> Function:
    dims = node.attrs["dims"]
    return lambda x: x.permute(dims)


def _slice(node: Node, tensors: Tensors) -> Function:
    dim, part = node.attrs["dim"], slice(node.attrs["start"], node.attrs["end"], node.attrs["step"])
    return lambda x: x[tuple([slice(None)] * (dim % x.dim()) + [part])]


def _expand(node: Node, tensors: Tensors) -> Function:
    shape = node.attrs["shape"]
    return lambda x, like=None: x.expand([like.shape[0] if size == -2 else size for size in shape])


def _pad(node: Node, tensors: Tensors) -> Function:
    pad, mode, value = node.attrs["pad"], node.attrs["mode"], node.attrs["value"]
    if mode == "constant":
        return lambda x: functional.pad(x, pad, mode, value)
    return lambda x: functional.pad(x, pad, mode)


def _reduce(function: Function) -> Callable[[Node, Tensors], Function]:
    def bind(node: Node, tensors: Tensors) -> Function:
        dims, keepdim = node.attrs["dims"], node.attrs["keepdim"]
        return lambda x: function(x, dims, keepdim)

    return bind


def _mean(node: Node, tensors: Tensors) -> Function:
    if not node.attrs.get("float64"):
        return _reduce(torch.mean)(node, tensors)
    dims, keepdim = node.attrs["dims"], node.attrs["keepdim"]
    return lambda x: exact_mean(x, dims, keepdim)


def _norm(node: Node, tensors: Tensors) -> Function:
    p, dims, keepdim = (node.attrs[name] for name in ("p", "dims", "keepdim"))
    return lambda x: torch.linalg.vector_norm(x, p, dims or None, keepdim)


def _variance(function: Function) -> Callable[[Node, Tensors], Function]:
    def bind(node: Node, tensors: Tensors) -> Function:
        dims, keepdim = node.attrs["dims"] or None, node.attrs["keepdim"]
        correction = node.attrs["correction"]
        return lambda x: function(x, dims, correction=correction, keepdim=keepdim)

    return bind


def _addcmul(node: Node, tensors: Tensors) -> Function:
    value = node.attrs["value"]
    return lambda x, a, b: torch.addcmul(x, a, b, value=value)


def _normalize(function: Function) -> Callable[[Node, Tensors], Function]:
    def bind(node: Node, tensors: Tensors) -> Function:
        dims, eps = node.attrs["dims"], node.attrs["eps"]
        roles = ("weight", "bias") if function is functional.layer_norm else ("weight",)
        constants = [tensors.get(role) for role in roles]
        return lambda x: function(x, x.shape[x.dim() - dims :], *constants, eps)

    return bind


def _group_norm(node: Node, tensors: Tensors) -> Function:
    groups, eps, weight, bias = (
        node.attrs["groups"],
        node.attrs["eps"],
        tensors.get("weight"),
        tensors.get("bias"),
    )
    return lambda x: functional.group_norm(x, groups, weight, bias, eps)


def _softmax(function: Function) -> Callable[[Node, Tensors], Function]:
    def bind(node: Node, tensors: Tensors) -> Function:
        dim = node.attrs["dim"]
        return lambda x: function(x, dim)

    return bind


def _attention(node: Node, tensors: Tensors) -> Function:
    causal, scale = node.attrs["causal"], node.attrs.get("scale")

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale)

    return run


def _multihead_attention(node: Node, tensors: Tensors) -> Function:
    """Run torch's module, because it chooses its path by its weights and the gradient mode."""
    weight = tensors["out_weight"]
    layer = nn.MultiheadAttention(
        len(weight),
        node.attrs["heads"],
        bias=False,
        batch_first=node.attrs["batch_first"],
        device="meta",
    )

    def parameter(role: str) -> nn.Parameter | None:
        return nn.Parameter(tensors[role]) if role in tensors else None

    layer.in_proj_weight, layer.out_proj.weight = (
        nn.Parameter(tensors["in_weight"]),
        nn.Parameter(weight),
    )
    layer.register_parameter("in_proj_bias", parameter("in_bias"))
    layer.out_proj.register_parameter("bias", parameter("out_bias"))
    layer.eval()
    how = {"need_weights": node.attrs["need_weights"], "is_causal": node.attrs.get("causal", False)}
    names = {"scores": "attn_mask", "keys": "key_padding_mask", "": ""}
    kinds = [names[kind] for kind in node.attrs.get("masks", "").split("|")]

    def run(q: Tensor, k: Tensor, v: Tensor, *masks: Tensor) -> Tensor:
        given = dict(zip(kinds, masks, strict=False))
        made: Tensor = layer(q, k, v, **given, **how)[0]
        return made.detach()

    return run


def _cat(node: Node, tensors: Tensors) -> Function:
    dim = node.attrs["dim"]
    return lambda *values: torch.cat(values, dim)


def _constant(node: Node, tensors: Tensors) -> Function:
    value = tensors["value"]
    return lambda: value


def _embedding(node: Node, tensors: Tensors) -> Function:
    weight = tensors["weight"]
    return lambda ids: functional.embedding(ids, weight)


def _index_select(node: Node, tensors: Tensors) -> Function:
    dim = node.attrs["dim"]
    return lambda x, index: x.index_select(dim, index)


def _flip(node: Node, tensors: Tensors) -> Function:
    dim = node.attrs["dim"]
    return lambda x: x.flip(dim)


def _cast(node: Node, tensors: Tensors) -> Function:
    dtype = getattr(torch, node.attrs["to"])
    return lambda x: x.to(dtype)


def _cumsum(node: Node, tensors: Tensors) -> Function:
    dim = node.attrs["dim"]
    return lambda x: torch.cumsum(x, dim, dtype=x.dtype)


def _flatten_leading(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _reshape_like(y: Tensor, x: Tensor) -> Tensor:
    return y.reshape(*x.shape[:-1], y.shape[-1])


#: Functions of integers and masks that have the operation's name in torch.
_UNCHANGED = (
    *("eq", "ne", "lt", "le", "where"),
    *("logical_and", "logical_or", "logical_xor", "logical_not"),
)


def _bind_nothing(function: Function) -> Callable[[Node, Tensors], Function]:
    return lambda node, tensors: function


#: Every operation on floats, integers and masks that a file may hold. :mod:`fatnn_rs.operations`
#: has their inputs and attributes.
FLOAT_OPS: dict[str, FloatOp] = {
    **{op: _scalar(scalar) for op, scalar in SCALARS.items()},
    **{op: FloatOp(bind) for op, bind in spatial.FLOATS.items()},
    "conv1d": FloatOp(_conv(functional.conv1d)),
    "conv2d": FloatOp(_conv(functional.conv2d)),
    "linear": FloatOp(_linear),
    "batch_norm": FloatOp(_batch_norm, _batch_norm_nondecreasing, affine=True),
    "prelu": FloatOp(_prelu, _prelu_nondecreasing),
    "lookup": FloatOp(_lookup),
    "channel_scale": FloatOp(_channel_scale, affine=True),
    "channel_bias": FloatOp(_channel_bias, _always, affine=True),
    "max_pool1d": FloatOp(_max_pool(functional.max_pool1d)),
    "max_pool2d": FloatOp(_max_pool2d),
    "avg_pool1d": FloatOp(_avg_pool1d),
    "avg_pool2d": FloatOp(_avg_pool2d),
    "adaptive_avg_pool1d": FloatOp(_adaptive(functional.adaptive_avg_pool1d)),
    "adaptive_avg_pool2d": FloatOp(_adaptive(functional.adaptive_avg_pool2d)),
    "mean": FloatOp(_mean),
    "sum": FloatOp(_reduce(torch.sum)),
    "norm": FloatOp(_norm),
    "var": FloatOp(_variance(torch.var)),
    "std": FloatOp(_variance(torch.std)),
    "addcmul": FloatOp(_addcmul),
    "amax": FloatOp(_reduce(torch.amax)),
    "amin": FloatOp(_reduce(torch.amin)),
    "layer_norm": FloatOp(_normalize(functional.layer_norm)),
    "rms_norm": FloatOp(_normalize(functional.rms_norm)),
    "group_norm": FloatOp(_group_norm),
    "softmax": FloatOp(_softmax(torch.softmax)),
    "log_softmax": FloatOp(_softmax(torch.log_softmax)),
    "matmul": FloatOp(lambda node, tensors: torch.matmul),
    "attention": FloatOp(_attention),
    "multihead_attention": FloatOp(_multihead_attention),
    "flatten": FloatOp(_flatten),
    "flatten_leading": FloatOp(lambda node, tensors: _flatten_leading),
    "reshape_like": FloatOp(lambda node, tensors: _reshape_like),
    "pad": FloatOp(_pad),
    "add": FloatOp(lambda node, tensors: torch.add),
    "sub": FloatOp(lambda node, tensors: torch.sub),
    "mul": FloatOp(lambda node, tensors: torch.mul),
    "div": FloatOp(lambda node, tensors: torch.div),
    "reshape": FloatOp(_reshape),
    "squeeze": FloatOp(_squeeze),
    "unsqueeze": FloatOp(_unsqueeze),
    "permute": FloatOp(_permute),
    "slice": FloatOp(_slice),
    "expand": FloatOp(_expand),
    "cat": FloatOp(_cat),
    "constant": FloatOp(_constant),
    "embedding": FloatOp(_embedding),
    **{op: FloatOp(_bind_nothing(getattr(torch, op))) for op in _UNCHANGED},
    "index_select": FloatOp(_index_select),
    "flip": FloatOp(_flip),
    "cast": FloatOp(_cast),
    "cumsum": FloatOp(_cumsum),
}
