"""``prepare``: swap a float model's layers for quantized qat_layers, in place; and optimizer groups that suit them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from fatnn_rs.config import LayerOptions, TernaryConfig, matches
from fatnn_rs.errors import ConfigError, PrepareWarning
from fatnn_rs.nn.base import QuantizedLayer, replaced_methods, why_replaced
from fatnn_rs.nn.calibrate import calibrate
from fatnn_rs.nn.fused import reads_weight, restore, use_layers
from fatnn_rs.nn.int8 import INT8_QAT_MAPPING
from fatnn_rs.nn.layers import TERNARY_QAT_MAPPING
from fatnn_rs.replica import replica
from fatnn_rs.threads import one_thread

__all__ = ["param_groups", "prepare"]

Model = TypeVar("Model", bound=nn.Module)


@torch.inference_mode(False)
def prepare(
    model: Model,
    config: TernaryConfig | None = None,
    example_inputs: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
) -> Model:
    """Swap convolutions and linear layers for their ternary (or int8) qat_layers, in place.

    These are ``nn.Conv1d``, ``nn.Conv2d``, ``nn.ConvTranspose1d``, ``nn.ConvTranspose2d`` and
    ``nn.Linear``.

    Parameter names and float ``state_dict`` keys stay as they were; step sizes are added beside
    them. Start from a trained float model where there is one; its ``state_dict`` also loads later,
    and what depends on the weights is then fitted anew. Only exact types are swapped: a subclass
    may compute something else, and stays float without a word (so do the parts of
    ``nn.MultiheadAttention``).

    First and last layer are found in order of execution where ``torch.fx`` can trace the model,
    else in order of registration. A layer whose output goes only into BatchNorm gets no learned
    ``scale``; where the model cannot be traced, every layer gets one. Depthwise convolutions, and
    others with small groups, become int8 unless ``config.depthwise`` says otherwise.

    Parameters
    ----------
    model
        Changed in place.
    config
        What to quantize and how; ``TernaryConfig()`` by default.
    example_inputs
        One batch of *real* data (the model's argument, a tuple of its positional arguments, or a
        dict of its keyword arguments), run through once in eval mode to initialise the activation
        steps; see :func:`fatnn_rs.nn.calibrate`. Without it the first training batch does that, and
        nothing can be said about layers that the model never calls.

    Returns
    -------
    nn.Module
        ``model`` itself.

    Warns
    -----
    PrepareWarning
        Names layers that stay float although their type may not tell (parametrized, empty, or read
        by an attention module), and layers that the example does not run or whose float weights the
        model uses itself. ``skip`` leaves them out.

    Raises
    ------
    ConfigError
        A pattern matches no layer, nothing is left to quantize, the model was prepared before, is
        wrapped for distributed training, on the meta device or without shapes yet, or a layer's
        methods were replaced on the instance.
    InputError
        ``example_inputs`` are nothing that the model takes; NaN or infinity in them or in what a
        layer makes of them.

    Whatever is raised, the model is then unchanged.
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
    _refuse_wrappers(model)
    candidates, left = _candidates(model, config)
    chosen = _choose(config, candidates, left, _look(model, candidates))
    left = {
        name: why
        for name, why in left.items()
        if not any(matches(pattern, name) for pattern in config.skip)
    }
    for name in chosen:
        if changed := replaced_methods(candidates[name]):
            raise ConfigError(f"layer {name!r}: {why_replaced(changed)}")
    qat_layers: dict[nn.Module, QuantizedLayer] = {}
    with one_thread():
        for name, kind in chosen.items():
            qat_layers[candidates[name]] = _qat_layer(
                candidates[name], config.options_for(name), kind
            )
            qat_layers[candidates[name]].set_name(name)
    # A module may hang in several places: replace it in all of them.
    places = [
        (parent._modules, key, child)
        for parent in model.modules()
        for key, child in parent._modules.items()
        if child in qat_layers
    ]
    changes: list[Any] = []
    try:
        for modules, key, child in places:
            modules[key] = qat_layers[child]
        changes = use_layers(model)
        if left:
            _warn_left(left)
        if example_inputs is not None:
            calibrate(model, example_inputs)
    except BaseException:
        for modules, key, child in places:
            modules[key] = child
        restore(changes)
        raise
    return model


def _refuse_wrappers(model: nn.Module) -> None:
    """Refuse models whose parameters somebody has already counted."""
    for name, module in model.named_modules():
        kind = type(module)
        sharded = {"FullyShardedDataParallel", "FSDPModule"} & {
            base.__name__ for base in kind.__mro__
        }
        if sharded or isinstance(module, nn.parallel.DistributedDataParallel):
            where = f"module {name!r}" if name else "the model"
            raise ConfigError(
                f"{where} is a {kind.__name__}, which would not synchronise the parameters of the quantizers; prepare "
                "the model first and wrap it then"
            )


def _candidates(
    model: nn.Module, config: TernaryConfig
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Layers that may be swapped, and why others of these kinds are left float although their type may not tell.

    Raises
    ------
    ConfigError
        There are none; or one holds no values.
    """
    found: dict[str, nn.Module] = {}
    left: dict[str, str] = {}
    read = {
        child: type(parent).__name__
        for parent in model.modules()
        for name, child in parent.named_children()
        if reads_weight(parent, name)
    }
    kinds: Any = tuple(TERNARY_QAT_MAPPING)
    module: Any
    for name, module in model.named_modules():
        if not isinstance(module, kinds):
            continue
        skipped = any(matches(pattern, name) for pattern in config.skip)
        if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            if skipped:
                left[name] = "it has no shape yet"
                continue
            raise ConfigError(
                f"layer {name!r} ({type(module).__name__}) has no shape yet; run one batch through the model first"
            )
        if parametrize.is_parametrized(module):
            left[name] = (
                "it is parametrized; torch.nn.utils.parametrize.remove_parametrizations makes it a plain layer"
            )
        if type(module) not in TERNARY_QAT_MAPPING:
            continue
        weight = module.weight
        if weight.is_meta and not skipped:
            raise ConfigError(
                f"layer {name!r} is on the meta device, which holds no values to fit quantizers to; give the model "
                "values first (to_empty(device=...), then load_state_dict), then prepare it"
            )
        if not weight.numel():
            left[name] = f"its weight of shape {tuple(weight.shape)} is empty"
        elif module in read:
            left[name] = f"{read[module]} reads its weight and never calls it"
        else:
            found[name] = module
    if not found:
        reasons = "".join(f"; {name!r} is left float: {reason}" for name, reason in left.items())
        raise ConfigError(
            f"{type(model).__name__} holds no nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, "
            f"nn.ConvTranspose2d or nn.Linear to quantize{reasons}"
        )
    return found, left


def _warn_left(left: dict[str, str]) -> None:
    """Warn once of layers that stay float for what they are."""
    listed = "; ".join(f"{name!r} ({reason})" for name, reason in left.items())
    warnings.warn(f"these layers stay float: {listed}", PrepareWarning, stacklevel=3)


def _qat_layer(module: nn.Module, options: LayerOptions, kind: _Kind) -> QuantizedLayer:
    if kind.int8:
        int8: QuantizedLayer = INT8_QAT_MAPPING[type(module)].from_float(module)
        return int8
    ternary: QuantizedLayer = TERNARY_QAT_MAPPING[type(module)].from_float(
        module,
        quantizer=options.weight,
        act=options.act,
        act_quantizer=options.act_quantizer,
        per_channel=options.per_channel,
        act_range=options.act_range,
        scale=kind.scale if options.scale is None else options.scale,
    )
    return ternary


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

    Raises
    ------
    ConfigError
        ``model`` is no module, or ``weight_decay`` no number that is at least 0.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"param_groups takes a torch.nn.Module, got {type(model).__name__}")
    if (
        not isinstance(weight_decay, (int, float))
        or isinstance(weight_decay, bool)
        or not 0 <= weight_decay < math.inf
    ):
        raise ConfigError(f"weight_decay must be a finite number >= 0, got {weight_decay!r}")
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
    traced = replica(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _Tracer().trace(traced)
    except Exception:  # tracing runs the model's own code, which may object in any way
        return _Look(list(candidates))
    by_path = dict(traced.named_modules(remove_duplicate=False))
    names = {by_path[name]: name for name in candidates}
    order: list[str] = []
    feeds_norm: dict[str, bool] = {}
    for node in graph.nodes:
        module = by_path.get(str(node.target)) if node.op == "call_module" else None
        name = names.get(module) if module is not None else None
        if name is None:
            continue
        order.append(name)
        users = [
            by_path.get(str(user.target)) if user.op == "call_module" else None
            for user in node.users
        ]
        only_norm = bool(users) and all(isinstance(user, _BatchNorm) for user in users)
        feeds_norm[name] = only_norm and feeds_norm.get(name, True)
    if not order:
        return _Look(list(candidates))
    return _Look(order, {name for name, only_norm in feeds_norm.items() if only_norm})


def _choose(
    config: TernaryConfig, candidates: dict[str, nn.Module], left_float: dict[str, str], look: _Look
) -> dict[str, _Kind]:
    """Layers to quantize → what they become."""
    for what, patterns in (("skip", config.skip), ("overrides", tuple(config.overrides))):
        for pattern in patterns:
            known_names = [*candidates, *left_float] if what == "skip" else candidates
            if not any(matches(pattern, name) for name in known_names):
                known = ", ".join(candidates)
                raise ConfigError(f"{what}: {pattern!r} matches no layer; the layers are: {known}")
    ends = (("first", config.first, look.order[0]), ("last", config.last, look.order[-1]))
    int8 = {name: f"{end}='int8'" for end, what, name in ends if what == "int8"}
    left = {name: f"{end}='float'" for end, what, name in ends if what == "float"}
    depthwise = {name for name, module in candidates.items() if _has_small_groups(module)}
    for name in candidates:
        if name in depthwise:
            kind = config.options_for(name).depthwise
            wider = {"int8": int8, "float": left}.get(kind, {})
            wider.setdefault(name, f"depthwise={kind!r}")
        if any(matches(pattern, name) for pattern in config.skip):
            left[name] = "skip"
    chosen = {
        name: _Kind(int8=name in int8, scale=name not in look.feeds_norm)
        for name in candidates
        if name not in left
    }
    if not chosen:
        others = {**left_float, **left}
        reasons = ", ".join(
            f"{name or 'the model itself'} ({reason})" for name, reason in others.items()
        )
        raise ConfigError(
            f"nothing is left to quantize: {reasons}; skip less, or give first, last or depthwise as 'int8' or "
            "'ternary'"
        )
    if "" in chosen:
        raise ConfigError(
            "the model is itself the layer, so it cannot be swapped in place; use from_float of its quantized class "
            "in fatnn_rs.nn"
        )
    for pattern, options in config.overrides.items():
        applies = (
            {name for name, kind in chosen.items() if not kind.int8}
            if set(options) != {"depthwise"}
            else set()
        )
        applies |= depthwise if "depthwise" in options else set()
        if not any(matches(pattern, name) for name in applies):
            others = {**int8, **left}
            reasons = ", ".join(
                f"{name} ({reason})" for name, reason in others.items() if matches(pattern, name)
            )
            if set(options) == {"depthwise"}:
                raise ConfigError(
                    f"overrides: {pattern!r} names no convolution with small groups, and sets only 'depthwise'"
                )
            raise ConfigError(
                f"overrides: {pattern!r} names only layers that do not become ternary: {reasons}"
            )
    return chosen


#: Input channels of a group up to which ``TernaryConfig.depthwise`` is meant: with so few, ternary products
#: take longer than float32 ones.
_SMALL_GROUP = 8


def _has_small_groups(module: nn.Module) -> bool:
    """Whether every output of a convolution reads a few of its input channels, one if it is depthwise."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return False
    return module.groups > 1 and module.in_channels // module.groups <= _SMALL_GROUP
