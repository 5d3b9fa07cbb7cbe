"""Functions, methods and modules written with simpler torch calls that the engine supports.

Each function here has the signature of the torch function that it replaces, and returns None for
arguments that it does not support. :mod:`fatnn_rs.convert.lower.composed` traces it and compares
its bits with torch's.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fatnn_rs.convert.lower import composed_moves as moves
from fatnn_rs.convert.lower.composed import rank, shape_of

__all__ = ["FUNCTIONS", "METHODS", "MODULES"]


def _glu(x: Any, dim: Any = -1) -> Any:
    parts = torch.chunk(x, 2, dim)
    return parts[0] * torch.sigmoid(parts[1])


def _softmin(x: Any, dim: Any = None, _stacklevel: Any = 3, dtype: Any = None) -> Any:
    return None if dtype is not None else torch.softmax(-x, dim)


def _lerp(x: Any, end: Any, weight: Any) -> Any:
    if not isinstance(weight, (int, float)):
        near = torch.addcmul(x, weight, end - x)
        return torch.where(torch.abs(weight) < 0.5, near, torch.addcmul(end, end - x, weight - 1))
    factor = torch.full((), float(weight))
    if abs(weight) < 0.5:
        return torch.addcmul(x, factor, end - x)
    return torch.addcmul(end, end - x, factor - 1)


def _normalize(x: Any, p: Any = 2.0, dim: Any = 1, eps: Any = 1e-12, out: Any = None) -> Any:
    return x / torch.clamp_min(torch.linalg.vector_norm(x, p, dim, True), eps)


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
    largest = torch.finfo(torch.float32).max
    y = torch.where(x != x, float(nan or 0), x)
    y = torch.where(y == math.inf, largest if posinf is None else float(posinf), y)
    return torch.where(y == -math.inf, -largest if neginf is None else float(neginf), y)


def _diff(x: Any, n: Any = 1, dim: Any = -1, prepend: Any = None, append: Any = None) -> Any:
    if n != 1 or prepend is not None or append is not None:
        return None
    at = dim % rank(x)
    return x[moves.along(at, slice(1, None))] - x[moves.along(at, slice(None, -1))]


def _logsumexp(x: Any, dim: Any, keepdim: Any = False) -> Any:
    shift = torch.amax(x, dim, True)
    shift = torch.where(torch.abs(shift) == math.inf, 0.0, shift)
    sums = torch.log(torch.sum(torch.exp(x - shift), dim, keepdim))
    dims = [dim] if isinstance(dim, int) else list(dim)
    if not keepdim:
        for at in sorted((d % rank(x) for d in dims), reverse=True):
            shift = torch.squeeze(shift, at)
    return sums + shift


def _one_hot(x: Any, num_classes: Any = -1) -> Any:
    if num_classes < 1:
        return None
    return (torch.unsqueeze(x, -1) == torch.arange(num_classes)).to(torch.int64)


def _triangle(keep: Callable[..., Any]) -> Callable[..., Any]:
    def composed(x: Any, diagonal: Any = 0) -> Any:
        kept = keep(torch.ones(shape_of(x)[-2:], dtype=torch.bool), diagonal)
        return torch.where(kept, x, 0.0)

    return composed


def _any(x: Any, dim: Any = None, keepdim: Any = False) -> Any:
    return torch.amax(x.to(torch.float32), () if dim is None else dim, keepdim) != 0


def _all(x: Any, dim: Any = None, keepdim: Any = False) -> Any:
    return torch.amin(x.to(torch.float32), () if dim is None else dim, keepdim) != 0


def _sum(x: Any, dim: Any = None, keepdim: Any = False, *, dtype: Any = None) -> Any:
    """Sum integers or masks: take the last cumulative sum."""
    if not isinstance(dim, int) or dtype is not None:
        return None
    at = dim % rank(x)
    last = torch.cumsum(x, at)[moves.along(at, slice(-1, None))]
    return last if keepdim else torch.squeeze(last, at)


def _cube(x: Any, exponent: Any) -> Any:
    return x * x * x if exponent == 3 else None


def _matvec(x: Any, vector: Any) -> Any:
    if rank(vector) != 1 or rank(x) < 2:
        return None
    return torch.squeeze(torch.matmul(x, torch.unsqueeze(vector, -1)), -1)


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


def _local_response_norm(
    x: Any, size: Any, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 1.0
) -> Any:
    if rank(x) not in (3, 4) or not 0 < size <= moves.MAX_COPIES:
        return None
    sides = [0, 0] * (rank(x) - 2) + [size // 2, (size - 1) // 2]
    parts = moves.neighbours(functional.pad(x * x, sides), 1, size)
    total = functools.reduce(operator.add, parts)
    return x / torch.pow(total / size * alpha + k, beta)


def _softmax_of_channels(module: Any, x: Any) -> Any:
    return torch.softmax(x, -3 % rank(x))


_aten = torch.ops.aten

#: Names in torch, its functional module and its methods → composition.
_NAMED: dict[str, Callable[..., Any]] = {
    "glu": _glu,
    "softmin": _softmin,
    "lerp": _lerp,
    "normalize": _normalize,
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
    "repeat": moves.repeat,
    "tile": moves.tile,
    "repeat_interleave": moves.repeat_interleave,
    "expand_as": moves.expand_as,
    "hstack": moves.hstack,
    "vstack": moves.vstack,
    "tensor_split": moves.tensor_split,
    "hsplit": moves.hsplit,
    "movedim": moves.movedim,
    "moveaxis": moves.movedim,
    "squeeze": moves.squeeze,
    "unflatten": moves.unflatten,
    "channel_shuffle": moves.channel_shuffle,
    "diff": _diff,
    "logsumexp": _logsumexp,
    "one_hot": _one_hot,
    "tril": _triangle(torch.tril),
    "triu": _triangle(torch.triu),
    "any": _any,
    "all": _all,
    "sum": _sum,
    "pow": _cube,
    "pad": moves.pad,
    "index_select": moves.index_select,
    "rot90": moves.rot90,
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
    found[functional.local_response_norm] = _local_response_norm
    found[functional.unfold] = moves.unfold
    found |= {functional.fold: moves.fold, _aten.col2im.default: moves.fold}
    found[_aten.im2col.default] = moves.unfold
    found[_aten.index.Tensor] = moves.index_list
    found[operator.getitem] = moves.getitem
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
    "unfold": moves.sliding,
}


#: Module classes → mode of ``functional.pad``.
_PADS: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d), "constant"),
    **dict.fromkeys((nn.ReflectionPad1d, nn.ReflectionPad2d), "reflect"),
    **dict.fromkeys((nn.ReplicationPad1d, nn.ReplicationPad2d), "replicate"),
    **dict.fromkeys((nn.CircularPad1d, nn.CircularPad2d), "circular"),
}


def _padding(module: Any, x: Any) -> Any:
    mode = _PADS[type(module)]
    value = getattr(module, "value", 0.0) if mode == "constant" else None
    return functional.pad(x, module.padding, mode, value)


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
    nn.LocalResponseNorm: lambda m, x: _local_response_norm(x, m.size, m.alpha, m.beta, m.k),
    nn.CELU: lambda m, x: _celu(x, m.alpha),
    nn.RReLU: lambda m, x: _rrelu(x, m.lower, m.upper),
    nn.Unflatten: lambda m, x: moves.unflatten(x, m.dim, m.unflattened_size),
    nn.ChannelShuffle: lambda m, x: moves.channel_shuffle(x, m.groups),
    nn.Fold: lambda m, x: moves.fold(
        x, m.output_size, m.kernel_size, m.dilation, m.padding, m.stride
    ),
    nn.Unfold: lambda m, x: moves.unfold(x, m.kernel_size, m.dilation, m.padding, m.stride),
    **dict.fromkeys(_PADS, _padding),
}
