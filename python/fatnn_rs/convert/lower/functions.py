"""Rows for functions and tensor methods, with torch's own signatures.

A row returns the new value, or None if it cannot lower the call: an unsupported dtype, an argument
that it does not know, or a shape that may vary. Such a call stays in torch.
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
from fatnn_rs.convert.lower import (
    attention,
    masks,
    normalization,
    products,
    rearrange,
    reductions,
    slicing,
    spatial,
    transposed,
)
from fatnn_rs.convert.lower.lowering import PLAIN, Lowering, Row

__all__ = ["FUNCTIONS", "METHODS", "NAMED"]


def identity(ctx: Lowering, input: Any) -> Ref | None:
    """Return the input: the call changes nothing in eval mode."""
    name = ctx.plain(input)
    return None if name is None else Ref(name)


def copied(ctx: Lowering, input: Any, *, memory_format: Any = None) -> Ref | None:
    """Return the input for a copy: no operation of a graph writes into its inputs."""
    return identity(ctx, input)


def dropout(
    ctx: Lowering, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Ref | None:
    """Dropout, if switched off."""
    return identity(ctx, input) if training is False else None


def alpha_dropout(
    ctx: Lowering, input: Any, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Any:
    """Alpha dropout, which is off by default."""
    return dropout(ctx, input, p, training, inplace)


def stochastic_depth(
    ctx: Lowering, input: Any, p: Any, mode: Any, training: Any = True
) -> Ref | None:
    """Torchvision's stochastic depth, if switched off."""
    return identity(ctx, input) if training is False or p == 0 else None


def arithmetic(op: str, swapped: bool = False) -> Row:
    """Lower a binary operation; one operand may be a number. ``swapped`` exchanges the operands."""

    def row(
        ctx: Lowering, input: Any, other: Any, *, alpha: Any = 1, rounding_mode: Any = None
    ) -> Ref | None:
        tensors = isinstance(input, fx.Node) or isinstance(other, fx.Node)
        dtype = ctx.seen(ctx.node).dtype
        integers = dtype in (torch.int32, torch.int64) and op != "div"
        if (
            not tensors
            or alpha != 1
            or rounding_mode is not None
            or dtype is None
            or not (dtype == torch.float32 or integers)
        ):
            return None
        before = len(ctx.graph.nodes)
        values = (other, input) if swapped else (input, other)
        names = [masks.operand(ctx, value, dtype) for value in values]
        known = [name for name in names if name is not None]
        if len(known) == 2:
            return ctx.emit(op, known, dtype=PLAIN[dtype])
        del ctx.graph.nodes[before:]
        return None

    return row


def flatten(ctx: Lowering, input: Any, start_dim: Any = 0, end_dim: Any = -1) -> Ref | None:
    """Flatten a range of dimensions."""
    name = ctx.plain(input)
    if name is None or not isinstance(start_dim, int) or not isinstance(end_dim, int):
        return None
    rank = len(ctx.shape(input))
    start, end = start_dim % max(rank, 1), end_dim % max(rank, 1)
    if rank and start == end:
        return Ref(name)
    return ctx.emit("flatten", [name], {"start": start, "end": -1 if end == rank - 1 else end})


def pad(
    ctx: Lowering, input: Any, pad: Any, mode: str = "constant", value: Any = None
) -> Ref | None:
    """Pad with a constant, by reflection, replication or wrapping."""
    name = ctx.value(input)
    if (
        name is None
        or not isinstance(pad, (tuple, list))
        or not all(isinstance(p, int) for p in pad)
    ):
        return None
    if mode == "constant":
        pad = list(pad)
        while len(pad) > 2 and not any(pad[-2:]):  # dimensions that stay as they are
            del pad[-2:]
    if mode == "constant" and min(pad, default=0) < 0:
        return None  # it cuts: a composition of slices and a padding
    fill = 0.0 if value is None else value
    if not isinstance(fill, (int, float)) or not math.isfinite(fill):
        return None
    return ctx.emit("pad", [name], {"pad": list(pad), "mode": mode, "value": float(fill)})


def prelu(ctx: Lowering, input: Any, weight: Any) -> Ref | None:
    """``F.prelu`` with a constant weight."""
    name, slopes = ctx.value(input), ctx.constant(weight)
    if name is None or slopes is None or slopes.dim() > 1:
        return None
    return ctx.emit(
        "prelu", [name], {"shared": slopes.numel() == 1}, {"weight": slopes.reshape(-1)}
    )


def _numbers(value: Any, dims: int) -> list[int] | None:
    values = list(value) if isinstance(value, (tuple, list)) else [value] * dims
    if len(values) == 1:
        values = values * dims
    return (
        [int(v) for v in values]
        if len(values) == dims and all(isinstance(v, int) for v in values)
        else None
    )


def _batched(ctx: Lowering, input: Any, dims: int) -> str | None:
    return ctx.value(input) if len(ctx.shape(input)) == dims + 2 else None


def max_pool(dims: int) -> Row:
    """Lower max pooling over ``dims`` dimensions."""

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
    """Lower average pooling over ``dims`` dimensions."""

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
    """Lower adaptive average pooling over ``dims`` dimensions."""

    def row(ctx: Lowering, input: Any, output_size: Any) -> Ref | None:
        name = _batched(ctx, input, dims)
        values = (
            list(output_size) if isinstance(output_size, (tuple, list)) else [output_size] * dims
        )
        if (
            name is None
            or len(values) != dims
            or not all(v is None or isinstance(v, int) for v in values)
        ):
            return None
        attrs = {"size": [v or 0 for v in values], "layout": ctx.seen(input).layout}
        return ctx.emit(f"adaptive_avg_pool{dims}d", [name], attrs)

    return row


_aten = torch.ops.aten

#: Names of functions and methods of torch → operation.
_ARITHMETIC = (
    ("add", "add"),
    ("sub", "sub"),
    ("subtract", "sub"),
    ("mul", "mul"),
    ("multiply", "mul"),
    ("div", "div"),
    ("divide", "div"),
    ("true_divide", "div"),
)
#: Names of Python's operators → operation.
_OPERATORS = (("add", "add"), ("sub", "sub"), ("mul", "mul"), ("truediv", "div"))


def _arithmetic_calls() -> dict[Any, Row]:
    """Return the rows of Python's operators, torch's functions and aten's operators."""
    found: dict[Any, Row] = {getattr(torch, name): arithmetic(op) for name, op in _ARITHMETIC}
    for python, op in _OPERATORS:
        row = arithmetic(op)
        found |= {getattr(operator, python): row, getattr(operator, f"i{python}"): row}
        for packet in (getattr(_aten, op), getattr(_aten, f"{op}_")):
            found |= {
                getattr(packet, overload): row
                for overload in ("Tensor", "Scalar")
                if hasattr(packet, overload)
            }
    found |= dict.fromkeys(
        (torch.rsub, _aten.rsub.Scalar, _aten.rsub.Tensor), arithmetic("sub", swapped=True)
    )
    return found


#: Functions of other packages, by module and name → row.
NAMED: dict[tuple[str, str], Row] = {
    ("torchvision.ops.stochastic_depth", "stochastic_depth"): stochastic_depth,
}

#: Functions and operators → row.
FUNCTIONS: dict[Any, Row] = {
    **scalar.FUNCTIONS,
    **rearrange.FUNCTIONS,
    **slicing.FUNCTIONS,
    **reductions.FUNCTIONS,
    **normalization.FUNCTIONS,
    **attention.FUNCTIONS,
    **masks.FUNCTIONS,
    **products.FUNCTIONS,
    **spatial.FUNCTIONS,
    **transposed.FUNCTIONS,
    **_arithmetic_calls(),
    functional.dropout: dropout,
    functional.dropout1d: dropout,
    functional.dropout2d: dropout,
    functional.dropout3d: dropout,
    functional.alpha_dropout: alpha_dropout,
    functional.feature_alpha_dropout: alpha_dropout,
    **dict.fromkeys((functional.prelu, torch.prelu, _aten.prelu.default), prelu),
    torch.flatten: flatten,
    functional.pad: pad,
    functional.max_pool1d: max_pool(1),
    functional.max_pool2d: max_pool(2),
    torch.max_pool1d: max_pool(1),
    torch.max_pool2d: max_pool(2),
    functional.avg_pool1d: avg_pool(1),
    functional.avg_pool2d: avg_pool(2),
    functional.adaptive_avg_pool1d: adaptive_avg_pool(1),
    functional.adaptive_avg_pool2d: adaptive_avg_pool(2),
    **dict.fromkeys(
        (
            *(torch.clone, _aten.clone.default, _aten.contiguous.default),
            *(_aten.detach.default, _aten.alias.default),
        ),
        copied,
    ),
    _aten.dropout.default: dropout,
    _aten.feature_dropout.default: dropout,
    _aten.flatten.using_ints: flatten,
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
    **rearrange.METHODS,
    **slicing.METHODS,
    **reductions.METHODS,
    **masks.METHODS,
    **products.METHODS,
    **{f"{name}{end}": arithmetic(op) for name, op in _ARITHMETIC for end in ("", "_")},
    "flatten": flatten,
    "prelu": prelu,
    "contiguous": identity,
    "clone": identity,
    "detach": identity,
}
