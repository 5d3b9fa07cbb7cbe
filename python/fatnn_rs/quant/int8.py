"""Eight bits, for the layers at a network's ends: symmetric weights and activations, no zero point.

Weights, per output channel c, with the step that the channel's greatest weight fills:

    step_c = max |w_c| / 127        q(w) = round(w / step_c)                        in [-127, 127]

Activations, with one learned step for the layer:

    q(x) = clip(round(x · (1 / step)), -127, 127)

``round`` is half to even, and zero has code 0, so that padding by zeros stays what it is. What a
code stands for is the code times its step. Gradients:

- weights: straight-through, ``d(step_c q)/dw = 1``; the step is a constant (Y. Bengio, N. Leonard,
  A. Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
  Computation", arXiv 1308.3432, 2013);
- activations: ``d(step q)/dx = 1`` where ``|x| < 127 step``, else 0;
- the activations' step, as in learned step size quantization (S. Esser et al., "Learned Step Size
  Quantization", ICLR 2020, arXiv 1902.08153): ``d(step q)/dstep = q - x / step`` where ``|x| < 127
  step``, else ``q``; the sum over a layer's values is multiplied by ``1 / sqrt(127 n)`` for samples
  of n values, which brings it to the size of the weights' gradients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import hardtanh

from fatnn_rs.quant.base import (
    InputQuantizer,
    clamp_min_ste,
    fit_step,
    round_ste,
    scale_gradient,
    set_value,
)

__all__ = ["LEVELS", "Int8Activation", "weight_codes", "weight_steps"]

#: The greatest code; the least is its negative.
LEVELS = 127

#: Steps of weights are at least this, so that a channel of zeros has one.
_LEAST_OF_WEIGHTS = 1e-30

#: Steps of activations are at least this: far below any that data gives, and its reciprocal squared is finite.
_LEAST = 1e-16


def weight_steps(weight: Tensor) -> Tensor:
    """One step per output channel (the first dimension), without a gradient; never zero."""
    return (weight.detach().abs().flatten(1).amax(1) / LEVELS).clamp(min=_LEAST_OF_WEIGHTS)


def weight_codes(weight: Tensor, steps: Tensor) -> Tensor:
    """Weight codes, integer-valued floats in [-127, 127], with the straight-through gradient."""
    return round_ste(weight / steps.view(-1, *([1] * (weight.dim() - 1))))


class Int8Activation(InputQuantizer):
    """Activations in eight bits; see :mod:`fatnn_rs.quant.int8` for the function and its gradient.

    The first data seen sets the step: the one of 49 between a sixteenth of the greatest value's and
    that value's own (``max |x| / 127``) which loses least in the mean square.

    Attributes
    ----------
    step : Parameter
        Shape [], float32. Below 1e-16 it counts as that, with the gradient of the identity, so that
        it can come back.

    References
    ----------
    Learned step size quantization (arXiv 1902.08153).
    """

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(1.0))

    def step_for(self, x: Tensor) -> Tensor:
        """Return the step, with the gradient's factor for a batch like ``x``."""
        count = x[0].numel() if x.dim() > 1 and len(x) else x.numel()
        factor = 1.0 / math.sqrt(LEVELS * max(count, 1))
        return scale_gradient(clamp_min_ste(self.step, _LEAST), factor)

    def quantize(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` with the present step."""
        inverse = self.step_for(x).reciprocal()
        return round_ste(hardtanh(x * inverse.to(x.dtype), -LEVELS, LEVELS))

    def fitted_step(self, x: Tensor) -> float:
        """Find the step for a batch of finite values; 0.0 where all are zero."""
        return fit_step(x, -LEVELS, LEVELS)

    def positive_step(self) -> Tensor:
        """Return the step as the forward pass uses it, without a gradient."""
        return clamp_min_ste(self.step.detach(), _LEAST)

    @torch.no_grad()
    def set_step(self, step: float) -> None:
        """Set the step."""
        set_value(self.step, max(step, _LEAST))

    def extra_repr(self) -> str:
        """State, for ``print(model)``."""
        return "8 bits" if self.initialized else "8 bits, not initialised"
