"""Calls that take parts of a tensor or join tensors: slices, indices, concatenations, rolls."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.lower.composed_moves import consecutive_runs
from fatnn_rs.convert.lower.lowering import Lowering, Row

__all__ = ["FUNCTIONS", "METHODS"]


#: The ``end`` of a slice without an end.
_TO_END = (1 << 31) - 1


def _inner_node(
    ctx: Lowering,
    name: str,
    op: str,
    attrs: dict[str, Any],
    shape: tuple[int, ...],
    last: bool = False,
) -> Ref:
    suffix = "" if last else f"_{op}_{len(ctx.graph.nodes)}"
    return ctx.emit(op, [name], attrs, suffix=suffix, shape=None if last else shape)


def _sliced(
    ctx: Lowering, name: str, shape: tuple[int, ...], dim: int, part: slice, last: bool
) -> Ref | None:
    start, end, step = (
        part.start or 0,
        _TO_END if part.stop is None else part.stop,
        1 if part.step is None else part.step,
    )
    if not all(isinstance(v, int) and abs(v) <= _TO_END for v in (start, end, step)) or step < 1:
        return None
    made = list(shape)
    made[dim] = len(range(*slice(start, end, step).indices(shape[dim])))
    return _inner_node(
        ctx,
        name,
        "slice",
        {"dim": dim, "start": start, "end": end, "step": step},
        tuple(made),
        last,
    )


def getitem(ctx: Lowering, input: Any, index: Any) -> Any:
    """Lower indexing by slices, integers and None, or taking one of several results."""
    held = ctx.env.get(input) if isinstance(input, fx.Node) else None
    if isinstance(held, (tuple, list)) and isinstance(index, int):
        return held[index]
    name, shape = ctx.plain(input), ctx.shape(input)
    parts = list(index) if isinstance(index, tuple) else [index]
    if name is None or not all(
        p is None or p is Ellipsis or isinstance(p, (int, slice)) for p in parts
    ):
        return None
    if any(isinstance(p, bool) for p in parts) or parts.count(Ellipsis) > 1:
        return None
    used = sum(p is not None and p is not Ellipsis for p in parts)
    if used > len(shape):
        return None
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (len(shape) - used)
    steps: list[tuple[str, int, Any]] = []
    dim = 0
    for part in parts:
        if part is None:
            steps.append(("unsqueeze", dim, None))
        elif isinstance(part, int):
            steps.append(("slice", dim, slice(part, part + 1 if part != -1 else None)))
            steps.append(("squeeze", dim, None))
            continue
        elif part != slice(None):
            steps.append(("slice", dim, part))
        dim += 1
    if not steps:
        return Ref(name)
    before = len(ctx.graph.nodes)
    for i, (op, at, part) in enumerate(steps):
        last = i + 1 == len(steps)
        if op == "slice":
            made = _sliced(ctx, name, shape, at, part, last)
            if made is None:
                del ctx.graph.nodes[before:]
                return None
            shape = ctx.graph.nodes[-1].shape
        else:
            changed = list(shape)
            if op == "squeeze":
                del changed[at]
            else:
                changed.insert(at, 1)
            shape = tuple(changed)
            made = _inner_node(ctx, name, op, {"dim": at}, shape, last)
        name = made.name
    return Ref(name)


def select(ctx: Lowering, input: Any, dim: Any, index: Any) -> Any:
    """Take one index of a dimension."""
    rank = len(ctx.shape(input))
    if not rank or not isinstance(dim, int) or not isinstance(index, int):
        return None
    return getitem(ctx, input, (*[slice(None)] * (dim % rank), index))


def narrow(ctx: Lowering, input: Any, dim: Any, start: Any, length: Any) -> Any:
    """Take ``length`` indices of a dimension from ``start`` on."""
    rank = len(ctx.shape(input))
    if not rank or not all(isinstance(v, int) for v in (dim, start, length)) or start < 0:
        return None
    return getitem(ctx, input, (*[slice(None)] * (dim % rank), slice(start, start + length)))


def aten_slice(
    ctx: Lowering, input: Any, dim: Any = 0, start: Any = None, end: Any = None, step: Any = 1
) -> Any:
    """``aten.slice``."""
    rank = len(ctx.shape(input))
    if not rank or not isinstance(dim, int):
        return None
    stop = None if isinstance(end, int) and end > _TO_END else end
    return getitem(ctx, input, (*[slice(None)] * (dim % rank), slice(start, stop, step)))


def _parts(ctx: Lowering, input: Any, dim: Any, lengths: list[int]) -> tuple[Ref, ...] | None:
    name, shape = ctx.plain(input), ctx.shape(input)
    if name is None or not isinstance(dim, int) or not shape:
        return None
    at, found = 0, []
    ctx.fix_sizes(name, dim % len(shape), with_batch=True)
    for length in lengths:
        made = _sliced(ctx, name, shape, dim % len(shape), slice(at, at + length), last=False)
        assert made is not None
        found.append(made)
        at += length
    return tuple(found)


def split(
    ctx: Lowering, input: Any, split_size_or_sections: Any, dim: Any = 0
) -> tuple[Ref, ...] | None:
    """Split a dimension into parts of one size or of given sizes."""
    shape = ctx.shape(input)
    if not shape or not isinstance(dim, int) or dim % len(shape) == 0:
        return None
    size, whole = split_size_or_sections, shape[dim]
    if isinstance(size, int) and size > 0:
        return _parts(ctx, input, dim, [min(size, whole - at) for at in range(0, whole, size)])
    if (
        isinstance(size, (tuple, list))
        and all(isinstance(s, int) for s in size)
        and sum(size) == whole
    ):
        return _parts(ctx, input, dim, list(size))
    return None


def chunk(ctx: Lowering, input: Any, chunks: Any, dim: Any = 0) -> tuple[Ref, ...] | None:
    """Split a dimension into at most ``chunks`` parts."""
    shape = ctx.shape(input)
    if (
        not shape
        or not isinstance(chunks, int)
        or chunks < 1
        or not isinstance(dim, int)
        or shape[dim] == 0
    ):
        return None
    return split(ctx, input, -(-shape[dim] // chunks), dim)


def unbind(ctx: Lowering, input: Any, dim: Any = 0) -> tuple[Ref, ...] | None:
    """Split a dimension into its single indices."""
    name, shape = ctx.plain(input), ctx.shape(input)
    if name is None or not isinstance(dim, int) or not shape:
        return None
    at = dim % len(shape)
    parts = _parts(ctx, input, at, [1] * shape[at])
    assert parts is not None
    rest = (*shape[:at], *shape[at + 1 :])
    return tuple(_inner_node(ctx, part.name, "squeeze", {"dim": at}, rest) for part in parts)


def cat(ctx: Lowering, tensors: Any, dim: Any = 0) -> Ref | None:
    """Concatenate along a dimension."""
    if not isinstance(tensors, (tuple, list)) or not isinstance(dim, int):
        return None
    names = [ctx.plain(tensor) for tensor in tensors]
    known = [name for name in names if name is not None]
    if not known or len(known) < len(names) or len({ctx.types[name] for name in known}) > 1:
        return None
    return ctx.emit("cat", known, {"dim": dim})


def stack(ctx: Lowering, tensors: Any, dim: Any = 0) -> Ref | None:
    """Concatenate along a new dimension."""
    if not isinstance(tensors, (tuple, list)) or not tensors or not isinstance(dim, int):
        return None
    shape = ctx.shape(tensors[0])
    names = [ctx.plain(tensor) for tensor in tensors]
    known = [name for name in names if name is not None]
    if len(known) != len(names) or len({ctx.types[name] for name in known}) > 1:
        return None
    at = dim % (len(shape) + 1)
    made = (*shape[:at], 1, *shape[at:])
    parts = [_inner_node(ctx, name, "unsqueeze", {"dim": at}, made).name for name in known]
    return ctx.emit("cat", parts, {"dim": at})


def roll(ctx: Lowering, input: Any, shifts: Any, dims: Any = None) -> Ref | None:
    """Roll dimensions, one after the other, as two slices that are joined."""
    name, shape = ctx.plain(input), ctx.shape(input)
    shifts, dims = ([v] if isinstance(v, int) else v for v in (shifts, dims))
    if name is None or not isinstance(shifts, (tuple, list)) or not isinstance(dims, (tuple, list)):
        return None
    if (
        len(shifts) != len(dims)
        or not dims
        or not all(isinstance(v, int) for v in (*shifts, *dims))
        or 0 in shape
    ):
        return None
    if any(
        dim % len(shape) == 0 and abs(shift) > 1 for shift, dim in zip(shifts, dims, strict=True)
    ):
        return None  # where the batch is cut would depend on its size
    ctx.fix_sizes(name)
    for i, (shift, dim) in enumerate(zip(shifts, dims, strict=True)):
        at, last = dim % len(shape), i + 1 == len(dims)
        cut = -shift % shape[at] if at else -shift
        ends = (slice(cut, None), slice(0, cut))
        parts = [_sliced(ctx, name, shape, at, part, False) for part in ends]
        names = [part.name for part in parts if part is not None]
        suffix = "" if last else f"_roll_{len(ctx.graph.nodes)}"
        name = ctx.emit("cat", names, {"dim": at}, suffix=suffix, shape=shape).name
    return Ref(name)


def flip(ctx: Lowering, input: Any, *dims: Any) -> Ref | None:
    """Reverse dimensions, one after the other."""
    name, rank = ctx.plain(input), len(ctx.shape(input))
    given = list(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else list(dims)
    if name is None or not given or not all(type(d) is int and -rank <= d < rank for d in given):
        return None
    for i, dim in enumerate(given):
        suffix = "" if i + 1 == len(given) else f"_flip_{len(ctx.graph.nodes)}"
        attrs, dtype = {"dim": dim % rank}, ctx.types[name]
        name = ctx.emit("flip", [name], attrs, suffix=suffix, dtype=dtype).name
    return Ref(name)


def index_select(ctx: Lowering, input: Any, dim: Any, index: Any) -> Ref | None:
    """Take the indices of a dimension that a vector lists."""
    name, places, rank = ctx.plain(input), ctx.plain(index), len(ctx.shape(input))
    if name is None or places is None or type(dim) is not int or not -rank <= dim < rank:
        return None
    if ctx.seen(index).dtype not in (torch.int32, torch.int64) or len(ctx.shape(index)) != 1:
        return None
    known = ctx.constant(index)
    if known is not None and dim % rank and consecutive_runs(known.tolist()):
        return None  # a composition of slices
    attrs, dtype = {"dim": dim % rank}, ctx.types[name]
    return ctx.emit("index_select", [name, places], attrs, dtype=dtype)


_aten = torch.ops.aten

#: Functions and operators → row.
FUNCTIONS: dict[Any, Row] = {
    operator.getitem: getitem,
    torch.select: select,
    torch.narrow: narrow,
    torch.split: split,
    torch.functional.split: split,
    torch.chunk: chunk,
    torch.unbind: unbind,
    torch.cat: cat,
    torch.concat: cat,
    torch.concatenate: cat,
    torch.stack: stack,
    torch.roll: roll,
    torch.flip: flip,
    torch.fliplr: lambda ctx, input: flip(ctx, input, 1),
    torch.flipud: lambda ctx, input: flip(ctx, input, 0),
    torch.index_select: index_select,
    _aten.select.int: select,
    _aten.slice.Tensor: aten_slice,
    _aten.narrow.default: narrow,
    _aten.split.Tensor: split,
    _aten.split_with_sizes.default: split,
    _aten.chunk.default: chunk,
    _aten.unbind.int: unbind,
    _aten.cat.default: cat,
    _aten.stack.default: stack,
    _aten.roll.default: roll,
    _aten.flip.default: flip,
    _aten.index_select.default: index_select,
}

#: Tensor methods → row.
METHODS: dict[str, Row] = {
    "select": select,
    "narrow": narrow,
    "split": split,
    "chunk": chunk,
    "unbind": unbind,
    "roll": roll,
    "flip": flip,
    "fliplr": lambda ctx, input: flip(ctx, input, 1),
    "flipud": lambda ctx, input: flip(ctx, input, 0),
    "index_select": index_select,
}
