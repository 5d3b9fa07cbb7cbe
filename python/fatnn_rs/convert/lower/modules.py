"""Rows for modules: one per class.

A row applies to a class and to its subclasses that override none of its methods. It passes the
module's attributes to the row of the function that the module's forward calls.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from fatnn_rs.convert import scalar
from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.input_sizes import InputSizes
from fatnn_rs.convert.int8_function import Int8Function
from fatnn_rs.convert.lower import (
    attention,
    masks,
    normalization,
    quantized,
    reductions,
    spatial,
    transposed,
)
from fatnn_rs.convert.lower import functions as rows
from fatnn_rs.convert.lower.conv_params import pad_before, split_padding, window
from fatnn_rs.convert.lower.lowering import Lowering, Row
from fatnn_rs.convert.lower.products import linear_node

__all__ = ["MODULES", "module_row"]


def module_row(module: nn.Module) -> Row | None:
    """Return the row of the class whose forward a module runs, or None."""
    for cls in type(module).__mro__:
        row = MODULES.get(cls)
        if row is not None:
            return None if _overrides(type(module), cls) else row
    return None


#: Methods that a subclass may override without changing what forward computes.
_IRRELEVANT_METHODS = frozenset(
    {
        "__init__",
        "__repr__",
        "__setstate__",
        "__getstate__",
        "__deepcopy__",
        "extra_repr",
        "reset_parameters",
    }
)


def _overrides(kind: type, known: type) -> bool:
    """Whether a subclass overrides methods of a class that has a row."""
    names = {
        name for cls in known.__mro__ if cls not in nn.Module.__mro__ for name in vars(cls)
    } | {"__call__"}
    return any(
        inspect.isroutine(inspect.getattr_static(known, name, None))
        and inspect.getattr_static(kind, name) is not inspect.getattr_static(known, name)
        for name in names - _IRRELEVANT_METHODS
        if not name.startswith(("_load_from", "_save_to"))
    )


def _conv(dims: int) -> Row:
    def row(ctx: Lowering, module: Any, input: Any) -> Ref | None:
        name = ctx.value(input)
        if name is None or len(ctx.shape(input)) != dims + 2:
            return None
        padding, pad = split_padding(module, dims)
        if pad is not None and pad["mode"] == "constant":
            # Torch pads and convolves in two steps here, with a rounding of its own.
            return None
        name, _ = pad_before(ctx, name, ctx.shape(input), pad)
        attrs = {
            "stride": window(module.stride, dims),
            "padding": padding,
            "dilation": window(module.dilation, dims),
            "groups": module.groups,
            "layout": ctx.seen(input).layout,
        }
        return ctx.emit(
            f"conv{dims}d", [name], attrs, {"weight": module.weight, "bias": module.bias}
        )

    return row


def _linear(ctx: Lowering, module: Any, input: Any) -> Ref | None:
    name = ctx.value(input)
    if name is None:
        return None
    tensors = {"weight": module.weight, "bias": module.bias}
    return linear_node(ctx, input, name, module.weight, tensors)


def _batch_norm(ctx: Lowering, module: Any, input: Any) -> Ref | None:
    name = ctx.value(input)
    if name is None or module.running_mean is None or module.running_var is None:
        return None
    tensors = {
        "mean": module.running_mean,
        "var": module.running_var,
        "weight": module.weight,
        "bias": module.bias,
    }
    return normalization.batch_norm_node(ctx, input, name, float(module.eps), tensors)


def _prelu(ctx: Lowering, module: Any, input: Any) -> Ref | None:
    name = ctx.value(input)
    return (
        None
        if name is None
        else ctx.emit(
            "prelu", [name], {"shared": module.weight.numel() == 1}, {"weight": module.weight}
        )
    )


def _int8_function(ctx: Lowering, module: Int8Function, input: Any) -> Ref | None:
    name, value = ctx.value(input), module.value
    attrs = {"step_size": value.step, "low": value.low, "high": value.high}
    return None if name is None else ctx.emit("lookup", [name], attrs, {"table": module.table()})


def _pool_row(function: Any, *names: str) -> Row:
    """Lower a pooling module: pass its attributes ``names`` to the function's row."""

    def row(ctx: Lowering, module: Any, input: Any) -> Ref | None:
        result: Ref | None = function(ctx, input, **{name: getattr(module, name) for name in names})
        return result

    return row


_MAX = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


_AVG = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")


#: Module class → row.
MODULES: dict[type[nn.Module], Row] = {
    **scalar.MODULES,
    **reductions.MODULES,
    **masks.MODULES,
    **spatial.MODULES,
    **transposed.MODULES,
    **normalization.MODULES,
    **attention.MODULES,
    **quantized.MODULES,
    nn.Conv1d: _conv(1),
    nn.Conv2d: _conv(2),
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.PReLU: _prelu,
    Int8Function: _int8_function,
    InputSizes: lambda ctx, m, input: rows.identity(ctx, input),
    nn.Identity: lambda ctx, m, input: rows.identity(ctx, input),
    nn.Dropout: lambda ctx, m, input: rows.identity(ctx, input),
    nn.Dropout1d: lambda ctx, m, input: rows.identity(ctx, input),
    nn.Dropout2d: lambda ctx, m, input: rows.identity(ctx, input),
    nn.Dropout3d: lambda ctx, m, input: rows.identity(ctx, input),
    nn.AlphaDropout: lambda ctx, m, input: rows.identity(ctx, input),
    nn.FeatureAlphaDropout: lambda ctx, m, input: rows.identity(ctx, input),
    nn.Flatten: lambda ctx, m, input: rows.flatten(ctx, input, m.start_dim, m.end_dim),
    nn.MaxPool1d: _pool_row(rows.max_pool(1), *_MAX),
    nn.MaxPool2d: _pool_row(rows.max_pool(2), *_MAX),
    nn.AvgPool1d: _pool_row(rows.avg_pool(1), *_AVG),
    nn.AvgPool2d: _pool_row(rows.avg_pool(2), *_AVG, "divisor_override"),
    nn.AdaptiveAvgPool1d: _pool_row(rows.adaptive_avg_pool(1), "output_size"),
    nn.AdaptiveAvgPool2d: _pool_row(rows.adaptive_avg_pool(2), "output_size"),
}
