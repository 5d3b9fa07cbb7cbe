"""Choose the type of each layer: ternary, int8, or float with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fatnn_rs.config import TernaryConfig, matches
from fatnn_rs.errors import ConfigError
from fatnn_rs.swap.candidates import Candidate, has_small_groups
from fatnn_rs.swap.execution_order import ExecutionOrder

__all__ = ["Kind", "Plan", "choose"]


@dataclass(frozen=True)
class Kind:
    """Type of a quantized layer.

    Attributes
    ----------
    int8
        Whether it is int8; otherwise ternary.
    scale
        Whether a ternary layer learns a scale, unless an option says otherwise.
    """

    int8: bool
    scale: bool


@dataclass(frozen=True)
class Plan:
    """The chosen types.

    Attributes
    ----------
    chosen
        Layer → its quantized type.
    asked
        Layer → the option that leaves it float.
    """

    chosen: dict[str, Kind]
    asked: dict[str, str]


def choose(
    config: TernaryConfig,
    candidates: Mapping[str, Candidate],
    left_float: Mapping[str, str],
    execution: ExecutionOrder,
) -> Plan:
    """Apply the options to the layers.

    Parameters
    ----------
    config
        The options.
    candidates
        Name → layer that can be quantized.
    left_float
        Name → why a layer stays float regardless of the options.
    execution
        The order of execution, and which layers feed only BatchNorm.

    Raises
    ------
    ConfigError
        If a pattern matches no layer, if an override applies to none of the layers that it
        matches, if no layer is left to quantize, or if the model is itself the layer.
    """
    for what, patterns in (("skip", config.skip), ("overrides", tuple(config.overrides))):
        for pattern in patterns:
            known_names = [*candidates, *left_float] if what == "skip" else candidates
            if not any(matches(pattern, name) for name in known_names):
                known = ", ".join(candidates)
                raise ConfigError(f"{what}: {pattern!r} matches no layer; the layers are: {known}")
    first_last = (
        ("first", config.first, execution.order[0]),
        ("last", config.last, execution.order[-1]),
    )
    int8 = {name: f"{which}='int8'" for which, kind, name in first_last if kind == "int8"}
    left = {name: f"{which}='float'" for which, kind, name in first_last if kind == "float"}
    depthwise = {name for name, candidate in candidates.items() if has_small_groups(candidate)}
    for name in candidates:
        if name in depthwise:
            kind = config.options_for(name).depthwise
            wider = {"int8": int8, "float": left}.get(kind, {})
            wider.setdefault(name, f"depthwise={kind!r}")
        if any(matches(pattern, name) for pattern in config.skip):
            left[name] = "skip"
    chosen = {
        name: Kind(int8=name in int8, scale=name not in execution.feeds_norm)
        for name in candidates
        if name not in left
    }
    if not chosen:
        others = {**left_float, **left}
        reasons = ", ".join(
            f"{name or 'the model itself'} ({reason})" for name, reason in others.items()
        )
        raise ConfigError(
            f"nothing is left to quantize: {reasons}; skip less, or give first, last or depthwise "
            "as 'int8' or 'ternary'"
        )
    if "" in chosen:
        raise ConfigError(
            "the model is itself the layer, so it cannot be swapped in place; use from_float of "
            "its quantized class in fatnn_rs.nn"
        )
    for pattern, options in config.overrides.items():
        _check_override(pattern, set(options), chosen, depthwise, {**int8, **left})
    return Plan(chosen, left)


def _check_override(
    pattern: str,
    options: set[str],
    chosen: Mapping[str, Kind],
    depthwise: set[str],
    others: Mapping[str, str],
) -> None:
    """Raise ``ConfigError`` if an override changes no layer."""
    applies = {name for name, kind in chosen.items() if not kind.int8}
    if options == {"depthwise"}:
        applies = set()
    applies |= depthwise if "depthwise" in options else set()
    if any(matches(pattern, name) for name in applies):
        return
    if options == {"depthwise"}:
        raise ConfigError(
            f"overrides: {pattern!r} names no convolution with small groups, but sets only "
            "'depthwise'; change the pattern or remove the entry"
        )
    reasons = ", ".join(
        f"{name} ({reason})" for name, reason in others.items() if matches(pattern, name)
    )
    raise ConfigError(
        f"overrides: {pattern!r} names only layers that do not become ternary: {reasons}; change "
        "the pattern or remove the entry"
    )
