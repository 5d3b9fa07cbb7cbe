"""What a lowering notes on the inputs of a network: sizes and formats that calls are held to, and channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fatnn_rs.convert.graph import Graph
from fatnn_rs.convert.shapes import run_time_shapes
from fatnn_rs.operations import OPERATIONS, products_of

if TYPE_CHECKING:
    from fatnn_rs.convert.lower.lowering import Lowering

__all__ = ["NO_LIMIT", "find_channels", "hold", "hold_formats", "hold_sizes"]


def hold_formats(ctx: Lowering) -> None:
    """Hold inputs to the example's memory format, on which it depends what is a view of what."""
    for node, name in ctx.inputs.items():
        ctx.graph.node(name).attrs["layout"] = ctx.seen(node).layout
    ctx.graph.notes.append(
        "inputs must have the example's memory format: forward asks for it, or writes into tensors"
    )


def hold_sizes(graph: Graph, values: list[str]) -> None:
    """Fix the inputs' sizes where values must have the example's, and would have others with other inputs."""
    shapes = run_time_shapes(graph) if values else {}
    if all(size >= 0 for name in values for size in shapes[name][1:]):
        return
    hold(graph, "forward has a size of it in a view", 1)


def hold(graph: Graph, why: str, first: int = 0) -> None:
    """Fix the inputs' sizes from dimension ``first`` on."""
    for node in graph.nodes:
        if node.op == "input":
            node.attrs["fixed"] = sorted({*node.attrs["fixed"], *range(first, len(node.shape))})
    graph.notes.append(
        f"input sizes are fixed to the example's{', but for the batch' if first else ''}: {why}"
    )


#: Greatest batch size where there is no limit, in the attribute ``batch`` of inputs.
NO_LIMIT = (1 << 31) - 1


def _channels_second(op: str) -> bool:
    """Whether an operation has channels in the second dimension of what it reads."""
    if products_of(op) != "none":
        return "stride" in OPERATIONS[op].attrs
    return op in ("act_quant", "pad", "batch_norm")


def _channels_last(op: str) -> bool:
    """Whether an operation has channels in the last dimension of what it reads."""
    if products_of(op) != "none":
        return "stride" not in OPERATIONS[op].attrs
    return op == "flatten_leading"


def find_channels(graph: Graph) -> None:
    """Note on every input which dimension holds its channels, by who reads it; 0 where nobody says."""
    for node in graph.nodes:
        if node.op == "input":
            readers = {reader.op for reader in graph.users()[node.name] if reader is not None}
            second, last = any(map(_channels_second, readers)), any(map(_channels_last, readers))
            node.attrs["channel_dim"] = 1 if second else (len(node.shape) - 1 if last else 0)
