"""``prepare``: swap a float model's layers for quantized ones; and optimizer groups for them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fatnn_rs.config import TernaryConfig, matches
from fatnn_rs.errors import ConfigError, PrepareWarning
from fatnn_rs.nn.base import replaced_methods, why_replaced
from fatnn_rs.nn.calibrate import calibrate_layers
from fatnn_rs.nn.examples import run_example
from fatnn_rs.nn.fused import use_layers
from fatnn_rs.nn.notes import short_list, write_notes
from fatnn_rs.swap.candidates import find_candidates, refuse_models
from fatnn_rs.swap.choose import choose
from fatnn_rs.swap.look import Run, look, run_float
from fatnn_rs.swap.place import place
from fatnn_rs.swap.unchanged import all_or_nothing, same_random_numbers
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

    ``nn.Conv1d``, ``nn.Conv2d``, ``nn.ConvTranspose1d``, ``nn.ConvTranspose2d``, ``nn.Linear`` and
    their subclasses, ``Conv1D`` of transformers and
    the projections of ``nn.MultiheadAttention``. Weights that are functions of parameters stay so:
    parametrizations, weight and spectral norm, pruning, and what a subclass computes in its
    forward. Where another module multiplies by a layer's weight, the layer does it.
    :func:`fatnn_rs.summary` lists every layer, and why one stays float.

    Parameter names and float ``state_dict`` keys stay as they were; step sizes are added beside
    them. Start from a trained float model where there is one; its ``state_dict`` also loads later,
    and what depends on the weights is then fitted anew.

    First and last layer are found in order of execution where ``torch.fx`` can trace the model or
    there is an example, else in order of registration. A layer whose output goes only into
    BatchNorm gets no learned ``scale``; where the model cannot be traced, every layer gets one.
    Depthwise convolutions, and others with small groups, become int8 unless ``config.depthwise``
    says otherwise.

    Parameters
    ----------
    model
        Changed in place.
    config
        What to quantize and how; ``TernaryConfig()`` by default.
    example_inputs
        One batch of *real* data (the model's argument, a tuple of its positional arguments, or a
        dict of its keyword arguments), run through in eval mode to see what the model does and to
        initialise the activation steps; see :func:`fatnn_rs.nn.calibrate`. Without it the first
        training batch does that, and nothing can be said about layers that the model never calls.
        Lazy modules need it.

    Returns
    -------
    nn.Module
        ``model`` itself.

    Warns
    -----
    PrepareWarning
        Once, naming layers that stay float although no option says so, with the reasons, and
        layers that the example does not run or whose float weights the model uses itself.
        ``skip`` leaves them out.

    Raises
    ------
    ConfigError
        A pattern matches no layer, nothing is left to quantize, the model was prepared before, is
        a wrapper to be put around a prepared model, is on the meta device or without shapes yet,
        or a layer's methods were replaced on the instance.
    InputError
        ``example_inputs`` are nothing that the model takes; NaN or infinity in them or in what a
        layer makes of them.

    Whatever is raised, the model is then unchanged; random numbers are in any case.
    """
    config = TernaryConfig() if config is None else config
    if not isinstance(model, nn.Module):
        raise ConfigError(f"prepare takes a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(config, TernaryConfig):
        raise ConfigError(f"config must be a TernaryConfig, got {type(config).__name__}")
    refuse_models(model)
    with same_random_numbers(), all_or_nothing(model) as undo:
        if example_inputs is not None:
            _materialize(model, example_inputs)
        candidates = find_candidates(model, config)
        run: Run | None = None
        if example_inputs is not None:
            run = run_float(model, candidates.found, example_inputs)
            _leave_used(candidates.found, candidates.left, run)
        plan = choose(config, candidates.found, candidates.left, look(model, candidates.found, run))
        for name in plan.chosen:
            if changed := replaced_methods(candidates.found[name].module):
                raise ConfigError(f"layer {name!r}: {why_replaced(changed)}")
        with one_thread():
            undo[:0] = place(model, config, candidates, plan, run)
        use_layers(model)
        problems = {} if example_inputs is None else calibrate_layers(model, example_inputs)
        unasked = {
            name: why
            for name, why in candidates.left.items()
            if not any(matches(pattern, name) for pattern in config.skip)
        }
        write_notes(model, {**plan.asked, **candidates.left}, problems)
        _warn(unasked, problems)
    return model


def _materialize(model: nn.Module, inputs: Any) -> None:
    """Give lazy modules their shapes, by running the float model once."""
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


def _leave_used(found: dict[str, Any], left: dict[str, str], run: Run) -> None:
    """Leave layers float that are never called, and whose weights others take."""
    for name, function in run.used.items():
        if name not in run.order and name not in run.read_by:
            del found[name]
            left[name] = f"the model never calls it, and {function} uses its weight outside of it"
    if not found:
        raise ConfigError(f"nothing is left to quantize: {short_list(left)}")


def _warn(left: Mapping[str, str], problems: Mapping[str, str]) -> None:
    """Warn once of what computes in float although no option says so."""
    parts = []
    if left:
        parts.append(f"these layers stay float: {short_list(left)}")
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
