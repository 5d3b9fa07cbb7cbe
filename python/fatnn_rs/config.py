"""What to quantize and how: :class:`TernaryConfig`. Pure Python, needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fatnn_rs.errors import ConfigError

__all__ = ["OVERRIDE_KEYS", "LayerOptions", "TernaryConfig", "matches"]

#: The keys of :data:`fatnn_rs.quant.QUANTIZERS`, which needs torch; a test compares the two.
_WEIGHT = ("fatnn", "twn", "ttq", "lsq", "sttn", "dorefa", "binary")
_ACT = ("ternary", "uint2", "binary")
_FIRST_LAST = ("float", "int8", "ternary")
_DEPTHWISE = ("int8", "ternary", "float")
_ACT_RANGES = ("auto", "half", "full")
_VALUES = ("float32", "int8")

#: Options that an entry of ``TernaryConfig.overrides`` may set.
OVERRIDE_KEYS = ("weight", "act", "act_quantizer", "per_channel", "act_range", "scale", "depthwise")


@dataclass(frozen=True)
class LayerOptions:
    """The options of one layer, after overrides.

    ``scale`` None: a scale is used unless a BatchNorm follows. ``act_quantizer`` None: the
    activations use the same quantizer family as the weights.
    """

    weight: str = "fatnn"
    act: str = "ternary"
    act_quantizer: str | None = None
    per_channel: bool = False
    act_range: str = "auto"
    scale: bool | None = None
    depthwise: str = "int8"


@dataclass(frozen=True)
class TernaryConfig:
    """What :func:`fatnn_rs.prepare` quantizes, and how.

    Parameters
    ----------
    weight
        Quantizer family, a key of :data:`fatnn_rs.quant.QUANTIZERS`:

        - ``"fatnn"``: two learned steps (FATNN);
        - ``"twn"``: a threshold of 0.7 times the mean of ``|w|`` (TWN);
        - ``"lsq"``: one learned step (LSQ);
        - ``"sttn"``: the sum of two binary kernels (STTN);
        - ``"binary"``: signs (XNOR-Net, Bi-Real Net);
        - ``"dorefa"``: four levels in two bits (DoReFa-Net), at twice the work;
        - ``"ttq"``: two learned scales (TTQ). For comparison only: it trains, but ``convert``
          refuses it.
    act
        Activation levels: ``"ternary"`` ({0, 1, 2} after a ReLU, else {-1, 0, +1}), ``"uint2"``
        ({0, 1, 2, 3}) or ``"binary"`` ({0, 1} after a ReLU, else {-1, +1}).
    act_quantizer
        Quantizer family of the activations. None: the same family as the weights.
    first, last
        Type of the first and of the last convolution or linear layer in execution order:
        ``"float"`` leaves it unchanged, ``"int8"`` uses 8-bit weights and activations
        (:mod:`fatnn_rs.nn.int8`), ``"ternary"`` quantizes it like the other layers. If one layer is
        both first and last, it gets the wider type.
    depthwise
        Type of depthwise convolutions, and of grouped ones with at most eight input channels per
        group: ``"int8"``, ``"ternary"`` or ``"float"``. ``first`` and ``last`` may make them wider.
        Their outputs sum few products, so three levels cost accuracy and save no time.
    values
        Type of the values between layers: ``"float32"``, or ``"int8"`` to round them with learned
        steps (:func:`fatnn_rs.quantize_values`). ``prepare`` then returns another module.
    skip
        Layers to leave unchanged: module names (a container's name covers every layer inside it) or
        ``"re:…"``, a regular expression that must match the whole name.
    overrides
        Pattern (as in ``skip``) → options of the matching layers: ``weight``, ``act``,
        ``act_quantizer``, ``per_channel`` (bool), ``act_range`` (``"auto"``, ``"half"``,
        ``"full"``), ``scale`` (bool), ``depthwise``. If several patterns match a layer, the last
        entry wins, separately for each option. Int8 layers only read ``depthwise``.

    Raises
    ------
    ConfigError
        If a value has the wrong type, a name is unknown, or a regular expression is invalid.
    """

    weight: str = "fatnn"
    act: str = "ternary"
    first: str = "float"
    last: str = "float"
    skip: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    act_quantizer: str | None = None
    depthwise: str = "int8"
    values: str = "float32"

    def __post_init__(self) -> None:
        """Validate every field."""
        _check_choice("weight", self.weight, _WEIGHT)
        _check_choice("act", self.act, _ACT)
        if self.act_quantizer is not None:
            _check_choice("act_quantizer", self.act_quantizer, _WEIGHT)
        _check_choice("first", self.first, _FIRST_LAST)
        _check_choice("last", self.last, _FIRST_LAST)
        _check_choice("depthwise", self.depthwise, _DEPTHWISE)
        _check_choice("values", self.values, _VALUES)
        if not isinstance(self.skip, (tuple, list)):
            raise ConfigError(
                f"skip must be a tuple of patterns, got {self.skip!r}; write ({self.skip!r},)"
            )
        for pattern in self.skip:
            _check_pattern("skip", pattern)
        object.__setattr__(self, "skip", tuple(self.skip))
        if not isinstance(self.overrides, Mapping):
            raise ConfigError(f"overrides must map patterns to options, got {self.overrides!r}")
        frozen: dict[str, Mapping[str, Any]] = {}
        for pattern, options in self.overrides.items():
            _check_pattern("overrides", pattern)
            _check_options(pattern, options)
            frozen[pattern] = MappingProxyType(dict(options))
        object.__setattr__(self, "overrides", MappingProxyType(frozen))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy through the constructor, because a MappingProxyType cannot be pickled."""
        overrides = {pattern: dict(options) for pattern, options in self.overrides.items()}
        given = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return type(self), tuple({**given, "overrides": overrides}.values())

    def options_for(self, name: str) -> LayerOptions:
        """Return the options of the layer called ``name``."""
        options: dict[str, Any] = {
            name: getattr(self, name) for name in ("weight", "act", "act_quantizer", "depthwise")
        }
        for pattern, override in self.overrides.items():
            if matches(pattern, name):
                options.update(override)
        return LayerOptions(**options)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of ``skip`` or ``overrides`` matches the layer called ``name``."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return name == pattern or name.startswith(pattern + ".")


def _check_choice(what: str, value: Any, available: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in available:
        raise ConfigError(f"{what} must be {' or '.join(map(repr, available))}, got {value!r}")


def _check_pattern(what: str, pattern: Any) -> None:
    if not isinstance(pattern, str) or not pattern:
        raise ConfigError(f"{what}: a pattern is a module name or 're:…', got {pattern!r}")
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            raise ConfigError(
                f"{what}: {pattern!r} is not a valid regular expression: {error}"
            ) from error


def _check_options(pattern: str, options: Any) -> None:
    where = f"overrides[{pattern!r}]"
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"{where} must map options ({', '.join(OVERRIDE_KEYS)}) to values; got {options!r}"
        )
    for key, value in options.items():
        if key in ("weight", "act_quantizer"):
            _check_choice(f"{where}[{key!r}]", value, _WEIGHT)
        elif key == "act":
            _check_choice(f"{where}['act']", value, _ACT)
        elif key == "act_range":
            _check_choice(f"{where}['act_range']", value, _ACT_RANGES)
        elif key == "depthwise":
            _check_choice(f"{where}['depthwise']", value, _DEPTHWISE)
        elif key in ("per_channel", "scale"):
            if not isinstance(value, bool):
                raise ConfigError(f"{where}[{key!r}] must be True or False, got {value!r}")
        else:
            raise ConfigError(
                f"{where}: unknown option {key!r}; options are {', '.join(OVERRIDE_KEYS)}"
            )
