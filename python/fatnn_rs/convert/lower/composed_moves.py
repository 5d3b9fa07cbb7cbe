"""Compositions that only move elements: repeats, splits, permutations, windows.

See :mod:`fatnn_rs.convert.lower.compositions`.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fatnn_rs.convert.lower.composed import rank, shape_of

__all__ = [
    "along",
    "channel_shuffle",
    "consecutive_runs",
    "expand_as",
    "fold",
    "getitem",
    "hsplit",
    "hstack",
    "index_list",
    "index_select",
    "movedim",
    "neighbours",
    "pad",
    "repeat",
    "repeat_interleave",
    "rot90",
    "sliding",
    "squeeze",
    "tensor_split",
    "tile",
    "unflatten",
    "unfold",
    "vstack",
]

#: A call that would become more parts than this stays in torch.
MAX_COPIES = 64


def along(dim: int, part: slice) -> tuple[slice, ...]:
    """Return an index that slices one dimension."""
    return tuple([slice(None)] * dim + [part])


def repeat(x: Any, *sizes: Any) -> Any:
    """Repeat a tensor along its dimensions."""
    counts = list(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else list(sizes)
    for _ in range(len(counts) - rank(x)):
        x = torch.unsqueeze(x, 0)
    if math.prod(counts) > MAX_COPIES or min(counts, default=1) < 1:
        return None
    for dim, count in enumerate(counts):
        x = torch.cat([x] * count, dim) if count > 1 else x
    return x + 0 if math.prod(counts) == 1 else x


def tile(x: Any, dims: Any) -> Any:
    """Repeat a tensor; missing counts are 1."""
    return repeat(x, *[1] * (rank(x) - len(dims)), *dims)


def repeat_interleave(x: Any, repeats: Any, dim: Any = None, *, output_size: Any = None) -> Any:
    """Repeat every index of a dimension."""
    if not isinstance(repeats, int) or dim is None or not 0 < repeats <= MAX_COPIES:
        return None
    at = dim % rank(x)
    return torch.flatten(torch.stack([x] * repeats, at + 1), at, at + 1)


def expand_as(x: Any, other: Any) -> Any:
    """Broadcast to another tensor's shape, by a ``where`` with ``x`` in both branches."""
    return torch.where(other == other, x, x)


def hstack(tensors: Any) -> Any:
    """Concatenate along the second dimension."""
    return torch.cat(tensors, 1) if rank(tensors[0]) > 1 else None


def vstack(tensors: Any) -> Any:
    """Concatenate along the first dimension."""
    return torch.cat(tensors, 0) if rank(tensors[0]) > 1 else None


def tensor_split(x: Any, parts: Any, dim: Any = 0) -> Any:
    """Split a dimension into parts that differ by at most one index."""
    at = dim % rank(x)
    if not isinstance(parts, int) or at == 0:
        return None
    size = shape_of(x)[at]
    lengths = [size // parts + (i < size % parts) for i in range(parts)]
    made = torch.split(x, lengths, at)
    return tuple(made[i] for i in range(parts))


def hsplit(x: Any, parts: Any) -> Any:
    """Split the second dimension."""
    return tensor_split(x, parts, 1) if rank(x) > 1 else None


def movedim(x: Any, source: Any, destination: Any) -> Any:
    """Move dimensions."""
    from_, to = ([v] if isinstance(v, int) else list(v) for v in (source, destination))
    n = rank(x)
    placed = {d % n: s % n for s, d in zip(from_, to, strict=True)}
    rest = iter(sorted(set(range(n)) - set(placed.values())))
    return torch.permute(x, [placed[i] if i in placed else next(rest) for i in range(n)])


def squeeze(x: Any, dims: Any = None) -> Any:
    """Remove the given dimensions, or all, where their size is 1."""
    shape = shape_of(x)
    found = range(len(shape)) if dims is None else [dim % len(shape) for dim in dims]
    for dim in sorted(set(found), reverse=True):
        if shape[dim] == 1:
            x = torch.squeeze(x, dim)
    return x


def unflatten(x: Any, dim: Any, sizes: Any) -> Any:
    """Split a dimension into several."""
    shape, at = shape_of(x), dim % rank(x)
    sizes = list(sizes)
    if at == 0:
        return None
    if -1 in sizes:
        known = -math.prod(sizes)
        sizes[sizes.index(-1)] = shape[at] // known
    return torch.reshape(x, (-1, *shape[1:at], *sizes, *shape[at + 1 :]))


def channel_shuffle(x: Any, groups: Any) -> Any:
    """Interleave the channels of the groups."""
    _, channels, *rest = shape_of(x)
    y = torch.reshape(x, (-1, groups, channels // groups, *rest))
    return torch.reshape(torch.transpose(y, 1, 2), (-1, channels, *rest))


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _windows(x: Any, dim: int, size: int, step: int, dilation: int = 1) -> list[Any]:
    """Return, per position in a window, its elements in all windows along a dimension."""
    ends = [(size - 1 - i) * dilation for i in range(size)]
    return [
        x[along(dim, slice(i * dilation, -end if end else None, step))]
        for i, end in enumerate(ends)
    ]


def unfold(x: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Any:
    """Take all windows of a map as columns."""
    kernel, strides, dilations, paddings = (
        _pair(v) for v in (kernel_size, stride, dilation, padding)
    )
    if rank(x) != 4 or math.prod(kernel) > MAX_COPIES:
        return None
    if any(paddings):
        x = functional.pad(x, [paddings[1], paddings[1], paddings[0], paddings[0]])
    taps = [
        tap
        for row in _windows(x, 2, kernel[0], strides[0], dilations[0])
        for tap in _windows(row, 3, kernel[1], strides[1], dilations[1])
    ]
    return torch.flatten(torch.flatten(torch.stack(taps, 2), 3, 4), 1, 2)


def fold(
    x: Any,
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Any:
    """Add columns of windows up to a map: spread each position in a window, and add them."""
    size, kernel, strides, dilations, paddings = (
        _pair(v) for v in (output_size, kernel_size, stride, dilation, padding)
    )
    if rank(x) != 3 or math.prod(kernel) > MAX_COPIES:
        return None
    taps = math.prod(kernel)
    whole = [n + 2 * p for n, p in zip(size, paddings, strict=True)]
    counts = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(whole, kernel, strides, dilations, strict=True)
    ]
    windows = torch.reshape(x, (-1, shape_of(x)[1] // taps, taps, *counts))
    total: Any = None
    for at in range(taps):
        part = windows[:, :, at]
        for dim, step in zip((2, 3), strides, strict=True):
            if step > 1:
                zeros = torch.where(part == part, 0.0, 0.0)
                part = torch.stack([part] + [zeros] * (step - 1), dim + 1)
                part = torch.flatten(part, dim, dim + 1)
        before = [i * d for i, d in zip(divmod(at, kernel[1]), dilations, strict=True)]
        after = [
            n - first - count * step
            for n, first, count, step in zip(whole, before, counts, strides, strict=True)
        ]
        part = functional.pad(part, [before[1], after[1], before[0], after[0]])
        total = part + 0.0 if total is None else total + part
    for dim, p in zip((2, 3), paddings, strict=True):
        total = total[along(dim, slice(p, -p))] if p else total
    return total


def index_list(x: Any, indices: Any) -> Any:
    """``aten.index``: index dimensions by tensors, or take all of those that have None."""
    return getitem(x, tuple(slice(None) if i is None else i for i in indices))


def neighbours(x: Any, dim: int, size: int) -> list[Any]:
    """Return, per position in a window, what is there for all windows of step 1."""
    return _windows(x, dim, size, 1)


def sliding(x: Any, dimension: Any, size: Any, step: Any) -> Any:
    """Take all windows of one dimension."""
    if size > MAX_COPIES:
        return None
    return torch.stack(_windows(x, dimension % rank(x), size, step), rank(x))


def pad(x: Any, pad: Any, mode: Any = "constant", value: Any = None) -> Any:
    """Pad if some sides are negative, which crops, or if the value is infinite or NaN."""
    finite = value is None or math.isfinite(value)
    if mode != "constant" or (finite and min(pad, default=0) >= 0):
        return None
    if not finite:  # a file holds finite attributes: mark what is inside, and fill the rest
        inside = functional.pad(torch.where(x == x, 1.0, 1.0), pad)
        return torch.where(inside != 0, functional.pad(x, pad), float(value))
    last = rank(x) - 1
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        if before < 0 or after < 0:
            part = slice(max(-before, 0), after if after < 0 else None)
            x = x[along(last - i, part)]
    grown = [max(side, 0) for side in pad]
    return functional.pad(x, grown, "constant", value or 0.0) if any(grown) else x


def consecutive_runs(places: Any) -> list[list[int]]:
    """Split indices into runs of consecutive ones; [] if they are too many or no indices."""
    if not places or not all(type(place) is int and place >= 0 for place in places):
        return []
    ends = [i + 1 for i, (a, b) in enumerate(itertools.pairwise(places)) if b != a + 1]
    runs = [places[i:j] for i, j in itertools.pairwise([0, *ends, len(places)])]
    return runs if len(runs) <= MAX_COPIES else []


def index_select(x: Any, dim: Any, index: Any) -> Any:
    """Take given indices of a dimension: slices of consecutive ones, joined."""
    at, places = dim % rank(x), index.tolist() if isinstance(index, Tensor) else list(index)
    if not places or not all(type(place) is int for place in places):
        return None
    runs = consecutive_runs(places) if at else []
    if not runs:
        if min(places) < 0:
            size = shape_of(x)[at]
            places = [place + size if place < 0 else place for place in places]
        return torch.index_select(x, at, torch.tensor(places))
    return torch.cat([x[along(at, slice(run[0], run[-1] + 1))] for run in runs], at)


def rot90(x: Any, k: Any = 1, dims: Any = (0, 1)) -> Any:
    """Rotate by quarter turns: reverse one or both dimensions, or swap them."""
    first, second = dims
    if k % 4 == 0:
        return x + 0
    if k % 4 == 2:
        return torch.flip(x, [first, second])
    return torch.transpose(torch.flip(x, [second if k % 4 == 1 else first]), first, second)


def getitem(x: Any, index: Any) -> Any:
    """Index one dimension by a list or constant tensor, and take all of the others."""
    parts = list(index) if isinstance(index, tuple) else [index]
    given = [i for i, part in enumerate(parts) if isinstance(part, (list, Tensor))]
    rest = [part for i, part in enumerate(parts) if i not in given]
    if len(given) != 1 or any(part != slice(None) for part in rest):
        return None
    at, places = given[0], parts[given[0]]
    if not isinstance(places, Tensor) or places.dim() == 1:
        return index_select(x, at, places)
    if not places.dim():
        return None
    shape = shape_of(x)
    front = (-1, *shape[1:at]) if at else ()
    made = index_select(x, at, places.flatten())
    return torch.reshape(made, (*front, *places.shape, *shape[at + 1 :]))
