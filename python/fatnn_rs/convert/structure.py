"""Nested structures of tensors that models return, and how to rebuild them with other leaves.

Tuples, lists and dicts are plain. Every other container is a :class:`Container`, which can rebuild
it: named tuples, ordered dicts, dataclasses, and classes registered with torch's pytree (such as
Hugging Face's ``ModelOutput``).
"""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

__all__ = [
    "Container",
    "fill",
    "filled",
    "leaves",
    "ordered_dict",
    "plain",
    "refilled",
    "same_values",
]


@dataclass(frozen=True)
class Container:
    """A container other than a plain tuple, list or dict.

    Attributes
    ----------
    kind
        Its class.
    keys
        Names of its items: fields of a dataclass, keys of a dict; None if they have none.
    items
        Its items in order.
    build
        Makes a container of the class from items.
    """

    kind: type
    keys: tuple[Any, ...] | None
    items: tuple[Any, ...]
    build: Callable[[list[Any]], Any]

    def with_items(self, items: list[Any]) -> Container:
        """Return the same container around other items."""
        return Container(self.kind, self.keys, tuple(items), self.build)


@dataclass(frozen=True)
class _Named:
    """Builds named tuples."""

    kind: Any

    def __call__(self, items: list[Any]) -> Any:
        return self.kind(*items)


@dataclass(frozen=True)
class _Dict:
    """Builds dicts of subclasses of ``dict``: copies one and replaces its values."""

    empty: Any
    keys: tuple[Any, ...]

    def __call__(self, items: list[Any]) -> Any:
        made = copy.copy(self.empty)
        for key, item in zip(self.keys, items, strict=True):
            made[key] = item
        return made


@dataclass(frozen=True)
class _Dataclass:
    """Builds dataclasses without calling their constructor, which may compute."""

    kind: Any
    keys: tuple[str, ...]

    def __call__(self, items: list[Any]) -> Any:
        made = object.__new__(self.kind)
        for key, item in zip(self.keys, items, strict=True):
            object.__setattr__(made, key, item)
        return made


@dataclass(frozen=True)
class _Registered:
    """Builds instances of classes registered with torch's pytree."""

    kind: Any
    context: Any

    def __call__(self, items: list[Any]) -> Any:
        return pytree.SUPPORTED_NODES[self.kind].unflatten_fn(items, self.context)


def plain(value: Any) -> Any:
    """Return a value with its containers as tuples, lists, dicts and :class:`Container`.

    The list and dict subclasses of torch.fx become plain: tracing made them, not the model.
    """
    kind = type(value)
    if kind in pytree.SUPPORTED_NODES and kind not in (tuple, list, dict) and not _is_fx(kind):
        # Named tuples and ordered dicts are registered too; the code below handles them all.
        if isinstance(value, OrderedDict) and kind is OrderedDict:
            return _of_dict(value)
        node = pytree.SUPPORTED_NODES[kind]
        items, context = node.flatten_fn(value)
        keys = tuple(value) if isinstance(value, dict) else None
        return Container(kind, keys, tuple(map(plain, items)), _Registered(kind, context))
    if isinstance(value, tuple):
        items = [plain(item) for item in value]
        return (
            Container(kind, value._fields, tuple(items), _Named(kind))
            if hasattr(value, "_fields")
            else tuple(items)
        )
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        if kind is dict or _is_fx(kind):
            return {key: plain(item) for key, item in value.items()}
        return _of_dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        keys = tuple(f.name for f in dataclasses.fields(value))
        return Container(
            kind, keys, tuple(plain(getattr(value, key)) for key in keys), _Dataclass(kind, keys)
        )
    # torch.fx turns a returned named tuple or dataclass into a call of its constructor.
    target = value.target if isinstance(value, fx.Node) else None
    if isinstance(target, type) and (
        dataclasses.is_dataclass(target) or hasattr(target, "_fields")
    ):
        return tuple(map(plain, (*value.args, *value.kwargs.values())))
    return value


def _is_fx(kind: type) -> bool:
    return kind.__module__.startswith("torch.fx")


def _of_dict(value: Any) -> Container:
    keys, empty = tuple(value), copy.copy(value)
    for key in keys:
        empty[key] = None
    return Container(
        type(value), keys, tuple(plain(value[key]) for key in keys), _Dict(empty, keys)
    )


def ordered_dict(items: dict[str, Any]) -> Container:
    """Return an ordered dict whose items are already structures made by :func:`plain`."""
    keys = tuple(items)
    empty = OrderedDict.fromkeys(keys)
    return Container(OrderedDict, keys, tuple(items.values()), _Dict(empty, keys))


def leaves(structure: Any) -> Iterator[Any]:
    """Yield the leaves of a structure made by :func:`plain`, in order."""
    if isinstance(structure, Container):
        for item in structure.items:
            yield from leaves(item)
    elif isinstance(structure, dict):
        for item in structure.values():
            yield from leaves(item)
    elif type(structure) in (tuple, list):
        for item in structure:
            yield from leaves(item)
    else:
        yield structure


def fill(structure: Any, function: Callable[[Any], Any], build: bool = False) -> Any:
    """Replace every leaf of a structure made by :func:`plain`; ``build`` also builds containers."""
    if isinstance(structure, Container):
        items = [fill(item, function, build) for item in structure.items]
        return structure.build(items) if build else structure.with_items(items)
    if isinstance(structure, dict):
        return {key: fill(item, function, build) for key, item in structure.items()}
    if type(structure) in (tuple, list):
        return type(structure)(fill(item, function, build) for item in structure)
    return function(structure)


def filled(value: Any, flat: Sequence[Any]) -> Any:
    """Return the structure of ``value`` with the leaves in ``flat``, in order."""
    made = iter(flat)
    return fill(plain(value), lambda leaf: next(made))


def refilled(value: Any, other: Any) -> Any:
    """Return the structure of ``value`` with the leaves of ``other``.

    Containers of ``other`` may have other classes. A leaf of ``other`` in the place of a container
    replaces the whole container.
    """
    return _refilled(plain(value), plain(other))


def _refilled(structure: Any, other: Any) -> Any:
    if isinstance(other, fx.Node):
        return other
    items = iter(_items(other))
    if isinstance(structure, Container):
        return structure.with_items([_refilled(item, next(items)) for item in structure.items])
    if isinstance(structure, dict):
        return {key: _refilled(item, next(items)) for key, item in structure.items()}
    if type(structure) in (tuple, list):
        return type(structure)([_refilled(item, next(items)) for item in structure])
    return other


def _items(structure: Any) -> list[Any]:
    if isinstance(structure, Container):
        return list(structure.items)
    if isinstance(structure, dict):
        return list(structure.values())
    return list(structure) if type(structure) in (tuple, list) else []


def same_values(left: Any, right: Any, tolerance: float = 0.0) -> str:
    """Describe how two values differ; empty if they are equal bit for bit (all NaNs are equal).

    With ``tolerance``, floats may differ by that fraction of the tensor's largest magnitude.
    """
    left, right = plain(left), plain(right)
    if _shape_of(left) != _shape_of(right):
        return "its structure differs"
    for place, (one, other) in enumerate(zip(leaves(left), leaves(right), strict=True)):
        if isinstance(one, Tensor) != isinstance(other, Tensor):
            return f"value {place} is a tensor on one side only"
        problem = (
            _tensors_differ(one, other, tolerance)
            if isinstance(one, Tensor)
            else _objects_differ(one, other)
        )
        if problem:
            return f"value {place} {problem}"
    return ""


def _objects_differ(one: Any, other: Any) -> str:
    try:
        equal = type(one) is type(other) and (
            one is other or bool(one == other) or (one != one and other != other)
        )
    except Exception:  # a foreign class's comparison may raise anything
        equal = False
    return "" if equal else f"is {one!r} on one side, {other!r} on the other"


def _tensors_differ(one: Tensor, other: Tensor, tolerance: float) -> str:
    if one.shape != other.shape or one.dtype != other.dtype:
        return (
            f"is {one.dtype} {list(one.shape)} on one side, {other.dtype} {list(other.shape)} on "
            "the other"
        )
    if one.layout != other.layout or one.device != other.device:
        return "has a different layout or device"
    if one.is_sparse or one.is_quantized:
        one, other = (t.to_dense() if t.is_sparse else t.dequantize() for t in (one, other))
    different = (one != other) & ~((one != one) & (other != other))
    if tolerance and one.is_floating_point() and one.numel():
        largest = other.abs().nan_to_num(0.0, 0.0, 0.0).max()
        different &= ~((one - other).abs() <= tolerance * largest)
    count = int(different.sum())
    return f"differs in {count} of {one.numel()} elements" if count else ""


def _shape_of(structure: Any) -> Any:
    """Return the nesting, classes and keys of a structure, without its leaves."""
    if isinstance(structure, Container):
        return (structure.kind, structure.keys, tuple(map(_shape_of, structure.items)))
    if isinstance(structure, dict):
        return (dict, tuple(structure), tuple(map(_shape_of, structure.values())))
    if type(structure) in (tuple, list):
        return (type(structure), tuple(map(_shape_of, structure)))
    return None
