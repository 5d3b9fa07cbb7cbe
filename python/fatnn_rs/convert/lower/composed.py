"""Lower a call as a composition of simpler torch calls that the engine supports.

A composition is a Python function. It is traced, and the traced calls are lowered. On random
tensors with the example's shapes and strides it must give the same bits as the call, at the
example's batch size and at one more; otherwise the call stays in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fatnn_rs.convert.lower.lowering import PLAIN, Lowering, fx_nodes
from fatnn_rs.convert.record import record
from fatnn_rs.convert.structure import same_values

__all__ = ["compose", "rank", "shape_of"]

#: Lowers one node of a composition.
LowerCall = Callable[[Lowering, fx.Node], Any]


@dataclass(frozen=True)
class _TensorIndex:
    """Stands for a tensor in the arguments of a call."""

    index: int


def _sample(ctx: Lowering, node: fx.Node, generator: torch.Generator, extra: int) -> Tensor:
    """Return a random tensor like a value, with a batch that is larger by ``extra``."""
    seen = ctx.seen(node)
    shape = list(seen.shape)
    if extra and shape:
        shape[0] += extra
    if seen.dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if seen.dtype != torch.float32:
        return torch.randint(0, 3, shape, generator=generator, dtype=seen.dtype)
    made = torch.randn(shape, generator=generator)
    if extra or any(
        not stride and size > 1 for stride, size in zip(seen.geometry[2], shape, strict=True)
    ):
        return made
    return torch.empty_strided(shape, seen.geometry[2]).copy_(made)


def _traced(
    function: Callable[..., Any], arguments: Any, shapes: list[tuple[int, ...]]
) -> fx.GraphModule | None:
    """Trace a composition; ``arguments`` holds a :class:`_TensorIndex` for each tensor."""
    root = nn.Module()
    graph = fx.Graph()
    tracer = fx.Tracer()
    tracer.graph, tracer.root = graph, root
    tracer.tensor_attrs = {}
    sizes: list[int] = []
    proxies = []
    for i, shape in enumerate(shapes):
        proxies.append(tracer.create_proxy("placeholder", f"x{i}", (), {}))
        proxies[-1].node.meta["shape"] = (i, shape, sizes)
    args, kwargs = pytree.tree_map(
        lambda leaf: proxies[leaf.index] if isinstance(leaf, _TensorIndex) else leaf, arguments
    )
    try:
        made = function(*args, **kwargs)
        if made is None:
            return None
        graph.output(tracer.create_arg(made))
    except Exception:  # the composition does not support these arguments
        return None
    module = fx.GraphModule(root, graph)
    module.meta["sizes"] = sizes
    return module


def rank(x: Any) -> int:
    """Return the rank of an argument of a composition."""
    return len(x.node.meta["shape"][1])


def shape_of(x: Any) -> tuple[int, ...]:
    """Return an argument's shape in the example; the inputs' sizes are then fixed to it."""
    place, shape, read = x.node.meta["shape"]
    read.append(place)
    return tuple(shape)


def compose(
    ctx: Lowering,
    function: Callable[..., Any],
    original: Callable[..., Any],
    given: tuple[Any, Mapping[str, Any]],
    lower_call: LowerCall,
) -> Any:
    """Lower a call by its composition; return None if that is not possible.

    Parameters
    ----------
    ctx
        The lowering.
    function
        The composition.
    original
        The function that the composition replaces. Both run on random tensors to compare bits.
    given
        The call's positional and keyword arguments, with fx nodes for values.
    lower_call
        Lowers one node of the composition.
    """
    if ctx.node in ctx.not_composed:
        return None
    # Constant integer tensors are indices; a composition reads their values.
    indices = {node: ctx.constant(node) for node in fx_nodes(given)}
    indices = {n: v for n, v in indices.items() if v is not None and v.dtype == torch.int64}
    nodes = [node for node in dict.fromkeys(fx_nodes(given)) if node not in indices]
    if not nodes or any(ctx.plain(node) is None for node in nodes):
        return None
    places: dict[fx.Node, Any] = {node: _TensorIndex(i) for i, node in enumerate(nodes)}
    arguments = fx.node.map_arg(given, (places | indices).__getitem__)
    module = _traced(function, arguments, [ctx.shape(node) for node in nodes])
    if module is None:
        return None
    generator = torch.Generator("cpu").manual_seed(0)
    samples = [_sample(ctx, node, generator, 0) for node in nodes]
    larger = [_sample(ctx, node, generator, int(ctx.constant(node) is None)) for node in nodes]
    try:
        seen = record(module, tuple(samples), _run(original, arguments, samples))
    except Exception:  # the call rejects the random values
        return None
    if isinstance(seen, str) or not _same_bits(module, original, arguments, larger):
        return None
    for node in (nodes[place] for place in module.meta["sizes"]):
        if (name := ctx.plain(node)) is not None:
            ctx.fix_sizes(name)
    return _lowered(ctx, module, seen, nodes, lower_call)


def _same_bits(
    module: fx.GraphModule, original: Callable[..., Any], arguments: Any, values: list[Tensor]
) -> bool:
    """Whether a composition gives the call's bits; also true if the call fails on the values."""
    try:
        wanted = _run(original, arguments, values)
    except Exception:
        return True
    try:
        # Not module(...), which prints a traceback to stderr if it fails.
        return not same_values(module.forward(*values), wanted)
    except Exception:
        return False


def _run(function: Callable[..., Any], arguments: Any, values: list[Tensor]) -> Any:
    args, kwargs = pytree.tree_map(
        lambda leaf: values[leaf.index] if isinstance(leaf, _TensorIndex) else leaf, arguments
    )
    return function(*args, **kwargs)


def _lowered(
    ctx: Lowering,
    module: fx.GraphModule,
    seen: dict[fx.Node, Any],
    nodes: list[fx.Node],
    lower_call: LowerCall,
) -> Any:
    outer, before, sizes = ctx.node, len(ctx.graph.nodes), len(ctx.size_limits)
    ctx.captured.seen.update(seen)
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for inner, node in zip(placeholders, nodes, strict=True):
        ctx.env[inner] = ctx.env[node]
        ctx.captured.seen[inner] = ctx.captured.seen[node]
    output = next(node for node in module.graph.nodes if node.op == "output").args[0]
    results = [output] if isinstance(output, fx.Node) else []
    names = {node: f"{outer.name}_{node.name}" for node in module.graph.nodes}
    names |= dict.fromkeys(results, outer.name)
    made: Any = None
    layer = ctx.layer
    try:
        for node in module.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            node.name = names[node]
            ctx.node, ctx.layer = node, layer
            if node.op == "get_attr":
                value = getattr(module, str(node.target))
                shape, dtype = tuple(value.shape), PLAIN[value.dtype]
                ctx.env[node] = ctx.emit(
                    "constant", [], {}, {"value": value}, shape=shape, dtype=dtype
                )
                continue
            ctx.env[node] = lower_call(ctx, node)
            if any(added.op == "torch" for added in ctx.graph.nodes[before:]):
                del ctx.graph.nodes[before:], ctx.size_limits[sizes:]
                return None
        made = fx.node.map_arg(output, ctx.env.__getitem__)
    finally:
        ctx.node, ctx.layer = outer, layer
    ctx.composed |= dict.fromkeys((ref.name for ref in pytree.tree_leaves(made)), outer)
    return tuple(made) if isinstance(made, (list, tuple)) else made
