"""The contract of the quantizers.

A quantizer family is one file in this package, one row in :data:`fatnn_rs.quant.QUANTIZERS`, and
two classes: a :class:`WeightQuantizer` and an :class:`ActivationQuantizer`. Both are modules whose
forward returns *integer-valued* float tensors (the codes themselves, not codes times a scale) and
passes a straight-through gradient.
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
    clamp_min_ste,
    fit_step,
    round_ste,
    says_nothing,
    scale_gradient,
    set_value,
    sums_dtype,
    widen,
)
from fatnn_rs.quant.flags import INITIALIZED, RANGE, convert_flags, flag, read_flag

__all__ = [
    "MIN_STEP",
    "ActivationQuantizer",
    "InputQuantizer",
    "WeightQuantizer",
    "clamp_min_ste",
    "fit_step",
    "round_ste",
    "says_nothing",
    "scale_gradient",
    "set_value",
    "sums_dtype",
    "widen",
]


class WeightQuantizer(nn.Module):
    """Contract: float latent weights in, integer-valued float codes out, each of them one of ``levels``.

    Attributes
    ----------
    levels : tuple of int
        What codes may be, in order: {-1, 0, +1}, or a part of it, or what the family says.
    refused : str
        Why no integer code expresses these weights, so that ``convert`` refuses them; empty where
        one does. Such a quantizer's forward returns floats that are not integers.
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

    Zero has code 0 (but for signs: :mod:`fatnn_rs.quant.binary`). Steps come from the first data
    seen that are not all zero; whether they did is a buffer, and so part of the ``state_dict``
    (:mod:`fatnn_rs.quant.flags`).

    Two rules for subclasses. ``quantize`` reads its parameters anew in every call. ``set_step`` may
    write to them in place: what earlier calls saved for their backward pass are copies.
    """

    initialized_flag: Tensor

    def __init__(self) -> None:
        super().__init__()
        #: Name of the layer this quantizer belongs to, for messages.
        self.layer_name = ""
        #: While True, data initialises the steps in eval mode too (see :func:`fatnn_rs.nn.calibrate`).
        self.calibrating = False
        self.register_buffer(INITIALIZED, flag(0))
        # What the flags were when they could last be read: used only where they cannot (see
        # read_flag).
        self._last_initialized = False
        self._last_range = 0.0
        # Off the CPU reading waits for the device: there, what was read is kept while its buffer is
        # unchanged.
        self._kept: dict[str, tuple[Tensor, int, float]] = {}

    @property
    def initialized(self) -> bool:
        """Whether the steps have been initialised from data (or loaded)."""
        value = self._flag(INITIALIZED)
        if value is None:
            return self._last_initialized
        self._last_initialized = value > 0
        return value > 0

    def _flag(self, name: str) -> float | None:
        """Return a flag's value, None where it cannot be read."""
        if torch.compiler.is_compiling():
            return None
        buffer = self._buffers[name]
        assert buffer is not None
        if buffer.device.type == "cpu":
            return read_flag(buffer)
        kept = self._kept.get(name)
        if kept is not None and kept[0] is buffer and kept[1] == buffer._version:
            return kept[2]
        value = read_flag(buffer)
        if (
            value is not None
            and (value > 0 or (value < 0 and name == RANGE))
            and not buffer.is_inference()
        ):
            self._kept[name] = (buffer, buffer._version, value)
        return value

    def train(self, mode: bool = True) -> InputQuantizer:
        """Set the mode as torch does, and note the flags for a graph capture that may follow."""
        super().train(mode)
        self._look_at_flags()
        return self

    def _look_at_flags(self) -> None:
        _ = self.initialized

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes of ``x``, same shape, integer-valued float32 (or wider).

        Raises
        ------
        ConfigError
            In eval mode, before the steps were initialised, where ``x`` is not all zero.
        InputError
            Where ``x`` is not floating point, or initialises the steps and holds NaN or infinity.
        """
        if not x.is_floating_point():
            raise InputError(
                f"{self._where()}: expected a floating point input, got {x.dtype}; use .float()"
            )
        if x.is_nested:
            raise InputError(
                f"{self._where()}: got a nested tensor, which quantizers do not take; pad it "
                "(torch.nested.to_padded_tensor), and build nn.TransformerEncoder with enable_nested_tensor=False"
            )
        x = widen(x)
        if not self.initialized:
            return self._uninitialized(x)
        return self.quantize(x)

    @_disable_dynamo
    def _uninitialized(self, x: Tensor) -> Tensor:
        """Forward pass where no data have set the steps: they do so now, or all of ``x`` is zero."""
        if not self.initialized:
            if self.training or self.calibrating:
                self.initialize(x)
            elif not says_nothing(x):
                raise ConfigError(
                    f"{self._where()}: its activation steps were never initialised, so an eval-mode forward has no "
                    "meaning; run a training batch first, or give prepare(..., example_inputs=...) or "
                    "fatnn_rs.nn.calibrate(model, inputs) a batch of real data (float weights that are loaded and "
                    "batches of zeros leave steps to be initialised)"
                )
        if self.initialized:
            return self.quantize(x)
        # Codes of zeros do not depend on the steps. Copies, because a later call may initialise
        # these in place. The gradient passes as it would in a float layer: what feeds this one must
        # be able to leave zero.
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
        """Return the codes of ``x`` with the present steps."""
        raise NotImplementedError

    def set_step(self, step: float) -> None:
        """Set the learned parameters to a uniform step of this size."""
        raise NotImplementedError

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Choose the steps from data.

        A batch of nothing but zeros says nothing: the quantizer then stays uninitialised and waits
        for the next one.

        Raises
        ------
        InputError
            Where ``x`` is empty, holds NaN or infinity, or is nothing that this quantizer can hold.
        ConfigError
            Where several processes train together and this is no calibration: each would initialise
            differently.
        """
        if x.numel() == 0:
            raise InputError(
                f"{self._where()}: cannot initialise activation steps from an empty batch"
            )
        if not all(
            math.isfinite(end) for end in torch.aminmax(x)
        ):  # which both are NaN where one value is
            raise InputError(
                f"{self._where()}: the batch that initialises the activation steps holds NaN or infinity; check the "
                "data and the layers before this one"
            )
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if (
            distributed
            and not self.calibrating
            and torch.distributed.get_world_size() > 1
            and not says_nothing(x)
        ):
            raise ConfigError(
                f"{self._where()}: activation steps must be initialised before the model is wrapped for distributed "
                "training, else every process gets its own; give prepare(..., example_inputs=...), in every process, "
                "the same batch of real data first (where a layer saw only zeros then, call fatnn_rs.nn.calibrate "
                "with such a batch once it gets others)"
            )
        step = self.fitted_step(x)
        if step > 0:
            self.set_step(step)
            self.initialized_flag.fill_(1.0)
            self._look_at_flags()

    @torch.no_grad()
    def reset(self) -> None:
        """Forget the steps: the next data initialise them."""
        self.set_step(1.0)
        self.initialized_flag.zero_()
        self._look_at_flags()

    def fitted_step(self, x: Tensor) -> float:
        """Find the step for a batch of finite values; 0.0 where it says nothing."""
        raise NotImplementedError

    def _open_range(self) -> float | None:
        """Return what ``half_range_flag`` is before data decide; None where there is no such flag."""
        return None

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        convert_flags(state_dict, prefix, self._open_range())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._look_at_flags()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle, quantizers of earlier versions too."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.__dict__.setdefault("_kept", {})
        convert_flags(self._buffers, "", self._open_range())
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
    """Ternary codes: {0, 1, 2} in half range (the input is never negative: after a ReLU), {-1, 0, +1} in full range.

    Subclasses may have other levels. Which range is part of the ``state_dict``. A subclass gives
    ``quantize_half`` and ``quantize_full``.

    Parameters
    ----------
    act_range
        ``"half"`` or ``"full"``, or ``"auto"``: decided by the first data seen (half where its
        minimum is >= 0).

    Attributes
    ----------
    half_levels, full_levels : tuple of int
        What codes may be in either range, in order; no levels, where the quantizer does not have
        that range. Half range begins at 0.
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
        self.register_buffer(RANGE, flag(self._open_range() or 0.0))
        self._look_at_flags()

    def _open_range(self) -> float | None:
        if self.act_range == "auto":
            return 0.0 if self.full_levels else 1.0
        return 1.0 if self.act_range == "half" else -1.0

    @property
    def _range_is_open(self) -> bool:
        """Whether data decide the range, and not options."""
        return self.act_range == "auto" and bool(self.full_levels)

    @property
    def half_range(self) -> bool:
        """Whether codes begin at 0 (True) or at -1 (False); True before data decided."""
        if not self._range_is_open:
            return self.act_range != "full"
        value = self._flag(RANGE)
        if value is None:
            return self._last_range >= 0
        self._last_range = value
        return value >= 0

    @property
    def levels(self) -> tuple[int, ...]:
        """What codes may be, in order. Not decided before initialisation."""
        return self.half_levels if self.half_range else self.full_levels

    @property
    def step(self) -> float:
        """The mean size of the steps: how much of ``x`` one level stands for."""
        raise NotImplementedError

    def quantize(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` with the present steps and range."""
        if self._range_is_open and self._flag(RANGE) is None:
            # In a captured graph both are there, and the buffer decides when it runs.
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
        """Choose the range, where it is ``"auto"``, and find the step.

        Raises
        ------
        InputError
            Where ``x`` is negative somewhere although ``act_range="half"``.
        """
        minimum = float(x.min())
        if self.act_range == "half" and minimum < 0:
            others = (
                "use 'full' or 'auto'" if self.full_levels else "'auto' takes negative ones for 0"
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
        """Forget steps and range: the next data decide both."""
        super().reset()
        with torch.no_grad():
            self.half_range_flag.fill_(self._open_range() or 0.0)
        self._look_at_flags()

    @torch.no_grad()
    def _set_state(self, *, initialized: bool, half_range: bool) -> None:
        self.initialized_flag.fill_(float(initialized))
        self.half_range_flag.fill_(1.0 if half_range else -1.0)
        self._look_at_flags()

    def _look_at_flags(self) -> None:
        super()._look_at_flags()
        _ = RANGE in self._buffers and self.half_range

    def extra_repr(self) -> str:
        """Range and state, for ``print(model)``."""
        if not self.initialized:
            return f"act_range={self.act_range!r}, not initialised"
        return "half range" if self.half_range else "full range"
