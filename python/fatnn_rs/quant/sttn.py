"""Soft-threshold ternary networks: a ternary kernel is the sum of two binary kernels.

W. Xu, X. He, T. Zhao, Q. Hu, P. Wang, J. Cheng, "Soft Threshold Ternary Networks", IJCAI 2020
(arXiv 2204.01234). Each weight has two latent values in training; its code is zero if their signs
differ. This family's activations are FATNN's.

Two details differ from the paper. The latents are stored as their mean (the layer's ``weight``) and
half their difference (``offset``), so that a float checkpoint loads; training starts with TWN's
codes. The gradient of ``sign`` decreases with distance (Bi-Real Net, arXiv 1808.00278): a constant
gradient would move both latents alike, so ``offset`` would never change.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fatnn_rs.quant.base import WeightQuantizer, widen
from fatnn_rs.quant.binary import approximate_sign, mean_abs

__all__ = ["SttnWeight"]

#: Initial offset in units of mean(|w|): TWN's threshold.
_THRESHOLD = 0.7

#: Where the gradient of ``sign`` ends, in units of mean(|w|).
_GRADIENT_RANGE = 3.0


class SttnWeight(WeightQuantizer):
    r"""Ternary weights: :math:`q(w) = (sign(w + o) + sign(w - o)) / 2`, ``o`` learned per weight.

    :math:`q(w) = sign(w)` if :math:`|w| > |o|`, and 0 if :math:`|w| < |o|`. Gradient: ``dq/dw =
    (g(w + o) + g(w - o)) / 2`` and ``dq/do = (g(w + o) - g(w - o)) / 2``, with ``g(v) = max(2 - 2
    |v| / r, 0) / r`` and ``r = 3 mean(|w|)`` over the layer or the output channel.

    ``per_channel`` means one ``r`` and one initial offset per output channel.

    Attributes
    ----------
    offset : Parameter
        Half the difference of the two latents, shape of the layer's weight. Created by
        :meth:`initialize`.
    """

    offset: nn.Parameter

    def __init__(self, out_channels: int, per_channel: bool = False) -> None:
        super().__init__(out_channels, per_channel)
        self.register_parameter("offset", None)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the codes of ``weight``: same shape, float32 (or wider)."""
        wide = widen(weight)
        offset = self.offset.to(wide.dtype)
        inverse = 1.0 / (_GRADIENT_RANGE * mean_abs(wide, self._rows()))
        return 0.5 * approximate_sign((wide + offset) * inverse) + 0.5 * approximate_sign(
            (wide - offset) * inverse
        )

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """Set every offset to TWN's threshold, ``0.7 mean(|w|)``."""
        wide = widen(weight)
        offset = (_THRESHOLD * mean_abs(wide, self._rows())).expand_as(wide)
        if getattr(self, "offset", None) is not None and self.offset.shape == offset.shape:
            self.offset.copy_(offset)  # In place: an optimizer may already hold the parameter.
        else:
            self.offset = nn.Parameter(offset.clone())

    def _rows(self) -> int:
        return self.out_channels if self.per_channel else 1
