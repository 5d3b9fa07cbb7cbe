"""Base classes of the quantizers.

Quantizers are modules. Their forward returns *integer-valued* float tensors (the codes themselves,
not codes times a scale) and passes a straight-through gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from fatnn_rs.errors import ConfigError, InputError
from fatnn_rs.quant.arithmetic import (
    MIN_STEP,
    accumulation_dtype,
    all_zero,
    clamp_min_ste,
    fit_step,
    round_ste,
    scale_gradient,
    set_value,
    widen,
)
from fatnn_rs.quant.flags import INITIALIZED, RANGE, convert_flags, flag, read_flag

__all__ = [
    "MIN_STEP",
    "ActivationQuantizer",
    "InputQuantizer",
    "WeightQuantizer",
    "accumulation_dtype",
    "all_zero",
    "clamp_min_ste",
    "fit_step",
    "round_ste",
    "scale_gradient",
    "set_value",
    "widen",
]


class WeightQuantizer(nn.Module):
    """Base class: float latent weights in, integer-valued float codes out.

    Parameters
    ----------
    out_channels
        Size of the weight's first dimension.
    per_channel
        Use steps, scales and statistics per output channel instead of per layer.

    Attributes
    ----------
    levels : tuple of int
        The possible codes in ascending order.
    refused : str
        If not empty, the reason why ``convert`` refuses these weights: no integer codes express
        them. The forward of such a quantizer returns floats that are not integers.
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
        """Return the codes of ``weight``: same shape, float32 (or wider), values in ``levels``."""
        raise NotImplementedError

    def initialize(self, weight: Tensor) -> None:
        """Set the learned parameters from the latent weights."""
        raise NotImplementedError

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """Return the codes that :meth:`forward` computes, as int8."""
        codes: Tensor = self(weight.detach())
        return codes.to(torch.int8)

    def extra_repr(self) -> str:
        """Granularity of the steps, for ``print(model)``."""
        return "per output channel" if self.per_channel else "per layer"


class InputQuantizer(nn.Module):
    """Base class: float activations in, integer-valued float codes out.

    The function is monotone and the same for every element. Zero has code 0, except for signs
    (:mod:`fatnn_rs.quant.binary`). The first batch that is not all zero initialises the steps. A
    buffer stores whether this happened, so it is part of the ``state_dict``
    (:mod:`fatnn_rs.quant.flags`).

    ``quantize`` must read its parameters in every call. ``set_step`` may write to them in place,
    because earlier calls saved copies for their backward pass.
    """

    initialized_flag: Tensor

    def __init__(self) -> None:
        super().__init__()
        #: Name of the layer of this quantizer, for error messages.
        self.layer_name = ""
        #: While True, data initialise the steps in eval mode too: :func:`fatnn_rs.nn.calibrate`.
        self.calibrating = False
        self.register_buffer(INITIALIZED, flag(0))
        # Last known values of the flags, used if they cannot be read (see read_flag).
        self._last_initialized = False
        self._last_range = 0.0
        # Reading a flag from a GPU waits for the GPU, so its value is cached until the buffer
        # changes: name → (buffer, version, value).
        self._flag_cache: dict[str, tuple[Tensor, int, float]] = {}

    @property
    def initialized(self) -> bool:
        """Whether the steps have been initialised from data (or loaded)."""
        value = self._read_flag(INITIALIZED)
        if value is None:
            return self._last_initialized
        self._last_initialized = value > 0
        return value > 0

    def _read_flag(self, name: str) -> float | None:
        """Return a flag's value, or None if it cannot be read."""
        if torch.compiler.is_compiling():
            return None
        buffer = self._buffers[name]
        assert buffer is not None
        if buffer.device.type == "cpu":
            return read_flag(buffer)
        kept = self._flag_cache.get(name)
        if kept is not None and kept[0] is buffer and kept[1] == buffer._version:
            return kept[2]
        value = read_flag(buffer)
        if (
            value is not None
            and (value > 0 or (value < 0 and name == RANGE))
            and not buffer.is_inference()
        ):
            self._flag_cache[name] = (buffer, buffer._version, value)
        return value

    def train(self, mode: bool = True) -> InputQuantizer:
        """Set the mode as torch does, and cache the flags for a later graph capture."""
        super().train(mode)
        self._cache_flags()
        return self

    def _cache_flags(self) -> None:
        _ = self.initialized

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes of ``x``: same shape, integer-valued float32 (or wider).

        Raises
        ------
        ConfigError
            In eval mode, the steps were never initialised and ``x`` is not all zero.
        InputError
            ``x`` is not floating point, is nested, or initialises the steps and holds NaN or
            infinity.
        """
        if not x.is_floating_point():
            raise InputError(
                f"{self._where()}: expected a floating point input, got {x.dtype}; use .float()"
            )
        if x.is_nested:
            raise InputError(
                f"{self._where()}: got a nested tensor, which quantizers do not take; pad it "
                "(torch.nested.to_padded_tensor), and build nn.TransformerEncoder with "
                "enable_nested_tensor=False"
            )
        x = widen(x)
        if not self.initialized:
            return self._uninitialized(x)
        return self.quantize(x)

    @_disable_dynamo
    def _uninitialized(self, x: Tensor) -> Tensor:
        """Forward pass without steps: initialise them from ``x``, unless all of ``x`` is zero."""
        if not self.initialized:
            if self.training or self.calibrating:
                self.initialize(x)
            elif not all_zero(x):
                raise ConfigError(
                    f"{self._where()}: its activation steps were never initialised, so an "
                    "eval-mode forward has no meaning; run a training batch first, or give "
                    "prepare(..., example_inputs=...) or fatnn_rs.nn.calibrate(model, inputs) a "
                    "batch of real data (loading float weights, or a batch of zeros, does not "
                    "initialise them)"
                )
        if self.initialized:
            return self.quantize(x)
        # All of x is zero, so its codes do not depend on the steps. Use copies of the steps, since
        # a later call may initialise them in place. The gradient is that of a float layer, so that
        # the layer before can leave zero.
        own = self._parameters, self._buffers
        self._parameters, self._buffers = (  # type: ignore[assignment]
            {name: None if value is None else value.clone() for name, value in tensors.items()}
            for tensors in own
        )
        try:
            return self.quantize(x.detach()) + (x - x.detach())
        finally:
            self._parameters, self._buffers = own

    def quantize(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` with the current steps."""
        raise NotImplementedError

    def set_step(self, step: float) -> None:
        """Set all learned steps to ``step``."""
        raise NotImplementedError

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Fit the steps to ``x``. If ``x`` is all zero, leave them uninitialised.

        Raises
        ------
        InputError
            ``x`` is empty, holds NaN or infinity, or is outside the quantizer's range.
        ConfigError
            Several processes train together and this is no calibration, so each process would
            initialise its steps differently.
        """
        if x.numel() == 0:
            raise InputError(
                f"{self._where()}: cannot initialise activation steps from an empty batch; give "
                "one with samples"
            )
        # Both ends are NaN if any value is.
        if not all(math.isfinite(end) for end in torch.aminmax(x)):
            raise InputError(
                f"{self._where()}: the batch that initialises the activation steps holds NaN or "
                "infinity; check the data and the layers before this one"
            )
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if (
            distributed
            and not self.calibrating
            and torch.distributed.get_world_size() > 1
            and not all_zero(x)
        ):
            raise ConfigError(
                f"{self._where()}: activation steps must be initialised before the model is "
                "wrapped for distributed training, else every process gets its own; give "
                "prepare(..., example_inputs=...), in every process, the same batch of real data "
                "first (for a layer that saw only zeros, call fatnn_rs.nn.calibrate when it gets "
                "other values)"
            )
        step = self.fitted_step(x)
        if step > 0:
            self.set_step(step)
            self.initialized_flag.fill_(1.0)
            self._cache_flags()

    @torch.no_grad()
    def reset(self) -> None:
        """Mark the steps as uninitialised: the next data initialise them."""
        self.set_step(1.0)
        self.initialized_flag.zero_()
        self._cache_flags()

    def fitted_step(self, x: Tensor) -> float:
        """Return the best step for a batch of finite values; 0.0 if all of it is zero."""
        raise NotImplementedError

    def _initial_range_flag(self) -> float | None:
        """Return the initial value of ``half_range_flag``; None if there is no such flag."""
        return None

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        convert_flags(state_dict, prefix, self._initial_range_flag())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._cache_flags()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle, also from earlier versions."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.__dict__.setdefault("_flag_cache", {})
        convert_flags(self._buffers, "", self._initial_range_flag())
        self._last_initialized = bool(
            self.__dict__.pop("_initialized", self.__dict__.get("_last_initialized", False))
        )
        half = self.__dict__.pop("_half_range", None)
        self._last_range = (
            self.__dict__.get("_last_range", 0.0) if half is None else 2.0 * half - 1.0
        )

    def _where(self) -> str:
        return (
            f"layer {self.layer_name!r}"
            if self.layer_name
            else "activation quantizer (layer not named yet)"
        )


class ActivationQuantizer(InputQuantizer):
    """Base class of quantizers with a half range (from 0, after a ReLU) and a signed full range.

    The ``state_dict`` stores which range is used. Subclasses define ``quantize_half`` and
    ``quantize_full``.

    Parameters
    ----------
    act_range
        ``"half"``, ``"full"`` or ``"auto"``: the first data decide, half if their minimum is >= 0.
        With ``"auto"``, quantizers without a full range treat negative inputs as 0.

    Attributes
    ----------
    half_levels, full_levels : tuple of int
        The possible codes of each range in ascending order; empty if the quantizer lacks that
        range. ``half_levels`` starts with 0.
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
                f"{type(self).__name__} has the levels "
                f"{{{', '.join(map(str, self.half_levels))}}} only, so act_range must be 'auto' or "
                "'half', got 'full'; choose act='ternary' or 'binary' for signed activations"
            )
        self.act_range = act_range
        self.register_buffer(RANGE, flag(self._initial_range_flag() or 0.0))
        self._cache_flags()

    def _initial_range_flag(self) -> float | None:
        if self.act_range == "auto":
            return 0.0 if self.full_levels else 1.0
        return 1.0 if self.act_range == "half" else -1.0

    @property
    def _range_from_data(self) -> bool:
        """Whether the data, not the options, decide the range."""
        return self.act_range == "auto" and bool(self.full_levels)

    @property
    def half_range(self) -> bool:
        """Whether codes start at 0 (True) or at -1 (False); True before the data decide."""
        if not self._range_from_data:
            return self.act_range != "full"
        value = self._read_flag(RANGE)
        if value is None:
            return self._last_range >= 0
        self._last_range = value
        return value >= 0

    @property
    def levels(self) -> tuple[int, ...]:
        """The possible codes in ascending order. May change until the steps are initialised."""
        return self.half_levels if self.half_range else self.full_levels

    @property
    def step(self) -> float:
        """Mean step: the difference in ``x`` between two neighbouring levels."""
        raise NotImplementedError

    def quantize(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` with the current steps and range."""
        if self._range_from_data and self._read_flag(RANGE) is None:
            # A captured graph holds both ranges; the buffer selects one when it runs.
            return torch.where(
                self.half_range_flag >= 0, self.quantize_half(x), self.quantize_full(x)
            )
        return self.quantize_half(x) if self.half_range else self.quantize_full(x)

    def quantize_half(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` in half range."""
        raise NotImplementedError

    def quantize_full(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` in full range."""
        raise NotImplementedError

    def fitted_step(self, x: Tensor) -> float:
        """Choose the range if ``act_range`` is ``"auto"``, and fit the step.

        Raises
        ------
        InputError
            ``act_range="half"`` and ``x`` has negative values.
        """
        minimum = float(x.min())
        if self.act_range == "half" and minimum < 0:
            others = (
                "use 'full' or 'auto'" if self.full_levels else "'auto' treats negative ones as 0"
            )
            raise InputError(
                f"{self._where()}: act_range='half' needs inputs >= 0, got {minimum:g}; {others}"
            )
        half = (
            self.act_range == "half"
            or (self.act_range == "auto" and minimum >= 0)
            or not self.full_levels
        )
        levels = self.half_levels if half else self.full_levels
        step = fit_step(x, levels[0], levels[-1])
        if step > 0:
            self._set_state(initialized=False, half_range=half)
        return step

    def reset(self) -> None:
        """Mark steps and range as uninitialised: the next data decide both."""
        super().reset()
        with torch.no_grad():
            self.half_range_flag.fill_(self._initial_range_flag() or 0.0)
        self._cache_flags()

    @torch.no_grad()
    def _set_state(self, *, initialized: bool, half_range: bool) -> None:
        self.initialized_flag.fill_(float(initialized))
        self.half_range_flag.fill_(1.0 if half_range else -1.0)
        self._cache_flags()

    def _cache_flags(self) -> None:
        super()._cache_flags()
        _ = RANGE in self._buffers and self.half_range

    def extra_repr(self) -> str:
        """Range, for ``print(model)``."""
        if not self.initialized:
            return f"act_range={self.act_range!r}, not initialised"
        return "half range" if self.half_range else "full range"
