"""Limits on the inputs of a network: fixed sizes, memory formats and the channel dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fatnn_rs.convert.graph import Graph
from fatnn_rs.convert.shapes import Shape, run_time_shapes
from fatnn_rs.operations import OPERATIONS, products_of

if TYPE_CHECKING:
    from fatnn_rs.convert.lower.lowering import Lowering

__all__ = [
    "NO_LIMIT",
    "SizeLimit",
    "fix_input_formats",
    "fix_input_sizes",
    "fix_sizes_of",
    "set_channel_dims",
]


def fix_input_formats(ctx: Lowering) -> None:
    """Fix inputs to the example's memory format, which decides which tensors are views."""
    for node, name in ctx.inputs.items():
        ctx.graph.node(name).attrs["layout"] = ctx.seen(node).layout
    ctx.graph.notes.append(
        "inputs must have the example's memory format: forward asks for it, or writes into tensors"
    )


@dataclass(frozen=True)
class SizeLimit:
    """A size of a value that every run must have, because the graph was made for it.

    Attributes
    ----------
    value
        Name of the value.
    dim
        Dimension; None for all after the first.
    like
        Name of a value that may have another size, if both always have the same in ``dim``.
    with_batch
        Whether the size may not depend on the batch either.
    """

    value: str
    dim: int | None = None
    like: str = ""
    with_batch: bool = False


def _shapes_with(graph: Graph, fixed: slice) -> dict[str, Shape]:
    """Compute every value's shape if some dimensions of the inputs have the example's sizes."""
    inputs = [node for node in graph.nodes if node.op == "input"]
    before = [node.attrs["fixed"] for node in inputs]
    graph.fix_inputs(fixed)
    shapes = run_time_shapes(graph)
    for node, own in zip(inputs, before, strict=True):
        node.attrs["fixed"] = own
    return shapes


def _after_torch(graph: Graph) -> set[str]:
    """Return the names of values that depend on a call that stays in torch."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op == "torch" or any(name in found for name in node.inputs):
            found.add(node.name)
    return found


def fix_sizes_of(graph: Graph, limits: list[SizeLimit]) -> None:
    """Fix the inputs' sizes if they would break a limit.

    Nothing is known about sizes after a call that stays in torch. There, only sizes after the
    batch count, and :mod:`fatnn_rs.convert.trial` compares the rest.

    Parameters
    ----------
    graph
        Its inputs' ``fixed`` attribute is changed.
    limits
        Sizes of values that must be the example's.
    """
    if not limits:
        return
    shapes, after_torch = run_time_shapes(graph), _after_torch(graph)
    of_one_batch = _shapes_with(graph, slice(1))
    of_one_size = _shapes_with(graph, slice(1, None))
    sizes_vary = batch_varies = False
    for limit in limits:
        dim, names = limit.dim, [limit.value, *([limit.like] if limit.like else [])]
        if dim is not None and limit.like and shapes[limit.value][dim] == shapes[limit.like][dim]:
            continue
        chosen = slice(1, None) if dim is None else slice(dim, dim + 1)
        varies, with_batch = (
            any(size < 0 for name in names for size in known[name][chosen])
            for known in (of_one_batch, of_one_size)
        )
        unknown = any(name in after_torch for name in names)
        sizes_vary |= varies and not (unknown and dim == 1)
        batch_varies |= with_batch and not unknown and limit.with_batch
    why = "forward computes with one of their sizes"
    if sizes_vary:
        fix_input_sizes(graph, why, 0 if batch_varies else 1)
    elif batch_varies:
        graph.fix_inputs(slice(1))
        graph.notes.append("the batch is fixed to the example's: forward computes with its size")


def fix_input_sizes(graph: Graph, why: str, first: int = 0) -> None:
    """Fix the inputs' sizes from dimension ``first`` on, and note ``why``."""
    graph.fix_inputs(slice(first, None))
    graph.notes.append(
        f"input sizes are fixed to the example's{', except the batch' if first else ''}: {why}"
    )


#: Maximum batch size in the ``batch`` attribute of inputs that have no limit.
NO_LIMIT = (1 << 31) - 1


def _channels_second(op: str) -> bool:
    """Whether an operation reads channels in the second dimension."""
    if products_of(op) != "none":
        return "stride" in OPERATIONS[op].attrs
    return op in ("act_quant", "pad", "batch_norm")


def _channels_last(op: str) -> bool:
    """Whether an operation reads channels in the last dimension."""
    if products_of(op) != "none":
        return "stride" not in OPERATIONS[op].attrs
    return op == "flatten_leading"


def set_channel_dims(graph: Graph) -> None:
    """Set ``channel_dim`` of every input, judged by its readers; 0 if they do not tell."""
    for node in graph.nodes:
        if node.op == "input":
            readers = {reader.op for reader in graph.users()[node.name] if reader is not None}
            second, last = any(map(_channels_second, readers)), any(map(_channels_last, readers))
            node.attrs["channel_dim"] = 1 if second else (len(node.shape) - 1 if last else 0)
