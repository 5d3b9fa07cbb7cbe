"""Faster training of quantized convolutions on a CPU, with the same integers.

Two parts, which :func:`fast_convolutions` switches on:

- Under autocast, the gradient of a convolution of codes is computed in autocast's dtype, as that of
  a float convolution. The codes are exact in bfloat16 and float16, so only the gradient is rounded.
- The engine's kernels compute the sums. They are the integers that ``torch``'s float32 convolution
  gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from fatnn_rs.errors import InputError
from fatnn_rs.ops import prepack
from fatnn_rs.quant.base import WeightQuantizer

__all__ = ["fast_convolutions", "fast_product"]

_FAST: ContextVar[bool] = ContextVar("fast_convolutions", default=False)

#: Kind of activations in the engine → its levels. The first that holds a quantizer's is used.
_KINDS = {"half": (0, 1, 2), "full": (-1, 0, 1), "uint2": (0, 1, 2, 3)}


@contextmanager
def fast_convolutions(enabled: bool = True) -> Iterator[None]:
    """Run convolutions of codes by :func:`fast_product` inside a ``with`` block, if possible."""
    token = _FAST.set(enabled)
    try:
        yield
    finally:
        _FAST.reset(token)


def fast_product(layer: Any, x: Tensor, padding: Any) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return a function that multiplies a Conv2d's codes; None outside of ``fast_convolutions``.

    Parameters
    ----------
    layer
        A quantized ``Conv2d``; None is returned for an int8 one.
    x
        The layer's float input, [N, C, H, W].
    padding
        Zeros to add on both sides of the codes, as ``Conv2d.padding``.
    """
    if not _FAST.get() or torch.compiler.is_compiling():
        return None
    if x.device.type != "cpu" or x.dim() != 4 or isinstance(padding, str):
        return None
    weights = getattr(layer, "weight_quant", None)  # int8 layers have none
    if not isinstance(weights, WeightQuantizer) or weights.refused:
        return None
    geometry = (layer.stride, padding, layer.dilation)
    narrow = torch.float32
    if torch.is_autocast_enabled("cpu"):
        narrow = torch.get_autocast_dtype("cpu")

    def product(codes: Tensor, weight: Tensor) -> Tensor:
        levels = set(layer.act_quant.levels)
        kind = next((kind for kind, known in _KINDS.items() if levels <= set(known)), None)
        result: Tensor = _Convolution.apply(codes, weight, geometry, layer.groups, kind, narrow)
        return result

    return product


def _engine_sums(
    codes: Tensor, weight: Tensor, geometry: tuple[Any, Any, Any], groups: int, kind: str
) -> Tensor:
    """Convolve codes in the engine; an :class:`InputError` if an operand holds NaN."""
    if not bool(weight.isfinite().all()):
        raise InputError("the weight codes hold NaN")
    edges = [level - 0.5 for level in _KINDS[kind][1:]]
    packed = torch.ops.fatnn_rs.quantize(codes, edges, groups)
    panels = prepack(weight.to(torch.int8).contiguous(), groups, kind)
    result: Tensor = torch.ops.fatnn_rs.conv_float(
        packed, panels, None, None, None, False, len(weight), weight.shape[2:], *geometry
    )
    return result


class _Convolution(torch.autograd.Function):
    """Convolution of codes: sums in the engine or in float32, gradients in a narrower dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        codes: Tensor,
        weight: Tensor,
        geometry: tuple[Any, Any, Any],
        groups: int,
        kind: str | None,
        narrow: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(codes.to(narrow), weight.to(narrow))
        ctx.geometry, ctx.groups = geometry, groups
        ctx.dtypes = codes.dtype, weight.dtype
        if kind is not None and codes.dtype == torch.float32 and codes.numel():
            with suppress(InputError):  # NaN: torch passes it on, and the loss shows it.
                return _engine_sums(codes, weight, geometry, groups, kind)
        stride, padding, dilation = geometry
        return torch.conv2d(codes, weight, None, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        needed = [*ctx.needs_input_grad[:2], False]
        gradient = grads[0].to(codes.dtype)
        for_codes, for_weight, _ = torch.ops.aten.convolution_backward(
            gradient, codes, weight, None, stride, padding, dilation, False, [0, 0], ctx.groups,
            needed,
        )  # fmt: skip
        return (
            None if for_codes is None else for_codes.to(ctx.dtypes[0]),
            None if for_weight is None else for_weight.to(ctx.dtypes[1]),
            *[None] * 4,
        )
