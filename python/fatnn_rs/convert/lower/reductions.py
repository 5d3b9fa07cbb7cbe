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
from fatnn_rs.nn.exact_mean import ExactMean

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


def exact_mean(ctx: Lowering, module: ExactMean, input: Any) -> Ref | None:
    """Lower a mean that torch, too, sums in float64."""
    name = ctx.value(input)
    attrs = {"dims": module.dims, "keepdim": module.keepdim, "float64": True, "layout": "any"}
    return None if name is None else ctx.emit("mean", [name], attrs)


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


def norm(
    ctx: Lowering,
    input: Any,
    p: Any = 2,
    dim: Any = None,
    keepdim: Any = False,
    dtype: Any = None,
    out: Any = None,
) -> Ref | None:
    """Lower a norm of vectors, with p of 1 or 2."""
    p = 2 if p in (None, "fro") else p
    name, dims = ctx.value(input), _dims(dim)
    if name is None or dims is None or not isinstance(keepdim, bool):
        return None
    if dtype is not None or out is not None:
        return None
    if p not in (1, 2) or not ctx.shape(input):
        return None
    attrs = {"dims": dims, "keepdim": keepdim, "p": int(p), "layout": ctx.seen(input).layout}
    return ctx.emit("norm", [name], attrs)


def linalg_norm(ctx: Lowering, input: Any, ord: Any = None, dim: Any = None, **how: Any) -> Any:
    """``torch.linalg.norm`` of vectors: along one dimension, or of all elements."""
    if isinstance(dim, (tuple, list)) and len(dim) == 1:
        dim = dim[0]
    of_vectors = isinstance(dim, int) or (dim is None and ord is None)
    return norm(ctx, input, ord, dim, **how) if of_vectors else None


def vector_norm(
    ctx: Lowering, x: Any, ord: Any = 2, dim: Any = None, keepdim: Any = False, **how: Any
) -> Ref | None:
    """``torch.linalg.vector_norm``, whose second parameter has another name."""
    return norm(ctx, x, ord, dim, keepdim, **how)


def variance(op: str) -> Row:
    """Lower a variance or standard deviation."""

    def row(
        ctx: Lowering,
        input: Any,
        dim: Any = None,
        unbiased: Any = True,
        keepdim: Any = False,
        *,
        correction: Any = None,
    ) -> Ref | None:
        if isinstance(dim, bool):  # the overload without dimensions
            dim, unbiased = None, dim
        name, dims = ctx.value(input), _dims(dim)
        correction = int(unbiased) if correction is None else correction
        if name is None or dims is None or not isinstance(keepdim, bool):
            return None
        if not ctx.shape(input) or correction != int(correction):
            return None
        attrs: dict[str, Any] = {"dims": dims, "keepdim": keepdim, "correction": int(correction)}
        return ctx.emit(op, [name], attrs | {"layout": ctx.seen(input).layout})

    return row


def _dims(dim: Any) -> list[int] | None:
    dims = [] if dim is None else [dim] if isinstance(dim, int) else dim
    if not isinstance(dims, (tuple, list)) or not all(type(d) is int for d in dims):
        return None
    return list(dims)


_aten = torch.ops.aten


#: Method name, row, and the functions that it lowers.
_BY_NAME: tuple[tuple[str, Row, tuple[Any, ...]], ...] = (
    ("mean", reduction("mean"), (torch.mean, _aten.mean.dim, _aten.mean.default)),
    ("sum", reduction("sum"), (torch.sum, _aten.sum.dim_IntList, _aten.sum.default)),
    ("norm", norm, (torch.norm,)),
    ("var", variance("var"), (torch.var, _aten.var.dim, _aten.var.correction)),
    ("std", variance("std"), (torch.std, _aten.std.dim, _aten.std.correction)),
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
    torch.linalg.norm: linalg_norm,
    **dict.fromkeys(
        (torch.linalg.vector_norm, _aten.linalg_vector_norm.default, _aten.norm.ScalarOpt_dim),
        vector_norm,
    ),
}


#: Tensor methods → row.
METHODS: dict[str, Row] = {name: row for name, row, _ in _BY_NAME}


#: Module classes → row.
MODULES: dict[type[nn.Module], Row] = {
    ExactMean: exact_mean,
    nn.Softmax: lambda ctx, module, input: softmax("softmax")(ctx, input, module.dim),
    nn.LogSoftmax: lambda ctx, module, input: softmax("log_softmax")(ctx, input, module.dim),
}
