"""Functions, methods and modules as compositions of calls that have rows.

Each function here has the signature of torch's own. It returns None for arguments that it is not
for. :mod:`fatnn_rs.convert.lower.composed` traces it and checks its bits.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fatnn_rs.convert.lower.composed import rank, shape_of

__all__ = ["FUNCTIONS", "METHODS", "MODULES"]

#: A repetition with more copies stays in torch.
_MAX_COPIES = 64


def _along(dim: int, part: slice) -> tuple[slice, ...]:
    """Return an index that takes a part of one dimension."""
    return tuple([slice(None)] * dim + [part])


def _glu(x: Any, dim: Any = -1) -> Any:
    parts = torch.chunk(x, 2, dim)
    return parts[0] * torch.sigmoid(parts[1])


def _softmin(x: Any, dim: Any = None, _stacklevel: Any = 3, dtype: Any = None) -> Any:
    return None if dtype is not None else torch.softmax(-x, dim)


def _lerp(x: Any, end: Any, weight: Any) -> Any:
    if not isinstance(weight, (int, float)):
        return None
    return x + weight * (end - x) if abs(weight) < 0.5 else end - (end - x) * (1 - weight)


def _addcmul(x: Any, a: Any, b: Any, *, value: Any = 1) -> Any:
    return x + (a if value == 1 else a * value) * b


def _addcdiv(x: Any, a: Any, b: Any, *, value: Any = 1) -> Any:
    return x + (a if value == 1 else a * value) / b


def _add(x: Any, y: Any, *, alpha: Any = 1) -> Any:
    return None if alpha == 1 else x + y * alpha


def _sub(x: Any, y: Any, *, alpha: Any = 1) -> Any:
    return None if alpha == 1 else x - y * alpha


def _maximum(x: Any, y: Any) -> Any:
    return torch.where(torch.logical_or(x > y, x != x), x, y)


def _minimum(x: Any, y: Any) -> Any:
    return torch.where(torch.logical_or(x < y, x != x), x, y)


def _max(x: Any, *args: Any) -> Any:
    if not args:
        return torch.amax(x)
    return None if isinstance(args[0], int) else _maximum(x, *args)


def _min(x: Any, *args: Any) -> Any:
    if not args:
        return torch.amin(x)
    return None if isinstance(args[0], int) else _minimum(x, *args)


def _aminmax(x: Any, *, dim: Any = None, keepdim: Any = False) -> Any:
    dims: Any = () if dim is None else dim
    return torch.amin(x, dims, keepdim), torch.amax(x, dims, keepdim)


def _clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    x = x if min is None else _maximum(x, min)
    return x if max is None else _minimum(x, max)


def _isnan(x: Any) -> Any:
    return x != x


def _isinf(x: Any) -> Any:
    return torch.abs(x) == math.inf


def _isfinite(x: Any) -> Any:
    return torch.abs(x) < math.inf


def _nan_to_num(x: Any, nan: Any = None, posinf: Any = None, neginf: Any = None) -> Any:
    most = torch.finfo(torch.float32).max
    y = torch.where(x != x, float(nan or 0), x)
    y = torch.where(y == math.inf, most if posinf is None else float(posinf), y)
    return torch.where(y == -math.inf, -most if neginf is None else float(neginf), y)


def _repeat(x: Any, *sizes: Any) -> Any:
    counts = list(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else list(sizes)
    for _ in range(len(counts) - rank(x)):
        x = torch.unsqueeze(x, 0)
    if math.prod(counts) > _MAX_COPIES or min(counts, default=1) < 1:
        return None
    for dim, count in enumerate(counts):
        x = torch.cat([x] * count, dim) if count > 1 else x
    return x + 0 if math.prod(counts) == 1 else x


def _tile(x: Any, dims: Any) -> Any:
    return _repeat(x, *[1] * (rank(x) - len(dims)), *dims)


def _repeat_interleave(x: Any, repeats: Any, dim: Any = None, *, output_size: Any = None) -> Any:
    if not isinstance(repeats, int) or dim is None or not 0 < repeats <= _MAX_COPIES:
        return None
    at = dim % rank(x)
    return torch.flatten(torch.stack([x] * repeats, at + 1), at, at + 1)


def _expand_as(x: Any, other: Any) -> Any:
    return torch.where(other == other, x, x)


def _hstack(tensors: Any) -> Any:
    return torch.cat(tensors, 1) if rank(tensors[0]) > 1 else None


def _vstack(tensors: Any) -> Any:
    return torch.cat(tensors, 0) if rank(tensors[0]) > 1 else None


def _tensor_split(x: Any, parts: Any, dim: Any = 0) -> Any:
    at = dim % rank(x)
    if not isinstance(parts, int) or at == 0:
        return None
    size = shape_of(x)[at]
    lengths = [size // parts + (i < size % parts) for i in range(parts)]
    made = torch.split(x, lengths, at)
    return tuple(made[i] for i in range(parts))


def _hsplit(x: Any, parts: Any) -> Any:
    return _tensor_split(x, parts, 1) if rank(x) > 1 else None


def _movedim(x: Any, source: Any, destination: Any) -> Any:
    from_, to = ([v] if isinstance(v, int) else list(v) for v in (source, destination))
    n = rank(x)
    placed = {d % n: s % n for s, d in zip(from_, to, strict=True)}
    rest = iter(sorted(set(range(n)) - set(placed.values())))
    return torch.permute(x, [placed[i] if i in placed else next(rest) for i in range(n)])


def _squeeze(x: Any, dims: Any = None) -> Any:
    shape = shape_of(x)
    found = range(len(shape)) if dims is None else [dim % len(shape) for dim in dims]
    for dim in sorted(set(found), reverse=True):
        if shape[dim] == 1:
            x = torch.squeeze(x, dim)
    return x


def _unflatten(x: Any, dim: Any, sizes: Any) -> Any:
    shape, at = shape_of(x), dim % rank(x)
    sizes = list(sizes)
    if at == 0:
        return None
    if -1 in sizes:
        known = -math.prod(sizes)
        sizes[sizes.index(-1)] = shape[at] // known
    return torch.reshape(x, (-1, *shape[1:at], *sizes, *shape[at + 1 :]))


def _channel_shuffle(x: Any, groups: Any) -> Any:
    _, channels, *rest = shape_of(x)
    y = torch.reshape(x, (-1, groups, channels // groups, *rest))
    return torch.reshape(torch.transpose(y, 1, 2), (-1, channels, *rest))


def _diff(x: Any, n: Any = 1, dim: Any = -1, prepend: Any = None, append: Any = None) -> Any:
    if n != 1 or prepend is not None or append is not None:
        return None
    at = dim % rank(x)
    return x[_along(at, slice(1, None))] - x[_along(at, slice(None, -1))]


def _logsumexp(x: Any, dim: Any, keepdim: Any = False) -> Any:
    most = torch.amax(x, dim, True)
    most = torch.where(torch.abs(most) == math.inf, 0.0, most)
    sums = torch.log(torch.sum(torch.exp(x - most), dim, keepdim))
    dims = [dim] if isinstance(dim, int) else list(dim)
    if not keepdim:
        for at in sorted((d % rank(x) for d in dims), reverse=True):
            most = torch.squeeze(most, at)
    return sums + most


def _one_hot(x: Any, num_classes: Any = -1) -> Any:
    if num_classes < 1:
        return None
    return (torch.unsqueeze(x, -1) == torch.arange(num_classes)).to(torch.int64)


def _triangle(part: Callable[..., Any]) -> Callable[..., Any]:
    def composed(x: Any, diagonal: Any = 0) -> Any:
        kept = part(torch.ones(shape_of(x)[-2:], dtype=torch.bool), diagonal)
        return torch.where(kept, x, 0.0)

    return composed


def _any(x: Any, dim: Any = None, keepdim: Any = False) -> Any:
    return torch.amax(x.to(torch.float32), () if dim is None else dim, keepdim) != 0


def _all(x: Any, dim: Any = None, keepdim: Any = False) -> Any:
    return torch.amin(x.to(torch.float32), () if dim is None else dim, keepdim) != 0


def _sum(x: Any, dim: Any = None, keepdim: Any = False, *, dtype: Any = None) -> Any:
    """Sum integers or masks: the last of their cumulative sums."""
    if not isinstance(dim, int) or dtype is not None:
        return None
    at = dim % rank(x)
    last = torch.cumsum(x, at)[_along(at, slice(-1, None))]
    return last if keepdim else torch.squeeze(last, at)


def _cube(x: Any, exponent: Any) -> Any:
    return x * x * x if exponent == 3 else None


def _matvec(x: Any, vector: Any) -> Any:
    if rank(vector) != 1 or rank(x) < 2:
        return None
    return torch.squeeze(torch.matmul(x, torch.unsqueeze(vector, -1)), -1)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _windows(x: Any, dim: int, size: int, step: int, dilation: int = 1) -> list[Any]:
    """Return the elements at each place of windows along a dimension."""
    ends = [(size - 1 - i) * dilation for i in range(size)]
    return [
        x[_along(dim, slice(i * dilation, -end if end else None, step))]
        for i, end in enumerate(ends)
    ]


def _unfold(x: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Any:
    kernel, steps, each, around = (_pair(v) for v in (kernel_size, stride, dilation, padding))
    if rank(x) != 4 or math.prod(kernel) > _MAX_COPIES:
        return None
    if any(around):
        x = functional.pad(x, [around[1], around[1], around[0], around[0]])
    taps = [
        tap
        for row in _windows(x, 2, kernel[0], steps[0], each[0])
        for tap in _windows(row, 3, kernel[1], steps[1], each[1])
    ]
    return torch.flatten(torch.flatten(torch.stack(taps, 2), 3, 4), 1, 2)


def _sliding(x: Any, dimension: Any, size: Any, step: Any) -> Any:
    if size > _MAX_COPIES:
        return None
    return torch.stack(_windows(x, dimension % rank(x), size, step), rank(x))


def _softsign(x: Any) -> Any:
    return x / (torch.abs(x) + 1)


def _tanhshrink(x: Any) -> Any:
    return x - torch.tanh(x)


def _threshold(x: Any, threshold: Any, value: Any, inplace: bool = False) -> Any:
    return torch.where(x <= threshold, float(value), x)


def _hardshrink(x: Any, lambd: Any = 0.5) -> Any:
    return torch.where(torch.logical_and(x >= -lambd, x <= lambd), 0.0, x)


def _softshrink(x: Any, lambd: Any = 0.5) -> Any:
    return torch.where(x > lambd, x - lambd, torch.where(x < -lambd, x + lambd, x * 0))


def _celu(x: Any, alpha: Any = 1.0, inplace: bool = False) -> Any:
    return functional.elu(x) if alpha == 1 else None


def _rrelu(
    x: Any, lower: Any = 1 / 8, upper: Any = 1 / 3, training: Any = False, inplace: bool = False
) -> Any:
    return None if training else functional.leaky_relu(x, (lower + upper) / 2)


def _softmax_of_channels(module: Any, x: Any) -> Any:
    return torch.softmax(x, -3 % rank(x))


_aten = torch.ops.aten

#: Names in torch, its functional module and its methods → composition.
_NAMED: dict[str, Callable[..., Any]] = {
    "glu": _glu,
    "softmin": _softmin,
    "lerp": _lerp,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "add": _add,
    "sub": _sub,
    "maximum": _maximum,
    "minimum": _minimum,
    "max": _max,
    "min": _min,
    "aminmax": _aminmax,
    "clamp": _clamp,
    "clip": _clamp,
    "isnan": _isnan,
    "isinf": _isinf,
    "isfinite": _isfinite,
    "nan_to_num": _nan_to_num,
    "repeat": _repeat,
    "tile": _tile,
    "repeat_interleave": _repeat_interleave,
    "expand_as": _expand_as,
    "hstack": _hstack,
    "vstack": _vstack,
    "tensor_split": _tensor_split,
    "hsplit": _hsplit,
    "movedim": _movedim,
    "moveaxis": _movedim,
    "squeeze": _squeeze,
    "unflatten": _unflatten,
    "channel_shuffle": _channel_shuffle,
    "diff": _diff,
    "logsumexp": _logsumexp,
    "one_hot": _one_hot,
    "tril": _triangle(torch.tril),
    "triu": _triangle(torch.triu),
    "any": _any,
    "all": _all,
    "sum": _sum,
    "pow": _cube,
    "matmul": _matvec,
    "mv": _matvec,
    "softsign": _softsign,
    "tanhshrink": _tanhshrink,
    "threshold": _threshold,
    "hardshrink": _hardshrink,
    "softshrink": _softshrink,
    "celu": _celu,
    "rrelu": _rrelu,
}


def _functions() -> dict[Any, Callable[..., Any]]:
    found: dict[Any, Callable[..., Any]] = {}
    for name, composed in _NAMED.items():
        for space in (torch, functional):
            if hasattr(space, name):
                found[getattr(space, name)] = composed
        packet = getattr(_aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            if overload in ("default", "Tensor", "Scalar", "other", "dim", "dims", "self_int"):
                found.setdefault(getattr(packet, overload), composed)
    found[functional.threshold] = _threshold
    found[functional.unfold] = _unfold
    return found


#: Functions and operators → composition.
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **_functions(),
    **dict.fromkeys((_aten.pow.Tensor_Scalar, operator.pow), _cube),
    operator.matmul: _matvec,
}

#: Tensor methods → composition.
METHODS: dict[str, Callable[..., Any]] = {
    **{name: composed for name, composed in _NAMED.items() if hasattr(torch.Tensor, name)},
    "unfold": _sliding,
}


def _padding(module: Any, x: Any) -> Any:
    mode = {"Re": "reflect", "Ci": "circular"}.get(type(module).__name__[:2], "constant")
    mode = "replicate" if type(module).__name__.startswith("Replication") else mode
    value = getattr(module, "value", 0.0) if mode == "constant" else None
    return functional.pad(x, module.padding, mode, value)


_PADS = (
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d),
    *(nn.CircularPad1d, nn.CircularPad2d),
)

#: Module classes → composition of the module and its inputs.
MODULES: dict[type[nn.Module], Callable[..., Any]] = {
    nn.GLU: lambda m, x: _glu(x, m.dim),
    nn.Softmin: lambda m, x: _softmin(x, m.dim),
    nn.Softmax2d: _softmax_of_channels,
    nn.Softsign: lambda m, x: _softsign(x),
    nn.Tanhshrink: lambda m, x: _tanhshrink(x),
    nn.Threshold: lambda m, x: _threshold(x, m.threshold, m.value),
    nn.Hardshrink: lambda m, x: _hardshrink(x, m.lambd),
    nn.Softshrink: lambda m, x: _softshrink(x, m.lambd),
    nn.CELU: lambda m, x: _celu(x, m.alpha),
    nn.RReLU: lambda m, x: _rrelu(x, m.lower, m.upper),
    nn.Unflatten: lambda m, x: _unflatten(x, m.dim, m.unflattened_size),
    nn.ChannelShuffle: lambda m, x: _channel_shuffle(x, m.groups),
    nn.Unfold: lambda m, x: _unfold(x, m.kernel_size, m.dilation, m.padding, m.stride),
    **dict.fromkeys(_PADS, _padding),
}
