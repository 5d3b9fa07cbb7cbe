"""The int8 values of a model and of its network, as codes, for :func:`fatnn_rs.convert.verify`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fatnn_rs.contained import named_modules
from fatnn_rs.convert.capture import copies, named_copies
from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.network import TernaryNetwork
from fatnn_rs.quant.values import Int8Value

__all__ = ["eager_values", "network_values"]


def _codes(values: Tensor, step: float) -> Tensor:
    """Return the codes of values that are multiples of a step; -256 for NaN."""
    inverse = float(np.float32(1) / np.float32(step))
    return torch.round(values * inverse).nan_to_num(-256.0).to(torch.int16)


@contextmanager
def eager_values(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Record the codes of every call of every ``Int8Value`` of a model, by hooks."""
    taken: dict[str, list[Tensor]] = {}

    def hook_for(name: str) -> Any:
        def hook(module: Int8Value, args: Any, output: Tensor) -> None:
            taken.setdefault(name, []).append(_codes(output.detach(), module.step))

        return hook

    handles = [
        module.register_forward_hook(hook_for(name))
        for name, module in named_modules(model)
        if isinstance(module, Int8Value)
    ]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def network_values(
    net: TernaryNetwork, arguments: tuple[Any, ...], named: dict[str, Any]
) -> dict[str, list[tuple[str, Tensor]]]:
    """Return the int8 values of a network: layer → name and codes of each of its values.

    The engine keeps most of them inside, so they come from a network of the same graph that also
    returns them.
    """
    nodes = [node for node in net.graph.nodes if node.op == "fake_quantize" and node.layer]
    if not nodes:
        return {}
    graph = copy.copy(net.graph)
    graph.outputs = [Ref(node.name) for node in nodes]
    tapped = TernaryNetwork(graph, net.float_layers, net.family)
    values = tapped(*copies(arguments), **named_copies(named))
    taken: dict[str, list[tuple[str, Tensor]]] = {}
    for node, value in zip(nodes, values, strict=True):
        codes = _codes(value, node.attrs["step_size"])
        taken.setdefault(node.layer, []).append((node.name, codes))
    return taken
