"""``prepare`` swaps a float model's layers for quantized ones; ``param_groups`` is for training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from fatnn_rs.config import TernaryConfig, matches
from fatnn_rs.errors import ConfigError, PrepareWarning
from fatnn_rs.nn.base import replaced_methods, why_replaced
from fatnn_rs.nn.calibrate import calibrate_layers
from fatnn_rs.nn.examples import run_example
from fatnn_rs.nn.fused import use_layers
from fatnn_rs.nn.notes import short_list, write_notes
from fatnn_rs.replica import replica_with_parameters
from fatnn_rs.swap.candidates import find_candidates, refuse_models
from fatnn_rs.swap.choose import choose
from fatnn_rs.swap.execution_order import FloatRun, find_execution_order, run_float
from fatnn_rs.swap.replace_layers import replace_layers
from fatnn_rs.swap.rollback import preserve_rng_state, restore_on_error
from fatnn_rs.threads import one_thread

__all__ = ["param_groups", "prepare"]

Model = TypeVar("Model", bound=nn.Module)


@torch.inference_mode(False)
def prepare(
    model: Model,
    config: TernaryConfig | None = None,
    example_inputs: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
) -> Model:
    """Swap a model's convolutions and linear layers for ternary (or int8) ones, in place.

    The layers are ``nn.Conv1d``, ``nn.Conv2d``, ``nn.ConvTranspose1d``, ``nn.ConvTranspose2d``,
    ``nn.Linear`` and their subclasses, ``Conv1D`` of transformers and the projections of
    ``nn.MultiheadAttention``. If a weight is computed from parameters (parametrizations, weight and
    spectral norm, pruning, a subclass's own forward), the computed weight is quantized. If another
    module multiplies by a layer's weight, that product becomes a call of the layer.
    :func:`fatnn_rs.summary` lists every layer, and why one stays float.

    Parameter names and float ``state_dict`` keys do not change; the quantizers add keys. Start from
    a trained float model if you have one. You can also load its ``state_dict`` after ``prepare``;
    the quantizers are then fitted again.

    The first and the last layer are those in order of execution, if ``torch.fx`` can trace the
    model or there is an example; otherwise those in order of registration. A layer whose output
    goes only into BatchNorm gets no learned ``scale``. If the model cannot be traced, every layer
    gets one. Convolutions that are depthwise, or have small groups, become int8 unless
    ``config.depthwise`` says otherwise.

    Parameters
    ----------
    model
        A float model. It is changed in place, unless ``config.values`` is ``"int8"``.
    config
        What to quantize and how; ``TernaryConfig()`` by default. With ``values="int8"``, places to
        round values depend on the model's graph. So the model stays as it is, and a copy of it is
        prepared, captured on the CPU and returned as :func:`fatnn_rs.quantize_values` does; that
        needs ``example_inputs``.
    example_inputs
        One batch of *real* data (the model's argument, a tuple of its positional arguments, or a
        dict of its keyword arguments). The model runs on it in eval mode, to observe which layers
        it calls and to initialise the activation steps (:func:`fatnn_rs.nn.calibrate`). Without
        it, the first training batch initialises them, and ``prepare`` cannot warn of layers that
        the model never calls. Lazy modules need it.

    Returns
    -------
    nn.Module
        ``model`` itself; with ``values="int8"``, a ``torch.fx.GraphModule`` that shares no memory
        with it.

    Warns
    -----
    PrepareWarning
        If layers stay float although no option says so, or if the example does not run a layer, or
        if the model uses a layer's float weight itself. One warning names all of them, with the
        reasons. To silence it, put the layers into ``skip``.

    Raises
    ------
    ConfigError
        If a pattern matches no layer; if no layer is left to quantize; if ``values="int8"`` comes
        without ``example_inputs``; if the model was prepared
        before, is wrapped (prepare it first, then wrap it), is on the meta device or has no shapes
        yet; or if methods of a layer were replaced on the instance.
    ConversionError
        With ``values="int8"``: if the model cannot be captured, or is not on the CPU.
    InputError
        If the model cannot take ``example_inputs``, or if NaN or infinity reaches a layer.

    Notes
    -----
    If anything is raised, the model does not change. Random number generators never change.
    """
    config = TernaryConfig() if config is None else config
    if not isinstance(model, nn.Module):
        raise _no_module(model)
    if not isinstance(config, TernaryConfig):
        raise ConfigError(
            f"config must be a TernaryConfig, got {type(config).__name__}; the order is "
            "prepare(model, config, example_inputs), with TernaryConfig() as the default"
        )
    refuse_models(model)
    if config.values == "int8":
        if example_inputs is None:
            raise ConfigError(
                'values="int8": prepare needs example_inputs, one batch of real data, to find the '
                "values between layers and to initialise their steps"
            )
        model = cast("Model", replica_with_parameters(model))
    with preserve_rng_state(), restore_on_error(model) as undo:
        if example_inputs is not None:
            _materialize(model, example_inputs)
        candidates = find_candidates(model, config)
        run: FloatRun | None = None
        if example_inputs is not None:
            run = run_float(model, candidates.found, example_inputs)
            _leave_used(candidates.found, candidates.left_float, run)
        plan = choose(
            config,
            candidates.found,
            candidates.left_float,
            find_execution_order(model, candidates.found, run),
        )
        for name in plan.chosen:
            if changed := replaced_methods(candidates.found[name].module):
                raise ConfigError(f"layer {name!r}: {why_replaced(changed)}")
        with one_thread():
            undo[:0] = replace_layers(model, config, candidates, plan, run)
        use_layers(model)
        problems = {} if example_inputs is None else calibrate_layers(model, example_inputs)
        unasked = {
            name: why
            for name, why in candidates.left_float.items()
            if not any(matches(pattern, name) for pattern in config.skip)
        }
        write_notes(model, {**plan.asked, **candidates.left_float}, problems)
        _warn(unasked, problems)
        if config.values == "int8":
            from fatnn_rs.convert.quantize_values import quantize_values

            return cast("Model", quantize_values(model, example_inputs))
    return model


def _no_module(given: Any) -> ConfigError:
    way = "; make an instance of it first" if isinstance(given, type) else ""
    got = given.__name__ if way else type(given).__name__
    return ConfigError(f"prepare takes a torch.nn.Module, got {got}{way}")


def _materialize(model: nn.Module, inputs: Any) -> None:
    """Give lazy modules their shapes by running the float model once."""
    if not any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        return
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            run_example(model, inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _leave_used(found: dict[str, Any], left_float: dict[str, str], run: FloatRun) -> None:
    """Leave layers float that are never called, but whose weights the model uses."""
    for name, function in run.used.items():
        if name not in run.order and name not in run.read_by:
            del found[name]
            left_float[name] = (
                f"the model never calls it, and {function} uses its weight outside of it"
            )
    if not found:
        raise ConfigError(f"nothing is left to quantize: {short_list(left_float)}")


def _warn(left_float: Mapping[str, str], problems: Mapping[str, str]) -> None:
    """Issue one warning for layers that compute in float although no option says so."""
    parts = []
    if left_float:
        parts.append(f"these layers stay float: {short_list(left_float)}")
    if problems:
        names = ", ".join(map(repr, problems))
        parts.append(
            f"these layers do not compute in low precision: {short_list(problems)}. Leave out "
            f"those that the model does not call: "
            f"TernaryConfig(skip=({names}{',' * (len(problems) == 1)})); or change the model so "
            "that it calls them"
        )
    if parts:
        more = "fatnn_rs.summary(model) lists every layer"
        warnings.warn(f"{'; '.join(parts)} ({more})", PrepareWarning, stacklevel=3)


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split a model's parameters into two optimizer groups: with and without weight decay.

    Only weights decay. Step sizes, scales, biases and normalisation parameters do not.

    Parameters
    ----------
    model
        A prepared model or a float model.
    weight_decay
        Weight decay of the first group; the second group has 0.

    Returns
    -------
    list of dict
        Parameter groups for any ``torch.optim`` optimizer. Parameters that need no gradient are
        left out.

    Raises
    ------
    ConfigError
        If ``model`` is not a module, or ``weight_decay`` is not a finite number >= 0.
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
            # Parameters with one value per channel or per layer have at most one dimension.
            (decay if parameter.dim() > 1 else plain).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
