"""How normalisations, reductions, softmax and products of two values are lowered.

Their results depend on an order of sums, or on an approximated function: torch runs them unless
float layers may run in Rust. Weights that a function gets as arguments have to be the model's own
parameters or buffers.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.lower.lowering import Lowering, Row

__all__ = ["FUNCTIONS", "METHODS", "MODULES"]


def constant(ctx: Lowering, value: Any) -> Tensor | None:
    """Return the parameter or buffer that an argument is."""
    ref = ctx.env.get(value) if isinstance(value, fx.Node) else None
    node = ctx.index().get(ref.name) if isinstance(ref, Ref) else None
    return None if node is None or node.op != "constant" else ctx.graph.tensor(node, "value")


def _constants(ctx: Lowering, given: dict[str, Any]) -> dict[str, Tensor | None] | None:
    """Tensors by role; None where one is there and is no constant."""
    found = {role: constant(ctx, value) for role, value in given.items()}
    return (
        None
        if any(value is not None and found[role] is None for role, value in given.items())
        else found
    )


def _layouts(ctx: Lowering, *values: Any) -> str:
    return "|".join(ctx.seen(value).layout for value in values)


def batch_norm(
    ctx: Lowering,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: Any = False,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> Ref | None:
    """BatchNorm with constant statistics."""
    name = ctx.value(input)
    tensors = _constants(
        ctx, {"mean": running_mean, "var": running_var, "weight": weight, "bias": bias}
    )
    if (
        name is None
        or tensors is None
        or training is not False
        or tensors["mean"] is None
        or tensors["var"] is None
    ):
        return None
    return ctx.emit(
        "batch_norm", [name], {"eps": float(eps), "layout": ctx.seen(input).layout}, tensors
    )


def _aten_batch_norm(
    ctx: Lowering,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: Any,
    momentum: Any,
    eps: Any,
    cudnn: Any = False,
) -> Ref | None:
    return batch_norm(ctx, input, running_mean, running_var, weight, bias, training, momentum, eps)


def linear(ctx: Lowering, input: Any, weight: Any, bias: Any = None) -> Ref | None:
    """Apply a linear layer with constant weights."""
    name, tensors = ctx.value(input), _constants(ctx, {"weight": weight, "bias": bias})
    if name is None or tensors is None or tensors["weight"] is None or tensors["weight"].dim() != 2:
        return None
    return ctx.emit("linear", [name], {"layout": ctx.seen(input).layout}, tensors)


def conv(dims: int) -> Row:
    """Convolution with constant weights."""

    def row(
        ctx: Lowering,
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
    ) -> Ref | None:
        name, tensors = ctx.value(input), _constants(ctx, {"weight": weight, "bias": bias})
        attrs: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        for key, value in attrs.items():
            values = list(value) if isinstance(value, (tuple, list)) else [value]
            attrs[key] = values * dims if len(values) == 1 else values
        numbers = [v for values in attrs.values() for v in values]
        if (
            name is None
            or tensors is None
            or tensors["weight"] is None
            or len(ctx.shape(input)) != dims + 2
        ):
            return None
        if not all(isinstance(v, int) for v in (*numbers, groups)) or len(numbers) != 3 * dims:
            return None
        layout = ctx.seen(input).layout
        return ctx.emit(
            f"conv{dims}d", [name], {**attrs, "groups": groups, "layout": layout}, tensors
        )

    return row


def layer_norm(
    ctx: Lowering,
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: Any = 1e-5,
    cudnn_enable: Any = True,
) -> Ref | None:
    """LayerNorm with constant weights."""
    tensors = _constants(ctx, {"weight": weight, "bias": bias})
    return (
        None
        if tensors is None
        else _normalize(ctx, "layer_norm", input, normalized_shape, eps, tensors)
    )


def rms_norm(
    ctx: Lowering, input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None
) -> Ref | None:
    """RMSNorm with a constant weight."""
    tensors = _constants(ctx, {"weight": weight})
    return (
        None
        if tensors is None
        else _normalize(ctx, "rms_norm", input, normalized_shape, eps, tensors)
    )


def group_norm(
    ctx: Lowering,
    input: Any,
    num_groups: Any,
    weight: Any = None,
    bias: Any = None,
    eps: Any = 1e-5,
    cudnn_enabled: Any = True,
) -> Ref | None:
    """GroupNorm with constant weights."""
    tensors = _constants(ctx, {"weight": weight, "bias": bias})
    return None if tensors is None else _group_norm(ctx, input, num_groups, eps, tensors)


def _normalize(
    ctx: Lowering, op: str, input: Any, shape: Any, eps: Any, tensors: dict[str, Tensor | None]
) -> Ref | None:
    name, dims = ctx.value(input), [shape] if isinstance(shape, int) else list(shape)
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    if (
        name is None
        or not all(isinstance(v, int) for v in dims)
        or not isinstance(eps, (int, float))
        or eps < 0
    ):
        return None
    attrs = {"dims": len(dims), "eps": float(eps), "layout": ctx.seen(input).layout}
    return ctx.emit(op, [name], attrs, tensors)


def _group_norm(
    ctx: Lowering, input: Any, groups: Any, eps: Any, tensors: dict[str, Tensor | None]
) -> Ref | None:
    name = ctx.value(input)
    if name is None or not isinstance(groups, int) or not isinstance(eps, (int, float)) or eps < 0:
        return None
    attrs = {"groups": groups, "eps": float(eps), "layout": ctx.seen(input).layout}
    return ctx.emit("group_norm", [name], attrs, tensors)


def reduction(op: str) -> Row:
    """Mean, sum, maximum or minimum over some dimensions, or all."""

    def row(
        ctx: Lowering, input: Any, dim: Any = None, keepdim: Any = False, *, dtype: Any = None
    ) -> Ref | None:
        name = ctx.value(input)
        dims = [] if dim is None else [dim] if isinstance(dim, int) else dim
        if (
            name is None
            or dtype is not None
            or not isinstance(dims, (tuple, list))
            or not isinstance(keepdim, bool)
        ):
            return None
        if not all(isinstance(d, int) for d in dims) or not ctx.shape(input):
            return None
        attrs: dict[str, Any] = {"dims": [int(d) for d in dims], "keepdim": keepdim}
        if op in ("mean", "sum"):
            attrs["layout"] = ctx.seen(input).layout
        return ctx.emit(op, [name], attrs)

    return row


def _only_first(ctx: Lowering) -> bool:
    """Whether of several results only the first is used."""
    users = [user for user in ctx.node.users if user.users or user.op == "output"]
    return all(user.target is operator.getitem and user.args[1] == 0 for user in users)


def extreme(op: str) -> Row:
    """``max`` and ``min`` over a dimension, of which only the values are used."""

    def row(ctx: Lowering, input: Any, dim: Any, keepdim: Any = False) -> Any:
        name, shape = ctx.value(input), ctx.shape(input)
        if name is None or not isinstance(dim, int) or not isinstance(keepdim, bool) or not shape:
            return None
        if not _only_first(ctx):
            return None
        made = [1 if i == dim % len(shape) else size for i, size in enumerate(shape)]
        if not keepdim:
            del made[dim % len(shape)]
        return (ctx.emit(op, [name], {"dims": [dim], "keepdim": keepdim}, shape=tuple(made)), None)

    return row


def softmax(op: str) -> Row:
    """Softmax or its logarithm along a dimension."""

    def row(
        ctx: Lowering, input: Any, dim: Any = None, _stacklevel: Any = 3, dtype: Any = None
    ) -> Ref | None:
        name = ctx.value(input)
        if name is None or not isinstance(dim, int) or dtype is not None or not ctx.shape(input):
            return None
        return ctx.emit(op, [name], {"dim": dim, "layout": ctx.seen(input).layout})

    return row


def _aten_softmax(op: str) -> Row:
    def row(ctx: Lowering, input: Any, dim: Any, dtype: Any = None) -> Ref | None:
        result: Ref | None = softmax(op)(ctx, input, dim, dtype=dtype)
        return result

    return row


def matmul(ctx: Lowering, input: Any, other: Any) -> Ref | None:
    """Products of matrices, with a batch in front or without."""
    a, b = ctx.value(input), ctx.value(other)
    if a is None or b is None or min(len(ctx.shape(input)), len(ctx.shape(other))) < 2:
        return None
    return ctx.emit("matmul", [a, b], {"layout": _layouts(ctx, input, other)})


def attention(
    ctx: Lowering,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: Any = 0.0,
    is_causal: Any = False,
    scale: Any = None,
    enable_gqa: Any = False,
) -> Ref | None:
    """Attention without a mask, with one that is added, or causal."""
    given = [query, key, value, *([] if attn_mask is None else [attn_mask])]
    names = [name for name in map(ctx.value, given) if name is not None]
    if (
        len(names) < len(given)
        or dropout_p != 0
        or enable_gqa is not False
        or not isinstance(is_causal, bool)
    ):
        return None
    if (is_causal and attn_mask is not None) or any(len(ctx.shape(v)) < 2 for v in given):
        return None
    # Torch takes another way where a mask requires a gradient, in any mode; constants of a network
    # require none.
    mask = ctx.attribute(attn_mask)
    if isinstance(mask, Tensor) and mask.requires_grad:
        return None
    attrs: dict[str, Any] = {"causal": is_causal, "layout": _layouts(ctx, *given)}
    if scale is not None:
        if not isinstance(scale, (int, float)):
            return None
        attrs["scale"] = float(scale)
    return ctx.emit("attention", names, attrs)


def _multihead(
    ctx: Lowering,
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: Any = True,
    attn_mask: Any = None,
    average_attn_weights: Any = True,
    is_causal: Any = False,
) -> Any:
    names = [name for name in map(ctx.value, (query, key, value)) if name is not None]
    masked = key_padding_mask is not None or attn_mask is not None or is_causal is not False
    if (
        len(names) < 3
        or masked
        or not isinstance(need_weights, bool)
        or average_attn_weights is not True
    ):
        return None
    if (
        len(ctx.shape(query)) != 3
        or not _only_first(ctx)
        or module.bias_k is not None
        or module.add_zero_attn
    ):
        return None
    if module.in_proj_weight is None or type(module.out_proj).__mro__[1] is not nn.Linear:
        return None
    attrs = {
        "heads": module.num_heads,
        "batch_first": module.batch_first,
        "need_weights": need_weights,
        "layout": _layouts(ctx, query, key, value),
    }
    tensors = {
        "in_weight": module.in_proj_weight,
        "in_bias": module.in_proj_bias,
        "out_weight": module.out_proj.weight,
        "out_bias": module.out_proj.bias,
    }
    return (ctx.emit("multihead_attention", names, attrs, tensors, shape=ctx.shape(query)), None)


def _affine_module(row: Any, size: str) -> Row:
    def lowered(ctx: Lowering, module: Any, input: Any) -> Ref | None:
        tensors = {role: getattr(module, role, None) for role in ("weight", "bias")}
        made: Ref | None = row(ctx, input, getattr(module, size), module.eps, tensors)
        return made

    return lowered


def _named(op: str) -> Any:
    return lambda ctx, input, shape, eps, tensors: _normalize(ctx, op, input, shape, eps, tensors)


_aten = torch.ops.aten

#: Operation, row, and the functions that it is for.
_BY_NAME: tuple[tuple[str, Row, tuple[Any, ...]], ...] = (
    ("mean", reduction("mean"), (torch.mean, _aten.mean.dim, _aten.mean.default)),
    ("sum", reduction("sum"), (torch.sum, _aten.sum.dim_IntList, _aten.sum.default)),
    ("amax", reduction("amax"), (torch.amax, _aten.amax.default)),
    ("amin", reduction("amin"), (torch.amin, _aten.amin.default)),
    ("max", extreme("amax"), (torch.max, _aten.max.dim)),
    ("min", extreme("amin"), (torch.min, _aten.min.dim)),
    ("softmax", _aten_softmax("softmax"), (torch.softmax, _aten.softmax.int)),
    ("log_softmax", _aten_softmax("log_softmax"), (torch.log_softmax, _aten.log_softmax.int)),
)

#: Functions and operators → row.
FUNCTIONS: dict[Any, Row] = {
    functional.batch_norm: batch_norm,
    torch.batch_norm: _aten_batch_norm,
    _aten.batch_norm.default: _aten_batch_norm,
    functional.linear: linear,
    _aten.linear.default: linear,
    functional.conv1d: conv(1),
    functional.conv2d: conv(2),
    _aten.conv1d.default: conv(1),
    _aten.conv2d.default: conv(2),
    functional.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    _aten.layer_norm.default: layer_norm,
    functional.rms_norm: rms_norm,
    torch.rms_norm: rms_norm,
    _aten.rms_norm.default: rms_norm,
    functional.group_norm: group_norm,
    torch.group_norm: group_norm,
    _aten.group_norm.default: group_norm,
    functional.softmax: softmax("softmax"),
    functional.log_softmax: softmax("log_softmax"),
    **{call: row for _, row, calls in _BY_NAME for call in calls},
    **dict.fromkeys((torch.matmul, torch.bmm, torch.mm, operator.matmul), matmul),
    **dict.fromkeys((_aten.matmul.default, _aten.bmm.default, _aten.mm.default), matmul),
    functional.scaled_dot_product_attention: attention,
    _aten.scaled_dot_product_attention.default: attention,
}

#: Tensor methods → row.
METHODS: dict[str, Row] = {
    **{name: row for name, row, _ in _BY_NAME},
    **dict.fromkeys(("matmul", "bmm", "mm", "__matmul__"), matmul),
}

#: Module classes → row.
MODULES: dict[type[nn.Module], Row] = {
    nn.LayerNorm: _affine_module(_named("layer_norm"), "normalized_shape"),
    nn.RMSNorm: _affine_module(_named("rms_norm"), "normalized_shape"),
    nn.GroupNorm: _affine_module(_group_norm, "num_groups"),
    nn.Softmax: lambda ctx, module, input: softmax("softmax")(ctx, input, module.dim),
    nn.LogSoftmax: lambda ctx, module, input: softmax("log_softmax")(ctx, input, module.dim),
    nn.MultiheadAttention: _multihead,
}
