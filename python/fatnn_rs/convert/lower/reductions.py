"""Reductions and softmax.

Means, sums and softmax depend on the order of additions or on an approximated function, so torch
runs them unless float layers may run in Rust.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.lower.lowering import Lowering, Row

__all__ = ["FUNCTIONS", "METHODS", "MODULES", "only_first_used"]


def reduction(op: str) -> Row:
    """Lower a mean, sum, maximum or minimum over some or all dimensions."""

    def row(
        ctx: Lowering, input: Any, dim: Any = None, keepdim: Any = False, *, dtype: Any = None
    ) -> Ref | None:
        name = ctx.value(input)
        dims = [] if dim is None else [dim] if isinstance(dim, int) else dim
        if (
            name is None
            or dtype is not None
            or not isinstance(dims, (tuple, list))
            or not isinstance(keepdim, bool)
        ):
            return None
        if not all(isinstance(d, int) for d in dims) or not ctx.shape(input):
            return None
        attrs: dict[str, Any] = {"dims": [int(d) for d in dims], "keepdim": keepdim}
        if op in ("mean", "sum"):
            attrs["layout"] = ctx.seen(input).layout
        return ctx.emit(op, [name], attrs)

    return row


def only_first_used(ctx: Lowering) -> bool:
    """Whether only the first of several results is used."""
    users = [user for user in ctx.node.users if user.users or user.op == "output"]
    return all(user.target is operator.getitem and user.args[1] == 0 for user in users)


def extreme(op: str) -> Row:
    """Lower ``max`` or ``min`` over a dimension if only the values are used, not the indices."""

    def row(ctx: Lowering, input: Any, dim: Any, keepdim: Any = False) -> Any:
        name, shape = ctx.value(input), ctx.shape(input)
        if name is None or not isinstance(dim, int) or not isinstance(keepdim, bool) or not shape:
            return None
        if not only_first_used(ctx):
            return None
        made = [1 if i == dim % len(shape) else size for i, size in enumerate(shape)]
        if not keepdim:
            del made[dim % len(shape)]
        return (ctx.emit(op, [name], {"dims": [dim], "keepdim": keepdim}, shape=tuple(made)), None)

    return row


def softmax(op: str) -> Row:
    """Lower softmax or log-softmax along a dimension."""

    def row(
        ctx: Lowering, input: Any, dim: Any = None, _stacklevel: Any = 3, dtype: Any = None
    ) -> Ref | None:
        name = ctx.value(input)
        if name is None or not isinstance(dim, int) or not ctx.shape(input):
            return None
        if dtype not in (None, torch.float32):
            return None
        return ctx.emit(op, [name], {"dim": dim, "layout": ctx.seen(input).layout})

    return row


def _aten_softmax(op: str) -> Row:
    def row(ctx: Lowering, input: Any, dim: Any, dtype: Any = None) -> Ref | None:
        result: Ref | None = softmax(op)(ctx, input, dim, dtype=dtype)
        return result

    return row


_aten = torch.ops.aten


#: Method name, row, and the functions that it lowers.
_BY_NAME: tuple[tuple[str, Row, tuple[Any, ...]], ...] = (
    ("mean", reduction("mean"), (torch.mean, _aten.mean.dim, _aten.mean.default)),
    ("sum", reduction("sum"), (torch.sum, _aten.sum.dim_IntList, _aten.sum.default)),
    ("amax", reduction("amax"), (torch.amax, _aten.amax.default)),
    ("amin", reduction("amin"), (torch.amin, _aten.amin.default)),
    ("max", extreme("amax"), (torch.max, _aten.max.dim)),
    ("min", extreme("amin"), (torch.min, _aten.min.dim)),
    ("softmax", _aten_softmax("softmax"), (torch.softmax, _aten.softmax.int)),
    ("log_softmax", _aten_softmax("log_softmax"), (torch.log_softmax, _aten.log_softmax.int)),
)


#: Functions and operators → row.
FUNCTIONS: dict[Any, Row] = {
    functional.softmax: softmax("softmax"),
    functional.log_softmax: softmax("log_softmax"),
    **{call: row for _, row, calls in _BY_NAME for call in calls},
}


#: Tensor methods → row.
METHODS: dict[str, Row] = {name: row for name, row, _ in _BY_NAME}


#: Module classes → row.
MODULES: dict[type[nn.Module], Row] = {
    nn.Softmax: lambda ctx, module, input: softmax("softmax")(ctx, input, module.dim),
    nn.LogSoftmax: lambda ctx, module, input: softmax("log_softmax")(ctx, input, module.dim),
}
