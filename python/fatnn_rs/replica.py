"""Copy a model's modules but not its parameters, to run or trace it without changing it."""

from __future__ import annotations

import copy
import inspect
import types
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "chooses_forward",
    "patched_methods",
    "replica",
    "replica_with_parameters",
    "slots",
    "unwrapped",
]


def replica(model: nn.Module, replace: Mapping[nn.Module, nn.Module] | None = None) -> nn.Module:
    """Copy a model's modules and containers, but not its parameters.

    Tracing and running execute the model's own code, which may write attributes, caches and
    buffers. With a replica, the original does not change. Modules, lists, dicts, sets, tuples,
    buffers and other tensors are copied at any depth. Parameters and objects of other types (a
    trainer, a lock) are shared.

    Parameters
    ----------
    model
        Any module.
    replace
        Modules of ``model`` → their replacements in the copy.

    Returns
    -------
    nn.Module
        The copy, of the same class as ``model``.
    """
    made: nn.Module = _Copier({id(old): new for old, new in (replace or {}).items()}).copy_module(
        model
    )
    return made


def replica_with_parameters(model: nn.Module) -> nn.Module:
    """Copy a model with its parameters; shared parameters stay shared."""
    made = replica(model)
    cloned: dict[int, nn.Parameter] = {}
    for module in made.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, value in module._parameters.items():
            if value is None or nn.parameter.is_lazy(value):
                continue
            if id(value) not in cloned:
                data = value.detach().clone()
                cloned[id(value)] = nn.Parameter(data, requires_grad=value.requires_grad)
            module._parameters[name] = cloned[id(value)]
    return made


#: Types whose values need no copy.
_ATOMS = frozenset({type(None), bool, int, float, str})


class _Copier:
    """One copy in progress: ``id`` of each original → its copy."""

    def __init__(self, done: dict[int, Any]) -> None:
        self._done = done

    def copy_module(self, module: nn.Module) -> Any:
        if id(module) in self._done:
            return self._done[id(module)]
        made = object.__new__(type(module))
        self._done[id(module)] = made
        made.__dict__.update(
            {key: self.copy_value(value) for key, value in module.__dict__.items()}
        )
        made.__dict__.pop("_compiled_call_impl", None)  # it calls the original
        for slot in slots(type(module)):
            if hasattr(module, slot):
                setattr(made, slot, self.copy_value(getattr(module, slot)))
        return made

    def copy_value(self, value: Any) -> Any:
        if type(value) in _ATOMS:
            return value
        if id(value) in self._done:
            return self._done[id(value)]
        made = self._new(value)
        if made is not value:
            self._done[id(value)] = made
        return made

    def _new(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return value if isinstance(value, torch.jit.ScriptModule) else self.copy_module(value)
        if isinstance(value, Tensor):
            return value if isinstance(value, nn.Parameter) else value.detach().clone()
        if isinstance(value, dict):
            # Every module has a dozen dicts; `copy.copy` takes ten times as long as `.copy()`.
            made = value.copy() if type(value) in (dict, OrderedDict) else copy.copy(value)
            self._done[id(value)] = made
            for key in list(made):
                made[key] = self.copy_value(value[key])
            return made
        if type(value) is list:
            items: list[Any] = []
            self._done[id(value)] = items
            items.extend(self.copy_value(item) for item in value)
            return items
        if type(value) is tuple:
            copies = tuple(self.copy_value(item) for item in value)
            return value if all(a is b for a, b in zip(copies, value, strict=True)) else copies
        if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
            # ``self.forward = self.forward_fast`` in a constructor
            return types.MethodType(value.__func__, self.copy_value(value.__self__))
        return copy.copy(value) if isinstance(value, set) else value


def slots(kind: type) -> list[str]:
    """Return the names of attributes that a class stores in ``__slots__``."""
    names: list[str] = []
    for cls in kind.__mro__:
        own = vars(cls).get("__slots__", ())
        for name in (own,) if isinstance(own, str) else own:
            if name not in ("__dict__", "__weakref__"):
                private = name.startswith("__") and not name.endswith("__")
                names.append(f"_{cls.__name__.lstrip('_')}{name}" if private else name)
    return names


def patched_methods(module: nn.Module) -> list[str]:
    """Return the names of methods that the instance overrides, as in ``m.forward = ...``.

    Manual patches and libraries (accelerate's hooks) do this. Code that replaces the module or
    reads its parameters does not run such methods.
    """
    kind = type(module)
    found = (
        key for key, value in module.__dict__.items() if callable(value) and _is_method(kind, key)
    )
    return [key for key in found if key != "extra_repr"]


def chooses_forward(module: nn.Module) -> bool:
    """Whether a module replaces only its ``forward``, by another method of its own class."""
    forward = module.__dict__.get("forward")
    return (
        patched_methods(module) == ["forward"]
        and isinstance(forward, types.MethodType)
        and forward.__self__ is module
        and getattr(type(module), forward.__name__, None) is forward.__func__
    )


def _is_method(kind: type, name: str) -> bool:
    return inspect.isroutine(inspect.getattr_static(kind, name, None))


def unwrapped(model: Any) -> Any:
    """Return the model inside wrappers that do not change its results.

    Removes ``DataParallel``, ``DistributedDataParallel``, ``torch.compile``, ``AveragedModel`` and
    accelerate's mixed precision, which replaces ``forward`` and keeps the original.
    """
    parallel = (
        nn.DataParallel,
        nn.parallel.DistributedDataParallel,
        torch.optim.swa_utils.AveragedModel,
    )
    while True:
        if isinstance(model, parallel):
            model = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        elif isinstance(model, nn.Module) and "_original_forward" in model.__dict__:
            model = _without_accelerate(model)
        else:
            return model


def _without_accelerate(model: nn.Module) -> nn.Module:
    """Return a shallow copy of the model without accelerate's ``forward``."""
    made = object.__new__(type(model))
    made.__dict__.update(model.__dict__)
    original = made.__dict__.pop("_original_forward")
    if getattr(original, "__func__", None) is type(model).forward:
        made.__dict__.pop("forward", None)
    else:
        made.__dict__["forward"] = original
    return made
