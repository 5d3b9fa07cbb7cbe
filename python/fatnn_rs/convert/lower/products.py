"""Products: linear layers, convolutions, matrix products, ``einsum``, ``baddbmm``, ``addmm``.

Torch runs them unless float layers may run in Rust: their sums have a rounding of their own.
Weights that a function gets as arguments must be the model's own parameters or buffers.

``einsum``, ``baddbmm`` and ``addmm`` become ``matmul``, where torch may add in another order. So
both are run on random tensors with the example's shapes and strides, and the call stays in torch if
any bit differs.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.lower.lowering import Lowering, Row
from fatnn_rs.convert.memory_format import in_layout, layout_of

__all__ = ["FUNCTIONS", "METHODS", "constant_tensors", "layouts", "linear_node"]

_aten = torch.ops.aten


def constant_tensors(ctx: Lowering, given: dict[str, Any]) -> dict[str, Tensor | None] | None:
    """Return constant arguments as tensors by role; None if one is given but not constant."""
    found = {role: ctx.constant(value) for role, value in given.items()}
    return (
        None
        if any(value is not None and found[role] is None for role, value in given.items())
        else found
    )


def layouts(ctx: Lowering, *values: Any) -> str:
    """Return the memory formats of values as the ``layout`` attribute of a node."""
    return "|".join(ctx.seen(value).layout for value in values)


def linear(ctx: Lowering, input: Any, weight: Any, bias: Any = None) -> Ref | None:
    """Linear layer with constant weights."""
    name, tensors = ctx.value(input), constant_tensors(ctx, {"weight": weight, "bias": bias})
    if name is None or tensors is None or tensors["weight"] is None or tensors["weight"].dim() != 2:
        return None
    return linear_node(ctx, input, name, ctx.attribute(weight), tensors)


def linear_node(
    ctx: Lowering, input: Any, name: str, weight: Any, tensors: Mapping[str, Tensor | None]
) -> Ref:
    """Add a linear layer that takes torch's path for its strides.

    ``F.linear`` of a strided input folds all positions into one product only if the weight records
    gradients. A ``linear`` node runs with such a weight. Others become what torch computes then.

    Parameters
    ----------
    ctx
        The lowering.
    input, name
        The input in the captured graph, and its value's name.
    weight
        The weight that the model gives to ``F.linear``; None if it is not a parameter.
    tensors
        ``weight`` and ``bias``.
    """
    layout = ctx.seen(input).layout
    folds = isinstance(weight, Tensor) and weight.requires_grad and weight.is_leaf
    table, bias = tensors["weight"], tensors["bias"]
    assert table is not None
    if folds or layout == "contiguous" or len(ctx.shape(input)) < 3:
        return ctx.emit("linear", [name], {"layout": layout}, tensors)
    rows, columns = table.shape
    shape = (rows, columns)
    made = ctx.emit("constant", [], {}, {"value": table}, suffix="_weight", shape=shape).name
    made = ctx.emit("permute", [made], {"dims": [1, 0]}, suffix="_t", shape=shape[::-1]).name
    layout = f"{layout}|order:1,0"
    if bias is None:
        return ctx.emit("matmul", [name, made], {"layout": layout})
    product = ctx.emit("matmul", [name, made], {"layout": layout}, suffix="_matmul").name
    added = ctx.emit("constant", [], {}, {"value": bias}, suffix="_bias", shape=(rows,)).name
    return ctx.emit("add", [product, added])


def conv(dims: int) -> Row:
    """Lower a convolution with constant weights."""

    def row(
        ctx: Lowering,
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
    ) -> Ref | None:
        name, tensors = ctx.value(input), constant_tensors(ctx, {"weight": weight, "bias": bias})
        attrs: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        for key, value in attrs.items():
            values = list(value) if isinstance(value, (tuple, list)) else [value]
            attrs[key] = values * dims if len(values) == 1 else values
        numbers = [v for values in attrs.values() for v in values]
        if (
            name is None
            or tensors is None
            or tensors["weight"] is None
            or len(ctx.shape(input)) != dims + 2
        ):
            return None
        if not all(isinstance(v, int) for v in (*numbers, groups)) or len(numbers) != 3 * dims:
            return None
        attrs |= {"groups": groups, "layout": ctx.seen(input).layout}
        return ctx.emit(f"conv{dims}d", [name], attrs, tensors)

    return row


def matmul(ctx: Lowering, input: Any, other: Any) -> Ref | None:
    """Matrix product, batched or not."""
    a, b = ctx.value(input), ctx.value(other)
    if a is None or b is None or min(len(ctx.shape(input)), len(ctx.shape(other))) < 2:
        return None
    weight = ctx.attribute(other)
    folds = isinstance(weight, Tensor) and weight.requires_grad and weight.is_leaf
    rank, layout = len(ctx.shape(input)), ctx.seen(input).layout
    if folds and rank > 2 and weight.dim() == 2 and layout != "contiguous":
        # Torch folds all positions into one product, because the weight records gradients.
        count, (rows, columns) = math.prod(ctx.shape(input)[:-1]), weight.shape
        flat = ctx.emit("flatten_leading", [a], suffix="_rows", shape=(count, rows)).name
        attrs = {"layout": "any|any"}
        product = ctx.emit("matmul", [flat, b], attrs, suffix="_flat", shape=(count, columns))
        return ctx.emit("reshape_like", [product.name, a])
    return ctx.emit("matmul", [a, b], {"layout": layouts(ctx, input, other)})


def _samples(ctx: Lowering, values: Sequence[Any]) -> list[Tensor]:
    """Return random tensors with the shapes and strides that values had for the example."""
    generator = torch.Generator("cpu").manual_seed(0)
    made = []
    for value in values:
        seen = ctx.seen(value)
        x = torch.empty_strided(seen.shape, seen.geometry[2], dtype=torch.float32, device="cpu")
        if all(stride or size == 1 for stride, size in zip(x.stride(), x.shape, strict=True)):
            x.normal_(generator=generator)
        else:  # a stride of 0: one element of memory for several elements
            x = torch.randn(seen.shape, generator=generator, device="cpu")
        made.append(x)
    return made


def _resized(x: Tensor, dim: int, size: int) -> Tensor:
    """Return a random tensor like ``x`` with another size of one dimension."""
    shape, strides, old = list(x.shape), list(x.stride()), x.shape[dim]
    if old == 1:
        strides[dim] = max((n * s for n, s in zip(shape, strides, strict=True)), default=1)
    else:
        inner = strides[dim]
        strides = [s * size // old if s > inner else s for s in strides]
    shape[dim] = size
    made = torch.empty_strided(shape, strides, device="cpu")
    return made.normal_(generator=torch.Generator("cpu").manual_seed(size))


def _bitwise_equal(
    ctx: Lowering, values: Sequence[Any], one: Callable[..., Tensor], other: Callable[..., Tensor]
) -> bool:
    """Whether two functions give the same bits on random tensors like ``values``."""
    samples = _samples(ctx, values)
    return torch.equal(one(*samples), other(*samples))


class _Einsum:
    """An einsum of two operands as one matrix product between permutations and reshapes.

    Like torch, it sums in the order of the alphabet, and it swaps the operands if all columns come
    before all rows in the output.
    """

    def __init__(self, a: str, b: str, out: str) -> None:
        rows = [c for c in out if c in a and c not in b]
        columns = [c for c in out if c in b and c not in a]
        self.swaps = bool(rows and columns) and out.index(columns[-1]) < out.index(rows[0])
        self.a, self.b, self.out = (b, a, out) if self.swaps else (a, b, out)
        self.rows, self.columns = (columns, rows) if self.swaps else (rows, columns)
        self.batch = [c for c in out if c in a and c in b]
        self.summed = [c for c in sorted(a) if c in b and c not in out]

    @classmethod
    def parsed(cls, equation: Any) -> _Einsum | None:
        """Parse an equation of two operands; None if it has dots, traces or one-operand sums."""
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
        """Return the permutations of both operands and of the result."""
        made = [*self.batch, *self.rows, *self.columns]
        return (
            [self.a.index(c) for c in (*self.batch, *self.rows, *self.summed)],
            [self.b.index(c) for c in (*self.batch, *self.summed, *self.columns)],
            [made.index(c) for c in self.out],
        )

    def shapes(
        self, sizes: dict[str, int], varies: str = ""
    ) -> tuple[list[int], list[int], list[int]]:
        """Return ``reshape`` arguments: of both operands, and of the result before permuting.

        The letter ``varies`` may have any size. Without a batch, the product has a batch of one. So
        torch runs ``bmm`` as in ``einsum``, which may add in another order than ``mm``.
        """
        batch = [0] * len(self.batch)
        summed = math.prod(sizes[c] for c in self.summed)
        free = [-1 if c == varies else sizes[c] for c in (*self.rows, *self.columns)]
        lead = batch or [1]
        return [*lead, -1, summed], [*lead, summed, -1], [*batch, *free]

    def keeps_shape(self, which: int) -> bool:
        """Whether a reshape of :meth:`shapes` changes no shape of any size."""
        groups = (self.rows, self.summed), (self.summed, self.columns), (self.rows, self.columns)
        return bool(self.batch) and all(len(group) == 1 for group in groups[which])


def _reshaped(x: Tensor, shape: list[int]) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def _format(x: Tensor) -> str:
    """Return a memory format whose strides are ``x``'s, but for dimensions of size 1."""
    strides = [s if size > 1 else x.numel() for s, size in zip(x.stride(), x.shape, strict=True)]
    found = layout_of(torch.empty_strided(x.shape, strides, device="meta"))
    return "contiguous" if found == "any" else found


def einsum(ctx: Lowering, equation: Any, *operands: Any, path: Any = None) -> Ref | None:
    """``einsum`` of two operands."""
    given = (
        operands[0] if len(operands) == 1 and isinstance(operands[0], (tuple, list)) else operands
    )
    form = _Einsum.parsed(equation) if len(given) == 2 else None
    if form is not None and form.swaps:
        given = given[::-1]
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
    terms = form.a, form.b
    varies = next((t[0] for t, v in zip(terms, given, strict=True) if ctx.constant(v) is None), "")
    orders, made = form.orders(), form.shapes(sizes, varies)

    def factors(samples: list[Tensor]) -> list[Tensor]:
        return [_reshaped(x.permute(orders[i]), made[i]) for i, x in enumerate(samples)]

    tried = [_samples(ctx, given)]
    if varies in (*form.batch, *form.rows, *form.columns):
        tried += [
            [
                _resized(x, t.index(varies), n) if varies in t else x
                for x, t in zip(tried[0], terms, strict=True)
            ]
            for n in (2, 3, 8, 32)
        ]
    # Permutations and reshapes write row-major memory in the engine: give torch its own strides.
    # A dimension of size 1 has no order, so these are of another batch.
    formats = [_format(x) for x in factors(tried[-1])]
    for samples in tried:
        product = torch.matmul(*map(in_layout, factors(samples), formats))
        expected = torch.einsum(str(equation), *(samples[::-1] if form.swaps else samples))
        if not torch.equal(_reshaped(product, made[2]).permute(orders[2]), expected):
            return None
    parts: list[str] = []
    for i, name in enumerate(names):
        assert name is not None
        shape = [shapes[i][dim] for dim in orders[i]]
        name = _step(ctx, "permute", name, {"dims": orders[i]}, shape)
        baked = [] if form.keeps_shape(2) else [*form.rows, *form.columns]
        baked += [] if form.keeps_shape(i) else form.summed
        for dim, at in enumerate(orders[i]):
            if terms[i][at] in baked and terms[i][at] != varies:
                ctx.fix_sizes(name, dim, with_batch=True)
        lead = shape[: len(form.batch)] or [1]
        rest = math.prod(shape) // max(math.prod(lead) * made[i][-1 - (i == 1)], 1)
        ends = [rest, made[0][-1]] if i == 0 else [made[0][-1], rest]
        if not form.keeps_shape(i):
            name = _step(ctx, "reshape", name, {"shape": made[i]}, [*lead, *ends])
        parts.append(name)
    lead = [sizes[c] for c in form.batch] or [1]
    ends = [math.prod(sizes[c] for c in group) for group in (form.rows, form.columns)]
    suffix = f"_matmul_{len(ctx.graph.nodes)}"
    attrs = {"layout": "|".join(formats)}
    name = ctx.emit("matmul", parts, attrs, suffix=suffix, shape=(*lead, *ends)).name
    whole = [sizes[c] for c in (*form.batch, *form.rows, *form.columns)]
    if not form.keeps_shape(2):
        name = _step(ctx, "reshape", name, {"shape": made[2]}, whole)
    return ctx.emit("permute", [name], {"dims": orders[2]})


def _step(ctx: Lowering, op: str, name: str, attrs: dict[str, Any], shape: Sequence[int]) -> str:
    """Add an inner node of a call, unless it permutes nothing; return its value's name.

    A reshape is added even if it keeps the example's sizes: it may change those of another batch.
    """
    if op == "permute" and attrs["dims"] == list(range(len(shape))):
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


def matmul_add(function: Callable[..., Tensor]) -> Row:
    """Lower ``baddbmm`` or ``addmm``: ``beta * input + alpha * (a @ b)``."""

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
            if (alpha, beta) == (1, 1) and _bitwise_equal(
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

        if beta == 0 or not _bitwise_equal(
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


def addcmul(ctx: Lowering, input: Any, a: Any, b: Any, *, value: Any = 1) -> Ref | None:
    """``input + value * a * b``: torch rounds the last product and the sum once."""
    names = [ctx.value(given) for given in (input, a, b)]
    known = [name for name in names if name is not None]
    if len(known) < 3 or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    attrs = {"value": float(value), "layout": layouts(ctx, input, a, b)}
    return ctx.emit("addcmul", known, attrs)


#: Functions and operators → row.
FUNCTIONS: dict[Any, Row] = {
    functional.linear: linear,
    _aten.linear.default: linear,
    functional.conv1d: conv(1),
    functional.conv2d: conv(2),
    _aten.conv1d.default: conv(1),
    _aten.conv2d.default: conv(2),
    **dict.fromkeys((torch.addcmul, _aten.addcmul.default), addcmul),
    **dict.fromkeys((torch.matmul, torch.bmm, torch.mm, operator.matmul), matmul),
    **dict.fromkeys((_aten.matmul.default, _aten.bmm.default, _aten.mm.default), matmul),
    torch.einsum: einsum,
    torch.functional.einsum: einsum,
    _aten.einsum.default: einsum,
    torch.baddbmm: matmul_add(torch.baddbmm),
    _aten.baddbmm.default: matmul_add(torch.baddbmm),
    torch.addmm: matmul_add(torch.addmm),
    _aten.addmm.default: matmul_add(torch.addmm),
}

#: Tensor methods → row.
METHODS: dict[str, Row] = {
    **dict.fromkeys(("matmul", "bmm", "mm", "__matmul__"), matmul),
    "baddbmm": matmul_add(torch.baddbmm),
    "addmm": matmul_add(torch.addmm),
    "addcmul": addcmul,
}
