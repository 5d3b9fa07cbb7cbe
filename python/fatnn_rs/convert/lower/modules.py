"""How modules are lowered: one row per class.

A row applies to a class and to subclasses that override none of its methods. It calls the row of
the function that the module's forward calls, with the module's own numbers.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fatnn_rs.convert import scalar
from fatnn_rs.convert.float_thresholds import float_steps
from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.levels import act_kind, coded_levels, codes_dtype, is_two_bit, weight_kind
from fatnn_rs.convert.lower import functions as rows
from fatnn_rs.convert.lower import masks, reductions, spatial
from fatnn_rs.convert.lower.described import Described, without_bias
from fatnn_rs.convert.lower.lowering import Lowering, Row
from fatnn_rs.nn import (
    Int8Conv1d,
    Int8Conv2d,
    Int8ConvTranspose1d,
    Int8ConvTranspose2d,
    Int8Layer,
    Int8Linear,
    TernaryConv1d,
    TernaryConv2d,
    TernaryConvTranspose1d,
    TernaryConvTranspose2d,
    TernaryLayer,
    TernaryLinear,
)
from fatnn_rs.nn.projections import Int8Conv1D, Int8Projection, TernaryConv1D, TernaryProjection
from fatnn_rs.nn.subclass import OwnForwardInt8, OwnForwardTernary, trace_own_forward

__all__ = ["MODULES", "module_row"]


def module_row(module: nn.Module) -> Row | None:
    """Find the row for a module: of the class whose forward it runs."""
    for cls in type(module).__mro__:
        row = MODULES.get(cls)
        if row is not None:
            return None if _overrides(type(module), cls) else row
    return None


#: Methods that may differ in a subclass without a difference to what forward computes.
_HARMLESS = frozenset(
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
    """Whether a subclass has other methods than a class whose forward the conversion knows."""
    names = {
        name for cls in known.__mro__ if cls not in nn.Module.__mro__ for name in vars(cls)
    } | {"__call__"}
    return any(
        inspect.isroutine(inspect.getattr_static(known, name, None))
        and inspect.getattr_static(kind, name) is not inspect.getattr_static(known, name)
        for name in names - _HARMLESS
        if not name.startswith(("_load_from", "_save_to"))
    )


def _window(values: Any, dims: int) -> list[int]:
    return (
        [int(value) for value in values]
        if isinstance(values, (tuple, list))
        else [int(values)] * dims
    )


def _padding(layer: Any, dims: int) -> tuple[list[int], dict[str, Any] | None]:
    """Split the padding of a convolution: what is alike on both sides, and what has to be padded before."""
    around = [int(value) for value in layer._reversed_padding_repeated_twice]
    if layer.padding_mode != "zeros":
        return [0] * dims, {"pad": around, "mode": layer.padding_mode, "value": 0.0}
    pairs = [(around[2 * i], around[2 * i + 1]) for i in reversed(range(dims))]
    if all(left == right for left, right in pairs):
        return [left for left, _ in pairs], None
    # 'same' with an even reach: one side has one more.
    return [0] * dims, {"pad": around, "mode": "constant", "value": 0.0}


def _padded(
    ctx: Lowering, name: str, shape: tuple[int, ...], pad: dict[str, Any] | None
) -> tuple[str, tuple[int, ...]]:
    """Pad before the convolution where it has to be."""
    if pad is None or not any(pad["pad"]):
        return name, shape
    around = pad["pad"]
    spatial = [
        size + around[2 * i] + around[2 * i + 1]
        for i, size in zip(reversed(range(len(around) // 2)), shape[2:], strict=True)
    ]
    shape = (*shape[:2], *spatial)
    return ctx.emit("pad", [name], pad, suffix="_pad", shape=shape).name, shape


def _conv(dims: int) -> Row:
    def row(ctx: Lowering, module: Any, input: Any) -> Ref | None:
        name = ctx.value(input)
        if name is None or len(ctx.shape(input)) != dims + 2:
            return None
        padding, pad = _padding(module, dims)
        if pad is not None and pad["mode"] == "constant":
            return None  # 'same' with one more on one side: torch's own two steps, whose rounding is nobody's interface
        name, _ = _padded(ctx, name, ctx.shape(input), pad)
        attrs = {
            "stride": _window(module.stride, dims),
            "padding": padding,
            "dilation": _window(module.dilation, dims),
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
    return ctx.emit("linear", [name], {"layout": ctx.seen(input).layout}, tensors)


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
    return ctx.emit(
        "batch_norm", [name], {"eps": float(module.eps), "layout": ctx.seen(input).layout}, tensors
    )


def _prelu(ctx: Lowering, module: Any, input: Any) -> Ref | None:
    name = ctx.value(input)
    return (
        None
        if name is None
        else ctx.emit(
            "prelu", [name], {"shared": module.weight.numel() == 1}, {"weight": module.weight}
        )
    )


def _ternary(dims: int) -> Row:
    def row(ctx: Lowering, layer: Any, input: Any, add_bias: bool = True) -> Ref | None:
        name, shape = ctx.value(input), ctx.shape(input)
        if name is None or (dims and len(shape) != dims + 2) or not shape:
            return None
        layer = layer if add_bias else without_bias(layer)
        if dims:
            return _ternary_conv(ctx, layer, name, shape, dims)
        if len(shape) == 2:
            return _ternary_core(ctx, layer, name, shape, _LINEAR, "")
        count = int(torch.Size(shape[:-1]).numel())
        rows_ = ctx.emit("flatten_leading", [name], suffix="_rows", shape=(count, shape[-1]))
        result = _ternary_core(ctx, layer, rows_.name, (count, shape[-1]), _LINEAR, "_flat")
        return ctx.emit("reshape_like", [result.name, name])

    return row


def _own_forward(ctx: Lowering, layer: Any, *args: Any, **kwargs: Any) -> Ref | None:
    """Lower a layer whose own forward pads its input and makes the product, no more."""
    if len(args) != 1 or kwargs or ctx.value(args[0]) is None:
        return None
    seen = trace_own_forward(layer, ctx.shape(args[0]))
    if seen is None:
        return None
    call, pad = seen
    described = Described(layer, bias=call.bias)
    is_int8 = isinstance(layer, Int8Layer)
    if not call.dims:
        row = (_int8 if is_int8 else _ternary)(0)
        result: Ref | None = row(ctx, described, args[0])
        return result
    windows = {name: call.geometry[name] for name in ("stride", "dilation", "padding")}
    if isinstance(windows["padding"], str):
        return None
    windows = {name: tuple(_window(value, call.dims)) for name, value in windows.items()}
    around = [size for size in reversed(windows["padding"]) for _ in range(2)]
    name, shape = ctx.value(args[0]), ctx.shape(args[0])
    assert name is not None, "checked above"
    if pad is not None:
        ctx.of_one_size.append(name)
        alike = all(pad[2 * axis] == pad[2 * axis + 1] for axis in range(call.dims))
        if alike and (is_int8 or _code_of_zero(layer) == 0):
            around = [one + more for one, more in zip(around, pad, strict=True)]
        else:
            name, shape = _padded(ctx, name, shape, {"pad": pad, "mode": "constant", "value": 0.0})
    described = Described(
        described,
        **windows,
        padding_mode="zeros",
        _reversed_padding_repeated_twice=around,
        groups=call.geometry["groups"],
    )
    if not is_int8:
        return _ternary_conv(ctx, described, name, shape, call.dims)
    return _int8_conv(ctx, described, name, shape, _int8_tensors(described), call.dims)


_LINEAR: dict[str, Any] = {
    "dims": 0,
    "stride": [1, 1],
    "padding": [0, 0],
    "dilation": [1, 1],
    "groups": 1,
}


def _ternary_conv(
    ctx: Lowering, layer: Any, name: str, shape: tuple[int, ...], dims: int
) -> Ref | None:
    padding, pad = _padding(layer, dims)
    weight = layer.ternary_weight().detach()
    if pad is not None and pad["mode"] == "constant" and _code_of_zero(layer) != 0:
        # The eager layer pads codes by 0, and no number has that code: padding cannot come before
        # the quantizer.
        wider = _with_leading_zeros(layer, weight, pad["pad"])
        if wider is None:
            return None
        weight, padding, pad = *wider, None
    name, shape = _padded(ctx, name, shape, pad)
    one, zero = ([1], [0]) if dims == 1 else ([], [])
    attrs = {
        "dims": dims,
        "stride": one + _window(layer.stride, dims),
        "padding": zero + padding,
        "dilation": one + _window(layer.dilation, dims),
        "groups": layer.groups,
    }
    return _ternary_core(ctx, layer, name, shape, attrs, "", weight)


def _code_of_zero(layer: TernaryLayer) -> int:
    return int(layer.act_quant(torch.zeros(1, dtype=torch.float32, device="cpu")))


def _with_leading_zeros(
    layer: Any, weight: Tensor, around: list[int]
) -> tuple[Tensor, list[int]] | None:
    """Make padding alike on both sides by a kernel that begins with a zero; None where that is not to be had.

    Padding of one more behind than before is that many on both sides, for a kernel that is longer
    by a first element 0.
    """
    padding = []
    for axis in range(weight.dim() - 2):
        before, after = around[2 * (weight.dim() - 3 - axis) :][:2]
        if before != after:
            if after != before + 1 or layer.dilation[axis] != 1 or is_two_bit(weight):
                return None
            zeros = weight.new_zeros(weight.shape).narrow(2 + axis, 0, 1)
            weight = torch.cat([zeros, weight], 2 + axis)
        padding.append(after)
    return weight, padding


def _ternary_core(
    ctx: Lowering,
    layer: Any,
    name: str,
    shape: tuple[int, ...],
    geometry: dict[str, Any],
    tail: str,
    weight: Tensor | None = None,
    blocks: spatial.SubPixel | None = None,
) -> Ref:
    """Emit quantizer, integer convolution, scale and bias; the last one's name ends in ``tail``.

    ``blocks``: every pixel of the convolution becomes a block of pixels before the scale.
    """
    quantizer = copy.deepcopy(layer.act_quant)
    kind = act_kind(quantizer.levels)
    assert kind is not None, "check_model refused it"
    weight = layer.ternary_weight().detach() if weight is None else weight
    dims, channels = geometry["dims"], shape[1]
    weight = weight.reshape(*weight.shape[:2], *([1] * (4 - weight.dim())), *weight.shape[2:])
    steps = float_steps(ctx.layer, quantizer, coded_levels(kind))
    common = {"groups": geometry["groups"], "act": kind, "channels": channels, "dims": dims}
    codes = ctx.emit(
        "act_quant",
        [name],
        {**common, "layers": [ctx.layer]},
        {"steps": steps},
        suffix="_codes",
        shape=shape,
        dtype=codes_dtype(kind, channels, geometry["groups"]),
        call=quantizer,
    )
    out = ctx.shape(ctx.node)
    if dims == 0:
        out = (*shape[:-1], weight.shape[0])
    stages: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("ternary", {**common, **geometry, "kernel": list(weight.shape[2:])}, {"weight": weight})
    ]
    if blocks is not None:
        stages.append(("depth_to_space", blocks.blocks, {}))
    if layer.learned_scale is not None:
        stages.append(("channel_scale", {"trailing": dims}, {"scale": layer.learned_scale}))
    if layer.bias is not None:
        stages.append(("channel_bias", {"trailing": dims}, {"bias": layer.bias}))
    result = codes
    for index, (op, attrs, tensors) in enumerate(stages):
        suffix = tail if index == len(stages) - 1 else _SUFFIXES.get(op, "_scaled") + tail
        dtypes = {"weight": weight_kind(weight)} if op == "ternary" else {}
        made = blocks.shape(shape) if op == "ternary" and blocks is not None else out
        result = ctx.emit(
            op, [result.name], attrs, tensors, suffix=suffix, shape=made, dtypes=dtypes
        )
    return result


#: Operation → end of its value's name, where another follows.
_SUFFIXES = {"ternary": "_acc", "depth_to_space": "_pixels"}


def _int8(dims: int) -> Row:
    def row(ctx: Lowering, layer: Any, input: Any, add_bias: bool = True) -> Ref | None:
        name, shape = ctx.value(input), ctx.shape(input)
        if name is None or (dims and len(shape) != dims + 2) or not shape:
            return None
        layer = layer if add_bias else without_bias(layer)
        tensors = _int8_tensors(layer)
        if dims:
            return _int8_conv(ctx, layer, name, shape, tensors, dims)
        if len(shape) == 2:
            return ctx.emit("linear_int8", [name], {}, tensors)
        count = int(torch.Size(shape[:-1]).numel())
        rows_ = ctx.emit("flatten_leading", [name], suffix="_rows", shape=(count, shape[-1]))
        result = ctx.emit(
            "linear_int8",
            [rows_.name],
            {},
            tensors,
            suffix="_flat",
            shape=(count, len(tensors["weight"])),
        )
        return ctx.emit("reshape_like", [result.name, name])

    return row


def _int8_tensors(layer: Any) -> dict[str, Tensor]:
    inverse = layer.act_quant.positive_step().reciprocal().reshape(1)
    tensors = {
        "weight": layer.int8_weight(),
        "scale": layer.output_scale(),
        "inv_step": inverse,
    }
    return tensors if layer.bias is None else {**tensors, "bias": layer.bias}


def _int8_conv(
    ctx: Lowering,
    layer: Any,
    name: str,
    shape: tuple[int, ...],
    tensors: dict[str, torch.Tensor],
    dims: int,
) -> Ref:
    padding, pad = _padding(layer, dims)
    name, _ = _padded(ctx, name, shape, pad)
    attrs = {
        "stride": _window(layer.stride, dims),
        "padding": padding,
        "dilation": _window(layer.dilation, dims),
        "groups": layer.groups,
    }
    return ctx.emit(f"conv{dims}d_int8", [name], attrs, tensors)


def _ternary_transposed(dims: int) -> Row:
    def row(ctx: Lowering, layer: Any, input: Any, output_size: Any = None) -> Ref | None:
        name, shape = ctx.value(input), ctx.shape(input)
        if name is None or len(shape) != dims + 2:
            return None
        made = spatial.sub_pixel(ctx, layer, layer.ternary_weight().detach(), output_size, input)
        if made is None:
            why = "no two-bit weight stands for the taps that some of its pixels lack"
            args = (ctx.node.args, ctx.node.kwargs)
            return ctx.torch_node(ctx.call_of(ctx.node), *args, type(layer).__name__, why)
        geometry = {"dims": dims, **made.conv}
        return _ternary_core(ctx, layer, name, shape, geometry, "", made.weight, made)

    return row


def _int8_transposed(dims: int) -> Row:
    def row(ctx: Lowering, layer: Any, input: Any, output_size: Any = None) -> Ref | None:
        name, shape = ctx.value(input), ctx.shape(input)
        if name is None or len(shape) != dims + 2:
            return None
        made = spatial.sub_pixel(ctx, layer, layer.int8_weight(), output_size, input, zeros=True)
        if made is None:
            return None
        weight = made.weight if dims == 2 else made.weight.squeeze(2)
        tensors = {
            "weight": weight,
            "scale": made.repeated(layer.output_scale()),
            "inv_step": layer.act_quant.positive_step().reciprocal().reshape(1),
        }
        tensors |= {} if layer.bias is None else {"bias": made.repeated(layer.bias)}
        windows = ("stride", "padding", "dilation")
        attrs = {k: v[2 - dims :] if k in windows else v for k, v in made.conv.items()}
        conv = ctx.emit(
            f"conv{dims}d_int8", [name], attrs, tensors, suffix="_blocks", shape=made.shape(shape)
        )
        return ctx.emit("depth_to_space", [conv.name], made.blocks)

    return row


def _pool_row(function: Any, *names: str) -> Row:
    """Lower a pooling module: call the function's row with the module's attributes of these names."""

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
    TernaryConv1d: _ternary(1),
    TernaryConv2d: _ternary(2),
    TernaryLinear: _ternary(0),
    Int8Conv1d: _int8(1),
    Int8Conv2d: _int8(2),
    Int8Linear: _int8(0),
    TernaryProjection: _ternary(0),
    Int8Projection: _int8(0),
    TernaryConv1D: _ternary(0),
    Int8Conv1D: _int8(0),
    OwnForwardTernary: _own_forward,
    OwnForwardInt8: _own_forward,
    TernaryConvTranspose1d: _ternary_transposed(1),
    TernaryConvTranspose2d: _ternary_transposed(2),
    Int8ConvTranspose1d: _int8_transposed(1),
    Int8ConvTranspose2d: _int8_transposed(2),
    nn.Conv1d: _conv(1),
    nn.Conv2d: _conv(2),
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.PReLU: _prelu,
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
