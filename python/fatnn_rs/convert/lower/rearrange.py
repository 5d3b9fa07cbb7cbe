"""Calls that change a tensor's shape or the order of its dimensions.

A size that forward computes is replaced by its value for the example, and the network then accepts
only inputs of the example's sizes. Only the batch size is dynamic: forward may read it from
dimension 0 of a tensor and use it for dimension 0 of a new shape.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.lower.lowering import Lowering, Row
from fatnn_rs.convert.lower.spatial import fix_all_sizes, sizes_of

__all__ = ["FUNCTIONS", "METHODS"]


def batch_source(ctx: Lowering, value: Any) -> fx.Node | None:
    """Return the tensor whose batch size an argument reads, or None."""
    if isinstance(value, _BatchSize):
        return value.source
    if not isinstance(value, fx.Node):
        return None
    args: tuple[Any, ...] = value.args
    if value.target in ("size", torch.ops.aten.sym_size.int):
        return args[0] if len(args) == 2 and args[1] == 0 else None
    if value.target is operator.getitem and args[1:] == (0,) and isinstance(args[0], fx.Node):
        whole = args[0]
        rest: tuple[Any, ...] = whole.args[1:]
        if (whole.target == "size" and not rest) or (
            whole.target is getattr and rest == ("shape",)
        ):
            source: Any = whole.args[0]
            return source if isinstance(source, fx.Node) else None
    return None


def _number(ctx: Lowering, value: Any) -> int | None:
    """Return an integer; a computed one as it was for the example. None for anything else."""
    if isinstance(value, _BatchSize):
        return value.size
    if isinstance(value, fx.Node):
        value = ctx.seen(value).value
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _fix_computed(ctx: Lowering, value: Any, with_batch: bool = True) -> None:
    """Fix the sizes from which forward computed a number, the batch too if ``with_batch``."""
    if isinstance(value, _BatchSize):
        value = value.source
    if not isinstance(value, fx.Node):
        return
    source, dims = sizes_of(ctx, value) or (None, ())
    if source is not None and (name := ctx.plain(source)) is not None:
        for dim in dims:
            ctx.fix_sizes(name, dim, with_batch=with_batch)
    elif ctx.seen(value).dtype is None:  # no tensor
        for read in value.all_input_nodes:
            _fix_computed(ctx, read, with_batch)
    elif (name := ctx.plain(value)) is not None:
        ctx.fix_sizes(name)
        ctx.fix_sizes(name, 0, with_batch=with_batch)
    else:
        fix_all_sizes(ctx)


def _fix_batch(ctx: Lowering, input: Any, size: Any) -> None:
    """Require that dimension 0 of ``input`` is the batch size that forward reads."""
    source, name = batch_source(ctx, size), ctx.plain(input)
    like = None if source is None else ctx.plain(source)
    if name is not None and source is not input:
        ctx.fix_sizes(name, 0, like or "")


@dataclass(frozen=True)
class _BatchSize:
    """The batch size of a tensor, as one entry of a ``shape`` that forward reads."""

    source: fx.Node
    size: int


def _shape_entries(ctx: Lowering, value: Any) -> list[Any] | None:
    """Return the sizes of a computed shape: parts of shapes of tensors, joined; None if unknown."""
    if isinstance(value, (tuple, list)):
        return list(value)
    if not isinstance(value, fx.Node):
        return None
    args: tuple[Any, ...] = value.args
    if value.target is operator.add and len(args) == 2:
        a, b = (_shape_entries(ctx, arg) for arg in args)
        return None if a is None or b is None else a + b
    if value.target is operator.getitem and isinstance(args[1], slice):
        whole = _shape_entries(ctx, args[0])
        ends = (args[1].start, args[1].stop, args[1].step)
        plain = all(end is None or isinstance(end, int) for end in ends)
        return whole[args[1]] if whole is not None and plain else None
    shape = value.target == "size" and len(args) == 1 and not value.kwargs
    if not (shape or (value.target is getattr and args[1:] == ("shape",))):
        return None
    source, name = args[0], ctx.plain(args[0])
    if name is None or not ctx.shape(source):
        return None
    first, *rest = ctx.shape(source)
    if rest:
        ctx.fix_sizes(name)
    return [_BatchSize(source, first), *rest]


def _computed_sizes(ctx: Lowering, shape: tuple[Any, ...]) -> list[Any]:
    """Return the sizes that a call names one by one or as a shape."""
    entries = _shape_entries(ctx, shape[0]) if len(shape) == 1 else None
    return list(shape) if entries is None else entries


def _sizes(shape: tuple[Any, ...]) -> list[Any]:
    return (
        list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else list(shape)
    )


def reshape(ctx: Lowering, input: Any, *shape: Any) -> Ref | None:
    """``view`` and ``reshape`` to sizes that are numbers, -1, or computed."""
    name, source = ctx.plain(input), ctx.shape(input)
    sizes = _computed_sizes(ctx, shape)
    if name is None or not sizes or any(_number(ctx, size) is None for size in sizes):
        return None
    literal = [size if isinstance(size, int) else None for size in sizes]
    computed = not isinstance(sizes[0], int) and not (
        batch_source(ctx, sizes[0]) is not None and source and _number(ctx, sizes[0]) == source[0]
    )
    if -1 in literal[1:] and computed:
        # The size of dimension 0 may be a multiple of the batch. It becomes the -1, and the former
        # -1 becomes its value for the example.
        at = literal.index(-1)
        sizes[at] = literal[at] = ctx.shape(ctx.node)[at]
        ctx.fix_sizes(name)
        ctx.fix_sizes(name, 0)
        _fix_computed(ctx, sizes[0], with_batch=False)
    if 0 in literal or 0 in source:
        return None
    entries: list[int] = []
    for i, size in enumerate(sizes):
        if isinstance(size, int):
            entries.append(size)
        elif i == 0 and -1 not in literal:
            entries.append(-1)
        elif (
            i == 0
            and batch_source(ctx, size) is not None
            and source
            and _number(ctx, size) == source[0]
        ):
            entries.append(0)
            _fix_batch(ctx, input, size)
        else:
            number = _number(ctx, size)
            assert number is not None
            entries.append(number)
            ctx.fix_sizes(name)
            _fix_computed(ctx, size)
    if -1 in entries[1:] and entries[0] > 0 and not isinstance(sizes[0], int):
        return None
    if list(ctx.shape(ctx.node)) == list(source) and entries[0] in (-1, 0):
        for dim, size in enumerate(entries):
            if size > 0:
                ctx.fix_sizes(name, dim, with_batch=True)
        return Ref(name)
    return ctx.emit("reshape", [name], {"shape": entries})


def view(ctx: Lowering, input: Any, *shape: Any) -> Ref | None:
    """Flatten for ``x.view(x.size(0), -1)`` and its variants; otherwise :func:`reshape`."""
    name, source = ctx.plain(input), ctx.shape(input)
    size = _computed_sizes(ctx, shape)
    if name is None or len(size) != 2 or len(source) < 2:
        return reshape(ctx, input, *shape)
    features = math.prod(source[1:])
    batch, rest = size
    if rest != -1 and rest != features and ctx.seen(rest).value != features:
        return reshape(ctx, input, *shape)
    own = batch_source(ctx, batch) is not None and _number(ctx, batch) == source[0]
    if not (own or (batch == -1 and rest == features)):
        return reshape(ctx, input, *shape)
    if own:
        _fix_batch(ctx, input, batch)
    if rest != -1 and isinstance(rest, int):
        ctx.fix_sizes(name)
    return Ref(name) if len(source) == 2 else ctx.emit("flatten", [name], {"start": 1, "end": -1})


def view_as(ctx: Lowering, input: Any, other: Any) -> Ref | None:
    """``x.view_as(y)``; if the last dimensions differ, sizes are fixed to those of the example."""
    name, like = ctx.plain(input), ctx.plain(other)
    source, wanted = ctx.shape(input), ctx.shape(other)
    if name is None or like is None:
        return None
    if source == wanted:
        for dim in range(len(source)):
            ctx.fix_sizes(name, dim, like, with_batch=dim > 0)
        return Ref(name)
    if not source or not wanted or 0 in source:
        return None
    if source[-1] != wanted[-1]:
        for value in (name, like):
            ctx.fix_sizes(value)
            ctx.fix_sizes(value, 0)
        return ctx.emit("reshape", [name], {"shape": [-1, *wanted[1:]]})
    return ctx.emit("reshape_like", [name, like])


def unflatten(ctx: Lowering, input: Any, dim: Any, sizes: Any) -> Ref | None:
    """Split the last dimension into several."""
    name, rank = ctx.plain(input), len(ctx.shape(input))
    if (
        name is None
        or not isinstance(dim, int)
        or not rank
        or dim % rank != rank - 1
        or 0 in ctx.shape(input)
    ):
        return None
    if not isinstance(sizes, (tuple, list)) or not all(
        isinstance(size, int) and size != 0 for size in sizes
    ):
        return None
    return ctx.emit("reshape", [name], {"shape": [0] * (rank - 1) + list(sizes)})


def permute(ctx: Lowering, input: Any, *dims: Any) -> Ref | None:
    """Permute dimensions."""
    name, rank = ctx.plain(input), len(ctx.shape(input))
    order = _sizes(dims)
    if name is None or len(order) != rank or not all(isinstance(dim, int) for dim in order):
        return None
    order = [dim % max(rank, 1) for dim in order]
    return Ref(name) if order == list(range(rank)) else ctx.emit("permute", [name], {"dims": order})


def transpose(ctx: Lowering, input: Any, dim0: Any, dim1: Any) -> Ref | None:
    """Swap two dimensions."""
    rank = len(ctx.shape(input))
    if not rank or not isinstance(dim0, int) or not isinstance(dim1, int):
        return None
    order = list(range(rank))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(ctx, input, order)


def transpose_2d(ctx: Lowering, input: Any) -> Ref | None:
    """``x.t()`` of a matrix."""
    return transpose(ctx, input, 0, 1) if len(ctx.shape(input)) == 2 else None


def movedim(ctx: Lowering, input: Any, source: Any, destination: Any) -> Ref | None:
    """Move one dimension."""
    rank = len(ctx.shape(input))
    if not isinstance(source, int) or not isinstance(destination, int) or not rank:
        return None
    order = [dim for dim in range(rank) if dim != source % rank]
    order.insert(destination % rank, source % rank)
    return permute(ctx, input, order)


def squeeze(ctx: Lowering, input: Any, dim: Any = None) -> Ref | None:
    """Remove a dimension of size 1.

    Without ``dim``, the removed dimensions depend on sizes, so the call stays in torch.
    """
    name, source = ctx.plain(input), ctx.shape(input)
    if (
        name is None
        or not isinstance(dim, int)
        or not source
        or source[dim] != 1
        or dim % len(source) == 0
    ):
        return None
    return ctx.emit("squeeze", [name], {"dim": dim % len(source)})


def unsqueeze(ctx: Lowering, input: Any, dim: Any) -> Ref | None:
    """Add a dimension of size 1."""
    name, rank = ctx.plain(input), len(ctx.shape(input))
    if name is None or not isinstance(dim, int):
        return None
    return ctx.emit("unsqueeze", [name], {"dim": dim % (rank + 1)})


def expand(ctx: Lowering, input: Any, *sizes: Any) -> Ref | None:
    """Repeat dimensions of size 1."""
    name, source, wanted = ctx.plain(input), ctx.shape(input), _computed_sizes(ctx, sizes)
    if name is None or any(_number(ctx, size) is None for size in wanted):
        return None
    inputs, entries = [name], []
    for i, size in enumerate(wanted):
        like = batch_source(ctx, size) if i == 0 else None
        other = ctx.plain(like) if like is not None else None
        if isinstance(size, int):
            entries.append(size)
        elif other is not None:
            entries.append(-2)
            inputs.append(other)
        else:
            number = _number(ctx, size)
            assert number is not None
            entries.append(number)
            _fix_computed(ctx, size)
    if all(size == -1 for size in entries) and len(entries) == len(source):
        return Ref(name)
    return ctx.emit("expand", inputs, {"shape": entries})


def repeat(ctx: Lowering, input: Any, *sizes: Any) -> Ref | None:
    """``x.repeat(batch, 1, ...)`` of one sample; other repetitions are compositions."""
    counts, shape = _sizes(sizes), ctx.shape(input)
    name = ctx.plain(input)
    like = batch_source(ctx, counts[0]) if counts else None
    other = ctx.plain(like) if like is not None else None
    if name is None or other is None or len(counts) != len(shape) or shape[0] != 1:
        return None
    if any(size != 1 for size in counts[1:]):
        return None
    return ctx.emit("expand", [name, other], {"shape": [-2] + [-1] * (len(shape) - 1)})


def attribute(ctx: Lowering, input: Any, name: Any) -> Ref | None:
    """``x.T`` and ``x.mT``."""
    if name == "mT" or (name == "T" and len(ctx.shape(input)) == 2):
        return transpose(ctx, input, -1, -2) if len(ctx.shape(input)) >= 2 else None
    return None


_aten = torch.ops.aten


#: Functions and operators → row.
FUNCTIONS: dict[Any, Row] = {
    torch.reshape: view,
    torch.permute: permute,
    torch.unflatten: unflatten,
    _aten.unflatten.int: unflatten,
    torch.transpose: transpose,
    torch.swapaxes: transpose,
    torch.swapdims: transpose,
    torch.movedim: movedim,
    torch.t: transpose_2d,
    torch.squeeze: squeeze,
    torch.unsqueeze: unsqueeze,
    getattr: attribute,
    _aten.view.default: view,
    _aten.reshape.default: view,
    _aten._unsafe_view.default: view,
    _aten.permute.default: permute,
    _aten.transpose.int: transpose,
    _aten.t.default: transpose_2d,
    _aten.squeeze.dim: squeeze,
    _aten.unsqueeze.default: unsqueeze,
    _aten.expand.default: expand,
    _aten.repeat.default: repeat,
}


#: Tensor methods → row.
METHODS: dict[str, Row] = {
    "view": view,
    "reshape": view,
    "view_as": view_as,
    "reshape_as": view_as,
    "permute": permute,
    "unflatten": unflatten,
    "transpose": transpose,
    "swapaxes": transpose,
    "swapdims": transpose,
    "movedim": movedim,
    "t": transpose_2d,
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    "expand": expand,
    "repeat": repeat,
}
