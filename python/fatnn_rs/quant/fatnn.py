"""FATNN's quantizers: two learned, unequal steps on equally spaced integer levels.

P. Chen, B. Zhuang, C. Shen, "FATNN: Fast and Accurate Ternary Neural Networks", ICCV 2021 (arXiv
2008.05101), the "implementation-dependent" quantizer: thresholds are free, but levels are exactly
{-1, 0, +1} (or {0, 1, 2}), which is what lets the inner product run on bits.

``round`` is half to even, so a code steps up strictly above its threshold. Its gradient is the
identity's; ``clip`` (``hardtanh``) passes the gradient inside its range, ends excluded, and zeroes
it elsewhere. Every step reciprocal is clamped to ``MIN_STEP`` in the forward pass, with the
identity's gradient, and so stays positive whatever the optimizer does.
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
    clamp_min_ste,
    fit_step,
    round_ste,
    set_value,
    sums_dtype,
    widen,
)

__all__ = ["FatnnActivation", "FatnnUint2", "FatnnWeight"]

_MIN_STD = 1e-12

#: 1 / 1.224: the reciprocal of the least-squares ternary step for a normal distribution.
_NORMAL = 0.817


def two_sided(x: Tensor, alpha_neg: Tensor, alpha_pos: Tensor) -> Tensor:
    """``round(clip(x a_neg, -1, 0)) + round(clip(x a_pos, 0, 1))``, in one pass: at most one term is not zero.

    Monotone in ``x``: the products are, they meet at zero, and so are ``clip`` and ``round``.
    """
    steps = torch.where(x < 0, alpha_neg, alpha_pos)
    if not torch.is_grad_enabled():  # in place: weights may take a gigabyte
        return hardtanh(steps.mul_(x), -1.0, 1.0, inplace=True).round_().add_(0.0)
    return round_ste(hardtanh(x * steps, -1.0, 1.0, inplace=True))


def stacked(x: Tensor, alpha1: Tensor, alpha2: Tensor) -> Tensor:
    """``round(clip(x a1, 0, 1)) + round(clip((x - 1/a1) a2, 0, 1))``: monotone in ``x``, for both terms are."""
    first = round_ste(hardtanh(x * alpha1, 0.0, 1.0, inplace=True))
    second = round_ste(hardtanh((x - 1.0 / alpha1) * alpha2, 0.0, 1.0, inplace=True))
    return first + second


class FatnnWeight(WeightQuantizer):
    r"""Ternary weights.

    With :math:`\hat w = (w - \mathrm{mean}(w)) / \mathrm{std}(w)`, statistics over the layer (or
    the output channel), detached, and the population's standard deviation:

    .. math:: q(w) = round(clip(\hat w\,\alpha_-, -1, 0)) + round(clip(\hat w\,\alpha_+, 0, 1)) \in \{-1, 0, +1\}

    Thresholds on :math:`\hat w`: ``-0.5 / alpha_neg`` and ``0.5 / alpha_pos``.

    Gradient (straight-through), with ``a = alpha_neg`` where :math:`\hat w < 0`, else
    ``alpha_pos``, and inside :math:`|\hat w\,a| < 1`: ``dq/dw = a / std``, ``dq/da = w_hat``; zero
    outside.

    Statistics are summed in float64, so that the number of threads does not show in the codes.

    Parameters
    ----------
    out_channels
        Size of the weight's first dimension.
    per_channel
        One pair of steps and of statistics per output channel instead of one per layer.

    Attributes
    ----------
    alpha_neg, alpha_pos : Parameter
        Step reciprocals, shape [1] or [out_channels], float32.

    References
    ----------
    FATNN (arXiv 2008.05101).
    """

    def __init__(self, out_channels: int, per_channel: bool = False) -> None:
        super().__init__(out_channels, per_channel)
        size = out_channels if per_channel else 1
        self.alpha_neg = nn.Parameter(torch.full((size,), _NORMAL))
        self.alpha_pos = nn.Parameter(torch.full((size,), _NORMAL))

    def normalize(self, weight: Tensor) -> Tensor:
        """``(w - mean) / std`` with detached statistics: same shape as ``weight``, float32 or wider."""
        weight = widen(weight)
        # A copy of its own, which is worked on in place: fresh memory costs more than the
        # arithmetic.
        sample = weight.detach().to(sums_dtype(weight), copy=True)
        rows = sample.reshape(self.out_channels if self.per_channel else 1, -1)
        mean = rows.mean(dim=1, keepdim=True)
        std = rows.sub_(mean).square_().mean(dim=1).sqrt().clamp(min=_MIN_STD)
        del sample, rows
        return (weight - self._spread(mean, weight)).div_(self._spread(std, weight))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the codes of ``weight``: same shape, float32 (or wider), values -1.0, 0.0, +1.0."""
        alpha_neg = self._spread(clamp_min_ste(self.alpha_neg), weight)
        alpha_pos = self._spread(clamp_min_ste(self.alpha_pos), weight)
        return two_sided(self.normalize(weight), alpha_neg, alpha_pos)

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """Both steps to the least-squares ternary step of the normalised weights."""
        self.alpha_neg.fill_(_NORMAL)
        self.alpha_pos.fill_(_NORMAL)
        normal = self.normalize(weight).reshape(self.out_channels if self.per_channel else 1, -1)
        for index, row in enumerate(normal):
            step = fit_step(row, -1, 1)
            if step > 0:
                self.alpha_neg[index] = 1.0 / step
                self.alpha_pos[index] = 1.0 / step

    def _spread(self, values: Tensor, weight: Tensor) -> Tensor:
        """Per-layer or per-channel values, shaped and typed to combine with ``weight``."""
        return values.to(widen(weight).dtype).view(-1, *([1] * (weight.dim() - 1)))


class FatnnActivation(ActivationQuantizer):
    r"""Ternary activations.

    Half range (after a ReLU), thresholds ``0.5 / alpha1`` and ``1 / alpha1 + 0.5 / alpha2``:

    .. math:: q(x) = round(clip(x\,\alpha_1, 0, 1)) + round(clip((x - 1/\alpha_1)\,\alpha_2, 0, 1)) \in \{0, 1, 2\}

    Full range, thresholds ``-0.5 / alpha1`` and ``0.5 / alpha2``:

    .. math:: q(x) = round(clip(x\,\alpha_1, -1, 0)) + round(clip(x\,\alpha_2, 0, 1)) \in \{-1, 0, +1\}

    Gradient (straight-through). Half range: ``dq/dx = a1`` and ``dq/da1 = x`` for x in (0, 1/a1);
    ``dq/dx = a2``, ``dq/da2 = x - 1/a1`` and ``dq/da1 = a2 / a1**2`` for x in (1/a1, 1/a1 + 1/a2);
    zero elsewhere. Full range: ``dq/dx = a`` and ``dq/da = x`` inside ``|x a| < 1`` with ``a =
    alpha1`` where x < 0, else ``alpha2``; else zero.

    Parameters
    ----------
    act_range
        ``"half"``, ``"full"``, or ``"auto"``: decided by the first data seen.

    Attributes
    ----------
    alpha1, alpha2 : Parameter
        Step reciprocals, shape [], float32: first and second step (half range), negative and
        positive (full range).

    References
    ----------
    FATNN (arXiv 2008.05101).
    """

    def __init__(self, act_range: str = "auto") -> None:
        super().__init__(act_range)
        self.alpha1 = nn.Parameter(torch.tensor(1.0))
        self.alpha2 = nn.Parameter(torch.tensor(1.0))

    def quantize_half(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` in half range."""
        return stacked(
            x, clamp_min_ste(self.alpha1).to(x.dtype), clamp_min_ste(self.alpha2).to(x.dtype)
        )

    def quantize_full(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` in full range."""
        return two_sided(
            x, clamp_min_ste(self.alpha1).to(x.dtype), clamp_min_ste(self.alpha2).to(x.dtype)
        )

    @property
    def step(self) -> float:
        """The mean size of the two steps: how much of ``x`` one level stands for."""
        return 0.5 / max(float(self.alpha1.detach()), MIN_STEP) + 0.5 / max(
            float(self.alpha2.detach()), MIN_STEP
        )

    @torch.no_grad()
    def set_step(self, step: float) -> None:
        """Both steps to ``step``."""
        for alpha in (self.alpha1, self.alpha2):
            set_value(alpha, max(1.0 / step, MIN_STEP))


class FatnnUint2(ActivationQuantizer):
    r"""Activations of two bits, after a ReLU: FATNN's half range with a third learned step.

    With the ends of the steps :math:`e_0 = 0`, :math:`e_1 = 1/\alpha_1`, :math:`e_2 = e_1 +
    1/\alpha_2`:

    .. math:: q(x) = \sum_{i=1}^{3} round(clip((x - e_{i-1})\,\alpha_i, 0, 1)) \in \{0, 1, 2, 3\}

    Thresholds ``e_(i-1) + 0.5 / alpha_i``. Negative inputs become 0. Against ternary weights four
    levels cost the same two passes over bits as three. Gradient (straight-through): for x inside
    step i, ``dq/dx = a_i``, ``dq/da_i = x - e_(i-1)`` and, for every earlier step j, ``dq/da_j =
    a_i / a_j**2``; zero outside all steps.

    Parameters
    ----------
    act_range
        ``"half"`` or ``"auto"``, which here means the same but takes negative inputs for 0.

    Attributes
    ----------
    alpha1, alpha2, alpha3 : Parameter
        Step reciprocals, shape [], float32.

    References
    ----------
    FATNN (arXiv 2008.05101), for the steps.
    """

    half_levels = (0, 1, 2, 3)
    full_levels = ()

    def __init__(self, act_range: str = "auto") -> None:
        super().__init__(act_range)
        self.alpha1 = nn.Parameter(torch.tensor(1.0))
        self.alpha2 = nn.Parameter(torch.tensor(1.0))
        self.alpha3 = nn.Parameter(torch.tensor(1.0))

    def quantize_half(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` with the present steps."""
        alphas = [
            clamp_min_ste(alpha).to(x.dtype) for alpha in (self.alpha1, self.alpha2, self.alpha3)
        ]
        codes = round_ste(hardtanh(x * alphas[0], 0.0, 1.0, inplace=True))
        end = torch.zeros_like(alphas[0])
        for before, alpha in pairwise(alphas):
            end = end + 1.0 / before
            codes = codes + round_ste(hardtanh((x - end) * alpha, 0.0, 1.0, inplace=True))
        return codes

    @property
    def step(self) -> float:
        """The mean size of the three steps: how much of ``x`` one level stands for."""
        return (
            sum(
                1.0 / max(float(alpha.detach()), MIN_STEP)
                for alpha in (self.alpha1, self.alpha2, self.alpha3)
            )
            / 3
        )

    @torch.no_grad()
    def set_step(self, step: float) -> None:
        """All steps to ``step``."""
        for alpha in (self.alpha1, self.alpha2, self.alpha3):
            set_value(alpha, max(1.0 / step, MIN_STEP))
