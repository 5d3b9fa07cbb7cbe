"""Ternary weight networks: a threshold relative to the mean magnitude, nothing learned.

F. Li, B. Liu, X. Wang, B. Zhang, J. Yan, "Ternary Weight Networks", arXiv 1605.04711. The paper
quantizes only weights; this family's activations are FATNN's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fatnn_rs.quant.base import WeightQuantizer, accumulation_dtype, widen

__all__ = ["TwnWeight"]

#: The threshold's factor: equation 6 of the paper.
_FACTOR = 0.7

_MIN_SCALE = 1e-12


class _Threshold(torch.autograd.Function):
    """Codes of weights; the gradient is that of the identity, divided by ``scale``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return torch.sign(weight) * (weight.abs() > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return grads[0] / scale, None, None


class TwnWeight(WeightQuantizer):
    r"""Ternary weights: :math:`q(w) = sign(w)` if :math:`|w| > 0.7\,mean|w|`, else 0.

    ``mean`` is over the layer or the output channel. The paper multiplies the codes by ``a``, the
    mean of ``|w|`` over the weights beyond the threshold; here BatchNorm or the layer's ``scale``
    learns that factor. Gradient (straight-through, of ``a q``): ``dq/dw = 1 / a``.
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Return the codes of ``weight``: same shape, float32 (or wider)."""
        wide = widen(weight)
        size = (
            wide.detach()
            .abs()
            .to(accumulation_dtype(wide))
            .reshape(self.out_channels if self.per_channel else 1, -1)
        )
        threshold = _FACTOR * size.mean(dim=1, keepdim=True)
        beyond = size > threshold
        scale = (size * beyond).sum(dim=1) / beyond.sum(dim=1).clamp(min=1)
        shape = (-1, *([1] * (weight.dim() - 1)))
        threshold, scale = (
            v.reshape(shape).to(wide.dtype) for v in (threshold, scale.clamp(min=_MIN_SCALE))
        )
        codes: Tensor = _Threshold.apply(wide, threshold, scale)
        return codes + 0.0  # turns -0.0 into 0.0

    def initialize(self, weight: Tensor) -> None:
        """Do nothing: no parameters are learned."""
