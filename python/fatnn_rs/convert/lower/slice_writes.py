"""Writes into parts of a tensor, as functions: the parts around the new one are joined with it.

``y[:, :4] = 0`` becomes ``cat([zeros, y[:, 4:]], 1)``. The parts must be slices with step 1 or
single indices, of any depth.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fatnn_rs.convert.lower.calls import Method
from fatnn_rs.convert.lower.composed_moves import along
from fatnn_rs.convert.mutation import Rewritten, first, is_slot

__all__ = ["without_writes"]

_aten = torch.ops.aten


@dataclass(frozen=True)
class _SliceView:
    """A slice or an index of one dimension of a parent value."""

    parent: int
    dim: int
    start: int
    end: int | None
    is_index: bool

    def of(self, x: Any) -> Any:
        """Return the part of a value."""
        part = x[along(self.dim, slice(self.start, self.end))]
        return torch.squeeze(part, self.dim) if self.is_index else part

    def put(self, x: Any, part: Any) -> Any:
        """Return a value with this part replaced."""
        pieces = [torch.unsqueeze(part, self.dim) if self.is_index else part]
        if self.start != 0:
            pieces.insert(0, x[along(self.dim, slice(0, self.start))])
        if self.end is not None:
            pieces.append(x[along(self.dim, slice(self.end, None))])
        return torch.cat(pieces, self.dim)


class _UnsupportedError(Exception):
    """The calls are not those of this module."""


class _Values:
    """Values of a function's slots, and which of them are parts of others."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values
        self.parts: dict[int, _SliceView] = {}

    def add(self, value: Any) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def part(self, parent: int, dim: Any, start: Any, end: Any, is_index: bool) -> int:
        """Add a part of a value."""
        if not all(type(v) is int for v in (dim, start, 0 if end is None else end)) or dim < 0:
            raise _UnsupportedError
        end = None if end is not None and end >= (1 << 31) - 1 else end
        part = _SliceView(parent, dim, start, end, is_index)
        at = self.add(part.of(self.values[parent]))
        self.parts[at] = part
        return at

    def index(self, parent: int, index: Any) -> int:
        """Add the part that an index of slices and integers takes."""
        dim = 0
        for one in index if isinstance(index, tuple) else (index,):
            if isinstance(one, slice) and one.step in (None, 1):
                if one != slice(None):
                    parent = self.part(parent, dim, one.start or 0, one.stop, False)
                dim += 1
            elif type(one) is int:
                parent = self.part(parent, dim, one, one + 1 if one != -1 else None, True)
            else:
                raise _UnsupportedError
        return parent

    def view(self, call: Any, args: Any, kwargs: Any) -> int:
        """Add the result of a call that takes a part of its first argument."""
        source = args[0].index
        if call is first:
            return int(source)
        if kwargs:
            raise _UnsupportedError
        if call is operator.getitem:
            return self.index(source, args[1])
        if call is _aten.slice.Tensor:
            defaults: tuple[Any, ...] = (0, None, None, 1)
            dim, start, end, step = tuple(args[1:]) + defaults[len(args) - 1 :]
            if step != 1:
                raise _UnsupportedError
            return self.part(source, dim, start or 0, end, False)
        if call is _aten.select.int:
            _, dim, at = args
            return self.part(source, dim, at, at + 1 if at != -1 else None, True)
        raise _UnsupportedError

    def write(self, target: int, value: Any) -> None:
        """Replace a value, and what it is a part of, and all other parts."""
        self.values[target] = value
        while target in self.parts:
            part = self.parts[target]
            value = part.put(self.values[part.parent], value)
            target = part.parent
            self.values[target] = value
        for at, part in self.parts.items():
            self.values[at] = part.of(self.values[part.parent])


def _filled(like: Any, value: Any) -> Any:
    return torch.where(like == like, value, value)


def _result(call: Any, x: Any, args: Any, kwargs: Any) -> Any:
    """Return what a call leaves in the value that it writes into."""
    if isinstance(call, Method):
        name = call.name
    elif isinstance(call, torch._ops.OpOverload):
        name = call.overloadpacket.__name__
    else:
        name = f"{getattr(call, '__name__', '')}_" if call in _IN_PLACE else ""
        name = name.removeprefix("i")
    if name in ("copy_", "fill_") and len(args) == 1 and not kwargs:
        return _filled(x, float(args[0]) if isinstance(args[0], (int, float)) else args[0])
    if name == "zero_":
        return _filled(x, 0.0)
    function = getattr(torch, name.removesuffix("_"), None) if name.endswith("_") else None
    if function is None:
        raise _UnsupportedError
    return function(x, *args, **kwargs)


_IN_PLACE = frozenset({operator.iadd, operator.isub, operator.imul, operator.itruediv})


def without_writes(function: Rewritten) -> Callable[..., Any]:
    """Return a composition that gives the results of a function that writes into copies."""

    def composed(*given: Any) -> Any:
        known = _Values(list(given))
        #: Slot of the function → place in ``known``.
        places = list(range(len(given)))

        def resolved(leaf: Any) -> Any:
            return known.values[places[leaf.index]] if is_slot(leaf) else leaf

        for call, args, kwargs in function.steps[:-1]:
            if not args or not is_slot(args[0]):
                return None
            moved = (type(args[0])(places[args[0].index]), *args[1:])
            places.append(known.view(call, moved, kwargs))
        call, args, kwargs = function.steps[-1]
        target = places[args[0].index]
        rest = fx.node.map_aggregate((args[1:], kwargs), resolved)
        if call is operator.setitem:
            index, value = rest[0]
            target = known.index(target, index)
            value = float(value) if isinstance(value, (int, float)) else value
            known.write(target, _filled(known.values[target], value))
        else:
            known.write(target, _result(call, known.values[target], *rest))
        places.append(target)
        return [known.values[places[index]] for index in function.results]

    def quiet(*given: Any) -> Any:
        try:
            return composed(*given)
        except _UnsupportedError:
            return None

    return quiet
