"""Nodes for values that depend only on sizes; each is added when something else first reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.lower.folding import PLAIN, Fixed, Repeated

if TYPE_CHECKING:
    from fatnn_rs.convert.lower.lowering import Lowering

__all__ = ["fold", "is_folded", "with_numbers"]


def fold(ctx: Lowering, node: fx.Node) -> bool:
    """Add a constant for a computed node; return whether that was possible."""
    if node not in ctx.folding.values:
        return False
    key = (node, ctx.folding.version(node))
    if key not in ctx.folded:
        found = ctx.folding.tensor(node)
        if found is None:
            return False
        current, layer, ctx.node, ctx.layer = ctx.node, ctx.layer, node, ""
        ctx.folded[key] = _constant(ctx, found)
        ctx.node, ctx.layer = current, layer
        _fix_sources(ctx, node)
    ctx.env[node] = ctx.folded[key]
    return True


def _fix_sources(ctx: Lowering, node: fx.Node) -> None:
    """Fix the sizes on which a computed node depends."""
    for source, dim in ctx.folding.sources[node]:
        if isinstance(made := ctx.env.get(source), Ref):
            ctx.fix_sizes(made.name, dim)


def _constant(ctx: Lowering, found: Fixed | Repeated) -> Ref:
    value = found.value if isinstance(found, Fixed) else found.sample
    if value.dtype not in PLAIN:
        kept = value.detach().clone()
        if isinstance(found, Fixed):
            target = str(ctx.node.target)
            note = f"a constant of {value.dtype}"
            return ctx.torch_node(lambda: kept, (), {}, target, note)
        source = next(node for node in ctx.inputs if ctx.shape(node))
        return ctx.torch_node(
            lambda x: kept.expand(x.shape[0], *kept.shape[1:]), (source,), {}, "expand"
        )
    dtype = PLAIN[value.dtype]
    if isinstance(found, Fixed):
        return ctx.emit("constant", [], {}, {"value": value}, shape=tuple(value.shape), dtype=dtype)
    sample = ctx.emit(
        "constant",
        [],
        {},
        {"value": value},
        suffix="_sample",
        shape=tuple(value.shape),
        dtype=dtype,
    )
    batch = next(name for node, name in ctx.inputs.items() if ctx.shape(node))
    sizes = [-2] + [-1] * (value.dim() - 1)
    return ctx.emit("expand", [sample.name, batch], {"shape": sizes})


def is_folded(ctx: Lowering, node: fx.Node) -> bool:
    """Whether a computed node needs no lowering: a constant, or a write into constants only."""
    if ctx.seen(node).writes:
        written = [n for n in node.all_input_nodes if ctx.seen(n).memory & ctx.seen(node).writes]
        return all(ctx.folding.tensor(n) is not None for n in written)
    return ctx.folding.tensor(node) is not None


def with_numbers(ctx: Lowering, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call's arguments, with computed sizes replaced by the example's numbers."""

    def number(argument: fx.Node) -> Any:
        found = ctx.folding.number(argument)
        if found is None:
            return argument
        _fix_sources(ctx, argument)
        return found

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), number)
    return tuple(args), dict(kwargs)
