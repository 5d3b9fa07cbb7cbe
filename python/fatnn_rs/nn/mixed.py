"""Faster training of quantized convolutions on a CPU, with the same integers.

Three parts, which :func:`fast_convolutions` switches on:

- Under autocast, the gradient of a convolution of codes is computed in autocast's dtype, as that of
  a float convolution. The codes are exact in bfloat16 and float16, so only the gradient is rounded.
- The engine's kernels compute the sums, which are the integers that ``torch``'s float32
  convolution gives.
- FATNN's quantizers of unsigned activations, and their gradients, take one pass over memory each
  (:mod:`fatnn_rs.quant.fused`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fatnn_rs.errors import InputError
from fatnn_rs.ops import prepack
from fatnn_rs.quant.base import ActivationQuantizer, WeightQuantizer
from fatnn_rs.quant.fused import FAST, channel_dots, runs_in_engine

__all__ = ["FastProduct", "fast_convolutions", "fast_product"]

#: Kind of activations in the engine → its levels. The first that holds a quantizer's is used.
_KINDS = {"half": (0, 1, 2), "full": (-1, 0, 1), "uint2": (0, 1, 2, 3)}


@contextmanager
def fast_convolutions(enabled: bool = True) -> Iterator[None]:
    """Use the engine in forward passes inside a ``with`` block, where possible.

    Call ``backward`` inside the block, too, if a part of the model is checkpointed
    (``torch.utils.checkpoint``), because it then runs the forward again. Gradients of gradients are
    not supported.
    """
    token = FAST.set(enabled)
    try:
        yield
    finally:
        FAST.reset(token)


@dataclass(frozen=True)
class FastProduct:
    """Multiplies the codes of a Conv2d: see :func:`fast_product`.

    Attributes
    ----------
    geometry
        Stride, padding and dilation.
    groups
        As of the layer.
    quantizer
        The layer's activation quantizer. Its first batch may decide its levels.
    narrow
        Dtype in which gradients are computed; None: that of the codes.
    """

    geometry: tuple[Any, Any, Any]
    groups: int
    quantizer: ActivationQuantizer
    narrow: torch.dtype | None

    def __call__(self, codes: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return the sums, whole numbers, times ``scale``, [out], in the dtype of ``codes``."""
        levels = set(self.quantizer.levels)
        kind = next((kind for kind, known in _KINDS.items() if levels <= set(known)), None)
        sums: Tensor
        if scale is None or self.narrow != torch.float16:
            sums = _Convolution.apply(codes, weight, scale, self, kind)
            return sums
        # In float16, the gradient may overflow if it is not scaled first.
        sums = _Convolution.apply(codes, weight, None, self, kind)
        return sums * scale.to(sums.dtype).view(-1, 1, 1)


def fast_product(layer: Any, x: Tensor, padding: Any) -> FastProduct | None:
    """Return what multiplies a Conv2d's codes; None outside of ``fast_convolutions``.

    Parameters
    ----------
    layer
        A quantized ``Conv2d``; None is returned for an int8 one.
    x
        The layer's float input, [N, C, H, W].
    padding
        Zeros to add on both sides of the codes, as ``Conv2d.padding``.
    """
    if not runs_in_engine(x) or x.dim() != 4 or isinstance(padding, str):
        return None
    weights = getattr(layer, "weight_quant", None)  # int8 layers have none
    if not isinstance(weights, WeightQuantizer) or weights.refused:
        return None
    narrow = None
    if torch.is_autocast_enabled("cpu"):
        narrow = torch.get_autocast_dtype("cpu")
    geometry = (layer.stride, padding, layer.dilation)
    return FastProduct(geometry, layer.groups, layer.act_quant, narrow)


def _sums(codes: Tensor, weight: Tensor, how: FastProduct, kind: str | None) -> Tensor:
    """Convolve codes: in the engine, if it can, else in torch."""
    # torch refuses other numbers of channels, in its words.
    fits = codes.numel() and codes.shape[1] == weight.shape[1] * how.groups
    if fits and kind is not None and codes.dtype == torch.float32:
        with suppress(InputError):  # NaN: torch passes it on, and the loss shows it.
            return _engine_sums(codes, weight, how, kind)
    stride, padding, dilation = how.geometry
    sums = torch.conv2d(codes, weight, None, stride, padding, dilation, how.groups)
    return sums.round_().add_(0.0)  # + 0.0 turns -0.0 into 0.0


def _engine_sums(codes: Tensor, weight: Tensor, how: FastProduct, kind: str) -> Tensor:
    """Convolve codes in the engine; an :class:`InputError` if an operand holds NaN."""
    if not bool(weight.isfinite().all()):
        raise InputError("the weight codes hold NaN")
    edges = [level - 0.5 for level in _KINDS[kind][1:]]
    packed = torch.ops.fatnn_rs.quantize(codes, edges, how.groups)
    panels = prepack(weight.to(torch.int8).contiguous(), how.groups, kind)
    result: Tensor = torch.ops.fatnn_rs.conv_float(
        packed, panels, None, None, None, False, len(weight), weight.shape[2:], *how.geometry
    )
    return result


class _Convolution(torch.autograd.Function):
    """``scale`` times the convolution of codes, with gradients in a narrower dtype.

    With the gradient ``g`` of the result, that of ``codes`` is that of a convolution with the
    weights ``scale * w``, and that of ``w`` is ``scale`` times that of a convolution, so that no
    whole map is multiplied. The gradient of ``scale`` is computed from the sums in float32: it is
    nearly 0 if a BatchNorm follows, and then an error of bfloat16 would be many times as large.
    """

    @staticmethod
    def forward(
        ctx: Any,
        codes: Tensor,
        weight: Tensor,
        scale: Tensor | None,
        how: FastProduct,
        kind: str | None,
    ) -> Tensor:
        sums = _sums(codes, weight, how, kind)
        kept = scale is not None and scale.requires_grad
        ctx.save_for_backward(
            codes.to(how.narrow or codes.dtype), weight, scale, sums if kept else None
        )
        ctx.how, ctx.dtype = how, codes.dtype
        return sums if scale is None else sums * scale.to(sums.dtype).view(-1, 1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes, weight, scale, sums = ctx.saved_tensors
        how: FastProduct = ctx.how
        stride, padding, dilation = how.geometry
        for_codes, for_weight, for_scale = ctx.needs_input_grad[:3]
        factor = None if scale is None else scale.to(weight.dtype).view(-1, 1, 1, 1)
        scaled = weight if factor is None else weight * factor
        to_codes, to_weight, _ = torch.ops.aten.convolution_backward(
            grads[0].to(codes.dtype), codes, scaled.to(codes.dtype), None, stride, padding,
            dilation, False, [0, 0], how.groups, [for_codes, for_weight, False],
        )  # fmt: skip
        if to_weight is not None:
            to_weight = to_weight.to(weight.dtype)
            to_weight = to_weight if factor is None else to_weight * factor
        to_scale = channel_dots(sums, grads[0]).to(scale.dtype) if for_scale else None
        to_codes = None if to_codes is None else to_codes.to(ctx.dtype)
        return to_codes, to_weight, to_scale, None, None
