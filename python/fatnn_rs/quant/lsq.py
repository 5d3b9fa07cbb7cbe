"""Learned step size quantization: one uniform learned step with a scaled gradient.

S. Esser, J. McKinstry, D. Bablani, R. Appuswamy, D. Modha, "Learned Step Size Quantization", ICLR
2020 (arXiv 1902.08153), equations 1 to 5. FATNN adds a second step and normalises weights.

The paper's output is ``round(clip(v / s)) * s``. Layers here keep only the code; BatchNorm or the
layer's ``scale`` learns the factor. ``round`` is half to even with the gradient of the identity.
The gradient of the step is scaled by ``g = 1 / sqrt(count * Q_P)`` (section 2.2). ``Q_P`` is the
largest level; ``count`` is the number of weights that share the step, or of activations per sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import hardtanh

from fatnn_rs.quant.base import (
    ActivationQuantizer,
    WeightQuantizer,
    clamp_min_ste,
    fit_step,
    round_ste,
    scale_gradient,
    set_value,
    widen,
)

__all__ = ["LsqActivation", "LsqUint2", "LsqWeight"]


class LsqWeight(WeightQuantizer):
    r"""Ternary weights: :math:`q(w) = round(clip(w / s, -1, 1)) \in \{-1, 0, +1\}`, ``s`` learned.

    Thresholds: ``-s / 2`` and ``s / 2``. Gradient (straight-through): inside ``|w| < s``, ``dq/dw
    = 1 / s`` and ``dq/ds = -g w / s**2`` with ``g = 1 / sqrt(weights that share s)``; zero outside.

    Attributes
    ----------
    step_size : Parameter
        Shape [1] or [out_channels], float32.
    """

    def __init__(self, out_channels: int, per_channel: bool = False) -> None:
        super().__init__(out_channels, per_channel)
        self.step_size = nn.Parameter(torch.ones(out_channels if per_channel else 1))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the codes of ``weight``: same shape, float32 (or wider)."""
        wide = widen(weight)
        count = weight.numel() // len(self.step_size)
        step = scale_gradient(clamp_min_ste(self.step_size), 1.0 / math.sqrt(max(count, 1)))
        inverse = step.reciprocal().to(wide.dtype).view(-1, *([1] * (weight.dim() - 1)))
        return round_ste(hardtanh(wide * inverse, -1.0, 1.0))

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """Set every step to the least-squares ternary step of its weights."""
        self.step_size.fill_(1.0)
        for index, row in enumerate(widen(weight).reshape(len(self.step_size), -1)):
            step = fit_step(row, -1, 1)
            if step > 0:
                self.step_size[index] = step


class LsqActivation(ActivationQuantizer):
    r"""Ternary activations with a learned step.

    Half range (after a ReLU): :math:`q(x) = round(clip(x / s, 0, 2)) \in \{0, 1, 2\}`, thresholds
    ``s / 2`` and ``3 s / 2``. Full range: :math:`q(x) = round(clip(x / s, -1, 1))`.

    Gradient (straight-through): inside the clip, ``dq/dx = 1 / s`` and ``dq/ds = -g x / s**2`` with
    ``g = 1 / sqrt(count * Q_P)``; zero outside. ``Q_P`` is 2 (half range) or 1 (full range), and
    ``count`` is the number of values per sample.

    Attributes
    ----------
    step_size : Parameter
        Shape [], float32.
    """

    def __init__(self, act_range: str = "auto") -> None:
        super().__init__(act_range)
        self.step_size = nn.Parameter(torch.tensor(1.0))

    def quantize_half(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` in half range."""
        return self._rounded(x, self.half_levels)

    def quantize_full(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` in full range."""
        return self._rounded(x, self.full_levels)

    def _rounded(self, x: Tensor, levels: tuple[int, ...]) -> Tensor:
        low, high = float(levels[0]), float(levels[-1])
        count = x[0].numel() if x.dim() > 1 and len(x) else x.numel()
        step = scale_gradient(clamp_min_ste(self.step_size), 1.0 / math.sqrt(max(count, 1) * high))
        return round_ste(hardtanh(x * step.reciprocal().to(x.dtype), low, high))

    @property
    def step(self) -> float:
        """The difference in ``x`` between two neighbouring levels."""
        return float(clamp_min_ste(self.step_size.detach()))

    @torch.no_grad()
    def set_step(self, step: float) -> None:
        """Set the step."""
        set_value(self.step_size, step)


class LsqUint2(LsqActivation):
    r"""Two-bit activations after a ReLU: :math:`q(x) = round(clip(x / s, 0, 3))`, ``s`` learned.

    Thresholds: ``s / 2``, ``3 s / 2``, ``5 s / 2``. Negative inputs become 0. Gradient, parameters
    and attributes: see :class:`LsqActivation`, with ``Q_P = 3`` and without ``act_range="full"``.
    """

    half_levels = (0, 1, 2, 3)
    full_levels = ()
