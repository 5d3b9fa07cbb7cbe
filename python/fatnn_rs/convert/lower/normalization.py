"""Normalisation layers and functions with constant weights.

Their sums have a rounding of their own, so torch runs them unless float layers may run in Rust.
Weights that a function gets as arguments must be the model's own parameters or buffers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.lower.lowering import Lowering, Row
from fatnn_rs.convert.lower.products import constant_tensors

__all__ = ["FUNCTIONS", "MODULES", "batch_norm_node"]


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
    tensors = constant_tensors(
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
    return batch_norm_node(ctx, input, name, float(eps), tensors)


def batch_norm_node(
    ctx: Lowering, input: Any, name: str, eps: float, tensors: dict[str, Any]
) -> Ref:
    """Add a BatchNorm. On strided inputs torch computes it in four roundings, one by one."""
    layout, rank = ctx.seen(input).layout, len(ctx.shape(input))
    if layout in ("contiguous", "channels_last"):
        return ctx.emit("batch_norm", [name], {"eps": eps, "layout": layout}, tensors)
    mean, var, weight, bias = (tensors[role] for role in ("mean", "var", "weight", "bias"))
    steps = [("sub", mean), ("mul", 1 / torch.sqrt(var + eps))]
    steps += [] if weight is None else [("mul", weight)]
    steps.append(("add", torch.zeros_like(mean) if bias is None else bias))  # -0 + 0 is 0
    for i, (op, values) in enumerate(steps):
        end = f"_{i}" if i + 1 < len(steps) else ""
        values = values.detach().reshape(-1, *[1] * (rank - 2))
        shape = tuple(values.shape)
        other = ctx.emit(
            "constant", [], {}, {"value": values}, suffix=f"_{op}_{i}", shape=shape, dtype="float32"
        )
        name = ctx.emit(op, [name, other.name], suffix=end).name
    return Ref(name)


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
    tensors = constant_tensors(ctx, {"weight": weight, "bias": bias})
    return (
        None
        if tensors is None
        else _normalize(ctx, "layer_norm", input, normalized_shape, eps, tensors)
    )


def rms_norm(
    ctx: Lowering, input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None
) -> Ref | None:
    """RMSNorm with a constant weight."""
    tensors = constant_tensors(ctx, {"weight": weight})
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
    tensors = constant_tensors(ctx, {"weight": weight, "bias": bias})
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


def _module_row(row: Any, size: str) -> Row:
    def lowered(ctx: Lowering, module: Any, input: Any) -> Ref | None:
        tensors = {role: getattr(module, role, None) for role in ("weight", "bias")}
        made: Ref | None = row(ctx, input, getattr(module, size), module.eps, tensors)
        return made

    return lowered


def _normalize_row(op: str) -> Any:
    return lambda ctx, input, shape, eps, tensors: _normalize(ctx, op, input, shape, eps, tensors)


def instance_norm(
    ctx: Lowering,
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: Any = True,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> Ref | None:
    """InstanceNorm with constant weights and the statistics of its input."""
    given = {"weight": weight, "bias": bias}
    tensors = {role: ctx.constant(value) for role, value in given.items()}
    if use_input_stats is not True or any(
        value is not None and tensors[role] is None for role, value in given.items()
    ):
        return None
    return _instance_norm(ctx, input, tensors, eps)


def _aten_instance_norm(
    ctx: Lowering,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    use_input_stats: Any,
    momentum: Any,
    eps: Any,
    cudnn_enabled: Any = True,
) -> Ref | None:
    return instance_norm(ctx, input, None, None, weight, bias, use_input_stats, momentum, eps)


def _instance_norm(
    ctx: Lowering, input: Any, tensors: dict[str, Tensor | None], eps: Any
) -> Ref | None:
    name = ctx.value(input)
    if name is None or len(ctx.shape(input)) not in (3, 4) or eps < 0:
        return None
    attrs = {"eps": float(eps), "layout": ctx.seen(input).layout}
    return ctx.emit("instance_norm", [name], attrs, tensors)


def _instance_norm_module(dims: int) -> Row:
    def row(ctx: Lowering, module: Any, input: Any) -> Ref | None:
        if len(ctx.shape(input)) != dims + 2:
            return None
        affine = {"weight": module.weight, "bias": module.bias}
        if module.running_mean is None:
            return _instance_norm(ctx, input, affine, module.eps)
        name = ctx.value(input)
        if name is None:
            return None
        # With running statistics, an instance norm computes the same as a BatchNorm.
        tensors = {"mean": module.running_mean, "var": module.running_var, **affine}
        attrs = {"eps": float(module.eps), "layout": ctx.seen(input).layout}
        return ctx.emit("batch_norm", [name], attrs, tensors)

    return row


_aten = torch.ops.aten

#: Functions and operators → row.
FUNCTIONS: dict[Any, Row] = {
    functional.batch_norm: batch_norm,
    torch.batch_norm: _aten_batch_norm,
    _aten.batch_norm.default: _aten_batch_norm,
    functional.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    _aten.layer_norm.default: layer_norm,
    functional.rms_norm: rms_norm,
    torch.rms_norm: rms_norm,
    _aten.rms_norm.default: rms_norm,
    functional.group_norm: group_norm,
    torch.group_norm: group_norm,
    _aten.group_norm.default: group_norm,
    functional.instance_norm: instance_norm,
    torch.instance_norm: _aten_instance_norm,
    _aten.instance_norm.default: _aten_instance_norm,
}

#: Module classes → row.
MODULES: dict[type[nn.Module], Row] = {
    nn.LayerNorm: _module_row(_normalize_row("layer_norm"), "normalized_shape"),
    nn.RMSNorm: _module_row(_normalize_row("rms_norm"), "normalized_shape"),
    nn.GroupNorm: _module_row(_group_norm, "num_groups"),
    nn.InstanceNorm1d: _instance_norm_module(1),
    nn.InstanceNorm2d: _instance_norm_module(2),
}
