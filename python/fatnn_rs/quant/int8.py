"""Eight-bit weights and activations, symmetric and without a zero point.

Weights have one step per output channel c, activations one learned step per layer:

    step_c = max |w_c| / 127        q(w) = round(w / step_c)                        in [-127, 127]

    q(x) = clip(round(x · (1 / step)), -127, 127)

``round`` is half to even. Zero has code 0, so zero padding keeps its value. Gradients of the
dequantized values (code times step):

- weights: straight-through, ``d(step_c q)/dw = 1``, with a constant step (Y. Bengio, N. Leonard,
  A. Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
  Computation", arXiv 1308.3432, 2013);
- activations: ``d(step q)/dx = 1`` if ``|x| < 127 step``, else 0;
- the activations' step, as in learned step size quantization (S. Esser et al., ICLR 2020, arXiv
  1902.08153): ``d(step q)/dstep = q - x / step`` if ``|x| < 127 step``, else ``q``. The sum over
  the n values of a sample is multiplied by ``1 / sqrt(127 n)``, which scales it to the weights'
  gradients.
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

#: The largest code; the smallest is its negative.
LEVELS = 127

#: Lower bound of weight steps, for channels of zeros.
_MIN_WEIGHT_STEP = 1e-30

#: Lower bound of activation steps: smaller than any fitted step, with a finite squared reciprocal.
_MIN_STEP = 1e-16


def weight_steps(weight: Tensor) -> Tensor:
    """Return the steps of a weight: shape [out_channels], detached, at least 1e-30."""
    return (weight.detach().abs().flatten(1).amax(1) / LEVELS).clamp(min=_MIN_WEIGHT_STEP)


def weight_codes(weight: Tensor, steps: Tensor) -> Tensor:
    """Weight codes: integer-valued floats in [-127, 127], with a straight-through gradient."""
    return round_ste(weight / steps.view(-1, *([1] * (weight.dim() - 1))))


class Int8Activation(InputQuantizer):
    """Eight-bit activations; see :mod:`fatnn_rs.quant.int8` for the function and its gradient.

    The first data initialise the step. Of 49 candidates between ``max|x| / 127 / 16`` and
    ``max|x| / 127``, the one with the smallest mean square error is used.

    Attributes
    ----------
    step : Parameter
        Shape [], float32. Clamped to at least 1e-16 in the forward pass, with the gradient of the
        identity.
    """

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(1.0))

    def step_for(self, x: Tensor) -> Tensor:
        """Return the step, its gradient scaled for a batch like ``x``."""
        count = x[0].numel() if x.dim() > 1 and len(x) else x.numel()
        factor = 1.0 / math.sqrt(LEVELS * max(count, 1))
        return scale_gradient(clamp_min_ste(self.step, _MIN_STEP), factor)

    def quantize(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` with the current step."""
        inverse = self.step_for(x).reciprocal()
        return round_ste(hardtanh(x * inverse.to(x.dtype), -LEVELS, LEVELS))

    def fitted_step(self, x: Tensor) -> float:
        """Return the best step for a batch of finite values; 0.0 if all of it is zero."""
        return fit_step(x, -LEVELS, LEVELS)

    def positive_step(self) -> Tensor:
        """Return the clamped step that the forward pass uses, detached."""
        return clamp_min_ste(self.step.detach(), _MIN_STEP)

    @torch.no_grad()
    def set_step(self, step: float) -> None:
        """Set the step."""
        set_value(self.step, max(step, _MIN_STEP))

    def extra_repr(self) -> str:
        """Bits and state, for ``print(model)``."""
        return "8 bits" if self.initialized else "8 bits, not initialised"
