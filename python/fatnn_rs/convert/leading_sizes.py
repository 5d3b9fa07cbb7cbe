"""Sizes of dimension 0 of a captured graph's values at another batch size.

A size such as ``windows.shape[0] // x.shape[0]`` depends on the batch only in its parts. To see
that it is the same in every run, the lowering needs both at two batch sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import SymInt, Tensor, fx

from fatnn_rs.convert.capture import Captured
from fatnn_rs.convert.lower.folding import other_batch

__all__ = ["leading_sizes"]


def leading_sizes(captured: Captured) -> dict[fx.Node, int]:
    """Return the size of dimension 0 of every value at :func:`other_batch`; {} if unknown."""
    inputs = [n for n in captured.graph.nodes if n.name in captured.inputs]
    batches = {captured.seen[n].shape[0] for n in inputs if captured.seen[n].shape}
    if len(batches) != 1 or 0 in batches:
        return {}
    if all(isinstance(n.meta.get("val"), Tensor) for n in inputs):
        return _of_symbols(captured.graph, inputs, other_batch(batches.pop()))
    assert isinstance(captured.root, fx.GraphModule)
    recorder = _Recorder(captured.root)
    larger = [
        torch.cat([v, v, v[:1]]) if isinstance(v, Tensor) and v.dim() else v
        for v in captured.example
    ]
    try:
        recorder.run(*larger)
    except Exception:  # the model refuses this batch
        return {}
    return recorder.found


class _Recorder(fx.Interpreter):
    """Runs a graph and records sizes of dimension 0."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.dim():
            self.found[n] = value.shape[0]
        return value


def _of_symbols(graph: fx.Graph, inputs: list[fx.Node], batch: int) -> dict[fx.Node, int]:
    """Evaluate the expressions that export has for sizes."""
    symbols = {
        n.meta["val"].shape[0].node.expr: batch
        for n in inputs
        if n.meta["val"].dim() and isinstance(n.meta["val"].shape[0], SymInt)
    }
    found: dict[fx.Node, int] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not value.dim():
            continue
        size: Any = value.shape[0]
        made = size.node.expr.subs(symbols) if isinstance(size, SymInt) else size
        if not getattr(made, "free_symbols", None):
            found[node] = int(made)
    return found
