"""What to quantize and how: :class:`TernaryConfig`. Pure Python, needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fatnn_rs.errors import ConfigError

__all__ = ["OVERRIDE_KEYS", "LayerOptions", "TernaryConfig", "matches"]

#: The rows of :data:`fatnn_rs.quant.QUANTIZERS`, which needs torch; a test compares the two.
_WEIGHT = ("fatnn", "twn", "ttq", "lsq", "sttn", "dorefa", "binary")
_ACT = ("ternary", "uint2", "binary")
_END = ("float", "int8", "ternary")
_DEPTHWISE = ("int8", "ternary", "float")
_ACT_RANGES = ("auto", "half", "full")

#: Options that an entry of ``TernaryConfig.overrides`` may set for the layers it names.
OVERRIDE_KEYS = ("weight", "act", "act_quantizer", "per_channel", "act_range", "scale", "depthwise")


@dataclass(frozen=True)
class LayerOptions:
    """The options of one layer, after overrides.

    ``scale`` is None where the presence of a following BatchNorm decides, ``act_quantizer`` where
    it is the weights' family.
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
        Quantizer family, a row of :data:`fatnn_rs.quant.QUANTIZERS`:

        - ``"fatnn"``: two learned steps (FATNN);
        - ``"twn"``: a threshold that follows the weights (TWN);
        - ``"lsq"``: one learned step (LSQ);
        - ``"sttn"``: the sum of two binary kernels (STTN);
        - ``"binary"``: signs (XNOR-Net, Bi-Real Net);
        - ``"dorefa"``: four levels, two bits (DoReFa-Net), which take twice the work;
        - ``"ttq"``: two learned scales (TTQ), for comparison: it trains, and ``convert`` refuses
          it.
    act
        Activations: ``"ternary"``: {0, 1, 2} after a ReLU, {-1, 0, +1} elsewhere; ``"uint2"``: {0,
        1, 2, 3}; or ``"binary"``: {0, 1} after a ReLU, {-1, +1} elsewhere.
    act_quantizer
        The family whose activations of that kind are taken; the weights' family where None.
    first, last
        What becomes of the first and the last convolution or linear layer (in order of execution):
        ``"float"`` leaves it alone, ``"int8"`` gives it 8-bit weights and activations
        (:mod:`fatnn_rs.nn.int8`), ``"ternary"`` quantizes it like any other. A layer that is both
        takes the wider of the two.
    depthwise
        What becomes of depthwise convolutions, and of others with groups of up to eight input
        channels: ``"int8"``, ``"ternary"`` or ``"float"``, as for ``first`` and ``last``, which may
        make them wider. An output has few products there: three levels cost accuracy and save no
        time.
    skip
        Layers to leave alone: names of modules (a container's name means every layer inside it), or
        ``"re:…"``, a regular expression that must match a layer's whole name.
    overrides
        Pattern (as in ``skip``) → options for the layers it names: ``weight``, ``act``,
        ``act_quantizer``, ``per_channel`` (bool), ``act_range`` (``"auto"``, ``"half"``,
        ``"full"``), ``scale`` (bool), ``depthwise``. Where several patterns name a layer, the later
        entry wins, option by option. Layers that become int8 have none of these options but the
        last.

    Raises
    ------
    ConfigError
        A value of the wrong type, an unknown name, a broken regular expression.
    """

    weight: str = "fatnn"
    act: str = "ternary"
    first: str = "float"
    last: str = "float"
    skip: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    act_quantizer: str | None = None
    depthwise: str = "int8"

    def __post_init__(self) -> None:
        """Validate every field."""
        _choice("weight", self.weight, _WEIGHT)
        _choice("act", self.act, _ACT)
        if self.act_quantizer is not None:
            _choice("act_quantizer", self.act_quantizer, _WEIGHT)
        _choice("first", self.first, _END)
        _choice("last", self.last, _END)
        _choice("depthwise", self.depthwise, _DEPTHWISE)
        if not isinstance(self.skip, (tuple, list)):
            raise ConfigError(
                f"skip must be a tuple of patterns, got {self.skip!r}; write ({self.skip!r},) for one"
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
        """Pickle and copy through the constructor (the read-only mappings cannot be pickled themselves)."""
        overrides = {pattern: dict(options) for pattern, options in self.overrides.items()}
        return (
            type(self),
            (
                self.weight,
                self.act,
                self.first,
                self.last,
                self.skip,
                overrides,
                self.act_quantizer,
                self.depthwise,
            ),
        )

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
    """Whether a pattern of ``skip`` or ``overrides`` names this layer."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return name == pattern or name.startswith(pattern + ".")


def _choice(what: str, value: Any, available: tuple[str, ...]) -> None:
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
            f"{where} must be a mapping with keys out of {', '.join(OVERRIDE_KEYS)}; got {options!r}"
        )
    for key, value in options.items():
        if key in ("weight", "act_quantizer"):
            _choice(f"{where}[{key!r}]", value, _WEIGHT)
        elif key == "act":
            _choice(f"{where}['act']", value, _ACT)
        elif key == "act_range":
            _choice(f"{where}['act_range']", value, _ACT_RANGES)
        elif key == "depthwise":
            _choice(f"{where}['depthwise']", value, _DEPTHWISE)
        elif key in ("per_channel", "scale"):
            if not isinstance(value, bool):
                raise ConfigError(f"{where}[{key!r}] must be True or False, got {value!r}")
        else:
            raise ConfigError(
                f"{where}: unknown option {key!r}; options are {', '.join(OVERRIDE_KEYS)}"
            )
