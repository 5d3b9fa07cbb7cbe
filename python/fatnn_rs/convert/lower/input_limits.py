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
        Dimension; None for all after the first. The first one may depend on the batch, but on no
        other size of the inputs.
    like
        Name of a value that may have another size, if both always have the same in ``dim``.
    """

    value: str
    dim: int | None = None
    like: str = ""


def _shapes_of_one_batch(graph: Graph) -> dict[str, Shape]:
    """Compute every value's shape for the example's batch and any other sizes."""
    inputs = [node for node in graph.nodes if node.op == "input"]
    before = [node.attrs["fixed"] for node in inputs]
    for node in inputs:
        node.attrs["fixed"] = sorted({0, *node.attrs["fixed"]})
    shapes = run_time_shapes(graph)
    for node, fixed in zip(inputs, before, strict=True):
        node.attrs["fixed"] = fixed
    return shapes


def fix_sizes_of(graph: Graph, limits: list[SizeLimit]) -> None:
    """Fix the inputs' sizes if they would break a limit.

    Parameters
    ----------
    graph
        Its inputs' ``fixed`` attribute is changed.
    limits
        Sizes of values that must be the example's.
    """
    if not limits:
        return
    shapes, of_one_batch = run_time_shapes(graph), _shapes_of_one_batch(graph)

    def kept(limit: SizeLimit) -> bool:
        sizes, dim = shapes[limit.value], limit.dim
        if dim is None:
            return all(size >= 0 for size in sizes[1:])
        if limit.like and sizes[dim] == shapes[limit.like][dim]:
            return True
        names = [limit.value, *([limit.like] if limit.like else [])]
        known = shapes if dim else of_one_batch
        return all(known[name][dim] >= 0 for name in names)

    if not all(map(kept, limits)):
        fix_input_sizes(graph, "forward computes with one of their sizes", 1)


def fix_input_sizes(graph: Graph, why: str, first: int = 0) -> None:
    """Fix the inputs' sizes from dimension ``first`` on, and note ``why``."""
    for node in graph.nodes:
        if node.op == "input":
            node.attrs["fixed"] = sorted({*node.attrs["fixed"], *range(first, len(node.shape))})
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
