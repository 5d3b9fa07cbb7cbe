"""Functions shared by the quantizers: straight-through gradients, and steps fitted to data."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = [
    "MIN_STEP",
    "accumulation_dtype",
    "all_zero",
    "clamp_min_ste",
    "fit_step",
    "round_ste",
    "sample_nonzero",
    "scale_gradient",
    "set_value",
    "widen",
]

#: Lower bound of learned step reciprocals in the forward pass.
MIN_STEP = 1e-12

_MAX_SAMPLES = 1 << 14

#: Smaller magnitudes count as zero: CPUs may flush them, and their reciprocals overflow float32.
_TINY = float(np.finfo(np.float32).tiny)


class _RoundSTE(torch.autograd.Function):
    """``torch.round`` (half to even) with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x).add_(0.0)  # + 0.0 turns -0.0 into 0.0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _ClampMinSTE(torch.autograd.Function):
    """``clamp(min=...)`` with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, least: float) -> Tensor:
        return x.clamp(min=least)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a constant."""

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
    """Return ``max(step, least)`` for a learned step or its reciprocal.

    The gradient passes unchanged, also below ``least``; otherwise a step that an optimizer pushed
    below zero could never recover.
    """
    result: Tensor = _ClampMinSTE.apply(step, least)
    return result


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return ``x``; its gradient is multiplied by ``factor``."""
    result: Tensor = _ScaleGradient.apply(x, factor)
    return result


def widen(x: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32; return other tensors unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which to sum statistics of ``x``: float64, or on MPS the dtype of ``x``.

    In float64, the number of threads does not change the rounded result.
    """
    return torch.float64 if x.device.type != "mps" else x.dtype


@torch.no_grad()
def all_zero(x: Tensor) -> bool:
    """Whether no step can be fitted to ``x``: every value is zero or a subnormal float32."""
    return x.numel() > 0 and max(abs(float(end)) for end in torch.aminmax(x.detach())) < _TINY


@torch.no_grad()
def set_value(tensor: Tensor, value: float) -> None:
    """Fill a tensor in place with ``value``, clamped to the positive normal range of its dtype."""
    info = torch.finfo(tensor.dtype)
    tensor.fill_(min(max(value, info.tiny), info.max))


@torch.no_grad()
def fit_step(x: Tensor, low: int, high: int) -> float:
    """Find the step ``d`` for which ``d * round(clip(x / d, low, high))`` fits ``x`` best.

    The error is the mean square. 49 candidate steps are tried.

    Parameters
    ----------
    x
        Any shape, floating point, finite. At most 16384 values are used, at an even stride.
    low, high
        Smallest and largest level, such as ``(-1, 1)``, ``(0, 2)`` or ``(-127, 127)``. Up to
        ``high = 3``, candidates are between a quarter and four times the root mean square; above,
        between ``max|x| / high / 16`` and ``max|x| / high``.

    Returns
    -------
    float
        The step, a normal float32; or 0.0 if every value used is zero or subnormal.
    """
    sample = sample_nonzero(x)
    if not len(sample):
        return 0.0
    # Dividing by the peak keeps the squares of huge and tiny values inside float32.
    peak = float(np.abs(sample).max())
    if peak < _TINY:
        return 0.0
    sample = sample / np.float32(peak)
    if high > 3:
        candidates = [float(2.0 ** (-k / 12.0)) / high for k in range(49)]
    else:
        rms = float(torch.from_numpy(sample).square().mean().sqrt())
        candidates = [rms * float(2.0 ** (k / 12.0)) for k in range(-24, 25)]
    errors = [_squared_error(sample, np.float32(step), low, high) for step in candidates]
    return min(
        max(candidates[errors.index(min(errors))] * peak, _TINY), float(np.finfo(np.float32).max)
    )


def sample_nonzero(x: Tensor) -> npt.NDArray[np.float32]:
    """Return at most ``_MAX_SAMPLES`` nonzero values, at an even stride.

    In NumPy, because torch would wake all its threads for every few thousand values.
    """
    values = x.detach().reshape(-1).float().cpu().numpy()
    nonzero = np.flatnonzero(values != 0)
    return values[nonzero[:: max(1, -(-len(nonzero) // _MAX_SAMPLES))]]


def _squared_error(sample: npt.NDArray[np.float32], step: np.float32, low: int, high: int) -> float:
    """Sum of squared errors of quantization with this step."""
    lost = sample / step
    np.clip(lost, low, high, out=lost)
    np.rint(lost, out=lost)
    lost *= -step
    lost += sample
    return float(np.dot(lost, lost))
