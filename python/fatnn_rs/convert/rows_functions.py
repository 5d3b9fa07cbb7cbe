"""How functions and tensor methods are lowered: one row each, with torch's own signature.

A row returns the graph's value, or None where it cannot take the call as it is (another dtype, an argument it does not
know, a shape it cannot vouch for); the call then stays in torch.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from fatnn_rs.convert import scalar
from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.lower import Lowering, Row

__all__ = ["FUNCTIONS", "METHODS"]


def identity(ctx: Lowering, input: Any) -> Ref | None:
    """Pass on what changes nothing in eval mode: the value itself."""
    name = ctx.value(input)
    return None if name is None else Ref(name)


def dropout(ctx: Lowering, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Ref | None:
    """Dropout that is switched off."""
    return identity(ctx, input) if training is False else None


def add(ctx: Lowering, input: Any, other: Any, *, alpha: Any = 1) -> Ref | None:
    """Sum of two tensors (not scaled, not with a number)."""
    left, right = ctx.value(input), ctx.value(other)
    return None if left is None or right is None or alpha != 1 else ctx.emit("add", [left, right])


def cat(ctx: Lowering, tensors: Any, dim: Any = 0) -> Ref | None:
    """Concatenation."""
    if not isinstance(tensors, (tuple, list)) or not isinstance(dim, int):
        return None
    names = [ctx.value(tensor) for tensor in tensors]
    known = [name for name in names if name is not None]
    return ctx.emit("cat", known, {"dim": dim}) if known and len(known) == len(names) else None


def flatten(ctx: Lowering, input: Any, start_dim: Any = 0, end_dim: Any = -1) -> Ref | None:
    """Flatten a range of dimensions."""
    name = ctx.value(input)
    if name is None or not isinstance(start_dim, int) or not isinstance(end_dim, int):
        return None
    rank = len(ctx.shape(input))
    start, end = start_dim % max(rank, 1), end_dim % max(rank, 1)
    if rank and start == end:
        return Ref(name)
    return ctx.emit("flatten", [name], {"start": start, "end": -1 if end == rank - 1 else end})


def view(ctx: Lowering, input: Any, *shape: Any) -> Ref | None:
    """``x.view(x.size(0), -1)`` and its variants, which flatten everything behind the batch; nothing else."""
    name, source = ctx.value(input), ctx.shape(input)
    size = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else list(shape)
    if name is None or len(size) != 2 or len(source) < 2:
        return None
    features = math.prod(source[1:])
    batch, rest = size
    if rest != -1 and rest != features and ctx.seen(rest).value != features:
        return None
    if not (_is_batch_size(ctx, batch) or (batch == -1 and rest == features)):
        return None
    if rest != -1 and isinstance(rest, int):
        ctx.of_one_size.append(name)
    return Ref(name) if len(source) == 2 else ctx.emit("flatten", [name], {"start": 1, "end": -1})


def _is_batch_size(ctx: Lowering, value: Any) -> bool:
    """Whether an argument is the size of some tensor's first dimension, by any of the ways to write it."""
    if not isinstance(value, fx.Node):
        return False
    args: tuple[Any, ...] = value.args
    if value.target in ("size", torch.ops.aten.sym_size.int):
        return len(args) == 2 and args[1:] == (0,)
    if value.target is operator.getitem and args[1:] == (0,) and isinstance(args[0], fx.Node):
        whole = args[0]
        rest: tuple[Any, ...] = whole.args[1:]
        return (whole.target == "size" and not rest) or (whole.target is getattr and rest == ("shape",))
    return False


def mean(ctx: Lowering, input: Any, dim: Any = None, keepdim: Any = False, *, dtype: Any = None) -> Ref | None:
    """Mean over some dimensions."""
    name = ctx.value(input)
    dims = [dim] if isinstance(dim, int) else dim
    if name is None or dtype is not None or not isinstance(dims, (tuple, list)):
        return None
    if not dims or not all(isinstance(d, int) for d in dims) or not isinstance(keepdim, bool):
        return None
    attrs = {"dims": [int(d) for d in dims], "keepdim": keepdim, "layout": ctx.seen(input).layout}
    return ctx.emit("mean", [name], attrs)


def pad(ctx: Lowering, input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Ref | None:
    """Pad by constants, reflection, replication or wrapping."""
    name = ctx.value(input)
    if name is None or not isinstance(pad, (tuple, list)) or not all(isinstance(p, int) for p in pad):
        return None
    fill = 0.0 if value is None else value
    if not isinstance(fill, (int, float)) or not math.isfinite(fill):
        return None
    return ctx.emit("pad", [name], {"pad": list(pad), "mode": mode, "value": float(fill)})


def _numbers(value: Any, dims: int) -> list[int] | None:
    values = list(value) if isinstance(value, (tuple, list)) else [value] * dims
    if len(values) == 1:
        values = values * dims
    return [int(v) for v in values] if len(values) == dims and all(isinstance(v, int) for v in values) else None


def _batched(ctx: Lowering, input: Any, dims: int) -> str | None:
    return ctx.value(input) if len(ctx.shape(input)) == dims + 2 else None


def max_pool(dims: int) -> Row:
    """Max-pooling over ``dims`` dimensions."""

    def row(
        ctx: Lowering,
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: Any = False,
        return_indices: Any = False,
    ) -> Ref | None:
        name = _batched(ctx, input, dims)
        kernel = _numbers(kernel_size, dims)
        steps = kernel if stride is None or stride == [] else _numbers(stride, dims)
        attrs = {
            "kernel": kernel,
            "stride": steps,
            "padding": _numbers(padding, dims),
            "dilation": _numbers(dilation, dims),
            "ceil_mode": ceil_mode,
        }
        if name is None or return_indices or any(value is None for value in attrs.values()):
            return None
        return ctx.emit(f"max_pool{dims}d", [name], attrs)

    return row


def avg_pool(dims: int) -> Row:
    """Average pooling over ``dims`` dimensions."""

    def row(
        ctx: Lowering,
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: Any = False,
        count_include_pad: Any = True,
        divisor_override: Any = None,
    ) -> Ref | None:
        name = _batched(ctx, input, dims)
        kernel = _numbers(kernel_size, dims)
        steps = kernel if stride is None or stride == [] else _numbers(stride, dims)
        attrs: dict[str, Any] = {
            "kernel": kernel,
            "stride": steps,
            "padding": _numbers(padding, dims),
            "ceil_mode": ceil_mode,
            "count_include_pad": count_include_pad,
            "layout": ctx.seen(input).layout,
        }
        if name is None or any(value is None for value in attrs.values()):
            return None
        if dims == 2:
            attrs["divisor"] = int(divisor_override or 0)
        return ctx.emit(f"avg_pool{dims}d", [name], attrs)

    return row


def adaptive_avg_pool(dims: int) -> Row:
    """Adaptive average pooling over ``dims`` dimensions."""

    def row(ctx: Lowering, input: Any, output_size: Any) -> Ref | None:
        name = _batched(ctx, input, dims)
        values = list(output_size) if isinstance(output_size, (tuple, list)) else [output_size] * dims
        if name is None or len(values) != dims or not all(v is None or isinstance(v, int) for v in values):
            return None
        attrs = {"size": [v or 0 for v in values], "layout": ctx.seen(input).layout}
        return ctx.emit(f"adaptive_avg_pool{dims}d", [name], attrs)

    return row


_aten = torch.ops.aten

#: Functions and operators → row.
FUNCTIONS: dict[Any, Row] = {
    **scalar.FUNCTIONS,
    functional.dropout: dropout,
    functional.dropout2d: dropout,
    operator.add: add,
    operator.iadd: add,
    torch.add: add,
    torch.cat: cat,
    torch.concat: cat,
    torch.flatten: flatten,
    torch.mean: mean,
    torch.reshape: view,
    functional.pad: pad,
    functional.max_pool1d: max_pool(1),
    functional.max_pool2d: max_pool(2),
    torch.max_pool1d: max_pool(1),
    torch.max_pool2d: max_pool(2),
    functional.avg_pool1d: avg_pool(1),
    functional.avg_pool2d: avg_pool(2),
    functional.adaptive_avg_pool1d: adaptive_avg_pool(1),
    functional.adaptive_avg_pool2d: adaptive_avg_pool(2),
    _aten.dropout.default: dropout,
    _aten.feature_dropout.default: dropout,
    _aten.add.Tensor: add,
    _aten.add_.Tensor: add,
    _aten.cat.default: cat,
    _aten.flatten.using_ints: flatten,
    _aten.view.default: view,
    _aten.reshape.default: view,
    _aten.mean.dim: mean,
    _aten.pad.default: pad,
    _aten.max_pool1d.default: max_pool(1),
    _aten.max_pool2d.default: max_pool(2),
    _aten.avg_pool1d.default: avg_pool(1),
    _aten.avg_pool2d.default: avg_pool(2),
    _aten.adaptive_avg_pool1d.default: adaptive_avg_pool(1),
    _aten.adaptive_avg_pool2d.default: adaptive_avg_pool(2),
}

#: Tensor methods → row.
METHODS: dict[str, Row] = {
    **scalar.METHODS,
    "add": add,
    "add_": add,
    "flatten": flatten,
    "view": view,
    "reshape": view,
    "mean": mean,
    "contiguous": identity,
}
