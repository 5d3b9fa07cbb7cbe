"""Trained ternary quantization: a threshold relative to the largest weight, two learned scales.

C. Zhu, S. Han, H. Mao, W. Dally, "Trained Ternary Quantization", ICLR 2017 (arXiv 1612.01064),
equations 6 to 9. The paper quantizes only weights; this family's activations are FATNN's. The
gradient of a scale is the sum over all weights that share it. Here the sum is divided by the square
root of their number, as in LSQ (arXiv 1902.08153, section 2.2); otherwise it diverges at usual
learning rates.

The weights {-Wn, 0, +Wp} are not integers times one scale. So this family is for comparison only:
it trains, but ``convert`` refuses it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fatnn_rs.quant.base import WeightQuantizer, scale_gradient, widen

__all__ = ["TtqWeight"]

#: Threshold divided by the largest weight: section 4 of the paper.
_THRESHOLD = 0.05


class _TtqFunction(torch.autograd.Function):
    """The quantized weights, with the paper's gradients (equations 7 and 8)."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale_neg: Tensor, scale_pos: Tensor, threshold: Tensor
    ) -> Tensor:
        above, below = weight > threshold, weight < -threshold
        ctx.save_for_backward(above, below, scale_neg, scale_pos)
        return above * scale_pos - below * scale_neg

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        above, below, scale_neg, scale_pos = ctx.saved_tensors
        (g,) = grads
        return (
            g * torch.where(above, scale_pos, torch.where(below, scale_neg, torch.ones_like(g))),
            -(g * below).sum_to_size(scale_neg.shape),
            (g * above).sum_to_size(scale_pos.shape),
            None,
        )


class TtqWeight(WeightQuantizer):
    r"""Ternary weights with two learned scales.

    :math:`q(w) = W_p` if :math:`w > \Delta`, :math:`-W_n` if :math:`w < -\Delta`, else 0, with
    :math:`\Delta = 0.05\,max|w|`.

    These values are not integers, so ``convert`` refuses them. ``codes`` returns their signs.
    Gradient: ``dq/dw`` is ``Wp``, ``Wn`` or, for zeros, 1; ``dq/dWp = g`` if :math:`w > \Delta` and
    ``dq/dWn = -g`` if :math:`w < -\Delta`, with ``g = 1 / sqrt(weights that share the scale)``.

    Attributes
    ----------
    scale_neg, scale_pos : Parameter
        ``Wn`` and ``Wp``, shape [1] or [out_channels], float32. Initially the mean magnitude of
        the weights they replace.
    """

    refused = (
        "TTQ multiplies positive and negative weights by two different learned scales, which no "
        "integer product expresses; train with weight='fatnn', 'lsq', 'twn' or 'sttn' to deploy"
    )

    def __init__(self, out_channels: int, per_channel: bool = False) -> None:
        super().__init__(out_channels, per_channel)
        size = out_channels if per_channel else 1
        self.scale_neg = nn.Parameter(torch.ones(size))
        self.scale_pos = nn.Parameter(torch.ones(size))

    def _threshold(self, weight: Tensor) -> Tensor:
        rows = weight.detach().abs().reshape(len(self.scale_pos), -1)
        return _THRESHOLD * self._broadcast(rows.amax(dim=1), weight)

    def _broadcast(self, values: Tensor, weight: Tensor) -> Tensor:
        return values.to(weight.dtype).view(-1, *([1] * (weight.dim() - 1)))

    def forward(self, weight: Tensor) -> Tensor:
        """Return ``-Wn``, 0.0 or ``Wp`` for each weight: same shape, float32 (or wider)."""
        wide = widen(weight)
        factor = 1.0 / math.sqrt(max(weight.numel() // len(self.scale_pos), 1))
        scales = [
            self._broadcast(scale_gradient(scale, factor), wide)
            for scale in (self.scale_neg, self.scale_pos)
        ]
        result: Tensor = _TtqFunction.apply(wide, *scales, self._threshold(wide))
        return result + 0.0  # turns -0.0 into 0.0

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """Return the signs of :meth:`forward`, as int8 in {-1, 0, +1}."""
        wide = widen(weight.detach())
        threshold = self._threshold(wide)
        return (wide > threshold).to(torch.int8) - (wide < -threshold).to(torch.int8)

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """Set both scales to the mean magnitude of the weights they replace."""
        rows = widen(weight).reshape(len(self.scale_pos), -1)
        codes = self.codes(weight).reshape(rows.shape)
        for scale, sign in ((self.scale_neg, -1), (self.scale_pos, 1)):
            chosen = codes == sign
            count = chosen.sum(1)
            mean = (rows.abs() * chosen).sum(1) / count.clamp(min=1)
            scale.copy_(torch.where(count > 0, mean, torch.ones_like(mean)))
