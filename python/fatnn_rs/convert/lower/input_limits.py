"""Limits on the inputs of a network: fixed sizes, memory formats and the channel dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fatnn_rs.convert.graph import Graph
from fatnn_rs.convert.shapes import run_time_shapes
from fatnn_rs.operations import OPERATIONS, products_of

if TYPE_CHECKING:
    from fatnn_rs.convert.lower.lowering import Lowering

__all__ = ["NO_LIMIT", "fix_input_formats", "fix_input_sizes", "fix_sizes_of", "set_channel_dims"]


def fix_input_formats(ctx: Lowering) -> None:
    """Fix inputs to the example's memory format, which decides which tensors are views."""
    for node, name in ctx.inputs.items():
        ctx.graph.node(name).attrs["layout"] = ctx.seen(node).layout
    ctx.graph.notes.append(
        "inputs must have the example's memory format: forward asks for it, or writes into tensors"
    )


def fix_sizes_of(graph: Graph, values: list[str]) -> None:
    """Fix the inputs' sizes if ``values`` must have the example's sizes but depend on the inputs'.

    Parameters
    ----------
    graph
        Its inputs' ``fixed`` attribute is changed.
    values
        Names of values whose sizes after the batch must be the example's.
    """
    shapes = run_time_shapes(graph) if values else {}
    if all(size >= 0 for name in values for size in shapes[name][1:]):
        return
    fix_input_sizes(graph, "forward uses one of their sizes in a view", 1)


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
