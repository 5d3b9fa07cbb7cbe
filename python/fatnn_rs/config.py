"""What to quantize and how: :class:`TernaryConfig`. Pure Python, needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fatnn_rs.errors import ConfigError, UnsupportedError

__all__ = ["OVERRIDE_KEYS", "LayerOptions", "TernaryConfig", "matches"]

_WEIGHT = ("fatnn", "lsq", "twn")
_WEIGHT_PLANNED = ("ttq", "sttn", "dorefa", "binary")
_ACT = ("ternary",)
_ACT_PLANNED = ("uint2", "binary")
_END = ("float", "int8", "ternary")
_ACT_RANGES = ("auto", "half", "full")

#: Options that an entry of ``TernaryConfig.overrides`` may set for the layers it names.
OVERRIDE_KEYS = ("weight", "act", "per_channel", "act_range", "scale")


@dataclass(frozen=True)
class LayerOptions:
    """The options of one layer, after overrides.

    ``scale`` is None where the presence of a following BatchNorm decides.
    """

    weight: str = "fatnn"
    act: str = "ternary"
    per_channel: bool = False
    act_range: str = "auto"
    scale: bool | None = None


@dataclass(frozen=True)
class TernaryConfig:
    """What :func:`fatnn_rs.prepare` quantizes, and how.

    Parameters
    ----------
    weight
        Quantizer family, a row of :data:`fatnn_rs.quant.QUANTIZERS`: ``"fatnn"``, ``"lsq"`` (one learned step) or
        ``"twn"`` (weights by a threshold that follows them, activations as in ``"fatnn"``).
    act
        Activations: ``"ternary"``.
    first, last
        What becomes of the first and the last convolution or linear layer (in order of execution): ``"float"`` leaves
        it alone, ``"int8"`` gives it 8-bit weights and activations (:mod:`fatnn_rs.nn.int8`), ``"ternary"`` quantizes
        it like any other. A layer that is both takes the wider of the two.
    skip
        Layers to leave alone: names of modules (a container's name means every layer inside it), or ``"re:…"``, a
        regular expression that must match a layer's whole name.
    overrides
        Pattern (as in ``skip``) → options for the layers it names: ``weight``, ``act``, ``per_channel`` (bool),
        ``act_range`` (``"auto"``, ``"half"``, ``"full"``), ``scale`` (bool). Where several patterns name a layer, the
        later entry wins, option by option. Layers that become int8 have none of these options.

    Raises
    ------
    ConfigError
        A value of the wrong type, an unknown name, a broken regular expression.
    UnsupportedError
        A value that is meaningful but not available in this version.
    """

    weight: str = "fatnn"
    act: str = "ternary"
    first: str = "float"
    last: str = "float"
    skip: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Validate every field."""
        _choice("weight", self.weight, _WEIGHT, _WEIGHT_PLANNED)
        _choice("act", self.act, _ACT, _ACT_PLANNED)
        _choice("first", self.first, _END, ())
        _choice("last", self.last, _END, ())
        if not isinstance(self.skip, (tuple, list)):
            raise ConfigError(f"skip must be a tuple of patterns, got {self.skip!r}; write ({self.skip!r},) for one")
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
        """Pickle and copy through the constructor (the read-only mappings cannot be pickled themselves)."""
        overrides = {pattern: dict(options) for pattern, options in self.overrides.items()}
        return (type(self), (self.weight, self.act, self.first, self.last, self.skip, overrides))

    def options_for(self, name: str) -> LayerOptions:
        """Return the options of the layer called ``name``."""
        options: dict[str, Any] = {"weight": self.weight, "act": self.act}
        for pattern, override in self.overrides.items():
            if matches(pattern, name):
                options.update(override)
        return LayerOptions(**options)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of ``skip`` or ``overrides`` names this layer."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return name == pattern or name.startswith(pattern + ".")


def _choice(what: str, value: Any, available: tuple[str, ...], planned: tuple[str, ...]) -> None:
    offered = " or ".join(repr(name) for name in available)
    if not isinstance(value, str) or value not in available + planned:
        raise ConfigError(f"{what} must be {offered}, got {value!r}")
    if value not in available:
        raise UnsupportedError(f"{what}={value!r} is not available in this version; available: {offered}")


def _check_pattern(what: str, pattern: Any) -> None:
    if not isinstance(pattern, str) or not pattern:
        raise ConfigError(f"{what}: a pattern is a module name or 're:…', got {pattern!r}")
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            raise ConfigError(f"{what}: {pattern!r} is not a valid regular expression: {error}") from error


def _check_options(pattern: str, options: Any) -> None:
    where = f"overrides[{pattern!r}]"
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where} must be a mapping with keys out of {', '.join(OVERRIDE_KEYS)}; got {options!r}")
    for key, value in options.items():
        if key == "weight":
            _choice(f"{where}['weight']", value, _WEIGHT, _WEIGHT_PLANNED)
        elif key == "act":
            _choice(f"{where}['act']", value, _ACT, _ACT_PLANNED)
        elif key == "act_range":
            _choice(f"{where}['act_range']", value, _ACT_RANGES, ())
        elif key in ("per_channel", "scale"):
            if not isinstance(value, bool):
                raise ConfigError(f"{where}[{key!r}] must be True or False, got {value!r}")
        else:
            raise ConfigError(f"{where}: unknown option {key!r}; options are {', '.join(OVERRIDE_KEYS)}")
