"""Time layers and torch's float32 layers, in turns, and the effect of ``float_layers="rust"``."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.errors import ConfigError, InputError
from fatnn_rs.operations import products_of
from fatnn_rs.overview import FloatLayers, LayerTime, Profile

if TYPE_CHECKING:
    from fatnn_rs.convert.network import TernaryNetwork

__all__ = ["Timer", "measure"]


class Timer:
    """Measures times by the system clock."""

    def nodes(self, net: TernaryNetwork, inputs: tuple[Any, ...]) -> dict[str, float]:
        """Run a network; return node name → seconds."""
        return net.node_seconds(*inputs)

    def call(self, name: str, function: Callable[[], Any]) -> float:
        """Call a function, torch's layer for ``name`` or a whole network; return the seconds."""
        before = time.perf_counter()
        function()
        return time.perf_counter() - before


@torch.no_grad()
def measure(
    net: TernaryNetwork, inputs: tuple[Any, ...], rounds: int, float_layers: bool, timer: Timer
) -> Profile:
    """Measure what :meth:`TernaryNetwork.profile` reports.

    Raises
    ------
    ConfigError
        If ``rounds`` is less than 1.
    InputError
        If inputs have other shapes than the example.
    """
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
        raise ConfigError(f"rounds must be a whole number of at least 1, got {rounds!r}")
    _check_shapes(net.graph, inputs)
    index = net.graph.index()
    layers = [node for node in net.graph.nodes if products_of(node.op) in ("codes", "int8")]
    calls = {
        node.name: _torch_layer(net.graph, node, index[node.inputs[0]].shape) for node in layers
    }
    ours: dict[str, list[float]] = {node.name: [] for node in layers}
    theirs: dict[str, list[float]] = {node.name: [] for node in layers}
    timer.nodes(net, inputs)  # warm up: plan and allocate buffers
    for node in layers:
        calls[node.name]()
    for _ in range(rounds):
        seconds = timer.nodes(net, inputs)
        for node in layers:
            # A node that is fused into another one has no time.
            if node.name in seconds:
                ours[node.name].append(seconds[node.name])
                theirs[node.name].append(timer.call(node.name, calls[node.name]))
    rows = tuple(
        LayerTime(node.layer or node.name, median(ours[node.name]), median(theirs[node.name]))
        for node in layers
        if ours[node.name]
    )
    how = (
        f"medians of {rounds} rounds at the example's shapes, {torch.get_num_threads()} threads; "
        "a layer's time includes what is fused into it, torch's is only the convolution or linear "
        "layer"
    )
    effect = _float_layers(net, inputs, rounds, timer) if float_layers else None
    return Profile(rows, how, effect)


def _check_shapes(graph: Graph, inputs: tuple[Any, ...]) -> None:
    given = [list(value.shape) for value in inputs if isinstance(value, Tensor)]
    expected = [list(node.shape) for node in graph.nodes if node.op == "input"]
    if given != expected:
        raise InputError(
            f"profile: expected inputs of the example's shapes {expected}, got {given}; layers are "
            "timed at the shapes that the network was converted with"
        )


def _torch_layer(graph: Graph, node: Node, shape: tuple[int, ...]) -> Callable[[], Any]:
    """Return a call of torch's float32 layer with a node's sizes, on random values."""
    weight, attrs = graph.tensor(node, "weight"), node.attrs
    assert weight is not None
    generator = torch.Generator("cpu").manual_seed(0)
    kind: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    bias = torch.randn(len(weight), **kind)
    if len(shape) == 2 and (weight.dim() == 2 or attrs.get("dims") == 0):
        x, matrix = torch.randn(shape, **kind), torch.randn(weight.flatten(1).shape, **kind)
        return lambda: functional.linear(x, matrix, bias)
    dims = len(shape) - 2
    if attrs.get("dims") == 0:  # a linear layer over a whole map
        x, matrix = torch.randn(shape, **kind), torch.randn(weight.flatten(1).shape, **kind)
        return lambda: functional.linear(x.flatten(1), matrix, bias)
    x = torch.randn(shape, **kind)
    kernel = torch.randn((*weight.shape[:2], *weight.shape[weight.dim() - dims :]), **kind)
    numbers = {name: attrs[name][-dims:] for name in ("stride", "padding", "dilation")}
    function: Any = functional.conv1d if dims == 1 else functional.conv2d
    return lambda: function(x, kernel, bias, groups=attrs["groups"], **numbers)


def _float_layers(
    net: TernaryNetwork, inputs: tuple[Any, ...], rounds: int, timer: Timer
) -> FloatLayers:
    """Compare a network with one that has its float layers in Rust, in turns."""
    from fatnn_rs.convert.network import TernaryNetwork
    from fatnn_rs.convert.verify import max_abs_diff

    nets = (net, TernaryNetwork(net.graph, "rust", net.family))
    codes: list[dict[str, Tensor]] = []
    results = []
    for one in nets:
        seen: dict[str, Tensor] = {}
        results.append(one.run_observed(inputs, _CodeRecorder(seen), as_run=True))
        codes.append(seen)
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for one, taken in zip(nets, seconds, strict=True):
            taken.append(timer.call(one.float_layers, partial(one, *inputs)))
    pairs = [(codes[0][name], codes[1][name]) for name in codes[0] if name in codes[1]]
    return FloatLayers(
        median(seconds[0]),
        median(seconds[1]),
        sum(left.numel() for left, _ in pairs),
        sum(int((left != right).sum()) for left, right in pairs),
        max_abs_diff(results[0], results[1]),
    )


class _CodeRecorder:
    """An observer that unpacks the codes that ternary layers read."""

    def __init__(self, seen: dict[str, Tensor]) -> None:
        self.seen = seen

    def __call__(self, node: Node, result: Any, values: list[Any]) -> None:
        from fatnn_rs.convert.verify import unpacked

        if products_of(node.op) == "codes" and values[0] is not None:
            self.seen[node.name] = unpacked(node, values[0])
