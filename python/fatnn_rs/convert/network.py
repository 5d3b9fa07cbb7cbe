"""The converted network: runs a graph, node by node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fatnn_rs.convert.graph import Graph, Node, map_refs, refs
from fatnn_rs.convert.ops_table import bind
from fatnn_rs.convert.report import Report, make_report
from fatnn_rs.errors import InputError, UnsupportedError

__all__ = ["TernaryNetwork"]

#: Sees every node's value as it is made.
Observer = Callable[[Node, Any, list[Any]], None]


class TernaryNetwork(nn.Module):
    """An inference-only network made by :func:`fatnn_rs.convert.convert` or :func:`fatnn_rs.convert.load`.

    Ternary layers run in Rust on packed codes; float layers run in torch. Call it as the model it came from. It has no
    parameters and no training mode, and runs on the CPU.

    Parameters
    ----------
    graph
        What to run. The network keeps it and never changes it; layouts that only this CPU's kernels understand are
        derived from it here.

    Raises
    ------
    InputError
        From calls: wrong number, dtype, device, rank or channels of inputs; NaN where a quantizer reads it.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.training = False
        self._prepare()

    def _prepare(self) -> None:
        graph = self.graph
        last: dict[str, str] = {}
        for node in graph.nodes:
            for name in node.inputs:
                last[name] = node.name
        kept = {ref.name for ref in refs(graph.outputs)}
        drops: dict[str, list[str]] = {node.name: [] for node in graph.nodes}
        for value, node_name in last.items():
            if value not in kept:
                drops[node_name].append(value)
        self._inputs = [node for node in graph.nodes if node.op == "input"]
        self._plan = [(node, bind(graph, node), drops[node.name]) for node in graph.nodes if node.op != "input"]

    @property
    def report(self) -> Report:
        """What runs where, and why: one row per node. Print it."""
        return make_report(self.graph)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Any:
        """Run the network.

        Parameters
        ----------
        *inputs
            The tensor arguments of the original model, in order.

        Returns
        -------
        Any
            What the original model returns.
        """
        return self.run_observed(inputs, None)

    @torch.no_grad()
    def run_observed(self, inputs: tuple[Any, ...], observer: Observer | None) -> Any:
        """Run, and show ``observer`` every node with its result and the values it read."""
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if len(tensors) != len(self._inputs):
            raise InputError(
                f"the network takes {len(self._inputs)} input tensor(s) ({', '.join(n.name for n in self._inputs)}), "
                f"got {len(tensors)}; call it with the tensors its model takes"
            )
        values: dict[str, Any] = {}
        for node, tensor in zip(self._inputs, tensors, strict=True):
            _check_input(node, tensor)
            values[node.name] = tensor
        for node, function, drops in self._plan:
            arguments = [values[name] for name in node.inputs]
            result = function(*arguments)
            if observer is not None:
                observer(node, result, arguments)
            values[node.name] = result
            for name in drops:
                del values[name]
        return map_refs(self.graph.outputs, lambda ref: values[ref.name])

    def train(self, mode: bool = True) -> TernaryNetwork:
        """Refuse training; ``eval()`` is fine.

        Raises
        ------
        UnsupportedError
            For ``mode=True``.
        """
        if mode:
            raise UnsupportedError(
                "a converted network is for inference only; train the model it was converted from, then convert again"
            )
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_plan"], state["_inputs"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def extra_repr(self) -> str:
        """Show counts of nodes, for ``print(net)``."""
        report = self.report
        return (
            f"{report.layers_ternary} ternary layers, {len(self.graph.nodes)} nodes, {report.bytes_packed} bytes packed"
        )


def _check_input(node: Node, x: Tensor) -> None:
    """Check one input against what the network was converted for."""
    where = f"input {node.name!r}"
    if x.device.type != "cpu":
        raise InputError(f"{where}: expected a tensor on the CPU, got one on {x.device}; move it with .cpu()")
    dtype = getattr(torch, node.attrs["dtype"])
    if x.dtype != dtype:
        way = ".float()" if dtype == torch.float32 else f".to({dtype})"
        raise InputError(f"{where}: expected {dtype}, got {x.dtype}; convert it with {way}")
    shape = node.shape
    if x.dim() != len(shape):
        raise InputError(
            f"{where}: expected {len(shape)} dimensions (as {list(shape)}), got shape {list(x.shape)}; reshape it"
        )
    fixed = node.attrs["fixed"]
    if any(x.shape[i] != shape[i] for i in fixed):
        free = [str(size) if i in fixed else "any" for i, size in enumerate(shape)]
        raise InputError(
            f"{where}: this network was captured for one shape only, expected [{', '.join(free)}], got "
            f"{list(x.shape)}; convert the model again with example inputs of that shape"
        )
    dim = node.attrs["channel_dim"]
    if dim and x.shape[dim] != shape[dim]:
        raise InputError(
            f"{where}: expected {shape[dim]} channels (dimension {dim}, as {list(shape)}), got {x.shape[dim]} in shape "
            f"{list(x.shape)}; give the input the model was made for"
        )
