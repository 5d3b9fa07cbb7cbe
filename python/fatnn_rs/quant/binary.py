"""Binary weights and activations, as in XNOR-Net and Bi-Real Net: codes -1 and +1, without 0.

M. Rastegari et al., "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks",
ECCV 2016 (arXiv 1603.05279). The gradient of ``sign``: Z. Liu et al., "Bi-Real Net: Enhancing the
Performance of 1-bit CNNs with Improved Representational Capability and Advanced Training
Algorithm", ECCV 2018 (arXiv 1808.00278).

``sign(0) = +1``. Zero padding of a convolution has the code 0, as in the training of those papers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import hardtanh

from fatnn_rs.quant.base import (
    MIN_STEP,
    ActivationQuantizer,
    WeightQuantizer,
    accumulation_dtype,
    clamp_min_ste,
    round_ste,
    scale_gradient,
    set_value,
    widen,
)

__all__ = ["BinaryActivation", "BinaryWeight", "approximate_sign", "mean_abs"]

_MIN_SCALE = 1e-12

#: Where the gradient of ``sign`` ends, in units of mean(|x|); for normal x, Bi-Real Net's |x| = 1.
_GRADIENT_RANGE = 1.25


def _signs(x: Tensor) -> Tensor:
    return torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))


class _Sign(torch.autograd.Function):
    """``sign`` with ``sign(0) = 1`` and the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _signs(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _ApproximateSign(torch.autograd.Function):
    """``sign`` with ``sign(0) = 1`` and the derivative ``2 - 2 |x|`` for ``|x| < 1``, else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _signs(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return grads[0] * (2.0 - 2.0 * x.abs()).clamp(min=0.0)


def approximate_sign(x: Tensor) -> Tensor:
    """``sign(x)`` with ``sign(0) = 1``; gradient ``max(2 - 2 |x|, 0)`` (Bi-Real Net, eq. 8)."""
    result: Tensor = _ApproximateSign.apply(x)
    return result


def mean_abs(weight: Tensor, rows: int) -> Tensor:
    """``mean(|w|)`` of each of ``rows`` groups, detached, at least 1e-12, shaped to broadcast."""
    size = (
        weight.detach()
        .abs()
        .to(accumulation_dtype(weight))
        .reshape(rows, -1)
        .mean(dim=1)
        .clamp(min=_MIN_SCALE)
    )
    return size.to(weight.dtype).view(-1, *([1] * (weight.dim() - 1)))


class BinaryWeight(WeightQuantizer):
    r"""Binary weights: :math:`q(w) = sign(w) \in \{-1, +1\}`, :math:`sign(0) = +1`.

    XNOR-Net multiplies the codes by ``a = mean(|w|)`` over the layer or the output channel; here
    BatchNorm or the layer's ``scale`` learns that factor. Gradient (straight-through, of ``a q``):
    ``dq/dw = 1 / a``.

    ``per_channel`` means one ``a`` per output channel; it only affects the gradient.
    """

    levels = (-1, 1)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the codes of ``weight``: same shape, float32 (or wider), values -1.0, +1.0."""
        wide = widen(weight)
        codes: Tensor = _Sign.apply(
            wide / mean_abs(wide, self.out_channels if self.per_channel else 1)
        )
        return codes

    def initialize(self, weight: Tensor) -> None:
        """Do nothing: no parameters are learned."""


class BinaryActivation(ActivationQuantizer):
    r"""Binary activations.

    Full range: :math:`q(x) = sign(x) \in \{-1, +1\}`, :math:`sign(0) = +1`, without a learned step.
    Gradient: ``dq/dx = (2 - 2 |x| / r) / r`` for ``|x| < r``, else 0, with ``r = 1.25 mean(|x|)``
    of the first batch (so r = 1 for normal activations of variance 1).

    Half range (after a ReLU), as in DoReFa-Net (arXiv 1606.06160) but with a learned step:
    :math:`q(x) = round(clip(x\,\alpha, 0, 1)) \in \{0, 1\}`, with the threshold ``0.5 / alpha``.
    Gradient (straight-through), for x in (0, 1/alpha): ``dq/dx = alpha``, ``dq/dalpha = x``; zero
    elsewhere.

    Attributes
    ----------
    alpha : Parameter
        Reciprocal of the step, shape [], float32. Learned in half range only.
    """

    half_levels = (0, 1)
    full_levels = (-1, 1)

    def __init__(self, act_range: str = "auto") -> None:
        super().__init__(act_range)
        self.alpha = nn.Parameter(torch.tensor(1.0))

    def quantize_half(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` in half range."""
        return round_ste(
            hardtanh(x * clamp_min_ste(self.alpha).to(x.dtype), 0.0, 1.0, inplace=True)
        )

    def quantize_full(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` in full range."""
        # Keep alpha in the graph with a zero gradient: distributed training needs a gradient for
        # every parameter.
        return approximate_sign(
            x * (scale_gradient(clamp_min_ste(self.alpha).to(x.dtype), 0.0) / _GRADIENT_RANGE)
        )

    def fitted_step(self, x: Tensor) -> float:
        """Return the best step in half range, ``mean(|x|)`` in full range."""
        fitted = super().fitted_step(x)
        return float(mean_abs(x, 1)) if fitted and not self.half_range else fitted

    @property
    def step(self) -> float:
        """The difference in ``x`` between two neighbouring levels."""
        return 1.0 / max(float(self.alpha.detach()), MIN_STEP)

    @torch.no_grad()
    def set_step(self, step: float) -> None:
        """Set the step."""
        set_value(self.alpha, max(1.0 / step, MIN_STEP))
