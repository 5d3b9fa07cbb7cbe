"""Calls of torch functions that multiply by a weight, and a mode that intercepts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["Call", "CatchProducts", "product_call"]


class Call(NamedTuple):
    """A call of ``linear``, ``conv1d`` or ``conv2d``.

    Attributes
    ----------
    x, weight, bias
        The operands.
    product
        Runs the same function on another input and weight, without bias.
    dims
        Number of spatial dimensions; 0 for ``linear``.
    geometry
        The other arguments: ``stride``, ``padding``, ``dilation`` and ``groups``.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    product: Callable[[Tensor, Tensor], Tensor]
    dims: int
    geometry: dict[str, Any]


#: Function → number of its spatial dimensions.
_DIMS: dict[Any, int] = {
    functional.linear: 0,
    torch.conv1d: 1,
    torch.conv2d: 2,
}

_GEOMETRY = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def product_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Describe a call of a torch function; None if it is not one of these products."""
    dims = _DIMS.get(function)
    if dims is None:
        return None
    names = ("input", "weight", "bias", *(_GEOMETRY if dims else ()))
    given = dict(zip(names, args, strict=False)) | kwargs
    if "input" not in given or "weight" not in given or not set(given) <= set(names):
        return None
    geometry = {name: given.get(name, default) for name, default in _GEOMETRY.items() if dims}

    def product(x: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = function(x, weight, None, **geometry)
        return result

    return Call(given["input"], given["weight"], given.get("bias"), product, dims, geometry)


class CatchProducts(TorchFunctionMode):
    """Replaces every product by the result of ``take(call)``, unless that is None."""

    def __init__(self, take: Callable[[Call], Any]) -> None:
        super().__init__()
        self._take = take

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DIMS:
            call = product_call(func, args, kwargs or {})
            taken = None if call is None else self._take(call)
            if taken is not None:
                return taken
        return func(*args, **(kwargs or {}))
