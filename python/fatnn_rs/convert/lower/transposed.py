"""Transposed convolutions. A quantized one becomes an ordinary convolution and a pixel shuffle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs import _core
from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.levels import is_two_bit
from fatnn_rs.convert.lower.lowering import Lowering, Row
from fatnn_rs.convert.lower.spatial import block_attrs, example_sizes, fix_all_sizes, sizes_of
from fatnn_rs.ops.kernels import aligned_array

__all__ = ["FUNCTIONS", "MODULES", "SubPixel", "repeat_channels", "sub_pixel"]


class SubPixel:
    """A transposed convolution as an ordinary one whose pixels each become a block of pixels.

    Attributes
    ----------
    weight
        int8 [pixels of a block * out channels, in channels / groups, height, width].
    conv
        Attributes of the ordinary convolution, for two spatial axes, and ``input_products``.
    blocks
        Attributes of the ``depth_to_space`` after it.
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
        self.blocks = block_attrs(stride, list(crop), layer.groups, "DCR")

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the ordinary convolution's output shape for an input shape."""
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
        """Expand values per output channel of the layer (last dimension) to the convolution's."""
        return repeat_channels(values, self.blocks)


def repeat_channels(values: Tensor, blocks: dict[str, Any]) -> Tensor:
    """Repeat values per channel (last dimension) for every pixel of a ``depth_to_space`` block."""
    height, width = blocks["block"]
    parts = values.reshape(*values.shape[:-1], blocks["groups"], 1, -1)
    return parts.repeat_interleave(height * width, -2).flatten(-3)


def sub_pixel(
    ctx: Lowering, layer: Any, weight: Tensor, given: Any, input: Any, zeros: bool = False
) -> SubPixel | None:
    """Turn a quantized transposed layer into a convolution.

    Parameters
    ----------
    layer
        Its stride, padding, dilation and groups are read.
    weight
        int8 [in channels, out channels / groups, *kernel].
    given
        The call's ``output_size`` argument.
    input
        The call's input.
    zeros
        Whether the weights' type has a 0, which fills taps that some pixels lack.

    Returns
    -------
    SubPixel or None
        None if the output size is unknown, or taps are missing and the weights have no 0.
    """
    padding = _output_padding(ctx, layer, given, input)
    if padding is None:
        return None
    made = SubPixel(layer, weight, padding)
    # Ternary weights have a 0; two-bit weights have none.
    fits = zeros or not is_two_bit(weight) or not bool((made.weight == 0).any())
    return made if fits else None


def _output_padding(ctx: Lowering, layer: Any, output_size: Any, input: Any) -> list[int] | None:
    """Return the ``output_padding`` of a call; an output size counts as it was for the example.

    None if the size is unknown or the result is empty.
    """
    if 0 in ctx.shape(ctx.node):
        return None
    if output_size is None:
        return [int(v) for v in layer.output_padding]
    axes = len(layer.kernel_size)
    like = sizes_of(ctx, output_size)
    if like is not None:
        sizes: list[int] | None = [ctx.shape(like[0])[dim] for dim in like[1]]
    elif isinstance(output_size, (tuple, list)):
        sizes = example_sizes(ctx, output_size, len(output_size))
    else:
        sizes = None
    if sizes is None:
        return None
    fix_all_sizes(ctx)
    shape = ctx.shape(input)[2:]
    grown = [
        (size - 1) * s - 2 * p + d * (k - 1) + 1
        for size, s, p, d, k in zip(
            shape, layer.stride, layer.padding, layer.dilation, layer.kernel_size, strict=True
        )
    ]
    return [size - least for size, least in zip(sizes[-axes:], grown, strict=True)]


def _transposed(dims: int) -> Row:
    """Lower a float transposed convolution module."""

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
    """Lower a transposed convolution function with constant weights."""

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
    return ctx.emit(
        f"conv_transpose{dims}d",
        [name],
        {**attrs, "groups": int(how[4]), "layout": ctx.seen(input).layout},
        tensors,
    )


_aten = torch.ops.aten

#: Functions and operators → row.
FUNCTIONS: dict[Any, Row] = {
    functional.conv_transpose1d: conv_transpose(1),
    functional.conv_transpose2d: conv_transpose(2),
    _aten.conv_transpose1d.default: conv_transpose(1),
    _aten.conv_transpose2d.input: conv_transpose(2),
}

#: Module classes → row.
MODULES: dict[type[nn.Module], Row] = {
    nn.ConvTranspose1d: _transposed(1),
    nn.ConvTranspose2d: _transposed(2),
}
