"""One pass of real data through a model with quantized layers, to initialise what training starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fatnn_rs.errors import ConfigError
from fatnn_rs.nn.base import QuantizedLayer
from fatnn_rs.nn.layers import TernaryLayer, held_weights

__all__ = ["as_arguments", "calibrate"]


def as_arguments(inputs: Any) -> tuple[Any, ...]:
    """Turn example inputs into positional arguments: a tuple or list as it is, anything else as the only one."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


@torch.no_grad()
def calibrate(model: nn.Module, inputs: Tensor | Sequence[Any]) -> None:
    """Initialise the activation steps of every quantized layer that has none yet, from one batch of real data.

    A BatchNorm fed directly by a ternary layer also takes its running statistics from this batch: integer accumulators
    have another scale than the float layer's outputs. Everything else runs in eval mode and stays as it was, and so
    does the training mode of every module.

    Parameters
    ----------
    model
        Holds at least one ternary or int8 layer.
    inputs
        One batch: the model's argument, or a tuple of its arguments.

    Raises
    ------
    ConfigError
        Where the model holds no such layer.
    InputError
        Where NaN or infinity reaches a layer that is being initialised.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} holds no ternary or int8 layer to calibrate; call prepare(model) first"
        )
    modes = {module: module.training for module in model.modules()}
    norms = [module for module in modes if isinstance(module, _BatchNorm)]
    momenta = {norm: norm.momentum for norm in norms}
    fed: list[Tensor] = []

    def after_ternary(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        fed[:] = [output]

    def before_norm(module: _BatchNorm, args: tuple[Any, ...]) -> None:
        x = args[0] if args else None
        adapts = isinstance(x, Tensor) and bool(fed) and x is fed[0] and x.numel() > x.shape[1]
        module.training = adapts
        module.momentum = 1.0 if adapts else momenta[module]

    handles = []
    try:
        model.eval()
        for name, layer in layers.items():
            layer.set_name(name)
            layer.act_quant.calibrating = True
            if isinstance(layer, TernaryLayer):
                handles.append(layer.register_forward_hook(after_ternary))
        for norm in norms:
            handles.append(norm.register_forward_pre_hook(before_norm))
        with held_weights(model):
            model(*as_arguments(inputs))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for layer in layers.values():
            layer.act_quant.calibrating = False
