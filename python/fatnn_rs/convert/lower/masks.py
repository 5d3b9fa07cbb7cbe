"""Integers and masks: embeddings, comparisons, logic, ``where``, conversions.

Operands are cast to the dtype in which torch computes. Values that depend only on sizes are already
constants (:mod:`fatnn_rs.convert.lower.folding`).
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.lower.lowering import PLAIN, Lowering, Row
from fatnn_rs.errors import ConversionError

__all__ = ["FUNCTIONS", "METHODS", "MODULES", "cast_to", "operand"]

_aten = torch.ops.aten


def cast_to(ctx: Lowering, name: str, dtype: str, shape: tuple[int, ...]) -> str | None:
    """Cast a value; return the new name, or None if the engine has no such cast."""
    found = ctx.types[name]
    if found == dtype:
        return name
    if found == "float32" and dtype in ("int32", "int64"):
        return None
    suffix = f"_as_{dtype}_{len(ctx.graph.nodes)}"
    return ctx.emit("cast", [name], {"to": dtype}, suffix=suffix, shape=shape, dtype=dtype).name


def operand(ctx: Lowering, value: Any, dtype: torch.dtype) -> str | None:
    """Return the name of an operand of ``dtype``: a cast tensor, or a constant for a number."""
    if dtype not in PLAIN:
        return None
    if isinstance(value, (bool, int, float)):
        if isinstance(value, float) and dtype != torch.float32:
            return None
        try:
            number = torch.tensor(value, dtype=dtype, device="cpu")
        except (OverflowError, RuntimeError):  # an integer outside the dtype's range
            return None
        suffix = f"_number_{len(ctx.graph.nodes)}"
        return ctx.emit(
            "constant", [], {}, {"value": number}, suffix=suffix, shape=(), dtype=PLAIN[dtype]
        ).name
    name = ctx.plain(value)
    return None if name is None else cast_to(ctx, name, PLAIN[dtype], ctx.shape(value))


def _operands(ctx: Lowering, values: tuple[Any, ...], dtype: torch.dtype) -> list[str] | None:
    """Return the names of all operands cast to one dtype; add no node if one fails."""
    before = len(ctx.graph.nodes)
    names = [operand(ctx, value, dtype) for value in values]
    known = [name for name in names if name is not None]
    if len(known) < len(names):
        del ctx.graph.nodes[before:]
        return None
    return known


def _common_dtype(ctx: Lowering, *values: Any) -> torch.dtype | None:
    """Return the dtype in which torch combines values, some of which may be numbers."""
    samples: list[Any] = []
    for value in values:
        if isinstance(value, fx.Node):
            seen = ctx.seen(value)
            if seen.dtype not in PLAIN:
                return None
            # In type promotion, numbers and 0-d tensors count less than other tensors.
            samples.append(torch.empty([1] * len(seen.shape), dtype=seen.dtype, device="cpu"))
        elif isinstance(value, (bool, int, float)):
            samples.append(value)
        else:
            return None
    if not any(isinstance(sample, Tensor) for sample in samples):
        return None
    if len(samples) == 1:
        dtype: torch.dtype = samples[0].dtype
        return dtype
    return torch.result_type(*samples)


def compare(op: str, swapped: bool = False) -> Row:
    """Lower a comparison; ``swapped`` exchanges the operands."""

    def row(ctx: Lowering, input: Any, other: Any) -> Ref | None:
        dtype = _common_dtype(ctx, input, other)
        values = (other, input) if swapped else (input, other)
        names = None if dtype is None else _operands(ctx, values, dtype)
        return None if names is None else ctx.emit(op, names, dtype="bool")

    return row


def logical(op: str, bitwise: bool) -> Row:
    """Lower a logical function; with ``bitwise``, only on masks and not on integers."""

    def row(ctx: Lowering, *values: Any) -> Ref | None:
        if bitwise and any(
            not isinstance(v, bool) and ctx.seen(v).dtype != torch.bool for v in values
        ):
            return None
        if any(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            return None
        names = _operands(ctx, values, torch.bool)
        return None if names is None else ctx.emit(op, names, dtype="bool")

    return row


def where(ctx: Lowering, condition: Any, input: Any, other: Any) -> Ref | None:
    """Choose elements of ``input`` or ``other`` by a mask."""
    dtype = ctx.seen(ctx.node).dtype
    if ctx.seen(condition).dtype != torch.bool or dtype not in PLAIN:
        return None
    before = len(ctx.graph.nodes)
    mask, names = ctx.plain(condition), _operands(ctx, (input, other), dtype)
    if mask is None or names is None:
        del ctx.graph.nodes[before:]
        return None
    return ctx.emit("where", [mask, *names], dtype=PLAIN[dtype])


def additive_mask(ctx: Lowering, mask: Any, hides: bool = False) -> str | None:
    """Return a mask to add to scores; a boolean one becomes 0 if true and -inf if false.

    With ``hides``, a boolean mask is true where scores are hidden.
    """
    name = ctx.plain(mask)
    if name is None or ctx.types[name] in ("float32", "bool"):
        if name is None or ctx.types[name] == "float32":
            return name
        seen, hidden = (operand(ctx, number, torch.float32) for number in (0.0, -math.inf))
        suffix = f"_additive_{len(ctx.graph.nodes)}"
        names = [name, *map(str, (hidden, seen) if hides else (seen, hidden))]
        return ctx.emit("where", names, suffix=suffix, shape=ctx.shape(mask)).name
    return None


def full_like(ctx: Lowering, input: Any, fill_value: Any, **how: Any) -> Ref | None:
    """Lower as ``where`` with the same number in both branches, which keeps dynamic sizes.

    If no size is dynamic, or nothing writes into the result, folding has made a constant of it.
    """
    name, dtype = ctx.plain(input), ctx.seen(ctx.node).dtype
    if name is None or dtype not in PLAIN:
        return None
    number = operand(ctx, fill_value, dtype)
    if number is None:
        return None
    names = [name, name]
    suffix = f"_shape_{len(ctx.graph.nodes)}"
    shape = ctx.shape(input)
    mask = ctx.emit("eq", names, suffix=suffix, shape=shape, dtype="bool").name
    return ctx.emit("where", [mask, number, number], dtype=PLAIN[dtype])


def zeros_like(ctx: Lowering, input: Any, **how: Any) -> Ref | None:
    """Fill with 0."""
    return full_like(ctx, input, _number(ctx, 0))


def ones_like(ctx: Lowering, input: Any, **how: Any) -> Ref | None:
    """Fill with 1."""
    return full_like(ctx, input, _number(ctx, 1))


def _number(ctx: Lowering, number: int) -> int | float:
    """Return a number of the type of the call's result."""
    return float(number) if ctx.seen(ctx.node).dtype == torch.float32 else number


def masked_fill(ctx: Lowering, input: Any, mask: Any, value: Any) -> Ref | None:
    """``x.masked_fill(mask, value)``."""
    if ctx.seen(input).dtype != ctx.seen(ctx.node).dtype:
        return None
    return where(ctx, mask, value, input)


def cast(ctx: Lowering, input: Any, *args: Any, **kwargs: Any) -> Ref | None:
    """``x.to(...)``, ``x.float()``, ``x.type_as(y)``: cast to the dtype of the recorded result."""
    dtype, name = ctx.seen(ctx.node).dtype, ctx.plain(input)
    if name is None or dtype not in PLAIN:
        return None
    if ctx.types[name] == PLAIN[dtype]:
        return Ref(name)
    if ctx.types[name] == "float32" and dtype in (torch.int32, torch.int64):
        return None
    return ctx.emit("cast", [name], {"to": PLAIN[dtype]}, dtype=PLAIN[dtype])


def cumsum(ctx: Lowering, input: Any, dim: Any, *, dtype: Any = None) -> Ref | None:
    """Cumulative sum; torch adds floats one after another in float64."""
    made = ctx.seen(ctx.node).dtype
    if made not in (torch.float32, torch.int32, torch.int64) or not isinstance(dim, int):
        return None
    floats = ctx.seen(input).dtype == torch.float32
    if (floats and made != torch.float32) or not ctx.shape(input):
        return None
    names = _operands(ctx, (input,), made)
    return None if names is None else ctx.emit("cumsum", names, {"dim": dim}, dtype=PLAIN[made])


def _embedding(ctx: Lowering, ids: Any, weight: Tensor | None) -> Ref | None:
    name = ctx.plain(ids)
    if name is None or weight is None or weight.dim() != 2 or weight.dtype != torch.float32:
        return None
    if ctx.types[name] not in ("int32", "int64"):
        return None
    return ctx.emit("embedding", [name], {}, {"weight": weight})


def embedding(
    ctx: Lowering,
    input: Any,
    weight: Any,
    padding_idx: Any = None,
    max_norm: Any = None,
    norm_type: Any = 2.0,
    scale_grad_by_freq: Any = False,
    sparse: Any = False,
) -> Ref | None:
    """Look up rows of a constant table. Padding and gradient options do not affect inference.

    Raises
    ------
    ConversionError
        If ``max_norm`` is given.
    """
    if max_norm is not None:
        raise ConversionError(_MAX_NORM.format("embedding"))
    return _embedding(ctx, input, ctx.constant(weight))


def _aten_embedding(
    ctx: Lowering,
    weight: Any,
    indices: Any,
    padding_idx: Any = -1,
    scale_grad_by_freq: Any = False,
    sparse: Any = False,
) -> Ref | None:
    return embedding(ctx, indices, weight)


_MAX_NORM = (
    "{}: max_norm rescales rows of the table during forward, but a converted network keeps no "
    "state between calls; rescale the table once (torch.renorm) and set max_norm=None before "
    "converting"
)


def _embedding_module(ctx: Lowering, module: nn.Embedding, input: Any) -> Ref | None:
    if module.max_norm is not None:
        raise ConversionError(_MAX_NORM.format(f"layer {ctx.layer!r}"))
    return _embedding(ctx, input, module.weight)


def take(ctx: Lowering, input: Any, indices: Any) -> Ref | None:
    """``x[samples, positions]`` that takes the same range of positions from every sample.

    Padding masks are indexed in this way. ``samples`` must be 0, 1, 2, ... along the first
    dimension, and ``positions`` consecutive.
    """
    name, shape = ctx.plain(input), ctx.shape(input)
    if name is None or not isinstance(indices, (tuple, list)) or len(indices) != 2:
        return None
    rank = ctx.folding.rank_of_sample_indices(indices[0])
    if rank is None or len(shape) != 2 or not isinstance(indices[1], fx.Node):
        return None
    if indices[1] not in ctx.folding.values:
        return None
    found = ctx.folding.tensor(indices[1])
    places = getattr(found, "value", getattr(found, "sample", None))
    if places is None or places.dim() != rank or places.shape[0] != 1 or not places.numel():
        return None
    first, count = int(places.flatten()[0]), places.numel()
    if places.flatten().tolist() != list(range(first, first + count)):
        return None
    if first < 0 or first + count > shape[1]:
        return None
    if (first, count) != (0, shape[1]):
        attrs = {"dim": 1, "start": first, "end": first + count, "step": 1}
        suffix = f"_slice_{len(ctx.graph.nodes)}"
        name = ctx.emit("slice", [name], attrs, suffix=suffix, shape=(shape[0], count)).name
    else:
        ctx.fix_sizes(name)
    return ctx.emit("reshape", [name], {"shape": [0, *places.shape[1:]]})


def gather(
    ctx: Lowering, input: Any, dim: Any, index: Any, *, sparse_grad: Any = False
) -> Ref | None:
    """Gather from a constant whose elements are all equal: the indices make no difference."""
    found = ctx.folding.tensor(input) if input in ctx.folding.values else None
    value = getattr(found, "value", getattr(found, "sample", None))
    name, shape = ctx.plain(index), ctx.shape(index)
    if value is None or not value.numel() or value.dtype not in PLAIN or name is None or not shape:
        return None
    first = value.flatten()[0]
    if not bool((value == first).all()):
        return None
    suffix, dtype = f"_number_{len(ctx.graph.nodes)}", PLAIN[value.dtype]
    sample = ctx.emit(
        "constant", [], {}, {"value": first}, suffix=suffix, shape=(), dtype=dtype
    ).name
    ctx.fix_sizes(name)
    return ctx.emit("expand", [sample, name], {"shape": [-2, *shape[1:]]})


_COMPARISONS: tuple[tuple[str, Row, tuple[str, ...]], ...] = (
    ("eq", compare("eq"), ("eq",)),
    ("ne", compare("ne"), ("ne", "not_equal")),
    ("lt", compare("lt"), ("lt", "less")),
    ("le", compare("le"), ("le", "less_equal")),
    ("gt", compare("lt", swapped=True), ("gt", "greater")),
    ("ge", compare("le", swapped=True), ("ge", "greater_equal")),
)
_LOGIC: tuple[tuple[str, str], ...] = (("and", "and"), ("or", "or"), ("xor", "xor"), ("not", "not"))


def _functions() -> dict[Any, Row]:
    found: dict[Any, Row] = {}
    for name, row, names in _COMPARISONS:
        packet = getattr(_aten, name)
        calls = [getattr(operator, name), packet.Tensor, packet.Scalar]
        found |= dict.fromkeys([*calls, *(getattr(torch, n) for n in names)], row)
    for name, python in _LOGIC:
        row, bits = logical(f"logical_{name}", False), logical(f"logical_{name}", True)
        found[getattr(torch, f"logical_{name}")] = row
        found[getattr(_aten, f"logical_{name}").default] = row
        found[getattr(torch, f"bitwise_{name}")] = bits
        packet = getattr(_aten, f"bitwise_{name}")
        found |= {
            getattr(packet, o): bits
            for o in packet.overloads()
            if o in ("Tensor", "default", "Scalar")
        }
        if name != "not":
            found[getattr(operator, f"{python}_" if name in ("and", "or") else python)] = bits
            found[getattr(operator, f"i{python}")] = bits
            packet = getattr(_aten, f"__{python}__")
            found |= {packet.Tensor: bits, packet.Scalar: bits}
    found[operator.invert] = logical("logical_not", True)
    return found


#: Functions and operators → row.
FUNCTIONS: dict[Any, Row] = {
    **_functions(),
    torch.where: where,
    _aten.where.self: where,
    _aten.where.ScalarOther: where,
    _aten.where.ScalarSelf: where,
    _aten.where.Scalar: where,
    torch.masked_fill: masked_fill,
    _aten.masked_fill.Scalar: masked_fill,
    _aten.masked_fill.Tensor: masked_fill,
    _aten.masked_fill_.Scalar: masked_fill,
    _aten.masked_fill_.Tensor: masked_fill,
    _aten.to.dtype: cast,
    _aten.to.device: cast,
    _aten.to.dtype_layout: cast,
    _aten.to.other: cast,
    _aten._to_copy.default: cast,
    _aten.type_as.default: cast,
    **dict.fromkeys((torch.zeros_like, _aten.zeros_like.default), zeros_like),
    **dict.fromkeys((torch.ones_like, _aten.ones_like.default), ones_like),
    **dict.fromkeys((torch.full_like, _aten.full_like.default), full_like),
    torch.cumsum: cumsum,
    _aten.cumsum.default: cumsum,
    functional.embedding: embedding,
    torch.embedding: _aten_embedding,
    _aten.embedding.default: _aten_embedding,
    _aten.index.Tensor: take,
    torch.gather: gather,
    _aten.gather.default: gather,
}

#: Tensor methods → row.
METHODS: dict[str, Row] = {
    **{method: row for _, row, names in _COMPARISONS for method in names},
    **{f"logical_{name}": logical(f"logical_{name}", False) for name, _ in _LOGIC},
    **{f"bitwise_{name}": logical(f"logical_{name}", True) for name, _ in _LOGIC},
    "where": lambda ctx, input, condition, other: where(ctx, condition, input, other),
    "masked_fill": masked_fill,
    "masked_fill_": masked_fill,
    **dict.fromkeys(("to", "float", "long", "int", "bool", "type_as", "type"), cast),
    "cumsum": cumsum,
    "gather": gather,
}

#: Module classes → row.
MODULES: dict[type[nn.Module], Row] = {nn.Embedding: _embedding_module}
