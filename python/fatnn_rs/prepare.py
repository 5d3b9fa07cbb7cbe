"""``prepare``: swap a float model's layers for quantized twins, in place; and optimizer groups that suit them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fatnn_rs.config import LayerOptions, TernaryConfig, matches
from fatnn_rs.errors import ConfigError
from fatnn_rs.nn.base import QuantizedLayer
from fatnn_rs.nn.calibrate import calibrate
from fatnn_rs.nn.int8 import INT8_TWINS
from fatnn_rs.nn.layers import TERNARY_TWINS
from fatnn_rs.threads import one_thread

__all__ = ["param_groups", "prepare"]

Model = TypeVar("Model", bound=nn.Module)


def prepare(
    model: Model, config: TernaryConfig | None = None, example_inputs: Tensor | Sequence[Any] | None = None
) -> Model:
    """Swap ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Linear`` for their ternary (or int8) twins, in place.

    Parameter names and float ``state_dict`` keys stay as they were; step sizes are added beside them. Start from a
    trained float model where there is one. Only exact types are swapped: a subclass may compute something else.

    First and last layer are found in order of execution where ``torch.fx`` can trace the model, else in order of
    registration. A layer whose output goes only into BatchNorm gets no learned ``scale``; where the model cannot be
    traced, every layer gets one.

    Parameters
    ----------
    model
        Changed in place.
    config
        What to quantize and how; ``TernaryConfig()`` by default.
    example_inputs
        One batch of *real* data (the model's argument, or a tuple of its arguments), run through once to initialise
        the activation steps; see :func:`fatnn_rs.nn.calibrate`. Without it the first training batch does that.

    Returns
    -------
    nn.Module
        ``model`` itself.

    Raises
    ------
    ConfigError
        A pattern matches no layer, nothing is left to quantize, or the model was prepared before. The model is then
        unchanged.
    InputError
        NaN or infinity in ``example_inputs`` or in what a layer makes of them.
    """
    config = TernaryConfig() if config is None else config
    if not isinstance(model, nn.Module):
        raise ConfigError(f"prepare takes a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(config, TernaryConfig):
        raise ConfigError(f"config must be a TernaryConfig, got {type(config).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer):
            raise ConfigError(
                f"{type(model).__name__} already holds quantized layers ({name!r}); prepare a float model, and only "
                "once (fatnn_rs.nn.calibrate initialises the steps of a model written with such layers)"
            )
    candidates = {name: module for name, module in model.named_modules() if type(module) in TERNARY_TWINS}
    if not candidates:
        raise ConfigError(f"{type(model).__name__} holds no nn.Conv1d, nn.Conv2d or nn.Linear to quantize")
    chosen = _choose(config, candidates, _look(model, candidates))
    twins: dict[nn.Module, QuantizedLayer] = {}
    with one_thread():
        for name, kind in chosen.items():
            twins[candidates[name]] = _twin(candidates[name], config.options_for(name), kind)
            twins[candidates[name]].set_name(name)
    # A module may hang in several places: replace it in all of them.
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child in twins:
                parent._modules[key] = twins[child]
    if example_inputs is not None:
        calibrate(model, example_inputs)
    return model


def _twin(module: nn.Module, options: LayerOptions, kind: _Kind) -> QuantizedLayer:
    if kind.int8:
        return INT8_TWINS[type(module)].from_float(module)
    return TERNARY_TWINS[type(module)].from_float(
        module,
        quantizer=options.weight,
        act=options.act,
        act_quantizer=options.act_quantizer,
        per_channel=options.per_channel,
        act_range=options.act_range,
        scale=kind.scale if options.scale is None else options.scale,
    )


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two optimizer groups: weight decay on weights only, none on step sizes, scales, biases and normalisation.

    Parameters
    ----------
    model
        Prepared or float.
    weight_decay
        For the first group; the second has 0.

    Returns
    -------
    list of dict
        For any ``torch.optim`` optimizer. Parameters that need no gradient are left out.
    """
    if weight_decay < 0:
        raise ConfigError(f"weight_decay must be >= 0, got {weight_decay}")
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Everything that has one value per channel or per layer has at most one dimension.
            (decay if parameter.dim() > 1 else plain).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


@dataclass
class _Look:
    """What tracing tells: names in order of execution, and which of them feed nothing but BatchNorm."""

    order: list[str]
    feeds_norm: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Kind:
    """What a layer becomes: int8, or ternary with a learned scale or without."""

    int8: bool
    scale: bool


class _Tracer(torch.fx.Tracer):
    """Keeps convolutions, linear layers and BatchNorm whole, also where a model subclasses them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kept = (nn.modules.conv._ConvNd, nn.Linear, _BatchNorm)
        return isinstance(m, kept) or super().is_leaf_module(m, module_qualified_name)


def _look(model: nn.Module, candidates: dict[str, nn.Module]) -> _Look:
    """Trace ``model``; where that fails, order of registration and no BatchNorm known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _Tracer().trace(model)
    except Exception:  # tracing runs the model's own code, which may object in any way
        return _Look(list(candidates))
    by_path = dict(model.named_modules(remove_duplicate=False))
    names = {module: name for name, module in candidates.items()}
    order: list[str] = []
    feeds_norm: dict[str, bool] = {}
    for node in graph.nodes:
        module = by_path.get(str(node.target)) if node.op == "call_module" else None
        name = names.get(module) if module is not None else None
        if name is None:
            continue
        order.append(name)
        users = [by_path.get(str(user.target)) if user.op == "call_module" else None for user in node.users]
        only_norm = bool(users) and all(isinstance(user, _BatchNorm) for user in users)
        feeds_norm[name] = only_norm and feeds_norm.get(name, True)
    if not order:
        return _Look(list(candidates))
    return _Look(order, {name for name, only_norm in feeds_norm.items() if only_norm})


def _choose(config: TernaryConfig, candidates: dict[str, nn.Module], look: _Look) -> dict[str, _Kind]:
    """Layers to quantize → what they become."""
    for what, patterns in (("skip", config.skip), ("overrides", tuple(config.overrides))):
        for pattern in patterns:
            if not any(matches(pattern, name) for name in candidates):
                known = ", ".join(candidates)
                raise ConfigError(f"{what}: {pattern!r} matches no layer; the layers are: {known}")
    ends = (("first", config.first, look.order[0]), ("last", config.last, look.order[-1]))
    int8 = {name: f"{end}='int8'" for end, what, name in ends if what == "int8"}
    left = {name: f"{end}='float'" for end, what, name in ends if what == "float"}
    for name in candidates:
        if any(matches(pattern, name) for pattern in config.skip):
            left[name] = "skip"
    chosen = {
        name: _Kind(int8=name in int8, scale=name not in look.feeds_norm) for name in candidates if name not in left
    }
    if not chosen:
        reasons = ", ".join(f"{name or 'the model itself'} ({reason})" for name, reason in left.items())
        raise ConfigError(
            f"nothing is left to quantize: {reasons}; skip less, or give first or last as 'int8' or 'ternary'"
        )
    if "" in chosen:
        raise ConfigError(
            "the model is itself the layer, so it cannot be swapped in place; use from_float of the layer's twin "
            "in fatnn_rs.nn"
        )
    for pattern in config.overrides:
        if not any(matches(pattern, name) for name, kind in chosen.items() if not kind.int8):
            others = {**int8, **left}
            reasons = ", ".join(f"{name} ({reason})" for name, reason in others.items() if matches(pattern, name))
            raise ConfigError(f"overrides: {pattern!r} names only layers that do not become ternary: {reasons}")
    return chosen
