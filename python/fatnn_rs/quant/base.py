"""The contract of the quantizers and the arithmetic they share.

A quantizer family is one file in this package, one row in :data:`fatnn_rs.quant.QUANTIZERS`, and two classes: a
:class:`WeightQuantizer` and an :class:`ActivationQuantizer`. Both are modules whose forward returns *integer-valued*
float tensors (the codes themselves, not codes times a scale) and passes a straight-through gradient.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fatnn_rs.errors import ConfigError, InputError

__all__ = [
    "MIN_STEP",
    "ActivationQuantizer",
    "InputQuantizer",
    "WeightQuantizer",
    "fit_step",
    "positive",
    "round_ste",
    "scale_gradient",
    "sums_dtype",
    "widen",
]

#: Learned step reciprocals are clamped to at least this in the forward pass.
MIN_STEP = 1e-12

_SAMPLES = 1 << 14


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


def positive(step: Tensor, least: float = MIN_STEP) -> Tensor:
    """Return ``max(step, least)`` for a learned step or its reciprocal; the gradient passes unchanged.

    Passing the gradient below the clamp matters: a step that an optimizer pushed below zero would otherwise stay there.
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
def fit_step(x: Tensor, low: int, high: int) -> float:
    """Find the step ``d`` that makes ``d * round(clip(x / d, low, high))`` the best fit to ``x`` in the mean square.

    Parameters
    ----------
    x
        Any shape, floating point, finite. At most 16384 values are looked at (an even stride through ``x``).
    low, high
        The integer levels' range, as ``(-1, 1)`` or ``(0, 2)``: a few levels, whose step is near the values' size; or
        ``(-127, 127)``: many, whose step is near the peak divided by ``high``.

    Returns
    -------
    float
        The step, or 0.0 where every value looked at is zero and nothing can be said.
    """
    sample = _sample(x)
    if not len(sample):
        return 0.0
    # The factor keeps squares of very large and very small values inside float32.
    peak = float(np.abs(sample).max())
    sample = sample / np.float32(peak)
    if high > 3:
        candidates = [float(2.0 ** (-k / 12.0)) / high for k in range(49)]
    else:
        rms = float(torch.from_numpy(sample).square().mean().sqrt())
        candidates = [rms * float(2.0 ** (k / 12.0)) for k in range(-24, 25)]
    errors = [_misfit(sample, np.float32(step), low, high) for step in candidates]
    return candidates[errors.index(min(errors))] * peak


def _sample(x: Tensor) -> npt.NDArray[np.float32]:
    """At most ``_SAMPLES`` of the values that are not zero, an even stride apart.

    NumPy, because each of its calls is one thread's: torch would wake its other threads for every few thousand values.
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


class WeightQuantizer(nn.Module):
    """Contract: float latent weights in, integer-valued float codes out, each of them one of ``levels``.

    Attributes
    ----------
    levels : tuple of int
        What codes may be, in order: {-1, 0, +1}, or a part of it, or what the family says.
    refused : str
        Why no integer code expresses these weights, so that ``convert`` refuses them; empty where one does. Such a
        quantizer's forward returns floats that are not integers.
    """

    levels: tuple[int, ...] = (-1, 0, 1)
    refused: str = ""

    def __init__(self, out_channels: int, per_channel: bool = False) -> None:
        super().__init__()
        if out_channels < 1:
            raise ConfigError(f"out_channels must be at least 1, got {out_channels}")
        self.out_channels = out_channels
        self.per_channel = per_channel

    def forward(self, weight: Tensor) -> Tensor:
        """Return the codes of ``weight``: same shape, float32 (or wider), values out of ``levels``."""
        raise NotImplementedError

    def initialize(self, weight: Tensor) -> None:
        """Set the learned parameters from the latent weights."""
        raise NotImplementedError

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """Exactly what :meth:`forward` uses, as int8."""
        codes: Tensor = self(weight.detach())
        return codes.to(torch.int8)

    def extra_repr(self) -> str:
        """Granularity, for ``print(model)``."""
        return "per output channel" if self.per_channel else "per layer"


class InputQuantizer(nn.Module):
    """Contract: float activations in, integer-valued float codes out: a monotone function, the same for every element.

    Zero has code 0 (but for signs: :mod:`fatnn_rs.quant.binary`). Steps come from the first data seen; whether they
    were is part of the ``state_dict``.
    """

    initialized_flag: Tensor

    def __init__(self) -> None:
        super().__init__()
        #: Name of the layer this quantizer belongs to, for messages.
        self.layer_name = ""
        #: While True, data initialises the steps in eval mode too (see :func:`fatnn_rs.nn.calibrate`).
        self.calibrating = False
        self.register_buffer("initialized_flag", torch.tensor(False))
        # A Python mirror of the buffer: the forward pass branches on it, and reading a buffer would wait for the device
        # and break graph capture.
        self._initialized = False

    @property
    def initialized(self) -> bool:
        """Whether the steps have been initialised from data (or loaded)."""
        return self._initialized

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes of ``x``, same shape, integer-valued float32 (or wider).

        Raises
        ------
        ConfigError
            In eval mode, before the steps were initialised.
        InputError
            Where ``x`` is not floating point, or initialises the steps and holds NaN or infinity.
        """
        if not x.is_floating_point():
            raise InputError(f"{self._where()}: expected a floating point input, got {x.dtype}; use .float()")
        x = widen(x)
        if not self._initialized:
            if not (self.training or self.calibrating):
                raise ConfigError(
                    f"{self._where()}: the activation steps were never initialised, so an eval-mode forward has no "
                    "meaning; run a training batch first, or give prepare(..., example_inputs=...) or "
                    "fatnn_rs.nn.calibrate(model, inputs) a batch of real data"
                )
            self.initialize(x)
        return self.quantize(x)

    def quantize(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` with the present steps."""
        raise NotImplementedError

    def set_step(self, step: float) -> None:
        """Set the learned parameters to a uniform step of this size."""
        raise NotImplementedError

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Choose the steps from data.

        A batch of nothing but zeros says nothing: the quantizer then stays uninitialised and waits for the next one.

        Raises
        ------
        InputError
            Where ``x`` is empty, holds NaN or infinity, or is nothing that this quantizer can hold.
        ConfigError
            Where several processes train together and this is no calibration: each would initialise differently.
        """
        if x.numel() == 0:
            raise InputError(f"{self._where()}: cannot initialise activation steps from an empty batch")
        if not all(math.isfinite(end) for end in torch.aminmax(x)):  # which both are NaN where one value is
            raise InputError(
                f"{self._where()}: the batch that initialises the activation steps holds NaN or infinity; check the "
                "data and the layers before this one"
            )
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and not self.calibrating and torch.distributed.get_world_size() > 1:
            raise ConfigError(
                f"{self._where()}: activation steps must be initialised before the model is wrapped for distributed "
                "training, else every process gets its own; give prepare(..., example_inputs=...), in every process, "
                "the same batch of real data first"
            )
        step = self.fitted_step(x)
        if step > 0:
            self.set_step(step)
            self._initialized = True
            self.initialized_flag.fill_(True)

    def fitted_step(self, x: Tensor) -> float:
        """Find the step for a batch of finite values; 0.0 where it says nothing."""
        raise NotImplementedError

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.initialized_flag.is_meta:
            self._initialized = bool(self.initialized_flag)

    def _where(self) -> str:
        return f"layer {self.layer_name!r}" if self.layer_name else "activation quantizer (layer not named yet)"


class ActivationQuantizer(InputQuantizer):
    """Ternary codes: {0, 1, 2} in half range (the input is never negative: after a ReLU), {-1, 0, +1} in full range.

    Subclasses may have other levels. Which range is part of the ``state_dict``.

    Parameters
    ----------
    act_range
        ``"half"`` or ``"full"``, or ``"auto"``: decided by the first data seen (half where its minimum is >= 0).

    Attributes
    ----------
    half_levels, full_levels : tuple of int
        What codes may be in either range, in order; no levels, where the quantizer does not have that range. Half range
        begins at 0.
    """

    half_levels: tuple[int, ...] = (0, 1, 2)
    full_levels: tuple[int, ...] = (-1, 0, 1)
    half_range_flag: Tensor

    def __init__(self, act_range: str = "auto") -> None:
        super().__init__()
        if act_range not in ("auto", "half", "full"):
            raise ConfigError(f"act_range must be 'auto', 'half' or 'full', got {act_range!r}")
        if act_range == "full" and not self.full_levels:
            raise ConfigError(
                f"{type(self).__name__} has the levels {{{', '.join(map(str, self.half_levels))}}} only, so act_range "
                "must be 'auto' or 'half', got 'full'; choose act='ternary' or 'binary' for signed activations"
            )
        self.act_range = act_range
        self.register_buffer("half_range_flag", torch.tensor(act_range == "half"))
        self._half_range = act_range == "half"

    @property
    def half_range(self) -> bool:
        """Whether codes begin at 0 (True) or at -1 (False). Not decided before initialisation."""
        return self._half_range

    @property
    def levels(self) -> tuple[int, ...]:
        """What codes may be, in order. Not decided before initialisation."""
        return self.half_levels if self._half_range else self.full_levels

    @property
    def step(self) -> float:
        """The mean size of the steps: how much of ``x`` one level stands for."""
        raise NotImplementedError

    def fitted_step(self, x: Tensor) -> float:
        """Choose the range, where it is ``"auto"``, and find the step.

        Raises
        ------
        InputError
            Where ``x`` is negative somewhere although ``act_range="half"``.
        """
        minimum = float(x.min())
        if self.act_range == "half" and minimum < 0:
            others = "use 'full' or 'auto'" if self.full_levels else "'auto' takes negative ones for 0"
            raise InputError(f"{self._where()}: act_range='half' needs inputs >= 0, got {minimum:g}; {others}")
        half = self.act_range == "half" or (self.act_range == "auto" and minimum >= 0) or not self.full_levels
        self._set_state(initialized=False, half_range=half)
        return fit_step(x, self.levels[0], self.levels[-1])

    def _set_state(self, *, initialized: bool, half_range: bool) -> None:
        self._initialized, self._half_range = initialized, half_range
        self.initialized_flag.fill_(initialized)
        self.half_range_flag.fill_(half_range)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.half_range_flag.is_meta:
            self._half_range = bool(self.half_range_flag)

    def extra_repr(self) -> str:
        """Range and state, for ``print(model)``."""
        if not self._initialized:
            return f"act_range={self.act_range!r}, not initialised"
        return "half range" if self._half_range else "full range"
