"""Time per node of a converted network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from fatnn_rs.convert import TernaryNetwork, summary

__all__ = ["LayerRow", "time_layers"]


@dataclass(frozen=True)
class LayerRow:
    """One node.

    Attributes
    ----------
    name
        Name of the node's layer, or of the node if it has none.
    op, runs
        Operation, and what runs it, as in the network's report.
    macs
        Multiply-accumulates for these inputs; 0 if it is no convolution or linear layer.
    milliseconds
        Median time.
    share
        Fraction of the sum over all nodes.
    """

    name: str
    op: str
    runs: str
    macs: int
    milliseconds: float
    share: float

    @property
    def gmacs(self) -> float:
        """Billions of multiply-accumulates per second."""
        return self.macs / self.milliseconds / 1e6 if self.milliseconds else 0.0


def time_layers(
    net: TernaryNetwork,
    inputs: tuple[Any, ...],
    rounds: int,
    on_round: Callable[[int], None] | None = None,
) -> tuple[LayerRow, ...]:
    """Run the network node by node and time each node.

    This is separate from the comparison, because reading the clock takes time, too (less than a
    microsecond per node).

    Parameters
    ----------
    net
        A converted network.
    inputs
        Its inputs.
    rounds
        Number of timed runs, after one warm-up run.
    on_round
        Called with the number of finished rounds.
    """
    times: list[dict[str, float]] = []
    for done in range(rounds + 1):
        with torch.inference_mode():
            seconds = net.node_seconds(*inputs)
        if done:
            times.append(seconds)
            if on_round is not None:
                on_round(done)
    nodes = [node for node in net.graph.nodes if node.name in times[0]]
    names = [(node.layer or node.name, node.op) for node in nodes]
    medians = [1e3 * median(seconds[node.name] for seconds in times) for node in nodes]
    total = sum(medians)
    runs = {(row.name, row.op): row.runs for row in net.report.rows}
    macs = {(row.name, row.kind): row.macs for row in summary(net, inputs).rows}
    return tuple(
        LayerRow(
            name,
            op,
            runs.get((name, op), "torch"),
            macs.get((name, op), 0),
            value,
            value / total if total else 0.0,
        )
        for (name, op), value in zip(names, medians, strict=True)
    )
