"""FATNN's quantizers: two learned, unequal steps on equally spaced integer levels.

P. Chen, B. Zhuang, C. Shen, "FATNN: Fast and Accurate Ternary Neural Networks", ICCV 2021 (arXiv
2008.05101), the "implementation-dependent" quantizer. Thresholds are learned, but the levels are
exactly {-1, 0, +1} or {0, 1, 2}, so the inner product can be computed on bits.

``round`` is half to even, so a code changes strictly above its threshold; its gradient is that of
the identity. ``clip`` (``hardtanh``) passes the gradient strictly inside its range. Step
reciprocals are clamped to ``MIN_STEP`` in the forward pass, with the gradient of the identity, so
they stay positive.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import hardtanh

from fatnn_rs.quant.base import (
    MIN_STEP,
    ActivationQuantizer,
    WeightQuantizer,
    accumulation_dtype,
    clamp_min_ste,
    fit_step,
    round_ste,
    set_value,
    widen,
)
from fatnn_rs.quant.fused import fused_steps

__all__ = ["FatnnActivation", "FatnnUint2", "FatnnWeight"]

_MIN_STD = 1e-12

#: 1 / 1.224: reciprocal of the least-squares ternary step of a normal distribution.
_INITIAL_ALPHA = 0.817


#: Larger tensors are quantized with one temporary tensor, not two.
_MAX_SPLIT = 1 << 22


def signed_codes(x: Tensor, alpha_neg: Tensor, alpha_pos: Tensor) -> Tensor:
    """``round(clip(x a_neg, -1, 0)) + round(clip(x a_pos, 0, 1))``, in one pass.

    Monotone in ``x``, and at most one term is nonzero.
    """
    if not torch.is_grad_enabled() and x.numel() <= _MAX_SPLIT:
        # One of the terms is 0. A tenth of the time of ``where`` with a broadcast step.
        products = torch.clamp_min(x, 0.0).mul_(alpha_pos)
        products.add_(torch.clamp_max(x, 0.0).mul_(alpha_neg))
        return hardtanh(products, -1.0, 1.0, inplace=True).round_().add_(0.0)
    steps = torch.where(x < 0, alpha_neg, alpha_pos)
    if not torch.is_grad_enabled():  # in place: weights may take a gigabyte
        return hardtanh(steps.mul_(x), -1.0, 1.0, inplace=True).round_().add_(0.0)
    return round_ste(hardtanh(x * steps, -1.0, 1.0, inplace=True))


def unsigned_codes(x: Tensor, alpha1: Tensor, alpha2: Tensor) -> Tensor:
    """``round(clip(x a1, 0, 1)) + round(clip((x - 1/a1) a2, 0, 1))``, monotone in ``x``."""
    fused = fused_steps(x, (alpha1, alpha2))
    if fused is not None:
        return fused
    first = round_ste(hardtanh(x * alpha1, 0.0, 1.0, inplace=True))
    second = round_ste(hardtanh((x - 1.0 / alpha1) * alpha2, 0.0, 1.0, inplace=True))
    return first + second


class FatnnWeight(WeightQuantizer):
    r"""Ternary weights.

    With :math:`\hat w = (w - \mathrm{mean}(w)) / \mathrm{std}(w)`:

    .. math::
        q(w) = round(clip(\hat w\,\alpha_-, -1, 0)) + round(clip(\hat w\,\alpha_+, 0, 1))
        \in \{-1, 0, +1\}

    Thresholds on :math:`\hat w`: ``-0.5 / alpha_neg`` and ``0.5 / alpha_pos``.

    Gradient (straight-through): with ``a = alpha_neg`` if :math:`\hat w < 0`, else ``alpha_pos``,
    ``dq/dw = a / std`` and ``dq/da = w_hat`` inside :math:`|\hat w\,a| < 1`; zero outside.

    Mean and (population) standard deviation are detached and taken over the layer or the output
    channel. They are summed in float64, so the number of threads does not change the codes.

    Attributes
    ----------
    alpha_neg, alpha_pos : Parameter
        Step reciprocals, shape [1] or [out_channels], float32.
    """

    def __init__(self, out_channels: int, per_channel: bool = False) -> None:
        super().__init__(out_channels, per_channel)
        size = out_channels if per_channel else 1
        self.alpha_neg = nn.Parameter(torch.full((size,), _INITIAL_ALPHA))
        self.alpha_pos = nn.Parameter(torch.full((size,), _INITIAL_ALPHA))

    def normalize(self, weight: Tensor) -> Tensor:
        """Return ``(w - mean) / std``, statistics detached: same shape, float32 or wider."""
        weight = widen(weight)
        # A copy, to work in place: allocating memory costs more than the arithmetic.
        sample = weight.detach().to(accumulation_dtype(weight), copy=True)
        rows = sample.reshape(self.out_channels if self.per_channel else 1, -1)
        mean = rows.mean(dim=1, keepdim=True)
        std = rows.sub_(mean).square_().mean(dim=1).sqrt().clamp(min=_MIN_STD)
        del sample, rows
        return (weight - self._broadcast(mean, weight)).div_(self._broadcast(std, weight))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the codes of ``weight``: same shape, float32 (or wider)."""
        alpha_neg = self._broadcast(clamp_min_ste(self.alpha_neg), weight)
        alpha_pos = self._broadcast(clamp_min_ste(self.alpha_pos), weight)
        return signed_codes(self.normalize(weight), alpha_neg, alpha_pos)

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """Set both steps to the least-squares ternary step of the normalised weights."""
        self.alpha_neg.fill_(_INITIAL_ALPHA)
        self.alpha_pos.fill_(_INITIAL_ALPHA)
        normal = self.normalize(weight).reshape(self.out_channels if self.per_channel else 1, -1)
        for index, row in enumerate(normal):
            step = fit_step(row, -1, 1)
            if step > 0:
                self.alpha_neg[index] = 1.0 / step
                self.alpha_pos[index] = 1.0 / step

    def _broadcast(self, values: Tensor, weight: Tensor) -> Tensor:
        """Shape and convert per-layer or per-channel values to broadcast with ``weight``."""
        return values.to(widen(weight).dtype).view(-1, *([1] * (weight.dim() - 1)))


class FatnnActivation(ActivationQuantizer):
    r"""Ternary activations.

    Half range (after a ReLU), thresholds ``0.5 / alpha1`` and ``1 / alpha1 + 0.5 / alpha2``:

    .. math::
        q(x) = round(clip(x\,\alpha_1, 0, 1)) + round(clip((x - 1/\alpha_1)\,\alpha_2, 0, 1))
        \in \{0, 1, 2\}

    Full range, thresholds ``-0.5 / alpha1`` and ``0.5 / alpha2``:

    .. math::
        q(x) = round(clip(x\,\alpha_1, -1, 0)) + round(clip(x\,\alpha_2, 0, 1)) \in \{-1, 0, +1\}

    Gradient (straight-through), half range: ``dq/dx = a1`` and ``dq/da1 = x`` for x in (0, 1/a1);
    ``dq/dx = a2``, ``dq/da2 = x - 1/a1`` and ``dq/da1 = a2 / a1**2`` for x in (1/a1, 1/a1 + 1/a2);
    zero elsewhere. Full range: with ``a = alpha1`` if x < 0, else ``alpha2``, ``dq/dx = a`` and
    ``dq/da = x`` inside ``|x a| < 1``; zero outside.

    Attributes
    ----------
    alpha1, alpha2 : Parameter
        Step reciprocals, shape [], float32. In half range of the first and second step; in full
        range of the negative and positive step.
    """

    def __init__(self, act_range: str = "auto") -> None:
        super().__init__(act_range)
        self.alpha1 = nn.Parameter(torch.tensor(1.0))
        self.alpha2 = nn.Parameter(torch.tensor(1.0))

    def quantize_half(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` in half range."""
        return unsigned_codes(
            x, clamp_min_ste(self.alpha1).to(x.dtype), clamp_min_ste(self.alpha2).to(x.dtype)
        )

    def quantize_full(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` in full range."""
        return signed_codes(
            x, clamp_min_ste(self.alpha1).to(x.dtype), clamp_min_ste(self.alpha2).to(x.dtype)
        )

    @property
    def step(self) -> float:
        """Mean step: the difference in ``x`` between two neighbouring levels."""
        return 0.5 / max(float(self.alpha1.detach()), MIN_STEP) + 0.5 / max(
            float(self.alpha2.detach()), MIN_STEP
        )

    @torch.no_grad()
    def set_step(self, step: float) -> None:
        """Set both steps to ``step``."""
        for alpha in (self.alpha1, self.alpha2):
            set_value(alpha, max(1.0 / step, MIN_STEP))


class FatnnUint2(ActivationQuantizer):
    r"""Two-bit activations after a ReLU: FATNN's half range with a third learned step.

    With the edges :math:`e_0 = 0`, :math:`e_1 = 1/\alpha_1`, :math:`e_2 = e_1 + 1/\alpha_2`:

    .. math:: q(x) = \sum_{i=1}^{3} round(clip((x - e_{i-1})\,\alpha_i, 0, 1)) \in \{0, 1, 2, 3\}

    Thresholds: ``e_(i-1) + 0.5 / alpha_i``. Negative inputs become 0. With ternary weights, four
    activation levels cost the same two passes over bits as three. Gradient (straight-through): for
    x inside step i, ``dq/dx = a_i``, ``dq/da_i = x - e_(i-1)`` and, for every earlier step j,
    ``dq/da_j = a_i / a_j**2``; zero outside all steps.

    Attributes
    ----------
    alpha1, alpha2, alpha3 : Parameter
        Step reciprocals, shape [], float32.
    """

    half_levels = (0, 1, 2, 3)
    full_levels = ()

    def __init__(self, act_range: str = "auto") -> None:
        super().__init__(act_range)
        self.alpha1 = nn.Parameter(torch.tensor(1.0))
        self.alpha2 = nn.Parameter(torch.tensor(1.0))
        self.alpha3 = nn.Parameter(torch.tensor(1.0))

    def quantize_half(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` with the current steps."""
        alphas = [
            clamp_min_ste(alpha).to(x.dtype) for alpha in (self.alpha1, self.alpha2, self.alpha3)
        ]
        fused = fused_steps(x, alphas)
        if fused is not None:
            return fused
        codes = round_ste(hardtanh(x * alphas[0], 0.0, 1.0, inplace=True))
        end = torch.zeros_like(alphas[0])
        for before, alpha in pairwise(alphas):
            end = end + 1.0 / before
            codes = codes + round_ste(hardtanh((x - end) * alpha, 0.0, 1.0, inplace=True))
        return codes

    @property
    def step(self) -> float:
        """Mean step: the difference in ``x`` between two neighbouring levels."""
        return (
            sum(
                1.0 / max(float(alpha.detach()), MIN_STEP)
                for alpha in (self.alpha1, self.alpha2, self.alpha3)
            )
            / 3
        )

    @torch.no_grad()
    def set_step(self, step: float) -> None:
        """Set all steps to ``step``."""
        for alpha in (self.alpha1, self.alpha2, self.alpha3):
            set_value(alpha, max(1.0 / step, MIN_STEP))
