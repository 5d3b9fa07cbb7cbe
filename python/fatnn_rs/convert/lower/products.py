"""How products with other names become matrix products: ``einsum``, ``baddbmm``, ``addmm``.

Torch may add in another order than its ``matmul`` does. So a form is taken only where both have the
same bits on random tensors with the example's shapes and strides; otherwise the call stays in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.lower.lowering import Lowering, Row

__all__ = ["FUNCTIONS", "METHODS"]

_aten = torch.ops.aten


def _samples(ctx: Lowering, values: Sequence[Any]) -> list[Tensor]:
    """Random tensors in the places in memory that values had at the example."""
    generator = torch.Generator("cpu").manual_seed(0)
    made = []
    for value in values:
        seen = ctx.seen(value)
        x = torch.empty_strided(seen.shape, seen.geometry[2], dtype=torch.float32, device="cpu")
        if all(stride or size == 1 for stride, size in zip(x.stride(), x.shape, strict=True)):
            x.normal_(generator=generator)
        else:  # elements that stand for several
            x = torch.randn(seen.shape, generator=generator, device="cpu")
        made.append(x)
    return made


def _agree(
    ctx: Lowering, values: Sequence[Any], one: Callable[..., Tensor], other: Callable[..., Tensor]
) -> bool:
    """Whether two functions of values have the same bits."""
    samples = _samples(ctx, values)
    return torch.equal(one(*samples), other(*samples))


class _Einsum:
    """A contraction of two operands as reshapings around one matrix product."""

    def __init__(self, a: str, b: str, out: str) -> None:
        self.a, self.b, self.out = a, b, out
        self.batch = [c for c in out if c in a and c in b]
        self.summed = [c for c in a if c in b and c not in out]
        self.rows = [c for c in out if c in a and c not in b]
        self.columns = [c for c in out if c in b and c not in a]

    @classmethod
    def parsed(cls, equation: Any) -> _Einsum | None:
        """From an equation with two operands, without dots, traces, and sums of one operand."""
        text = str(equation).replace(" ", "")
        terms, arrow, out = text.partition("->")
        a, comma, b = terms.partition(",")
        if not arrow or not comma or not all(term.isalpha() for term in (a, b) if term):
            return None
        if any(len(set(term)) < len(term) for term in (a, b, out)) or not (a and b and out):
            return None
        made = cls(a, b, out)
        known = {*made.batch, *made.summed, *made.rows, *made.columns}
        if known != {*a, *b} or set(out) > known or not made.summed:
            return None
        return made

    def orders(self) -> tuple[list[int], list[int], list[int]]:
        """Permutations of both operands and of the result."""
        made = [*self.batch, *self.rows, *self.columns]
        return (
            [self.a.index(c) for c in (*self.batch, *self.rows, *self.summed)],
            [self.b.index(c) for c in (*self.batch, *self.summed, *self.columns)],
            [made.index(c) for c in self.out],
        )

    def shapes(self, sizes: dict[str, int]) -> tuple[list[int], list[int], list[int]]:
        """Shapes of both operands, and of the result before it is permuted, as ``reshape`` takes them."""
        batch = [0] * len(self.batch)
        summed = math.prod(sizes[c] for c in self.summed)
        free = [sizes[c] for c in (*self.rows, *self.columns)]
        if not self.batch and free:
            free[0] = -1
        return [*batch, -1, summed], [*batch, summed, -1], [*batch, *free]


def _keep(x: Tensor, shape: list[int]) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def einsum(ctx: Lowering, equation: Any, *operands: Any, path: Any = None) -> Ref | None:
    """``einsum`` of two operands."""
    given = (
        operands[0] if len(operands) == 1 and isinstance(operands[0], (tuple, list)) else operands
    )
    form = _Einsum.parsed(equation) if len(given) == 2 else None
    names = [ctx.value(value) for value in given]
    if form is None or any(name is None for name in names):
        return None
    shapes = [ctx.shape(value) for value in given]
    if (len(form.a), len(form.b)) != (len(shapes[0]), len(shapes[1])) or 0 in (
        *shapes[0],
        *shapes[1],
    ):
        return None
    sizes = dict(zip(form.a, shapes[0], strict=True)) | dict(zip(form.b, shapes[1], strict=True))
    orders, made = form.orders(), form.shapes(sizes)

    def product(a: Tensor, b: Tensor) -> Tensor:
        a, b = (_keep(x.permute(orders[i]), made[i]) for i, x in enumerate((a, b)))
        return _keep(torch.matmul(a, b), made[2]).permute(orders[2])

    if not _agree(ctx, given, lambda a, b: torch.einsum(str(equation), a, b), product):
        return None
    parts: list[str] = []
    for i, name in enumerate(names):
        assert name is not None
        shape = [shapes[i][dim] for dim in orders[i]]
        name = _step(ctx, "permute", name, {"dims": orders[i]}, shape)
        lead = shape[: len(form.batch)]
        rest = math.prod(shape) // max(math.prod(lead) * made[i][-1 - (i == 1)], 1)
        ends = [rest, made[0][-1]] if i == 0 else [made[0][-1], rest]
        parts.append(_step(ctx, "reshape", name, {"shape": made[i]}, [*lead, *ends]))
        if len(form.batch) + 2 < len(shape):
            ctx.of_one_size.append(name)
    lead = [sizes[c] for c in form.batch]
    ends = [math.prod(sizes[c] for c in group) for group in (form.rows, form.columns)]
    suffix = f"_matmul_{len(ctx.graph.nodes)}"
    attrs = {"layout": "any|any"}
    product_ = ctx.emit("matmul", parts, attrs, suffix=suffix, shape=(*lead, *ends)).name
    whole = [sizes[c] for c in (*form.batch, *form.rows, *form.columns)]
    product_ = _step(ctx, "reshape", product_, {"shape": made[2]}, whole)
    return ctx.emit("permute", [product_], {"dims": orders[2]})


def _step(ctx: Lowering, op: str, name: str, attrs: dict[str, Any], shape: Sequence[int]) -> str:
    """Add a node inside a call, unless it changes nothing; its value's name."""
    rank = len(ctx.graph.node(name).shape)
    if op == "permute" and attrs["dims"] == list(range(rank)):
        return name
    if op == "reshape" and tuple(shape) == ctx.graph.node(name).shape:
        return name
    suffix = f"_{op}_{len(ctx.graph.nodes)}"
    return ctx.emit(op, [name], attrs, suffix=suffix, shape=tuple(shape)).name


def _scaled(ctx: Lowering, name: str, factor: Any, shape: tuple[int, ...]) -> str:
    if factor == 1:
        return name
    number = torch.tensor(float(factor), dtype=torch.float32, device="cpu")
    suffix = f"_number_{len(ctx.graph.nodes)}"
    constant = ctx.emit("constant", [], {}, {"value": number}, suffix=suffix, shape=()).name
    return ctx.emit(
        "mul", [name, constant], suffix=f"_mul_{len(ctx.graph.nodes)}", shape=shape
    ).name


def added(function: Callable[..., Tensor]) -> Row:
    """``beta * input + alpha * (a @ b)``: ``baddbmm``, ``addmm``."""

    def row(
        ctx: Lowering, input: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1
    ) -> Ref | None:
        given = (input, a, b)
        names = [name for name in map(ctx.value, given) if name is not None]
        if len(names) < 3 or not all(isinstance(v, (int, float)) for v in (alpha, beta)):
            return None
        weight = ctx.constant(b)
        bias = ctx.constant(input)
        if weight is not None and bias is not None and weight.dim() == 2 and bias.dim() == 1:
            table = weight.t().contiguous()
            if (alpha, beta) == (1, 1) and _agree(
                ctx,
                (a,),
                lambda x: function(bias, x, weight),
                lambda x: functional.linear(x, table, bias),
            ):
                attrs = {"layout": ctx.seen(a).layout}
                return ctx.emit("linear", [names[1]], attrs, {"weight": table, "bias": bias})

        def product(input: Tensor, a: Tensor, b: Tensor) -> Tensor:
            made = torch.matmul(a, b)
            made = made if alpha == 1 else made * alpha
            return (input if beta == 1 else input * beta) + made

        if beta == 0 or not _agree(
            ctx, given, lambda *x: function(*x, beta=beta, alpha=alpha), product
        ):
            return None
        shape = ctx.shape(ctx.node)
        layout = "|".join(ctx.seen(value).layout for value in (a, b))
        suffix = f"_matmul_{len(ctx.graph.nodes)}"
        made = ctx.emit("matmul", names[1:], {"layout": layout}, suffix=suffix, shape=shape).name
        first = _scaled(ctx, names[0], beta, ctx.shape(input))
        return ctx.emit("add", [first, _scaled(ctx, made, alpha, shape)])

    return row


#: Functions and operators → row.
FUNCTIONS: dict[Any, Row] = {
    torch.einsum: einsum,
    torch.functional.einsum: einsum,
    _aten.einsum.default: einsum,
    torch.baddbmm: added(torch.baddbmm),
    _aten.baddbmm.default: added(torch.baddbmm),
    torch.addmm: added(torch.addmm),
    _aten.addmm.default: added(torch.addmm),
}

#: Tensor methods → row.
METHODS: dict[str, Row] = {
    "baddbmm": added(torch.baddbmm),
    "addmm": added(torch.addmm),
}
