"""Checks of models and inputs before a conversion. Errors name the module and the way out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fatnn_rs.contained import named_modules
from fatnn_rs.convert.levels import ACT_LEVELS, WEIGHT_LEVELS
from fatnn_rs.convert.network import TernaryNetwork
from fatnn_rs.convert.structure import leaves, plain
from fatnn_rs.errors import ConversionError, InputError
from fatnn_rs.nn import QuantizedLayer, TernaryLayer
from fatnn_rs.quant.base import InputQuantizer

__all__ = ["as_root", "check_inputs", "check_model", "check_reached", "quantized_layers"]


#: Positional arguments of a call, and those by keyword.
Call = tuple[tuple[Any, ...], dict[str, Any]]


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """Return every ternary and int8 layer by its qualified name."""
    return {
        name: module for name, module in named_modules(model) if isinstance(module, QuantizedLayer)
    }


def as_root(model: nn.Module) -> nn.Module:
    """Wrap a model that is itself a quantized layer, so that every layer has a name."""
    return nn.Sequential(model).eval() if isinstance(model, QuantizedLayer) else model


def _by_keyword(what: str, inputs: Mapping[str, Any], model: nn.Module) -> Call:
    """Turn keyword arguments into positional ones where forward allows it, with defaults filled in.

    Raises
    ------
    InputError
        If forward has no such argument, or an argument without a default is missing.
    """
    parameters = inspect.signature(model.forward).parameters
    known = [
        name
        for name, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)
    ]
    named = [name for name, p in parameters.items() if p.kind == p.KEYWORD_ONLY]
    open_ended = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    forward = f"{type(model).__name__}.forward"
    unknown = [name for name in inputs if name not in (*known, *named)]
    if unknown and not open_ended:
        raise InputError(
            f"{what}: expected names of arguments of {forward} ({', '.join((*known, *named))}), "
            f"got {unknown[0]!r}; "
            "give those, or wrap the model in a module that takes what it needs"
        )
    last = max((known.index(name) for name in inputs if name in known), default=-1)
    required = {
        name
        for name in (*known, *named)
        if parameters[name].default is inspect.Parameter.empty and name not in inputs
    }
    if required:
        missing = min(required, key=list(parameters).index)
        raise InputError(
            f"{what}: {forward} needs {missing!r}, which is missing among {', '.join(inputs)}; "
            "give it, too"
        )
    positional = tuple(inputs.get(name, parameters[name].default) for name in known[: last + 1])
    # In the order in which forward declares them, as arguments of a call are bound.
    return positional, {name: inputs[name] for name in (*named, *unknown) if name in inputs}


def check_inputs(what: str, inputs: Any, model: nn.Module | None = None) -> Call:
    """Return inputs as arguments: from a tensor, a tuple, a list, or a mapping of names.

    With a ``model``, a mapping whose keys are arguments of its forward holds keyword arguments.
    Any other mapping is one argument.

    Returns
    -------
    tuple
        The positional arguments, and those that forward takes by keyword only.

    Raises
    ------
    InputError
        If no argument is a tensor, or if forward does not take the keywords.
    """
    named: dict[str, Any] = {}
    if isinstance(inputs, Mapping) and model is not None:
        names = inspect.signature(model.forward).parameters
        if any(key in names for key in inputs):
            inputs, named = _by_keyword(what, inputs, model)
    arguments = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    values = (*arguments, *named.values())
    if not any(isinstance(leaf, Tensor) for leaf in leaves(plain(values))):
        got = ", ".join(type(value).__name__ for value in values) or "nothing"
        raise InputError(
            f"{what}: expected a tensor, or a tuple of the model's positional arguments with a "
            "tensor in it, got "
            f"{got}; give torch tensors (torch.from_numpy makes one from an array)"
        )
    for leaf in leaves(plain(values)):
        if isinstance(leaf, Tensor) and leaf.device.type != "cpu":
            raise InputError(
                f"{what}: expected tensors on the CPU, got one on {leaf.device}; move the inputs "
                "and the model there with .cpu()"
                if leaf.device.type != "meta"
                else f"{what}: expected tensors with values, got one on the meta device, which "
                "holds none; give real data"
            )
    return arguments, named


def check_model(model: nn.Module, quantized: bool = True) -> None:
    """Check a model before its conversion.

    Parameters
    ----------
    model
        The model.
    quantized
        Whether the model must have a ternary or int8 layer.

    Raises
    ------
    ConversionError
        If it is not a module, has no ternary or int8 layer, is in training mode, has weights or
        activations with levels that the engine lacks, or has parameters or BatchNorm statistics
        that are not finite, not float32 or not on the CPU.
    """
    if not isinstance(model, nn.Module):
        raise ConversionError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    layers = quantized_layers(model)
    if quantized and not layers:
        for name, module in model.named_modules():
            if isinstance(module, TernaryNetwork):
                where = f"module {name!r}" if name else "the model"
                raise ConversionError(
                    f"{where} is a converted network already, and there is nothing else to "
                    "convert; call it, save it, or convert the prepared model it was made from"
                )
        raise ConversionError(
            f"{type(model).__name__} holds no ternary or int8 layer, so there is nothing to "
            'convert; call fatnn_rs.prepare(model) first, and train it (with values="int8", '
            "prepare returns another module: train and convert that one)"
        )
    for name, module in model.named_modules():  # those that model.eval() changes
        if module.training:
            where = f"module {name!r}" if name else type(model).__name__
            raise ConversionError(
                f"{where} is in training mode; call model.eval() before converting"
            )
    for name, layer in layers.items():
        if name and not layer.layer_name:
            layer.set_name(name)  # for error messages
        if isinstance(layer, TernaryLayer):
            _check_levels(name, layer)
    for name, module in model.named_modules():
        if (
            isinstance(module, _BatchNorm)
            and module.running_mean is not None
            and module.running_var is not None
        ):
            _check_norm(name, module)
    for name, tensor in _parameters_and_statistics(model):
        _check_tensor(
            name, tensor, quantized=any(name.startswith(f"{layer}.") for layer in layers if layer)
        )


def check_reached(graph: fx.Graph, root: nn.Module) -> list[str]:
    """Check the quantized layers that a captured graph calls, and only those.

    Returns
    -------
    list of str
        Remarks about layers that have seen only zeros.

    Raises
    ------
    ConversionError
        If activation steps were never initialised.
    """
    modules = dict(named_modules(root))
    zeros: list[str] = []
    for node in graph.nodes:
        name = node.target if node.op == "call_module" else None
        if node.op == "call_function" and getattr(node.target, "__name__", "").startswith(
            "module_call"
        ):
            name = node.args[1]
        layer = modules.get(name) if isinstance(name, str) else None
        quantizer = layer.act_quant if isinstance(layer, QuantizedLayer) else layer
        if not isinstance(quantizer, InputQuantizer) or quantizer.initialized:
            continue
        if not quantizer.saw_only_zeros:
            raise ConversionError(
                f"layer {name!r}: its activation steps were never initialised; train the model, "
                "give fatnn_rs.nn.calibrate(model, inputs) a batch of real data, or leave the "
                "layer out with TernaryConfig(skip=...)"
            )
        if name not in zeros:
            zeros.append(str(name))
    if not zeros:
        return []
    return [f"has seen only zeros, so its activation steps are a default: {', '.join(zeros)}"]


def _check_levels(name: str, layer: TernaryLayer) -> None:
    """Refuse quantizers whose levels the engine does not have."""
    if layer.weight_quant.refused:
        raise ConversionError(f"layer {name!r}: {layer.weight_quant.refused}")
    for what, quantizer, known in (
        ("weights", layer.weight_quant, WEIGHT_LEVELS),
        ("activations", layer.act_quant, tuple(ACT_LEVELS.values())),
    ):
        if quantizer is layer.act_quant and not layer.act_quant.initialized:
            continue  # the range is not chosen yet
        levels = quantizer.levels
        if not levels or not any(set(levels) <= set(one) for one in known):
            shown = " or ".join("{" + ", ".join(map(str, one)) + "}" for one in known)
            raise ConversionError(
                f"layer {name!r}: its {what} ({type(quantizer).__name__}) have the levels "
                f"{{{', '.join(map(str, levels))}}}; expected some of {shown}, which the engine "
                "has; use a quantizer "
                "of fatnn_rs.quant, or leave the layer out with TernaryConfig(skip=...)"
            )


def _parameters_and_statistics(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter, and the statistics of every BatchNorm."""
    yield from model.named_parameters()
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            for buffer, tensor in module.named_buffers(recurse=False):
                yield f"{name}.{buffer}" if name else buffer, tensor


def _check_tensor(name: str, tensor: Tensor, quantized: bool) -> None:
    module, _, attribute = name.rpartition(".")
    where = f"module {module!r}: {attribute}"
    if tensor.is_meta:
        raise ConversionError(
            f"{where} is on the meta device, which holds no values; give the model values first: "
            "to_empty(device='cpu'), then load_state_dict"
        )
    if tensor.device.type != "cpu":
        raise ConversionError(f"{where} is on {tensor.device}; convert on the CPU: model.cpu()")
    if not tensor.is_floating_point():
        return
    if quantized and tensor.dtype != torch.float32:
        raise ConversionError(
            f"{where} is {tensor.dtype}; expected float32: call model.float() before converting"
        )
    if tensor.numel() and not all(math.isfinite(end) for end in torch.aminmax(tensor)):
        raise ConversionError(
            f"{where} holds NaN or infinity, so the network has no meaning; look at the training "
            "run, or load an earlier checkpoint"
        )


def _check_norm(name: str, norm: _BatchNorm) -> None:
    """Refuse a BatchNorm whose results would all be NaN or infinity."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    tensors = [t for t in (mean, var, norm.weight) if t is not None]
    if not all(t.device.type == "cpu" and bool(t.isfinite().all()) for t in tensors):
        return  # _check_tensor raises for these
    scale = (var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
    bad = ~torch.isfinite(scale) | ~torch.isfinite(mean * scale)
    if bool(bad.any()):
        channel = int(bad.nonzero()[0])
        weight = "" if norm.weight is None else f", weight {float(norm.weight[channel]):g}"
        raise ConversionError(
            f"module {name!r}: channel {channel} (running_var {float(var[channel]):g}, eps "
            f"{norm.eps:g}{weight}) makes NaN or infinity of its inputs, so the network has no "
            "meaning; look at the training run, or load an earlier checkpoint"
        )
