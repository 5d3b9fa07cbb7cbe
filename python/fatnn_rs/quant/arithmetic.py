"""Arithmetic that the quantizers share: straight-through gradients, and steps fitted to data."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = [
    "MIN_STEP",
    "clamp_min_ste",
    "fit_step",
    "round_ste",
    "says_nothing",
    "scale_gradient",
    "set_value",
    "sums_dtype",
    "widen",
]

#: Learned step reciprocals are clamped to at least this in the forward pass.
MIN_STEP = 1e-12

_SAMPLES = 1 << 14

#: Smaller sizes count as zero: CPUs may flush them, and their reciprocals overflow float32.
_TINY = float(np.finfo(np.float32).tiny)


class _RoundSTE(torch.autograd.Function):
    """``torch.round`` (half to even) with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x).add_(0.0)  # + 0.0 turns -0.0 into 0.0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _PositiveSTE(torch.autograd.Function):
    """Clamp from below with the gradient of the identity, so that a step can come back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, least: float) -> Tensor:
        return x.clamp(min=least)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _ScaleGradient(torch.autograd.Function):
    """The identity; its gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def round_ste(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes unchanged (straight-through estimator).

    Parameters
    ----------
    x
        Any shape, floating point. NaN stays NaN.
    """
    result: Tensor = _RoundSTE.apply(x)
    return result


def clamp_min_ste(step: Tensor, least: float = MIN_STEP) -> Tensor:
    """Return ``max(step, least)`` for a learned step or its reciprocal; the gradient passes unchanged.

    Passing the gradient below the clamp matters: a step that an optimizer pushed below zero would
    otherwise stay there.
    """
    result: Tensor = _PositiveSTE.apply(step, least)
    return result


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return ``x``; its gradient is multiplied by ``factor``."""
    result: Tensor = _ScaleGradient.apply(x, factor)
    return result


def widen(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32 (quantizers compute in float32 or wider); anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def sums_dtype(x: Tensor) -> torch.dtype:
    """Return what to sum statistics of ``x`` in, so that the number of threads does not show in them: float64.

    Apple's devices have none; there it is the dtype of ``x``.
    """
    return torch.float64 if x.device.type != "mps" else x.dtype


@torch.no_grad()
def says_nothing(x: Tensor) -> bool:
    """Whether no step can be fitted to ``x``: all of it is zero, or too small for a normal float32."""
    return x.numel() > 0 and max(abs(float(end)) for end in torch.aminmax(x.detach())) < _TINY


@torch.no_grad()
def set_value(tensor: Tensor, value: float) -> None:
    """Fill a tensor in place; a value that its dtype does not reach becomes the nearest positive one that it does."""
    info = torch.finfo(tensor.dtype)
    tensor.fill_(min(max(value, info.tiny), info.max))


@torch.no_grad()
def fit_step(x: Tensor, low: int, high: int) -> float:
    """Find the step ``d`` that makes ``d * round(clip(x / d, low, high))`` the best fit to ``x`` in the mean square.

    Parameters
    ----------
    x
        Any shape, floating point, finite. At most 16384 values are looked at (an even stride
        through ``x``).
    low, high
        The integer levels' range, as ``(-1, 1)`` or ``(0, 2)``: a few levels, whose step is near
        the values' size; or ``(-127, 127)``: many, whose step is near the peak divided by ``high``.

    Returns
    -------
    float
        The step, a normal float32; or 0.0 where every value looked at is zero, or no normal
        float32, and nothing can be said.
    """
    sample = _sample(x)
    if not len(sample):
        return 0.0
    # The factor keeps squares of very large and very small values inside float32.
    peak = float(np.abs(sample).max())
    if peak < _TINY:
        return 0.0
    sample = sample / np.float32(peak)
    if high > 3:
        candidates = [float(2.0 ** (-k / 12.0)) / high for k in range(49)]
    else:
        rms = float(torch.from_numpy(sample).square().mean().sqrt())
        candidates = [rms * float(2.0 ** (k / 12.0)) for k in range(-24, 25)]
    errors = [_misfit(sample, np.float32(step), low, high) for step in candidates]
    return min(
        max(candidates[errors.index(min(errors))] * peak, _TINY), float(np.finfo(np.float32).max)
    )


def _sample(x: Tensor) -> npt.NDArray[np.float32]:
    """At most ``_SAMPLES`` of the values that are not zero, an even stride apart.

    NumPy, because each of its calls is one thread's: torch would wake its other threads for every
    few thousand values.
    """
    values = x.detach().reshape(-1).float().cpu().numpy()
    places = np.flatnonzero(values != 0)
    return values[places[:: max(1, -(-len(places) // _SAMPLES))]]


def _misfit(sample: npt.NDArray[np.float32], step: np.float32, low: int, high: int) -> float:
    """Sum of squares of what quantization with this step loses."""
    lost = sample / step
    np.clip(lost, low, high, out=lost)
    np.rint(lost, out=lost)
    lost *= -step
    lost += sample
    return float(np.dot(lost, lost))
