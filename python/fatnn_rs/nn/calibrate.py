"""``calibrate``: initialise activation steps and BatchNorm statistics from one batch of data."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from fatnn_rs.contained import named_modules
from fatnn_rs.errors import ConfigError, InputError, PrepareWarning
from fatnn_rs.nn.base import QuantizedLayer
from fatnn_rs.nn.examples import describe, run_example
from fatnn_rs.nn.fused import check_readers, use_layers
from fatnn_rs.nn.layers import TernaryLayer, held_weights
from fatnn_rs.nn.notes import short_list
from fatnn_rs.nn.observe import observe
from fatnn_rs.nn.snapshot import Snapshot
from fatnn_rs.quant.values import Int8Value
from fatnn_rs.replica import unwrapped

__all__ = ["calibrate", "calibrate_layers", "warn_float"]


#: Replaces an ``eps`` of 0 while a BatchNorm takes its statistics from the batch.
_MIN_EPS = 1e-30


@torch.no_grad()
def calibrate(model: nn.Module, inputs: Tensor | Sequence[Any] | Mapping[str, Any]) -> None:
    """Initialise the steps of quantized layers and int8 values from one batch of real data.

    Layers and values whose steps are initialised already keep them. A BatchNorm that directly
    follows a ternary layer also takes its running statistics from this batch, because integer sums
    have another scale than the float layer's outputs. So does a BatchNorm that is not frozen and
    has no statistics yet (``num_batches_tracked`` is 0), because in training it gives other values
    than with its initial statistics. The rest of the model runs in eval mode and does not change;
    every module keeps its training mode. If the model fails, nothing changes.

    A layer that receives only zeros (for example, after a branch that starts at zero) stays
    uninitialised. The first training batch with other values initialises it.

    Parameters
    ----------
    model
        A model with at least one ternary or int8 layer.
    inputs
        One batch: the model's argument, a tuple of its positional arguments, or a dict of its
        keyword arguments.

    Warns
    -----
    PrepareWarning
        If the model does not call a quantized layer, or uses its float weight without calling it.
        The warning names these layers.

    Raises
    ------
    ConfigError
        If the model holds no such layer, or holds one that its parent never calls
        (``nn.MultiheadAttention``).
    InputError
        If the model cannot take ``inputs``, or if NaN or infinity reaches a layer that is being
        initialised.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"calibrate takes a torch.nn.Module, got {type(model).__name__}")
    layers = {  # with the names in the model inside a wrapper
        name: module
        for name, module in named_modules(unwrapped(model))
        if isinstance(module, QuantizedLayer)
    }
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} holds no ternary or int8 layer to calibrate; call "
            "prepare(model) first (a converted network is not calibrated: its steps are fixed)"
        )
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if tensors and not any(tensor.numel() for tensor in tensors):
        raise InputError(
            f"calibrate: the batch is empty ({describe(inputs)}), so the steps would stay as they "
            "are; give a batch with samples"
        )
    check_readers(model)
    use_layers(model)
    warn_float(_calibrate(model, inputs, layers), stacklevel=4)


def calibrate_layers(model: nn.Module, inputs: Any) -> dict[str, str]:
    """Calibrate without a warning.

    Returns
    -------
    dict
        Layer → why it computes in float, or why it does not run at all.
    """
    layers = {
        name: module for name, module in named_modules(model) if isinstance(module, QuantizedLayer)
    }
    with torch.no_grad():
        return _calibrate(model, inputs, layers)


def _calibrate(model: nn.Module, inputs: Any, layers: dict[str, QuantizedLayer]) -> dict[str, str]:
    with ExitStack() as stack:
        stack.enter_context(_unchanged_on_failure(model, layers.values()))
        if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_calibrating(model, layers))
        stack.enter_context(held_weights(model))
        observed = stack.enter_context(observe(model, layers))
        run_example(model, inputs)
    return observed.problems(layers)


@contextmanager
def _calibrating(model: nn.Module, layers: Mapping[str, QuantizedLayer]) -> Iterator[None]:
    """Set eval mode, except for quantizers and BatchNorms that follow ternary layers."""
    modes = {module: module.training for _, module in named_modules(model)}
    norms = [module for module in modes if isinstance(module, _BatchNorm)]
    numbers = {norm: (norm.momentum, norm.eps) for norm in norms}
    # A norm in eval mode inside a model in training mode is frozen: training would not change it.
    fresh = {
        norm
        for norm in norms
        if norm.num_batches_tracked is not None
        and not norm.num_batches_tracked
        and (modes[norm] or not modes[model])
    }
    fed: list[Tensor] = []

    def after_ternary(module: TernaryLayer, args: tuple[Any, ...], output: Tensor) -> None:
        fed[:] = [output] if module.act_quant.initialized else []  # else the output is all zeros

    def before_norm(module: _BatchNorm, args: tuple[Any, ...]) -> None:
        x = args[0] if args else None
        follows = bool(fed) and x is fed[0]
        # Without statistics of its own yet, a norm would pass on values unlike those in training.
        untrained = module in fresh and isinstance(x, Tensor) and _varies(x)
        adapts = isinstance(x, Tensor) and (follows or untrained) and x.numel() > x.shape[1]
        if adapts and isinstance(x, Tensor) and not bool(torch.isfinite(x).all()):
            raise InputError(
                "calibrate: NaN or infinity reaches a BatchNorm that takes its statistics from the "
                "batch; check the data and the layers before it"
            )
        module.training = adapts
        momentum, eps = numbers[module]
        # torch refuses an eps of 0, but only in training mode.
        module.momentum, module.eps = (1.0, max(eps, _MIN_EPS)) if adapts else (momentum, eps)

    handles = []
    try:
        for module in modes:
            module.eval()
        for name, layer in layers.items():
            layer.set_name(name)
            layer.act_quant.calibrating = True
            if isinstance(layer, TernaryLayer):
                handles.append(layer.register_forward_hook(after_ternary))
        for norm in norms:
            handles.append(norm.register_forward_pre_hook(before_norm))
        for name, module in named_modules(model):
            if isinstance(module, Int8Value):
                module.layer_name, module.calibrating = name, True
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in modes:
            if isinstance(module, Int8Value):
                module.calibrating = False
        for module, mode in modes.items():
            module.training = mode
        for norm, (momentum, eps) in numbers.items():
            norm.momentum, norm.eps = momentum, eps
        for layer in layers.values():
            layer.act_quant.calibrating = False


def _varies(x: Tensor) -> bool:
    """Whether a tensor has statistics: it is more than zeros, or one constant per channel."""
    if x.dim() < 2 or not x.numel():
        return False
    center = x.mean([dim for dim in range(x.dim()) if dim != 1], keepdim=True)
    return bool((x - center).abs().amax() > 1e-5 * x.abs().amax())


@contextmanager
def _unchanged_on_failure(model: nn.Module, layers: Iterable[QuantizedLayer]) -> Iterator[None]:
    """Restore the model if the body raises."""
    steps = [
        parameter
        for layer in layers
        for name, parameter in (
            *layer.named_parameters(recurse=False),
            *layer.act_quant.named_parameters(),
        )
        if name not in ("weight", "bias")
    ]
    steps += [m.log2_step for _, m in named_modules(model) if isinstance(m, Int8Value)]
    before = Snapshot(model, steps)
    try:
        yield
    except BaseException:
        before.restore()
        raise


def warn_float(problems: Mapping[str, str], stacklevel: int = 3) -> None:
    """Issue one warning that names layers which compute in float, if there are any."""
    if not problems:
        return
    listed = short_list(problems)
    names = ", ".join(map(repr, problems))
    warnings.warn(
        f"these layers do not compute in low precision: {listed}. Leave out those that the model "
        f"does not call: TernaryConfig(skip=({names}{',' * (len(problems) == 1)})); or change the "
        "model so that it calls them",
        PrepareWarning,
        stacklevel=stacklevel,
    )
