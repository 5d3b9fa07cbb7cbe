"""Find the layers of a float model that can be quantized, and say why others cannot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fatnn_rs.config import TernaryConfig, matches
from fatnn_rs.contained import named_modules
from fatnn_rs.errors import ConfigError
from fatnn_rs.nn.base import QuantizedLayer, replaced_methods, why_replaced
from fatnn_rs.nn.layers import TERNARY_QAT_MAPPING
from fatnn_rs.nn.projections import INPUT_PROJECTIONS, is_transposed_linear
from fatnn_rs.nn.subclass import why_not
from fatnn_rs.replica import replica

__all__ = [
    "WITHOUT_QUANTIZED",
    "Candidate",
    "Candidates",
    "find_candidates",
    "has_small_groups",
    "refuse_models",
]


@dataclass(frozen=True)
class Candidate:
    """A layer that can be quantized.

    Attributes
    ----------
    module
        The layer; for an input projection of an attention, the attention.
    torch_class
        torch's class of such layers: ``nn.Conv2d`` also for subclasses of it.
    projection
        ``"q_proj"``, ``"k_proj"`` or ``"v_proj"`` for a projection of an attention; else empty.
    """

    module: nn.Module
    torch_class: type[nn.Module]
    projection: str = ""


@dataclass
class Candidates:
    """The layers of a model.

    Attributes
    ----------
    found
        Name → layer that can be quantized.
    left_float
        Name → why the layer stays float.
    attentions
        Name → attention whose projections can be quantized.
    """

    found: dict[str, Candidate] = field(default_factory=dict)
    left_float: dict[str, str] = field(default_factory=dict)
    attentions: dict[str, nn.MultiheadAttention] = field(default_factory=dict)


#: Modules that multiply by weights but have no quantized layer.
WITHOUT_QUANTIZED = (
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.Bilinear,
)


def refuse_models(model: nn.Module) -> None:
    """Check that ``model`` is a float model that can be prepared.

    Raises
    ------
    ConfigError
        If the model already holds quantized layers, or is or holds a wrapper (for distributed
        training, compilation or averaging) that must be applied after ``prepare``.
    """
    from fatnn_rs.convert.network import TernaryNetwork  # fatnn_rs.convert imports this package

    for name, module in named_modules(model):
        if isinstance(module, TernaryNetwork):
            where = f"module {name!r}" if name else "the model"
            raise ConfigError(
                f"{where} is a converted network, which has no float layers and cannot be trained; "
                "prepare the float model, and convert its parts after training"
            )
        if isinstance(module, QuantizedLayer):
            raise ConfigError(
                f"{type(model).__name__} already holds quantized layers ({name!r}); prepare a "
                "float model, and only once (fatnn_rs.nn.calibrate initialises the steps of a "
                "model written with such layers)"
            )
        if why := _wrapper_problem(module):
            where = f"module {name!r}" if name else "the model"
            raise ConfigError(f"{where} is a {type(module).__name__}, {why}")


def _wrapper_problem(module: nn.Module) -> str:
    bases = {base.__name__ for base in type(module).__mro__}
    if bases & {"FullyShardedDataParallel", "FSDPModule", "DistributedDataParallel"}:
        return (
            "which would not synchronise the parameters of the quantizers; prepare the model first "
            "and wrap it then"
        )
    if isinstance(module, torch._dynamo.OptimizedModule):
        return (
            "whose compiled code holds the float layers; prepare the model that it wraps "
            "(_orig_mod) and compile it then"
        )
    if isinstance(module, torch.optim.swa_utils.AveragedModel):
        return "a copy to be averaged; prepare the model first and average it then"
    return ""


def find_candidates(model: nn.Module, config: TernaryConfig) -> Candidates:
    """Find the layers of a model that can be quantized.

    Raises
    ------
    ConfigError
        If there are none, or if a layer has no shape yet or is on the meta device.
    """
    made = Candidates()
    inside: set[int] = set()
    for name, module in named_modules(model):
        if id(module) in inside:
            continue
        if isinstance(module, torch.jit.ScriptModule):
            inside |= {id(child) for child in module.modules()}
            _scripted(made, name, module)
        elif isinstance(module, nn.MultiheadAttention):
            inside |= {id(child) for child in module.modules()}
            _attention(made, name, module, config)
        else:
            _add_layer(made, name, module, config)
    if not made.found:
        kinds = "nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d or nn.Linear"
        reasons = "".join(
            f"; {name!r} is left float: {why}" for name, why in made.left_float.items()
        )
        raise ConfigError(f"{type(model).__name__} holds no {kinds} to quantize{reasons}")
    return made


def _torch_class(module: nn.Module) -> type[nn.Module] | None:
    if is_transposed_linear(module):
        return nn.Linear
    return next((kind for kind in TERNARY_QAT_MAPPING if isinstance(module, kind)), None)


def _add_layer(made: Candidates, name: str, module: nn.Module, config: TernaryConfig) -> None:
    torch_class = _torch_class(module)
    if torch_class is None:
        if isinstance(module, WITHOUT_QUANTIZED):
            made.left_float[name] = f"there is no quantized {type(module).__name__}"
        return
    if any(matches(pattern, name) for pattern in config.skip):
        made.found[name] = Candidate(module, torch_class)
        return
    if not _has_values(made, name, module):
        return
    reason = ""
    if not is_transposed_linear(module) and not replaced_methods(module):
        reason = why_not(replica(module), torch_class)
    if reason:
        made.left_float[name] = reason
    else:
        made.found[name] = Candidate(module, torch_class)


def _has_values(made: Candidates, name: str, module: Any) -> bool:
    """Whether a layer has weights to quantize. If they are empty, note that it stays float.

    Raises
    ------
    ConfigError
        If a parameter has no shape yet or is on the meta device.
    """
    for tensor in module.parameters():
        if nn.parameter.is_lazy(tensor):
            raise ConfigError(
                f"layer {name!r} ({type(module).__name__}) has no shape yet; give "
                "prepare(..., example_inputs=...), or run one batch through the model first"
            )
        if tensor.is_meta:
            raise ConfigError(
                f"layer {name!r} is on the meta device, which holds no values to fit quantizers "
                "to; give the model values first (to_empty(device=...), then load_state_dict), "
                "then prepare it"
            )
    weights = [tensor for tensor in module.parameters() if tensor.dim() > 1]
    empty = [tensor for tensor in weights if not tensor.numel()]
    if empty:
        made.left_float[name] = f"its weight of shape {tuple(empty[0].shape)} is empty"
    return not empty


def _scripted(made: Candidates, name: str, module: Any) -> None:
    """Note that the layers inside a scripted module stay float, because they are compiled."""
    for inner, child in module.named_modules():
        original = getattr(child, "original_name", "")
        if original in {kind.__name__ for kind in TERNARY_QAT_MAPPING}:
            path = ".".join(part for part in (name, inner) if part)
            made.left_float[path] = "torch.jit.script compiled it; script the model after training"


def _attention(
    made: Candidates, name: str, module: nn.MultiheadAttention, config: TernaryConfig
) -> None:
    names = [
        ".".join(part for part in (name, one) if part) for one in (*INPUT_PROJECTIONS, "out_proj")
    ]
    kind = type(module)
    reason = ""
    if kind.forward is not nn.MultiheadAttention.forward:
        reason = f"{kind.__name__} has a forward of its own, which reads the weights"
    elif changed := replaced_methods(module):
        reason = why_replaced(changed)
    elif torch.nn.utils.parametrize.is_parametrized(module):
        reason = "the attention's weights are parametrized"
    if reason:
        made.left_float.update(dict.fromkeys(names, reason))
        return
    made.attentions[name] = module
    for projection, full in zip(INPUT_PROJECTIONS, names, strict=False):
        skipped = any(matches(pattern, full) for pattern in config.skip)
        if skipped or _has_values(made, full, module):
            made.found[full] = Candidate(module, nn.Linear, projection)
    _add_layer(made, names[-1], module.out_proj, config)


#: ``TernaryConfig.depthwise`` applies to groups with at most so many input channels: there,
#: ternary products take longer than float32 ones.
_MAX_SMALL_GROUP = 8


def has_small_groups(candidate: Candidate) -> bool:
    """Whether a layer is a grouped convolution with few input channels per group.

    A depthwise convolution has one.
    """
    module: Any = candidate.module
    if candidate.projection or not isinstance(module, nn.modules.conv._ConvNd):
        return False
    return module.groups > 1 and module.in_channels // module.groups <= _MAX_SMALL_GROUP
