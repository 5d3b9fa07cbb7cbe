"""Interpolation, pixel shuffle and adaptive max pooling.

A size read from another tensor follows that tensor in every run. A size that forward computes in
another way is replaced by its value for the example, and the network then accepts only inputs of
the example's sizes.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.lower.lowering import Lowering, Row

__all__ = [
    "FUNCTIONS",
    "MODULES",
    "block_attrs",
    "example_sizes",
    "fix_all_sizes",
    "sizes_of",
]


#: Number of spatial axes → linear mode of ``interpolate``.
_LINEAR = {1: "linear", 2: "bilinear"}


def sizes_of(ctx: Lowering, value: Any) -> tuple[fx.Node, tuple[int, ...]] | None:
    """Return the tensor and the dimensions whose sizes an argument reads, or None.

    Recognises ``x.size()``, ``x.shape``, indexing and slices of them, and tuples of sizes.
    """
    if isinstance(value, (tuple, list)):
        parts = [sizes_of(ctx, part) for part in value]
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
        held = sizes_of(ctx, args[0]) if isinstance(args[0], fx.Node) else None
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


def fix_all_sizes(ctx: Lowering) -> None:
    """Fix all inputs to the example's sizes, because forward computes with them."""
    for name in ctx.inputs.values():
        ctx.fix_sizes(name)


def example_sizes(ctx: Lowering, value: Any, axes: int) -> list[int] | None:
    """Return one integer per axis; a computed one as it was for the example. None if unknown."""
    values = list(value) if isinstance(value, (tuple, list)) else [value] * axes
    made = [ctx.seen(v).value if isinstance(v, fx.Node) else v for v in values]
    known = [v for v in made if isinstance(v, int) and not isinstance(v, bool)]
    if len(known) != axes or len(made) != axes:
        return None
    if any(isinstance(v, fx.Node) for v in values):
        fix_all_sizes(ctx)
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
    """Interpolate to a given size, to another tensor's size, or by a factor."""
    name, rank = ctx.value(input), len(ctx.shape(input))
    axes = rank - 2
    if name is None or axes not in _LINEAR or 0 in ctx.shape(input):
        return None
    nearest = mode in ("nearest", "nearest-exact")
    filtered = axes == 2 and (mode == "bicubic" or (mode == "bilinear" and bool(antialias)))
    if (antialias and not filtered) or not (nearest or filtered or mode in (_LINEAR[axes], "area")):
        return None
    inputs, sizes, factors = [name], [], []
    like = sizes_of(ctx, size)
    other = ctx.value(like[0]) if like is not None else None
    if (
        like is not None
        and other is not None
        and like[1] == tuple(range(2, rank)) == tuple(range(2, len(ctx.shape(like[0]))))
    ):
        inputs.append(other)
    elif size is not None:
        # A tuple of sizes that a call returned has no recorded value: take the source's shape.
        given = example_sizes(ctx, size, axes)
        if given is None and like is not None and len(like[1]) == axes:
            given = [ctx.shape(like[0])[dim] for dim in like[1]]
            fix_all_sizes(ctx)
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
    attrs["align_corners"] = bool(align_corners)
    if filtered:
        attrs |= {"mode": mode, "antialias": bool(antialias)}
    return ctx.emit("interpolate_filter" if filtered else "interpolate_linear", inputs, attrs)


def _area(ctx: Lowering, input: Any, name: str, size: list[int], fixed: bool) -> Ref:
    """Lower mode ``area``, which is adaptive average pooling."""
    if not fixed:
        fix_all_sizes(ctx)
    attrs = {"size": size, "layout": ctx.seen(input).layout}
    return ctx.emit(f"adaptive_avg_pool{len(size)}d", [name], attrs)


def _aten_upsample(mode: str, linear: bool, antialias: bool = False) -> Row:
    """Lower ``aten.upsample_*.vec``, whose arguments are in another order."""

    def row(ctx: Lowering, input: Any, output_size: Any, *rest: Any) -> Ref | None:
        align_corners, factors = rest if linear else (None, *rest)
        made: Ref | None = interpolate(
            ctx, input, output_size, factors, mode, align_corners, antialias=antialias
        )
        return made

    return row


def pixel_shuffle(ctx: Lowering, input: Any, upscale_factor: Any) -> Ref | None:
    """Pixel shuffle: moves channels to pixels."""
    name, shape, r = ctx.value(input), ctx.shape(input), upscale_factor
    if name is None or len(shape) != 4 or not isinstance(r, int) or r < 1 or 0 in shape:
        return None
    return ctx.emit("depth_to_space", [name], block_attrs([r, r], [0] * 4, 1, "CRD"))


def block_attrs(block: list[int], crop: list[int], groups: int, mode: str) -> dict[str, Any]:
    """Return the attributes of a ``depth_to_space`` node."""
    return {"block": block, "crop": crop, "groups": groups, "mode": mode}


def pixel_unshuffle(ctx: Lowering, input: Any, downscale_factor: Any) -> Ref | None:
    """Pixel unshuffle: moves pixels to channels."""
    name, shape, r = ctx.value(input), ctx.shape(input), downscale_factor
    if name is None or len(shape) != 4 or not isinstance(r, int) or r < 1 or 0 in shape:
        return None
    n, c, h, w = shape
    ctx.fix_sizes(name)
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


def adaptive_max_pool(dims: int) -> Row:
    """Lower adaptive max pooling over ``dims`` dimensions."""

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


def _aten_max_pool(dims: int) -> Row:
    """Lower ``aten.adaptive_max_pool``, which also returns indices, if nothing reads them."""
    function = adaptive_max_pool(dims)

    def row(ctx: Lowering, input: Any, output_size: Any) -> tuple[Ref, None] | None:
        for user in ctx.node.users:
            if user.target is not operator.getitem or (user.args[1] != 0 and user.users):
                return None
        name, shape = ctx.value(input), ctx.shape(input)
        if name is None or len(shape) != dims + 2:
            return None
        made = function(ctx, input, output_size)
        ctx.graph.nodes[-1].shape = (*shape[:2], *output_size)
        return None if made is None else (made, None)

    return row


def _upsample(ctx: Lowering, module: Any, input: Any) -> Ref | None:
    """Lower ``nn.Upsample``."""
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
    _aten.upsample_bicubic2d.vec: _aten_upsample("bicubic", linear=True),
    _aten._upsample_bilinear2d_aa.vec: _aten_upsample("bilinear", linear=True, antialias=True),
    _aten._upsample_bicubic2d_aa.vec: _aten_upsample("bicubic", linear=True, antialias=True),
    torch.pixel_shuffle: pixel_shuffle,
    functional.pixel_shuffle: pixel_shuffle,
    _aten.pixel_shuffle.default: pixel_shuffle,
    torch.pixel_unshuffle: pixel_unshuffle,
    functional.pixel_unshuffle: pixel_unshuffle,
    _aten.pixel_unshuffle.default: pixel_unshuffle,
    _aten.adaptive_max_pool1d.default: _aten_max_pool(1),
    _aten.adaptive_max_pool2d.default: _aten_max_pool(2),
    functional.adaptive_max_pool1d: adaptive_max_pool(1),
    functional.adaptive_max_pool2d: adaptive_max_pool(2),
}


#: Module classes → row.
MODULES: dict[type[nn.Module], Row] = {
    nn.Upsample: _upsample,
    nn.UpsamplingNearest2d: _upsample,
    nn.UpsamplingBilinear2d: _upsample,
    nn.AdaptiveMaxPool1d: _adaptive_max_module(1),
    nn.AdaptiveMaxPool2d: _adaptive_max_module(2),
    nn.PixelShuffle: lambda ctx, m, input: pixel_shuffle(ctx, input, m.upscale_factor),
    nn.PixelUnshuffle: lambda ctx, m, input: pixel_unshuffle(ctx, input, m.downscale_factor),
}
