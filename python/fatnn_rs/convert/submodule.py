"""``convert_submodule``: convert a part of a model, for models that cannot be converted whole.

Detection models are the usual case: their backbone and heads are functions of tensors, but the
steps after them depend on values.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fatnn_rs.convert.api import convert
from fatnn_rs.convert.capture import copies, named_copies
from fatnn_rs.convert.checks import Call
from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.memory_format import layout_of
from fatnn_rs.convert.network import TernaryNetwork
from fatnn_rs.convert.structure import leaves, plain, same_values
from fatnn_rs.errors import ConversionError
from fatnn_rs.nn.examples import as_arguments
from fatnn_rs.replica import replica, unwrapped

__all__ = ["convert_submodule"]


@torch.no_grad()
def convert_submodule(
    model: nn.Module, name: str, example_inputs: Any, float_layers: str = "torch"
) -> TernaryNetwork:
    """Convert one submodule of a model, and put the network in its place.

    The model runs once on the example. The submodule is converted for the arguments of its first
    call. Then the model runs again with the network, and has to give the same outputs.

    Parameters
    ----------
    model
        In eval mode, on the CPU. Its submodule is replaced, everywhere it is registered. Nothing
        else changes; after an error nothing has changed.
    name
        Qualified name of the submodule, as in ``model.named_modules()``.
    example_inputs
        Inputs of the whole model, as for :func:`fatnn_rs.prepare`: a tensor, a tuple of positional
        arguments, or a dictionary of keyword arguments.
    float_layers
        As for :func:`fatnn_rs.convert`. With ``"rust"`` outputs may differ in the last place, and
        are not compared.

    Returns
    -------
    TernaryNetwork
        The network that is now in the submodule's place. It has the submodule's plain public
        attributes (``out_channels``, say), which other modules may read.

    Raises
    ------
    ConversionError
        If there is no such submodule, the model does not call it or calls other methods of it, the
        model's outputs are not reproducible, or :func:`fatnn_rs.convert` refuses it.
    InputError
        If the model does not take the example.
    """
    name, model = _in_wrapped(model, name)
    module = _find(model, name)
    args, kwargs = as_arguments(model, example_inputs)
    (positional, named), expected = _first_call(model, name, args, kwargs)
    net = convert(module, _as_example(module, positional, named), float_layers)
    _keep_layouts(net, replica(module)(*copies(positional), **named_copies(named)))
    for key, value in vars(module).items():
        if not key.startswith("_") and not hasattr(net, key) and _is_plain(value):
            setattr(net, key, value)
    places = [
        (parent, key)
        for parent in model.modules()
        for key, child in parent._modules.items()
        if child is module
    ]
    for parent, key in places:
        parent._modules[key] = net
    try:
        problem = ""
        if float_layers == "torch":
            result = model(*copies(args), **named_copies(kwargs))
            problem = same_values(expected, result)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        for parent, key in places:
            parent._modules[key] = module
        raise ConversionError(
            f"submodule {name!r}: with the converted network in its place the model does not give "
            f"the same outputs on the example ({problem}); other modules may use its attributes or "
            "methods, or call it with inputs of several kinds: convert its children one by one"
        )
    return net


def _in_wrapped(model: nn.Module, name: str) -> tuple[str, nn.Module]:
    """Return the model inside wrappers, and its name for the submodule."""
    inner: nn.Module = unwrapped(model)
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    if inner is model or name not in modules:
        return name, inner
    names = (own for own, module in inner.named_modules() if module is modules[name])
    return next(names, name), inner


def _find(model: nn.Module, name: str) -> nn.Module:
    try:
        module = model.get_submodule(name) if name else None
    except AttributeError:
        module = None
    if module is None:
        children = ", ".join(repr(child) for child, _ in model.named_children())
        raise ConversionError(
            f"{type(model).__name__} has no submodule {name!r}; give a name of "
            f"model.named_modules(), such as {children or 'none: it has no submodules'}"
        )
    return module


def _first_call(
    model: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Call, Any]:
    """Run a replica; return the submodule's first arguments and the model's outputs."""
    run = replica(model)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        if not calls:
            calls.append((copies(args), named_copies(kwargs)))

    submodule = run.get_submodule(name)
    submodule.register_forward_pre_hook(note, with_kwargs=True)
    expected = run(*copies(args), **named_copies(kwargs))
    if not calls:
        raise ConversionError(
            f"submodule {name!r}: the model does not call it on the example; give the name of a "
            "module whose forward the model calls"
        )
    positional, named = calls[0]
    if named:
        bound = inspect.signature(submodule.forward).bind(*positional, **named)
        positional, named = bound.args, bound.kwargs
    return (positional, named), expected


def _as_example(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Return a call as an example for convert: by name, if it has keyword-only arguments."""
    if not named:
        return positional
    names = inspect.signature(module.forward).parameters
    return {**dict(zip(names, positional, strict=False)), **named}


def _keep_layouts(net: TernaryNetwork, outputs: Any) -> None:
    """Give the network's outputs the memory formats of the submodule's outputs.

    The order in which torch's float functions sum depends on the memory format of their input.
    """
    values = zip(leaves(net.graph.outputs), leaves(plain(outputs)), strict=True)
    net.output_layouts = {
        ref.name: layout_of(value) for ref, value in values if isinstance(ref, Ref)
    }


def _is_plain(value: Any) -> bool:
    return all(
        leaf is None or isinstance(leaf, (bool, int, float, str))
        for leaf in pytree.tree_leaves(value)
    )
