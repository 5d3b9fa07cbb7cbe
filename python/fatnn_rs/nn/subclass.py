"""Quantized layers for subclasses of torch's layers, and for parametrized layers.

If a subclass of ``nn.Conv2d`` keeps torch's forward, its layers change to a class that inherits
from ``TernaryConv2d`` and from that subclass. If it has its own forward (timm's ``Conv2dSame`` pads
by the size of the input, ``ScaledStdConv2d`` computes the weight), that forward still runs, but the
quantized product replaces its call of ``functional.conv2d`` with the layer's weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from fatnn_rs.errors import ConfigError
from fatnn_rs.nn.base import QuantizedLayer
from fatnn_rs.nn.int8 import Int8Layer
from fatnn_rs.nn.layers import TernaryLayer
from fatnn_rs.nn.products import Call, CatchProducts
from fatnn_rs.replica import slots

__all__ = [
    "ClassOfTwo",
    "OwnForward",
    "OwnForwardInt8",
    "OwnForwardTernary",
    "class_of_two",
    "first_call",
    "quantized_class",
    "trace_own_forward",
    "weight_shape",
    "why_not",
]

#: A layer runs torch's own forward if its class overrides none of these.
_FORWARD = ("forward", "_conv_forward", "__call__", "_call_impl", "_wrapped_call_impl")


class ClassOfTwo:
    """Base of classes that :func:`class_of_two` makes at run time; their objects can be pickled.

    Attributes
    ----------
    made_of : tuple of type
        The quantized class and the float class.
    """

    made_of: tuple[type, type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        if "__getstate__" in vars(type(self)):  # parametrized modules cannot be pickled
            return super().__reduce_ex__(protocol)
        kept = {name: getattr(self, name) for name in slots(type(self)) if hasattr(self, name)}
        return _new, type(self).made_of, (dict(vars(self)), kept)

    def __setstate__(self, state: Any) -> None:
        """Restore the attributes of ``__dict__`` and those in slots."""
        attributes, kept = state
        super().__setstate__(attributes)  # type: ignore[misc]
        for name, value in kept.items():
            setattr(self, name, value)


_CLASSES: dict[tuple[type, type], type] = {}


def class_of_two(front: type, kind: type, name: str) -> Any:
    """Return the class that inherits from ``front``, then from ``kind``; one per pair.

    Raises
    ------
    ConfigError
        If Python cannot make such a class.
    """
    made = _CLASSES.get((front, kind))
    if made is None:
        own = {"made_of": (front, kind), "__module__": kind.__module__, "__doc__": kind.__doc__}
        try:
            made = _CLASSES[front, kind] = type(name, (front, ClassOfTwo, kind), own)
        except TypeError as error:
            raise ConfigError(
                f"{kind.__name__} cannot become a quantized layer ({error}); leave it float with "
                "TernaryConfig(skip=...)"
            ) from error
    return made


def _new(front: type, kind: type) -> Any:
    """Make an empty object of ``class_of_two(front, kind)``, for pickle."""
    name = f"{front.__name__}{kind.__name__}"
    return object.__new__(class_of_two(front, kind, name))


class OwnForward(QuantizedLayer):
    """A layer that runs the forward of its float class, but quantizes the product in it."""

    made_of: tuple[type, Any]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the float class's forward, with its arguments and results."""
        taken = False

        def take(call: Call) -> Tensor | None:
            nonlocal taken
            if taken or not self._is_own(call):
                return None
            taken = True
            y = self._run(call.product, call.x, call.dims, False, call.weight)
            return y if call.bias is None else y + call.bias.view(-1, *([1] * call.dims))

        with CatchProducts(take):
            return self._float_forward(*args, **kwargs)

    def _float_forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.made_of[1].forward(self, *args, **kwargs)

    def _is_own(self, call: Call) -> bool:
        """Whether a product is the layer's, by the kind of call and the shape of the weight."""
        return call.dims == _dims(self) and call.weight.shape == self._shape()

    def _shape(self) -> torch.Size:
        """Return the shape of the weight without computing the weight."""
        return weight_shape(self)

    def _weight(self) -> Tensor:
        call = first_call(self, self._float_forward)
        if call is None:
            raise ConfigError(f"layer {self.layer_name!r}: {_no_product(self.made_of[1])}")
        return call.weight


class OwnForwardTernary(OwnForward, TernaryLayer):
    """Ternary layer with its float class's forward."""


class OwnForwardInt8(OwnForward, Int8Layer):
    """Int8 layer with its float class's forward."""


def _dims(module: nn.Module) -> int:
    return 2 if isinstance(module, nn.Conv2d) else int(isinstance(module, nn.Conv1d))


def weight_shape(module: Any) -> torch.Size:
    """Return the shape of a layer's weight from its numbers of channels or features.

    Returns
    -------
    torch.Size
        [out, in / groups, ...] for a convolution, [out, in] for a linear layer.
    """
    if _dims(module):
        inner = module.in_channels // module.groups
        return torch.Size((module.out_channels, inner, *module.kernel_size))
    return torch.Size((module.out_features, module.in_features))


class _ProductReachedError(BaseException):
    """Ends a run at the product. An ``except Exception`` in the model does not catch it."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


@torch.no_grad()
def first_call(module: Any, forward: Any) -> Call | None:
    """Run a layer's own forward on zeros up to its product; None if there is no product."""
    dims, shape = _dims(module), weight_shape(module)
    given = next(module.parameters(), torch.empty(0, dtype=torch.float32))
    size = [module.in_channels, *_kernel_extent(module)] if dims else [module.in_features]
    x = torch.zeros((1, *size), dtype=given.dtype, device=given.device)

    def take(call: Call) -> None:
        if call.dims == dims and call.weight.shape == shape:
            raise _ProductReachedError(call)

    try:
        with CatchProducts(take):
            forward(x)
    except _ProductReachedError as found:
        return found.call
    except Exception:  # the layer's own code may, for example, need more arguments
        return None
    return None


@torch.no_grad()
def trace_own_forward(layer: Any, shape: tuple[int, ...]) -> tuple[Call, list[int] | None] | None:
    """Run a layer's own forward, to check whether it only pads and multiplies.

    Parameters
    ----------
    layer
        A layer with its own forward.
    shape
        Shape of its input.

    Returns
    -------
    tuple or None
        The call of the product, and the zeros around the input in the format of ``functional.pad``
        (None without padding). The whole result is None if the forward computes anything else.
    """
    given = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 1.0
    calls: list[Call] = []
    results: list[Tensor] = []

    def take(call: Call) -> Tensor | None:
        if not layer._is_own(call):
            return None
        result = call.product(call.x, call.weight)
        result = result if call.bias is None else result + call.bias.view(-1, *([1] * call.dims))
        calls.append(call)
        results.append(result)
        return result

    with CatchProducts(take):
        returned = layer._float_forward(given)
    if len(calls) != 1 or returned is not results[0]:
        return None
    (call,) = calls
    if call.x is given:
        return call, None
    pad = _zeros_around(given, call.x, call.dims)
    return None if pad is None else (call, pad)


def _zeros_around(x: Tensor, padded: Tensor, dims: int) -> list[int] | None:
    """Find how ``x``, which holds no zeros, was padded; None if ``padded`` is not ``x`` padded."""
    if not dims or x.dim() != padded.dim() or x.shape[:2] != padded.shape[:2]:
        return None
    pad: list[int] = []
    for axis in reversed(range(2, x.dim())):
        others = [other for other in range(x.dim()) if other != axis]
        places = (padded != 0).any(others[0], keepdim=True)
        for other in others[1:]:
            places = places.any(other, keepdim=True)
        inside = places.flatten().nonzero().flatten()
        before = int(inside[0])
        pad += [before, padded.shape[axis] - before - x.shape[axis]]
    if min(pad) < 0:
        return None
    return pad if torch.equal(functional.pad(x, pad), padded) else None


def _kernel_extent(module: Any) -> list[int]:
    pairs = zip(module.kernel_size, module.dilation, strict=True)
    return [(kernel - 1) * dilation + 1 for kernel, dilation in pairs]


def _no_product(kind: type) -> str:
    return (
        f"the forward of {kind.__name__} makes no functional.linear, conv1d or conv2d with a "
        "weight of the layer's shape"
    )


def _is_own_forward(kind: type, known: type) -> bool:
    return any(getattr(kind, name, None) is not getattr(known, name, None) for name in _FORWARD)


def why_not(module: nn.Module, known: type[nn.Module]) -> str:
    """Return why a layer of a subclass of ``known`` cannot be quantized; empty if it can."""
    kind = _plain_class(module)
    if not _is_own_forward(kind, known):
        return ""
    if any(getattr(kind, name) is not getattr(known, name) for name in _FORWARD[2:]):
        return f"{kind.__name__} has a __call__ of its own"
    try:
        call = first_call(module, module.forward)
    except AttributeError:  # it lacks an attribute of torch's layers
        call = None
    return "" if call is not None else _no_product(kind)


def _plain_class(module: nn.Module) -> type:
    """Return the class that a layer has without parametrizations."""
    kind = type(module)
    return kind.__bases__[0] if parametrize.is_parametrized(module) else kind


def quantized_class(cls: Any, module: nn.Module, known: type[nn.Module]) -> Any:
    """Return the quantized class for a layer.

    This is ``cls`` if the layer's class is ``known``, else a class that also inherits from the
    layer's class. If the layer is parametrized, so is the result.

    Parameters
    ----------
    cls
        The quantized class of ``known``.
    module
        The float layer.
    known
        torch's class of such layers, for example ``nn.Conv2d``.

    Raises
    ------
    ConfigError
        If the layer's own forward cannot be quantized.
    """
    kind = _plain_class(module)
    if kind is known:
        made = cls
    elif _is_own_forward(kind, known):
        if reason := why_not(module, known):
            raise ConfigError(f"{cls.__name__}.from_float: {reason}; leave the layer float")
        front, prefix = (
            (OwnForwardTernary, "Ternary")
            if issubclass(cls, TernaryLayer)
            else (OwnForwardInt8, "Int8")
        )
        made = class_of_two(front, kind, f"{prefix}{kind.__name__}")
    else:
        prefix = cls.__name__.removesuffix(known.__name__)
        made = class_of_two(cls, kind, f"{prefix}{kind.__name__}")
    if kind is not type(module):
        # Make it as torch.nn.utils.parametrize does, so that remove_parametrizations works.
        left_out = ("__module__", "__dict__", "__weakref__", "__doc__")
        own = {key: value for key, value in vars(type(module)).items() if key not in left_out}
        made = type(f"Parametrized{made.__name__}", (made,), own)
    return made
