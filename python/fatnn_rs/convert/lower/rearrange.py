"""How calls that move elements are lowered: other shapes, orders, parts, and values next to each other.

Sizes that a call computes from tensors are the example's, and the inputs are held to it, but for
the batch: a size that is some tensor's first one, or stands first in a new shape, follows the
batch.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.lower.lowering import Lowering, Row

__all__ = ["FUNCTIONS", "METHODS"]

#: The end of a slice that has none.
END = (1 << 31) - 1


def batch_source(ctx: Lowering, value: Any) -> fx.Node | None:
    """Find the tensor whose first size an argument is, by any of the ways to write it."""
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
    """Return an integer, or what a computed one was at the example."""
    if isinstance(value, fx.Node):
        value = ctx.seen(value).value
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _sizes(shape: tuple[Any, ...]) -> list[Any]:
    return (
        list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else list(shape)
    )


def _step(
    ctx: Lowering,
    name: str,
    op: str,
    attrs: dict[str, Any],
    shape: tuple[int, ...],
    last: bool = False,
) -> Ref:
    suffix = "" if last else f"_{op}_{len(ctx.graph.nodes)}"
    return ctx.emit(op, [name], attrs, suffix=suffix, shape=None if last else shape)


def reshape(ctx: Lowering, input: Any, *shape: Any) -> Ref | None:
    """``view`` and ``reshape`` to sizes that are numbers, -1, or computed."""
    name, source = ctx.plain(input), ctx.shape(input)
    sizes = _sizes(shape)
    if name is None or not sizes or any(_number(ctx, size) is None for size in sizes):
        return None
    literal = [size if isinstance(size, int) else None for size in sizes]
    computed = not isinstance(sizes[0], int) and batch_source(ctx, sizes[0]) is None
    if -1 in literal[1:] and computed:
        # A multiple of the batch, say: it is what is left, and what was left is the example's.
        at = literal.index(-1)
        sizes[at] = literal[at] = ctx.shape(ctx.node)[at]
        ctx.of_one_size.append(name)
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
        else:
            number = _number(ctx, size)
            assert number is not None
            entries.append(number)
            ctx.of_one_size.append(name)
    if -1 in entries[1:] and entries[0] > 0 and not isinstance(sizes[0], int):
        return None
    if list(ctx.shape(ctx.node)) == list(source) and entries[0] in (-1, 0):
        return Ref(name)
    return ctx.emit("reshape", [name], {"shape": entries})


def view(ctx: Lowering, input: Any, *shape: Any) -> Ref | None:
    """``x.view(x.size(0), -1)`` and its variants flatten everything behind the batch; else :func:`reshape`."""
    name, source = ctx.plain(input), ctx.shape(input)
    size = _sizes(shape)
    if name is None or len(size) != 2 or len(source) < 2:
        return reshape(ctx, input, *shape)
    features = math.prod(source[1:])
    batch, rest = size
    if rest != -1 and rest != features and ctx.seen(rest).value != features:
        return reshape(ctx, input, *shape)
    if not (batch_source(ctx, batch) is not None or (batch == -1 and rest == features)):
        return reshape(ctx, input, *shape)
    if rest != -1 and isinstance(rest, int):
        ctx.of_one_size.append(name)
    return Ref(name) if len(source) == 2 else ctx.emit("flatten", [name], {"start": 1, "end": -1})


def view_as(ctx: Lowering, input: Any, other: Any) -> Ref | None:
    """``x.view_as(y)`` of one shape, or of one that differs in its leading dimensions only."""
    name, like = ctx.plain(input), ctx.plain(other)
    source, wanted = ctx.shape(input), ctx.shape(other)
    if name is None or source == wanted:
        return None if name is None else Ref(name)
    if like is None or not source or not wanted or source[-1] != wanted[-1] or 0 in source:
        return None
    return ctx.emit("reshape_like", [name, like])


def unflatten(ctx: Lowering, input: Any, dim: Any, sizes: Any) -> Ref | None:
    """Make several dimensions of the last one."""
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
    """Dimensions in another order."""
    name, rank = ctx.plain(input), len(ctx.shape(input))
    order = _sizes(dims)
    if name is None or len(order) != rank or not all(isinstance(dim, int) for dim in order):
        return None
    order = [dim % max(rank, 1) for dim in order]
    return Ref(name) if order == list(range(rank)) else ctx.emit("permute", [name], {"dims": order})


def transpose(ctx: Lowering, input: Any, dim0: Any, dim1: Any) -> Ref | None:
    """Two dimensions in each other's place."""
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
    """One dimension elsewhere."""
    rank = len(ctx.shape(input))
    if not isinstance(source, int) or not isinstance(destination, int) or not rank:
        return None
    order = [dim for dim in range(rank) if dim != source % rank]
    order.insert(destination % rank, source % rank)
    return permute(ctx, input, order)


def squeeze(ctx: Lowering, input: Any, dim: Any = None) -> Ref | None:
    """Leave out a dimension of size 1; without ``dim`` the example's would decide, so that stays in torch."""
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
    name, source, wanted = ctx.plain(input), ctx.shape(input), _sizes(sizes)
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
            ctx.of_one_size.append(name)
    if all(size == -1 for size in entries) and len(entries) == len(source):
        return Ref(name)
    return ctx.emit("expand", inputs, {"shape": entries})


def _sliced(
    ctx: Lowering, name: str, shape: tuple[int, ...], dim: int, part: slice, last: bool
) -> Ref | None:
    start, end, step = (
        part.start or 0,
        END if part.stop is None else part.stop,
        1 if part.step is None else part.step,
    )
    if not all(isinstance(v, int) and abs(v) <= END for v in (start, end, step)) or step < 1:
        return None
    made = list(shape)
    made[dim] = len(range(*slice(start, end, step).indices(shape[dim])))
    return _step(
        ctx,
        name,
        "slice",
        {"dim": dim, "start": start, "end": end, "step": step},
        tuple(made),
        last,
    )


def getitem(ctx: Lowering, input: Any, index: Any) -> Any:
    """``x[:, 1:, ..., None, 0]``: slices, numbers, new dimensions; and one of several results."""
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
            made = _step(ctx, name, op, {"dim": at}, shape, last)
        name = made.name
    return Ref(name)


def select(ctx: Lowering, input: Any, dim: Any, index: Any) -> Any:
    """One index of a dimension."""
    rank = len(ctx.shape(input))
    if not rank or not isinstance(dim, int) or not isinstance(index, int):
        return None
    return getitem(ctx, input, (*[slice(None)] * (dim % rank), index))


def narrow(ctx: Lowering, input: Any, dim: Any, start: Any, length: Any) -> Any:
    """Take some indices of a dimension."""
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
    stop = None if isinstance(end, int) and end > END else end
    return getitem(ctx, input, (*[slice(None)] * (dim % rank), slice(start, stop, step)))


def _parts(ctx: Lowering, input: Any, dim: Any, lengths: list[int]) -> tuple[Ref, ...] | None:
    name, shape = ctx.plain(input), ctx.shape(input)
    if name is None or not isinstance(dim, int) or not shape:
        return None
    at, found = 0, []
    if dim % len(shape) > 1:
        ctx.of_one_size.append(name)
    for length in lengths:
        made = _sliced(ctx, name, shape, dim % len(shape), slice(at, at + length), last=False)
        assert made is not None
        found.append(made)
        at += length
    return tuple(found)


def split(
    ctx: Lowering, input: Any, split_size_or_sections: Any, dim: Any = 0
) -> tuple[Ref, ...] | None:
    """Parts of a size, or of several."""
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
    """So many parts, or fewer."""
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
    """Every index of a dimension by itself."""
    name, shape = ctx.plain(input), ctx.shape(input)
    if name is None or not isinstance(dim, int) or not shape:
        return None
    at = dim % len(shape)
    parts = _parts(ctx, input, at, [1] * shape[at])
    assert parts is not None
    rest = (*shape[:at], *shape[at + 1 :])
    return tuple(_step(ctx, part.name, "squeeze", {"dim": at}, rest) for part in parts)


def cat(ctx: Lowering, tensors: Any, dim: Any = 0) -> Ref | None:
    """Concatenation."""
    if not isinstance(tensors, (tuple, list)) or not isinstance(dim, int):
        return None
    names = [ctx.plain(tensor) for tensor in tensors]
    known = [name for name in names if name is not None]
    if not known or len(known) < len(names) or len({ctx.types[name] for name in known}) > 1:
        return None
    return ctx.emit("cat", known, {"dim": dim})


def stack(ctx: Lowering, tensors: Any, dim: Any = 0) -> Ref | None:
    """Concatenation along a new dimension."""
    if not isinstance(tensors, (tuple, list)) or not tensors or not isinstance(dim, int):
        return None
    shape = ctx.shape(tensors[0])
    names = [ctx.plain(tensor) for tensor in tensors]
    known = [name for name in names if name is not None]
    if len(known) != len(names) or len({ctx.types[name] for name in known}) > 1:
        return None
    at = dim % (len(shape) + 1)
    made = (*shape[:at], 1, *shape[at:])
    parts = [_step(ctx, name, "unsqueeze", {"dim": at}, made).name for name in known]
    return ctx.emit("cat", parts, {"dim": at})


def roll(ctx: Lowering, input: Any, shifts: Any, dims: Any = None) -> Ref | None:
    """Move indices around, one dimension after the other."""
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
    ctx.of_one_size.append(name)
    for i, (shift, dim) in enumerate(zip(shifts, dims, strict=True)):
        at, last = dim % len(shape), i + 1 == len(dims)
        cut = -shift % shape[at]
        parts = [
            _sliced(ctx, name, shape, at, part, False) for part in (slice(cut, None), slice(0, cut))
        ]
        names = [part.name for part in parts if part is not None]
        suffix = "" if last else f"_roll_{len(ctx.graph.nodes)}"
        name = ctx.emit("cat", names, {"dim": at}, suffix=suffix, shape=shape).name
    return Ref(name)


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
    operator.getitem: getitem,
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
    "select": select,
    "narrow": narrow,
    "split": split,
    "chunk": chunk,
    "unbind": unbind,
    "roll": roll,
}
