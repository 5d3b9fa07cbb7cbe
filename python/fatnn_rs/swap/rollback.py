"""Leave a model and all random number generators unchanged if ``prepare`` fails."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fatnn_rs.contained import named_modules

__all__ = ["preserve_rng_state", "restore_on_error"]

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_load_state_dict_post_hooks",
    "_load_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_parameters",
    "_buffers",
    "_modules",
)


@contextmanager
def restore_on_error(model: nn.Module) -> Iterator[list[Callable[[], None]]]:
    """Restore a model if the body raises anything, ``KeyboardInterrupt`` included.

    Modules' attributes, children, classes, hooks and buffers are restored.

    Yields
    ------
    list of callable
        The body adds functions that undo other changes. They are called in order.
    """
    undo: list[Callable[[], None]] = []
    modules = [module for _, module in named_modules(model)]
    kinds = [(module, type(module)) for module in modules]
    scripted = torch.jit.ScriptModule
    own = [vars(module) for module in modules if not isinstance(module, scripted)]
    held = [(store, dict(store)) for store in own]
    held += [
        (store[name], dict(store[name]))
        for store in own
        for name in _HOOKS
        if isinstance(store.get(name), dict)
    ]
    tensors = (
        {
            id(t): t
            for m in modules
            for t in (*m._parameters.values(), *m._buffers.values())
            if isinstance(t, Tensor)
        }
        if modules
        else {}
    )
    lazy: list[Any] = [(t, type(t)) for t in tensors.values() if nn.parameter.is_lazy(t)]
    buffers = [
        (t, t.detach().clone())
        for t in {id(b): b for b in model.buffers()}.values()
        if not nn.parameter.is_lazy(t) and not t.is_meta
    ]
    try:
        yield undo
    except BaseException:
        for step in undo:
            step()
        for module, kind in kinds:
            if type(module) is not kind:
                module.__class__ = kind
        for store, before in held:
            if len(store) != len(before) or any(
                store.get(key, undo) is not value for key, value in before.items()
            ):
                store.clear()
                store.update(before)
        for one, lazy_kind in lazy:
            if type(one) is not lazy_kind:
                one.data = torch.empty(0, dtype=one.dtype, device=one.device)
                one.__class__ = lazy_kind
        with torch.no_grad():
            for tensor, value in buffers:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
        raise


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restore the random number generators of torch, NumPy and Python after the body."""
    state = torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda._initialized else []
    python = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    arrays = None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if devices:
            torch.cuda.set_rng_state_all(devices)
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(arrays)
