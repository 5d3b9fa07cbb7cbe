"""Turn a user's example batch into arguments of the model, or explain how to give one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fatnn_rs.errors import FatnnError, InputError

__all__ = ["as_arguments", "describe", "run_example"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def as_arguments(model: nn.Module, inputs: Any) -> Arguments:
    """Turn example inputs into arguments of the model.

    A tuple or list holds the positional arguments. A mapping whose keys are argument names holds
    the keyword arguments. Anything else is the only argument.

    Raises
    ------
    InputError
        If the inputs cannot be a batch of tensors, or are not the arguments of the model.
    """
    _refuse(inputs)
    args: tuple[Any, ...] = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    kwargs: dict[str, Any] = {}
    signature = _signature(model)
    if isinstance(inputs, Mapping) and all(isinstance(key, str) for key in inputs):
        named = {str(key): value for key, value in inputs.items()}
        if signature is not None and _bind_error(signature, (), named) is None:
            args, kwargs = (), named
    problem = None if signature is None else _bind_error(signature, args, kwargs)
    if problem is not None:
        raise InputError(
            f"example_inputs: {type(model).__name__}.forward{signature} does not take "
            f"{describe(inputs)} ({problem}); give the model's argument, or a tuple of its "
            "positional arguments, without labels"
        )
    return args, kwargs


def run_example(model: nn.Module, inputs: Any) -> None:
    """Call the model with example inputs.

    Raises
    ------
    InputError
        If :func:`as_arguments` raises it, or if the model raises an error (its cause).
    """
    args, kwargs = as_arguments(model, inputs)
    try:
        model(*args, **kwargs)
    except (FatnnError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        places = {str(tensor.device) for tensor in (*model.parameters(), *model.buffers())}
        raise InputError(
            f"example_inputs: {type(model).__name__}, on {' and '.join(sorted(places))}, fails on "
            f"{describe(inputs)} ({type(error).__name__}: {_first_line(error)}); give one batch as "
            "the model takes it: its shape, dtype and device"
        ) from error


def describe(inputs: Any) -> str:
    """Describe an input for messages: its type, and for arrays shape, dtype and device."""
    if isinstance(inputs, Tensor):
        return f"a tensor {list(inputs.shape)} of {inputs.dtype} on {inputs.device}"
    if isinstance(inputs, np.ndarray):
        return f"a NumPy array {list(inputs.shape)} of {inputs.dtype}"
    if type(inputs) in (tuple, list):
        shown = ", ".join(describe(value) for value in inputs[:4]) + (
            ", ..." if len(inputs) > 4 else ""
        )
        return f"a {type(inputs).__name__} of {len(inputs)} ({shown})"
    if isinstance(inputs, Mapping):
        return f"a {type(inputs).__name__} with the keys {', '.join(map(repr, list(inputs)[:8]))}"
    return f"a {type(inputs).__name__}"


def _refuse(inputs: Any) -> None:
    """Raise if ``inputs`` cannot be a batch, and say how to get one from it."""
    if isinstance(inputs, DataLoader):
        way = "give one batch without labels: next(iter(loader))[0], for example"
    elif isinstance(inputs, Dataset):
        way = "give one batch without labels: next(iter(DataLoader(dataset, 64)))[0], for example"
    elif isinstance(inputs, Iterator):
        way = "give one batch of it: next(batches)"
    else:
        leaves = list(_leaves(inputs))
        meta = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_meta]
        if not meta and any(
            isinstance(leaf, Tensor) or not isinstance(leaf, _PLAIN) for leaf in leaves
        ):
            return
        way = (
            "give torch tensors, or a tuple of the model's positional arguments with a tensor in it"
        )
        if meta:
            way = "give a tensor with values: the meta device has none"
        elif any(isinstance(leaf, np.ndarray) for leaf in leaves):
            way = (
                "give torch tensors: torch.from_numpy makes one from an array (.float() if it is "
                "not float32)"
            )
    raise InputError(
        "example_inputs: expected one batch of real data, a tensor or a tuple of the model's "
        f"positional arguments, got {describe(inputs)}; {way}"
    )


#: Types that a model may take in addition to tensors, but that cannot be a batch by themselves.
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, np.ndarray, np.generic)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list, set)):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _signature(model: nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None


def _bind_error(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"
