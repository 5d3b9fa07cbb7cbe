"""Ternary and int8 layers: quantizer, integer product, scale and bias."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fatnn_rs.convert.float_thresholds import float_steps
from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.levels import act_kind, coded_levels, codes_dtype, is_two_bit, weight_kind
from fatnn_rs.convert.lower import transposed
from fatnn_rs.convert.lower.conv_params import pad_before, split_padding, window
from fatnn_rs.convert.lower.lowering import Lowering, Row
from fatnn_rs.convert.lower.overrides import WithAttributes, without_bias
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

__all__ = ["MODULES"]


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
        flat = ctx.emit("flatten_leading", [name], suffix="_rows", shape=(count, shape[-1]))
        result = _ternary_core(ctx, layer, flat.name, (count, shape[-1]), _LINEAR, "_flat")
        return ctx.emit("reshape_like", [result.name, name])

    return row


def _own_forward(ctx: Lowering, layer: Any, *args: Any, **kwargs: Any) -> Ref | None:
    """Lower a layer whose own forward only pads its input and computes the product."""
    if len(args) != 1 or kwargs or ctx.value(args[0]) is None:
        return None
    seen = trace_own_forward(layer, ctx.shape(args[0]))
    if seen is None:
        return None
    call, pad = seen
    view = WithAttributes(layer, bias=call.bias)
    is_int8 = isinstance(layer, Int8Layer)
    if not call.dims:
        row = (_int8 if is_int8 else _ternary)(0)
        result: Ref | None = row(ctx, view, args[0])
        return result
    windows = {name: call.geometry[name] for name in ("stride", "dilation", "padding")}
    if isinstance(windows["padding"], str):
        return None
    windows = {name: tuple(window(value, call.dims)) for name, value in windows.items()}
    around = [size for size in reversed(windows["padding"]) for _ in range(2)]
    name, shape = ctx.value(args[0]), ctx.shape(args[0])
    assert name is not None, "checked above"
    if pad is not None:
        ctx.fix_sizes(name)
        alike = all(pad[2 * axis] == pad[2 * axis + 1] for axis in range(call.dims))
        if alike and (is_int8 or _code_of_zero(layer) == 0):
            around = [one + more for one, more in zip(around, pad, strict=True)]
        else:
            name, shape = pad_before(
                ctx, name, shape, {"pad": pad, "mode": "constant", "value": 0.0}
            )
    view = WithAttributes(
        view,
        **windows,
        padding_mode="zeros",
        _reversed_padding_repeated_twice=around,
        groups=call.geometry["groups"],
    )
    if not is_int8:
        return _ternary_conv(ctx, view, name, shape, call.dims)
    return _int8_conv(ctx, view, name, shape, _int8_tensors(view), call.dims)


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
    padding, pad = split_padding(layer, dims)
    weight = layer.ternary_weight().detach()
    if pad is not None and pad["mode"] == "constant" and _code_of_zero(layer) != 0:
        # The eager layer pads with code 0, but float 0 has another code, so a pad before the
        # quantizer would give other codes.
        wider = _with_leading_zeros(layer, weight, pad["pad"])
        if wider is None:
            return None
        weight, padding, pad = *wider, None
    name, shape = pad_before(ctx, name, shape, pad)
    one, zero = ([1], [0]) if dims == 1 else ([], [])
    attrs = {
        "dims": dims,
        "stride": one + window(layer.stride, dims),
        "padding": zero + padding,
        "dilation": one + window(layer.dilation, dims),
        "groups": layer.groups,
    }
    return _ternary_core(ctx, layer, name, shape, attrs, "", weight)


def _code_of_zero(layer: TernaryLayer) -> int:
    """Return the code of the float 0."""
    return int(layer.act_quant(torch.zeros(1, dtype=torch.float32, device="cpu")))


def _with_leading_zeros(
    layer: Any, weight: Tensor, around: list[int]
) -> tuple[Tensor, list[int]] | None:
    """Make padding symmetric by adding a leading zero to the kernel.

    If the padding after is larger by one than the padding before, the larger one can be used on
    both sides, with a kernel that starts with an extra zero.

    Returns
    -------
    tuple or None
        Weight and padding per spatial dimension; None if the padding differs by more, the
        convolution is dilated or the weights have no zero.
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
    blocks: transposed.SubPixel | None = None,
) -> Ref:
    """Add the nodes of a ternary layer: quantizer, integer product, scale and bias.

    Parameters
    ----------
    name, shape
        Input value and its shape.
    geometry
        Attributes of the convolution.
    tail
        Suffix of the last node's name.
    weight
        Integer weights; those of ``layer`` by default.
    blocks
        If given, each pixel of the product becomes a block of pixels before the scale.
    """
    quantizer = copy.deepcopy(layer.act_quant)
    kind = act_kind(quantizer.levels)
    assert kind is not None, "check_model has refused such levels"
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


#: Operation → suffix of its node's name if another node follows.
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
        flat = ctx.emit("flatten_leading", [name], suffix="_rows", shape=(count, shape[-1]))
        result = ctx.emit(
            "linear_int8",
            [flat.name],
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
    padding, pad = split_padding(layer, dims)
    name, _ = pad_before(ctx, name, shape, pad)
    attrs = {
        "stride": window(layer.stride, dims),
        "padding": padding,
        "dilation": window(layer.dilation, dims),
        "groups": layer.groups,
    }
    return ctx.emit(f"conv{dims}d_int8", [name], attrs, tensors)


def _ternary_transposed(dims: int) -> Row:
    def row(ctx: Lowering, layer: Any, input: Any, output_size: Any = None) -> Ref | None:
        name, shape = ctx.value(input), ctx.shape(input)
        if name is None or len(shape) != dims + 2:
            return None
        made = transposed.sub_pixel(ctx, layer, layer.ternary_weight().detach(), output_size, input)
        if made is None:
            why = "some output pixels use fewer taps, and two-bit weights have no zero to fill them"
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
        made = transposed.sub_pixel(ctx, layer, layer.int8_weight(), output_size, input, zeros=True)
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


#: Module class → row.
MODULES: dict[type[nn.Module], Row] = {
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
}
