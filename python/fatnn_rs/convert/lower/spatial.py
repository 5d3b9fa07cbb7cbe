"""How calls that change the size of maps are lowered: interpolation, transposed convolution, pixel shuffle.

A size that is another tensor's map follows that tensor in every run. Sizes that forward computes in
another way are the example's, and the inputs are held to it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fatnn_rs import _core
from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.levels import is_two_bit
from fatnn_rs.convert.lower.lowering import Lowering, Row
from fatnn_rs.ops.kernels import aligned_array

__all__ = ["FUNCTIONS", "MODULES", "SubPixel", "sub_pixel"]

#: Modes of ``interpolate`` by number of spatial axes → operation.
_LINEAR = {1: "linear", 2: "bilinear"}


def map_of(ctx: Lowering, value: Any) -> tuple[fx.Node, tuple[int, ...]] | None:
    """Find the tensor whose sizes an argument is, and which of them; by any of the ways to write it."""
    if isinstance(value, (tuple, list)):
        parts = [map_of(ctx, part) for part in value]
        found = [part for part in parts if part is not None and len(part[1]) == 1]
        if not found or len(found) != len(parts) or len({part[0] for part in found}) > 1:
            return None
        return found[0][0], tuple(part[1][0] for part in found)
    if not isinstance(value, fx.Node):
        return None
    args: tuple[Any, ...] = value.args
    if value.target in ("size", torch.ops.aten.sym_size.int) or (
        value.target is getattr and args[1:] == ("shape",)
    ):
        source = args[0]
        if not isinstance(source, fx.Node) or not ctx.shape(source):
            return None
        dims: Any = range(len(ctx.shape(source)))
        index = args[1] if value.target is not getattr and len(args) == 2 else slice(None)
    elif value.target is operator.getitem:
        held = map_of(ctx, args[0]) if isinstance(args[0], fx.Node) else None
        if held is None:
            return None
        (source, dims), index = held, args[1]
    else:
        return None
    if isinstance(index, int) and -len(dims) <= index < len(dims):
        return source, (dims[index],)
    whole = isinstance(index, slice) and all(
        part is None or isinstance(part, int) for part in (index.start, index.stop, index.step)
    )
    return (source, tuple(dims[index])) if whole else None


def _hold(ctx: Lowering) -> None:
    """Hold the inputs to the example's sizes, from which forward computes one."""
    ctx.of_one_size.extend(ctx.inputs.values())


def _numbers(ctx: Lowering, value: Any, axes: int) -> list[int] | None:
    """Return a number per axis, computed ones as they were at the example."""
    values = list(value) if isinstance(value, (tuple, list)) else [value] * axes
    made = [ctx.seen(v).value if isinstance(v, fx.Node) else v for v in values]
    known = [v for v in made if isinstance(v, int) and not isinstance(v, bool)]
    if len(known) != axes or len(made) != axes:
        return None
    if any(isinstance(v, fx.Node) for v in values):
        _hold(ctx)
    return known


def _factors(value: Any, axes: int) -> list[float] | None:
    values = list(value) if isinstance(value, (tuple, list)) else [value] * axes
    fits = len(values) == axes and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0 for v in values
    )
    return [float(v) for v in values] if fits else None


def interpolate(
    ctx: Lowering,
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: Any = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: Any = False,
) -> Ref | None:
    """Interpolate to a size, to another tensor's, or by a factor."""
    name, rank = ctx.value(input), len(ctx.shape(input))
    axes = rank - 2
    if name is None or axes not in _LINEAR or antialias or 0 in ctx.shape(input):
        return None
    nearest = mode in ("nearest", "nearest-exact")
    if not nearest and mode not in (_LINEAR[axes], "area"):
        return None
    inputs, sizes, factors = [name], [], []
    like = map_of(ctx, size)
    other = ctx.value(like[0]) if like is not None else None
    if (
        like is not None
        and other is not None
        and like[1] == tuple(range(2, rank)) == tuple(range(2, len(ctx.shape(like[0]))))
    ):
        inputs.append(other)
    elif size is not None:
        # At the example: a tuple of sizes that some call made has no number of its own.
        given = _numbers(ctx, size, axes)
        if given is None and like is not None and len(like[1]) == axes:
            given = [ctx.shape(like[0])[dim] for dim in like[1]]
            _hold(ctx)
        if given is None:
            return None
        sizes = given
    else:
        given_factors = _factors(scale_factor, axes)
        if given_factors is None:
            return None
        factors = given_factors
    if mode == "area":
        return _area(ctx, input, name, list(ctx.shape(ctx.node)[2:]), bool(sizes))
    attrs: dict[str, Any] = {
        "size": sizes,
        "factors": factors,
        "recompute": bool(recompute_scale_factor),
        "layout": "|".join([ctx.seen(input).layout, *["any"] * (len(inputs) - 1)]),
    }
    if nearest:
        return ctx.emit("interpolate_nearest", inputs, {**attrs, "mode": mode})
    return ctx.emit("interpolate_linear", inputs, {**attrs, "align_corners": bool(align_corners)})


def _area(ctx: Lowering, input: Any, name: str, size: list[int], fixed: bool) -> Ref:
    """Means of the pixels that fall into each: torch's adaptive pooling."""
    if not fixed:
        _hold(ctx)
    attrs = {"size": size, "layout": ctx.seen(input).layout}
    return ctx.emit(f"adaptive_avg_pool{len(size)}d", [name], attrs)


def _aten_upsample(mode: str, linear: bool) -> Row:
    """``aten.upsample_*.vec``: size and factors as torch's own function gives them."""

    def row(ctx: Lowering, input: Any, output_size: Any, *rest: Any) -> Ref | None:
        align_corners, factors = rest if linear else (None, *rest)
        made: Ref | None = interpolate(ctx, input, output_size, factors, mode, align_corners)
        return made

    return row


def pixel_shuffle(ctx: Lowering, input: Any, upscale_factor: Any) -> Ref | None:
    """Channels to pixels."""
    name, shape, r = ctx.value(input), ctx.shape(input), upscale_factor
    if name is None or len(shape) != 4 or not isinstance(r, int) or r < 1 or 0 in shape:
        return None
    return ctx.emit("depth_to_space", [name], _blocks([r, r], [0] * 4, 1, "CRD"))


def _blocks(block: list[int], crop: list[int], groups: int, mode: str) -> dict[str, Any]:
    return {"block": block, "crop": crop, "groups": groups, "mode": mode}


def pixel_unshuffle(ctx: Lowering, input: Any, downscale_factor: Any) -> Ref | None:
    """Pixels to channels."""
    name, shape, r = ctx.value(input), ctx.shape(input), downscale_factor
    if name is None or len(shape) != 4 or not isinstance(r, int) or r < 1 or 0 in shape:
        return None
    n, c, h, w = shape
    ctx.of_one_size.append(name)
    split = (n, c, h // r, r, w // r, r)
    number = len(ctx.graph.nodes)
    made = ctx.emit(
        "reshape", [name], {"shape": [0, *split[1:]]}, suffix=f"_split_{number}", shape=split
    )
    moved = ctx.emit(
        "permute",
        [made.name],
        {"dims": [0, 1, 3, 5, 2, 4]},
        suffix=f"_moved_{number}",
        shape=(n, c, r, r, h // r, w // r),
    )
    return ctx.emit("reshape", [moved.name], {"shape": [0, c * r * r, h // r, w // r]})


class SubPixel:
    """A transposed convolution as an ordinary one, each of whose pixels becomes a block.

    Attributes
    ----------
    weight
        int8 [blocks · n, channels / groups, height, width].
    conv
        Attributes of the ordinary convolution, of two axes, and ``input_products``.
    blocks
        Attributes of the ``depth_to_space`` that follows.
    """

    def __init__(self, layer: Any, weight: Tensor, output_padding: Sequence[int]) -> None:
        axes = weight.dim() - 2
        one, zero = [1] * (2 - axes), [0] * (2 - axes)
        stride = one + [int(v) for v in layer.stride]
        shape = (*weight.shape[:2], *one, *weight.shape[2:])
        spread, padding, dilation, crop = _core.sub_pixel(
            aligned_array(weight.reshape(shape).contiguous()),
            stride,
            zero + [int(v) for v in layer.padding],
            zero + [int(v) for v in output_padding],
            one + [int(v) for v in layer.dilation],
            layer.groups,
        )
        self.weight = torch.from_numpy(spread)
        self.conv: dict[str, Any] = {
            "stride": [1, 1],
            "padding": list(padding),
            "dilation": list(dilation),
            "groups": layer.groups,
            "input_products": int(weight[0].numel()),
        }
        self.blocks = _blocks(stride, list(crop), layer.groups, "DCR")

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the ordinary convolution's value over maps of this shape."""
        axes = len(shape) - 2
        kernel, padding, dilation = (
            list(v)[2 - axes :]
            for v in (self.weight.shape[2:], self.conv["padding"], self.conv["dilation"])
        )
        sizes = [
            size + 2 * p - d * (k - 1)
            for size, k, p, d in zip(shape[2:], kernel, padding, dilation, strict=True)
        ]
        return (shape[0], self.weight.shape[0], *sizes)

    def repeated(self, values: Tensor) -> Tensor:
        """Numbers per output channel of the layer (the last dimension) as those of the convolution."""
        return repeat_channels(values, self.blocks)


def repeat_channels(values: Tensor, blocks: dict[str, Any]) -> Tensor:
    """Numbers per channel (the last dimension) for every pixel of the blocks that a shuffle reads."""
    height, width = blocks["block"]
    parts = values.reshape(*values.shape[:-1], blocks["groups"], 1, -1)
    return parts.repeat_interleave(height * width, -2).flatten(-3)


def sub_pixel(
    ctx: Lowering, layer: Any, weight: Tensor, given: Any, input: Any, zeros: bool = False
) -> SubPixel | None:
    """Turn a quantized transposed layer into a convolution.

    None where the output's size is not known, or no code stands for absent taps; ``zeros``: 0 does.
    """
    padding = _output_padding(ctx, layer, given, input)
    if padding is None:
        return None
    made = SubPixel(layer, weight, padding)
    # Ternary weights have a 0, those of two bits have none.
    fits = zeros or not is_two_bit(weight) or not bool((made.weight == 0).any())
    return made if fits else None


def _output_padding(ctx: Lowering, layer: Any, output_size: Any, input: Any) -> list[int] | None:
    """Return ``output_padding`` of a call; with an output size, what it was at the example.

    None where that is not known, or the call leaves nothing of the map.
    """
    if 0 in ctx.shape(ctx.node):
        return None
    if output_size is None:
        return [int(v) for v in layer.output_padding]
    axes = len(layer.kernel_size)
    like = map_of(ctx, output_size)
    if like is not None:
        sizes: list[int] | None = [ctx.shape(like[0])[dim] for dim in like[1]]
    elif isinstance(output_size, (tuple, list)):
        sizes = _numbers(ctx, output_size, len(output_size))
    else:
        sizes = None
    if sizes is None:
        return None
    _hold(ctx)
    shape = ctx.shape(input)[2:]
    grown = [
        (size - 1) * s - 2 * p + d * (k - 1) + 1
        for size, s, p, d, k in zip(
            shape, layer.stride, layer.padding, layer.dilation, layer.kernel_size, strict=True
        )
    ]
    return [size - least for size, least in zip(sizes[-axes:], grown, strict=True)]


def _transposed(dims: int) -> Row:
    """Lower a float transposed convolution."""

    def row(ctx: Lowering, module: Any, input: Any, output_size: Any = None) -> Ref | None:
        name = ctx.value(input)
        if name is None or len(ctx.shape(input)) != dims + 2:
            return None
        padding = _output_padding(ctx, module, output_size, input)
        if padding is None:
            return None
        tensors = {"weight": module.weight, "bias": module.bias}
        how = (module.stride, module.padding, padding, module.dilation, module.groups)
        return _emit_transposed(ctx, input, name, dims, how, tensors)

    return row


def conv_transpose(dims: int) -> Row:
    """Lower a transposed convolution with constant weights."""

    def row(
        ctx: Lowering,
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: Any = 1,
        dilation: Any = 1,
    ) -> Ref | None:
        name = ctx.value(input)
        tensors = {role: ctx.constant(v) for role, v in (("weight", weight), ("bias", bias))}
        if (
            name is None
            or tensors["weight"] is None
            or (bias is not None) != (tensors["bias"] is not None)
        ):
            return None
        given = [
            list(v) * (dims if len(v) == 1 else 1) if isinstance(v, (tuple, list)) else [v] * dims
            for v in (stride, padding, output_padding, dilation)
        ]
        fits = all(len(v) == dims and all(isinstance(n, int) for n in v) for v in given)
        if not fits or not isinstance(groups, int) or len(ctx.shape(input)) != dims + 2:
            return None
        if 0 in ctx.shape(ctx.node):
            return None
        return _emit_transposed(ctx, input, name, dims, (*given, groups), tensors)

    return row


def _emit_transposed(
    ctx: Lowering,
    input: Any,
    name: str,
    dims: int,
    how: tuple[Any, ...],
    tensors: dict[str, Tensor | None],
) -> Ref:
    keys = ("stride", "padding", "output_padding", "dilation")
    attrs = {key: [int(n) for n in value] for key, value in zip(keys, how[:4], strict=True)}
    layout = ctx.seen(input).layout
    return ctx.emit(
        f"conv_transpose{dims}d",
        [name],
        {**attrs, "groups": int(how[4]), "layout": layout},
        tensors,
    )


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
    """InstanceNorm with constant weights, by its own statistics."""
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
        # With statistics of its own it is a BatchNorm, also in torch.
        tensors = {"mean": module.running_mean, "var": module.running_var, **affine}
        attrs = {"eps": float(module.eps), "layout": ctx.seen(input).layout}
        return ctx.emit("batch_norm", [name], attrs, tensors)

    return row


def adaptive_max_pool(dims: int) -> Row:
    """Adaptive max pooling over ``dims`` dimensions."""

    def row(ctx: Lowering, input: Any, output_size: Any, return_indices: Any = False) -> Ref | None:
        name = ctx.value(input) if len(ctx.shape(input)) == dims + 2 else None
        values = (
            list(output_size) if isinstance(output_size, (tuple, list)) else [output_size] * dims
        )
        fits = len(values) == dims and all(v is None or isinstance(v, int) for v in values)
        if name is None or return_indices is not False or not fits:
            return None
        return ctx.emit(f"adaptive_max_pool{dims}d", [name], {"size": [v or 0 for v in values]})

    return row


def _upsample(ctx: Lowering, module: Any, input: Any) -> Ref | None:
    """``nn.Upsample``."""
    made: Ref | None = interpolate(
        ctx,
        input,
        module.size,
        module.scale_factor,
        module.mode,
        module.align_corners,
        module.recompute_scale_factor,
    )
    return made


def _adaptive_max_module(dims: int) -> Row:
    function = adaptive_max_pool(dims)
    return lambda ctx, m, input: function(ctx, input, m.output_size, m.return_indices)


_aten = torch.ops.aten

#: Functions and operators → row.
FUNCTIONS: dict[Any, Row] = {
    functional.interpolate: interpolate,
    _aten.upsample_nearest1d.vec: _aten_upsample("nearest", linear=False),
    _aten.upsample_nearest2d.vec: _aten_upsample("nearest", linear=False),
    _aten._upsample_nearest_exact1d.vec: _aten_upsample("nearest-exact", linear=False),
    _aten._upsample_nearest_exact2d.vec: _aten_upsample("nearest-exact", linear=False),
    _aten.upsample_linear1d.vec: _aten_upsample("linear", linear=True),
    _aten.upsample_bilinear2d.vec: _aten_upsample("bilinear", linear=True),
    torch.pixel_shuffle: pixel_shuffle,
    functional.pixel_shuffle: pixel_shuffle,
    _aten.pixel_shuffle.default: pixel_shuffle,
    torch.pixel_unshuffle: pixel_unshuffle,
    functional.pixel_unshuffle: pixel_unshuffle,
    _aten.pixel_unshuffle.default: pixel_unshuffle,
    functional.conv_transpose1d: conv_transpose(1),
    functional.conv_transpose2d: conv_transpose(2),
    _aten.conv_transpose1d.default: conv_transpose(1),
    _aten.conv_transpose2d.input: conv_transpose(2),
    functional.instance_norm: instance_norm,
    torch.instance_norm: _aten_instance_norm,
    _aten.instance_norm.default: _aten_instance_norm,
    functional.adaptive_max_pool1d: adaptive_max_pool(1),
    functional.adaptive_max_pool2d: adaptive_max_pool(2),
}

#: Module classes → row.
MODULES: dict[type[nn.Module], Row] = {
    nn.Upsample: _upsample,
    nn.UpsamplingNearest2d: _upsample,
    nn.UpsamplingBilinear2d: _upsample,
    nn.ConvTranspose1d: _transposed(1),
    nn.ConvTranspose2d: _transposed(2),
    nn.InstanceNorm1d: _instance_norm_module(1),
    nn.InstanceNorm2d: _instance_norm_module(2),
    nn.AdaptiveMaxPool1d: _adaptive_max_module(1),
    nn.AdaptiveMaxPool2d: _adaptive_max_module(2),
    nn.PixelShuffle: lambda ctx, m, input: pixel_shuffle(ctx, input, m.upscale_factor),
    nn.PixelUnshuffle: lambda ctx, m, input: pixel_unshuffle(ctx, input, m.downscale_factor),
}
