"""Soft-threshold ternary networks: a ternary kernel is the sum of two binary ones, each with latent weights of its own.

W. Xu, X. He, T. Zhao, Q. Hu, P. Wang, J. Cheng, "Soft Threshold Ternary Networks", IJCAI 2020
(arXiv 2204.01234). No threshold is chosen: a code is zero where the two signs disagree. Two latents
per weight in training, one ternary code in deployment. The family's activations are FATNN's.

Two choices are ours. The latents are kept as their mean, which is the layer's own ``weight``, and
half their difference, ``offset``, so that a float checkpoint loads; training starts with the codes
that TWN's threshold gives. And the gradient of ``sign`` falls off with distance (Bi-Real Net, arXiv
1808.00278): a constant one would move both latents alike, and their difference, the soft threshold,
would stay where it began.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fatnn_rs.quant.base import WeightQuantizer, widen
from fatnn_rs.quant.binary import approximate_sign, mean_size

__all__ = ["SttnWeight"]

#: Where the offset begins, in mean sizes of the weights: TWN's threshold.
_THRESHOLD = 0.7

#: Reach of the gradient of ``sign``, in mean sizes of the weights.
_REACH = 3.0


class SttnWeight(WeightQuantizer):
    r"""Ternary weights: :math:`q(w) = (sign(w + o) + sign(w - o)) / 2`, ``o`` learned for every weight.

    So :math:`q(w) = sign(w)` where :math:`|w| > |o|`, and 0 where :math:`|w| < |o|`. Gradient: with
    ``r = 3 mean(|w|)`` over the layer or the output channel and ``g(v) = max(2 - 2 |v| / r, 0) /
    r``: ``dq/dw = (g(w + o) + g(w - o)) / 2``, ``dq/do = (g(w + o) - g(w - o)) / 2``.

    Parameters
    ----------
    out_channels
        Size of the weight's first dimension.
    per_channel
        One ``r`` and one first offset per output channel instead of one per layer.

    Attributes
    ----------
    offset : Parameter
        Half the difference of the two latents, the shape of the layer's weight; made by
        :meth:`initialize`.

    References
    ----------
    STTN (arXiv 2204.01234), section 3; see the module's documentation for what differs.
    """

    offset: nn.Parameter

    def __init__(self, out_channels: int, per_channel: bool = False) -> None:
        super().__init__(out_channels, per_channel)
        self.register_parameter("offset", None)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the codes of ``weight``: same shape, float32 (or wider), values -1.0, 0.0, +1.0."""
        wide = widen(weight)
        offset = self.offset.to(wide.dtype)
        inverse = 1.0 / (_REACH * mean_size(wide, self._rows()))
        return 0.5 * approximate_sign((wide + offset) * inverse) + 0.5 * approximate_sign(
            (wide - offset) * inverse
        )

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """Every offset to TWN's threshold, ``0.7 mean(|w|)``."""
        wide = widen(weight)
        offset = (_THRESHOLD * mean_size(wide, self._rows())).expand_as(wide)
        if getattr(self, "offset", None) is not None and self.offset.shape == offset.shape:
            self.offset.copy_(offset)  # an optimizer may hold it already
        else:
            self.offset = nn.Parameter(offset.clone())

    def _rows(self) -> int:
        return self.out_channels if self.per_channel else 1
