"""Quantization of values between layers to eight bits.

A value becomes a multiple of a step that eight bits can count::

    code = clip(round(x · (1 / step)), low, high)
    y    = code · step

in float32. ``1 / step`` is rounded once; ``round`` is half to even. A code of 0 gives 0.0, never
-0.0, so that the byte determines the value. The engine computes the same operations.

Codes are 0..255 if the first data have no negative value (after a ReLU), else -128..127. The step
is learned, with the gradients of learned step size quantization (S. Esser et al., ICLR 2020, arXiv
1902.08153):

- ``dy/dx = 1`` if ``low < x / step < high``, else 0;
- ``dy/dstep = code - x / step`` if ``low < x / step < high``, else ``code``.

The parameter is the step's logarithm, so ``dy/dlog2(step) = ln(2) · step · dy/dstep``: an update
changes the step by a factor. With the step itself as the parameter, learning rates that suit
weights are many times the step of eight bits, and a ResNet-20 diverged.

The forward pass rounds the step to 10 significant bits, with the gradient of the identity. A
product of a code and such a step is exact in float32, and so are sums of up to 64 of them, in any
order. Float64 adds 2³⁵ of them exactly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import hardtanh
from torch.overrides import handle_torch_function, has_torch_function_unary

from fatnn_rs.quant.arithmetic import sample_nonzero
from fatnn_rs.quant.base import (
    ActivationQuantizer,
    clamp_min_ste,
    round_ste,
)

__all__ = ["STEP_BITS", "Int8Value", "fake_quantize"]

#: Significant bits of a step.
STEP_BITS = 10

#: Lower bound of steps: smaller than any fitted step, with a finite squared reciprocal.
_MIN_STEP = 1e-16

#: A value that is larger than this many times what all but one in a thousand are below is an
#: outlier, and may not widen the step any further.
_OUTLIER = 4.0


def fake_quantize(x: Tensor, step: float, low: int, high: int) -> Tensor:
    """Round ``x`` to multiples of ``step``, from ``low`` to ``high`` steps; without a gradient.

    Parameters
    ----------
    x
        Any shape, float32. NaN stays NaN.
    step
        A positive float32 number.
    low, high
        Integers within [-128, 127] or within [0, 255].
    """
    if has_torch_function_unary(x):  # so that torch.fx sees one call
        made: Tensor = handle_torch_function(fake_quantize, (x,), x, step, low, high)
        return made
    inverse = float(np.float32(1) / np.float32(step))
    return (torch.clamp(torch.round(x * inverse), low, high) + 0.0) * step


class _RoundStepSTE(torch.autograd.Function):
    """Rounds float32 numbers to :data:`STEP_BITS` bits, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, step: Tensor) -> Tensor:
        dropped = 24 - STEP_BITS
        bits = step.float().view(torch.int32)
        rounded = (bits + (1 << (dropped - 1))) & -(1 << dropped)
        return rounded.view(torch.float32).to(step.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Int8Value(ActivationQuantizer):
    """Rounds a value between layers to multiples of a learned step; see :mod:`.values`.

    Unlike the quantizers of layers, it returns codes times the step, as float32. In every mode the
    forward pass gives the bits of :func:`fake_quantize`. The first data choose the range of the
    codes, and the step with the smallest mean square error. Outliers among them count as four times
    what 99.9% of the values are below.

    Attributes
    ----------
    log2_step : Parameter
        The logarithm of the step to base 2. Shape [], float32.
    """

    half_levels = tuple(range(256))
    full_levels = tuple(range(-128, 128))

    def __init__(self) -> None:
        super().__init__()
        self.log2_step = nn.Parameter(torch.tensor(0.0))
        #: While a list, :meth:`forward` adds what it gets to it, and returns it unchanged.
        self.recorded: list[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Round ``x``: same shape, float32 (or wider)."""
        if self.recorded is not None:
            self.recorded.append(_representative(x))
            return x
        return super().forward(x)

    def quantize_half(self, x: Tensor) -> Tensor:
        """Round ``x`` with the codes 0 to 255."""
        return self._rounded(x, self.half_levels)

    def quantize_full(self, x: Tensor) -> Tensor:
        """Round ``x`` with the codes -128 to 127."""
        return self._rounded(x, self.full_levels)

    def _rounded(self, x: Tensor, levels: tuple[int, ...]) -> Tensor:
        low, high = levels[0], levels[-1]
        step = self.used_step()
        codes = round_ste(hardtanh(x * step.reciprocal().to(x.dtype), low, high))
        return codes * step.to(x.dtype)

    def used_step(self) -> Tensor:
        """Return the step of the forward pass: shape [], with a straight-through gradient."""
        step = clamp_min_ste(torch.exp2(self.log2_step), _MIN_STEP)
        rounded: Tensor = _RoundStepSTE.apply(step)
        return rounded

    @property
    def step(self) -> float:
        """The step of the forward pass, as a number."""
        return float(self.used_step().detach())

    @property
    def low(self) -> int:
        """The smallest code."""
        return self.levels[0]

    @property
    def high(self) -> int:
        """The largest code."""
        return self.levels[-1]

    def fitted_step(self, x: Tensor) -> float:
        """Choose the range, and fit the step to all values but outliers."""
        return super().fitted_step(_without_outliers(x))

    @torch.no_grad()
    def set_step(self, step: float) -> None:
        """Set the step."""
        self.log2_step.fill_(math.log2(max(step, _MIN_STEP)))

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load as torch does; the state of a model without int8 values resets the step."""
        if not any(prefix + key in state_dict for key in self.state_dict(keep_vars=True)):
            self.reset()
            return
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Codes and step, for ``print(model)``."""
        if not self.initialized:
            return "not initialised"
        return f"codes {self.low}..{self.high}, step {self.step:.4g}"


def _representative(x: Tensor) -> Tensor:
    """Return a sample of the values for a fit, with the smallest and the largest of them."""
    values = x.detach()
    if not values.numel():
        return values.reshape(-1)
    ends = torch.stack(torch.aminmax(values)).float().cpu()
    return torch.cat([torch.from_numpy(sample_nonzero(values)), ends])


def _without_outliers(x: Tensor) -> Tensor:
    """Clamp outliers, so that a few values cannot widen the step for all others."""
    sample = np.sort(np.abs(sample_nonzero(x)))
    if not len(sample):
        return x
    limit = _OUTLIER * float(sample[int(0.999 * (len(sample) - 1))])
    return x.clamp(-limit, limit)
