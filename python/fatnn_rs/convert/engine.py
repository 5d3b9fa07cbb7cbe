"""Segments: consecutive nodes that run in the Rust engine, in one call.

The nodes that stay in torch divide a network into segments. A :class:`Segment` holds an engine
``Network``. By default float convolutions, linear layers and means stay in torch, because only
torch rounds its sums as torch does; so every operation in a segment gives the eager model's bits.
With ``float_layers="rust"`` they run in Rust, too. Usually the whole network is then one call, and
float sums may differ in the last place.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fatnn_rs import _core
from fatnn_rs.convert.exact_sums import exact_sums
from fatnn_rs.convert.fma import fma, same_bits, slope
from fatnn_rs.convert.graph import Graph, Node, refs
from fatnn_rs.convert.lower.strides import is_view
from fatnn_rs.convert.torch_ops.floats import FLOAT_OPS
from fatnn_rs.errors import FormatError, LimitError, UnsupportedError
from fatnn_rs.operations import OPERATIONS, makes_codes, products_of
from fatnn_rs.ops.kernels import aligned_array, follow_torch_threads
from fatnn_rs.report import RULES, engine_refusal

__all__ = ["FLOAT_LAYERS", "Reason", "Segment", "partition"]

#: Where float convolutions, linear layers and means may run.
FLOAT_LAYERS = ("torch", "rust")

#: Why a node stays in torch: a key of :data:`fatnn_rs.report.RULES`, and the reason in words.
Reason = tuple[str, str]

ObservedValues = dict[str, "tuple[int, npt.NDArray[np.uint8] | None]"]


@dataclass
class Segment:
    """Consecutive nodes that run in one call of the engine.

    Attributes
    ----------
    nodes
        The nodes, in order.
    reads, makes
        Names of its inputs and of its results. Results are float32.
    network
        The engine's network.
    keeps_buffers
        Whether buffers are kept for later runs with the same shapes.
    """

    nodes: list[Node]
    reads: list[str]
    makes: list[str]
    network: _core.Network = field(repr=False)
    keeps_buffers: bool = True

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run the segment. Maps are returned in channels-last memory, other results contiguous."""
        made = self.network.run(*_arrays(inputs))
        if not self.keeps_buffers:
            self.network.drop_buffers()
        return [torch.from_numpy(array) for array in made]

    def observed(self, *inputs: Tensor) -> tuple[list[Tensor], ObservedValues]:
        """Run the segment; also return the nanoseconds and packed codes of each node."""
        outputs, seen = self.network.run_observed(*_arrays(inputs))
        return [torch.from_numpy(array) for array in outputs], {
            name: (time, codes) for name, time, codes in seen
        }


def _arrays(inputs: Iterable[Tensor]) -> tuple[list[npt.NDArray[Any]], list[bool]]:
    """Return arrays of tensors, and which are channels last. Copies other memory formats."""
    follow_torch_threads()
    arrays, last = [], []
    for x in inputs:
        x = x.detach()
        channels_last = (
            x.dim() == 4
            and x.dtype == torch.float32
            and not x.is_contiguous()
            and x.is_contiguous(memory_format=torch.channels_last)
        )
        arrays.append(aligned_array(x.permute(0, 2, 3, 1) if channels_last else x.contiguous()))
        last.append(channels_last)
    return arrays, last


def partition(
    graph: Graph,
    float_layers: str,
    excluded: Container[str] = (),
    family: str | None = None,
    why: dict[str, Reason] | None = None,
) -> list[Node | Segment]:
    """Group a graph's nodes into segments and nodes that run one by one.

    Parameters
    ----------
    graph
        The graph; it is not changed. Its inputs are in no group.
    float_layers
        One of :data:`FLOAT_LAYERS`.
    excluded
        Names of nodes that no segment may take.
    family
        Kernel family of the segments; None lets the engine choose.
    why
        Receives the names of the nodes outside of segments, and the reasons.

    Returns
    -------
    list
        Segments and nodes in execution order.
    """
    why = {} if why is None else why
    why |= _reasons_outside_engine(graph, float_layers, excluded)
    taken = {n.name for n in graph.nodes if n.op != "input" and n.name not in why}
    while crossing := _nodes_that_cross_runs(graph, taken):
        taken -= crossing
        why |= dict.fromkeys(crossing, ("codes", RULES["codes"]))
    uses = _ValueUses(graph.index(), graph.users(), any(map(_on_integers, graph.nodes)))
    parts: list[Node | Segment] = []
    for run in _runs(graph, taken):
        segment = run[0].name in taken
        made = _segment(graph, uses, run, float_layers, family) if segment else list(run)
        if segment and not isinstance(made[0], Segment):
            rule = "engine" if any(map(_on_integers, run)) else "no integers"
            why |= {node.name: (rule, RULES[rule]) for node in run}
        parts += made
    return parts


@dataclass(frozen=True)
class _ValueUses:
    """The producer and readers of every value, and whether any node multiplies integers."""

    producers: dict[str, Node]
    readers: dict[str, list[Node | None]]
    on_integers: bool


def _runs(graph: Graph, taken: set[str]) -> list[list[Node]]:
    """Group nodes in order: consecutive nodes in ``taken`` form a run, others a run of one."""
    runs: list[list[Node]] = []
    for node in graph.nodes:
        if node.op == "input":
            continue
        if runs and node.name in taken and runs[-1][0].name in taken:
            runs[-1].append(node)
        else:
            runs.append([node])
    return runs


def _nodes_that_cross_runs(graph: Graph, taken: set[str]) -> set[str]:
    """Return nodes that would pass codes, or return integers or masks, from one run to another.

    The inputs of a segment may be integers and masks, but its results are only floats.
    """
    place = {node.name: i for i, run in enumerate(_runs(graph, taken)) for node in run}
    index = graph.index()
    across: set[str] = set()
    for node in graph.nodes:
        for name in node.inputs:
            if makes_codes(index[name].op) and place[name] != place[node.name]:
                across |= {name, node.name}
            if index[name].dtype != "float32" and place.get(name) != place[node.name]:
                across.add(name)
    across |= {ref.name for ref in refs(graph.outputs) if index[ref.name].dtype != "float32"}
    return across & taken


def _reasons_outside_engine(
    graph: Graph, float_layers: str, excluded: Container[str]
) -> dict[str, Reason]:
    """Return the nodes that the engine cannot run bit for bit as required, and why."""
    index, exact = graph.index(), exact_sums(graph)
    found: dict[str, Reason] = {}
    for node in graph.nodes:
        row = OPERATIONS.get(node.op)
        if node.op == "input":
            continue
        if node.name in excluded:
            found[node.name] = ("failed", RULES["failed"])
        elif row is None:
            rule = node.attrs.get("rule", "unknown")
            found[node.name] = (rule, node.note or RULES[rule])
        elif float_layers != "rust" and _keeps_strides(node, found):
            found[node.name] = ("strides", RULES["strides"])
        elif row.exactness != "exact" and float_layers != "rust" and node.name not in exact:
            found[node.name] = (row.exactness, RULES[row.exactness])
        elif refused := engine_refusal(
            node.op, json.dumps(node.attrs), [index[name].shape for name in node.inputs]
        ):
            found[node.name] = ("engine", f"the engine does not have it: {refused}")
        elif node.op == "batch_norm" and _affine(graph, node, float_layers) is None:
            found[node.name] = ("not exact", RULES["not exact"])
    return found


def _keeps_strides(node: Node, found: Mapping[str, Reason]) -> bool:
    """Whether a node makes a view whose strides matter, or a view of such a view."""
    if not is_view(node):
        return False
    return "layout" in node.attrs or found.get(node.inputs[0], ("", ""))[0] == "strides"


def _segment(
    graph: Graph, uses: _ValueUses, nodes: list[Node], float_layers: str, family: str | None
) -> list[Node | Segment]:
    """Make one segment. Nodes stay single if codes cross its border or no layer is quantized."""
    if uses.on_integers and not any(map(_on_integers, nodes)):
        return list(nodes)
    inside = {node.name for node in nodes}
    reads = list(
        dict.fromkeys(name for node in nodes for name in node.inputs if name not in inside)
    )
    makes = [
        node.name
        for node in nodes
        if any(user is None or user.name not in inside for user in uses.readers[node.name])
    ]
    index = uses.producers
    if any(makes_codes(index[name].op) for name in (*reads, *makes)):
        return list(nodes)
    tensors: dict[str, npt.NDArray[Any]] = {}
    dtypes: dict[str, str] = {}
    described: list[dict[str, Any]] = [
        {
            "name": name,
            "op": "input",
            "shape": list(index[name].shape),
            "dtype": index[name].dtype,
        }
        for name in reads
    ]
    for node in nodes:
        op, named = node.op, {role: graph.tensors[name] for role, name in node.tensors.items()}
        if op == "batch_norm" and (found := _affine(graph, node, float_layers)):
            op, named = found
        roles = {role: f"{node.name}/{role}" for role in named}
        tensors |= {
            roles[role]: np.asarray(aligned_array(value), order="C")
            for role, value in named.items()
        }
        dtypes |= {
            roles[role]: graph.dtypes[name]
            for role, name in node.tensors.items()
            if name in graph.dtypes
        }
        described.append(
            {
                "name": node.name,
                "op": op,
                "inputs": node.inputs,
                "shape": list(node.shape),
                "dtype": node.dtype,
                "attrs": node.attrs,
                "tensors": roles,
                "layer": node.layer,
            }
        )
    text = json.dumps(
        {"nodes": described, "outputs": {"list": [{"value": name} for name in makes]}}
    )
    try:
        network = _core.Network(text, tensors, dtypes, family, *graph.limits)
    except LimitError:
        raise
    # The engine does not have this combination, or sizes do not fit for the example.
    except (UnsupportedError, FormatError):
        if family is not None:
            raise
        return list(nodes)
    return [Segment(list(nodes), reads, makes, network)]


def _on_integers(node: Node) -> bool:
    return products_of(node.op) in ("codes", "int8")


def _affine(graph: Graph, node: Node, float_layers: str) -> tuple[str, dict[str, Tensor]] | None:
    """Return the engine's operation for a BatchNorm and its tensors; None if it stays in torch.

    It is ``fma(x, scale, bias)`` if that gives torch's bits, which is checked on floats of all
    magnitudes. With ``float_layers="rust"`` bits may differ, so it is the BatchNorm itself.
    """
    tensors = {role: graph.tensors[name] for role, name in node.tensors.items()}
    if float_layers == "rust":
        return "batch_norm", tensors
    function = FLOAT_OPS["batch_norm"].bind(node, tensors)
    channels = len(tensors["mean"])

    def evaluate(points: Tensor) -> Tensor:
        y: Tensor = function(points.float())
        return y

    bias = evaluate(torch.zeros(1, channels, dtype=torch.float32, device="cpu"))[0]
    scale = slope(evaluate, channels)
    if scale is None:
        return None
    x = _floats_of_all_magnitudes().expand(-1, channels).contiguous()
    with np.errstate(all="ignore"):
        predicted = torch.from_numpy(fma(x.numpy(), scale.numpy(), bias.numpy()))
    same = same_bits(predicted, function(x)) and same_bits(predicted, _as_map(function, x))
    return ("affine", {"scale": scale, "bias": bias}) if same else None


@functools.cache
def _floats_of_all_magnitudes() -> Tensor:
    """Return the points at which functions are compared: float32 [P, 1], from 0 to the largest."""
    generator = torch.Generator("cpu").manual_seed(0)
    kind: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    powers = torch.cat(
        [torch.linspace(-4, 4, 381, **kind), torch.arange(-44, 39, **kind), torch.zeros(45, **kind)]
    )
    x = torch.randn(len(powers), generator=generator, **kind) * 10.0**powers
    largest = torch.finfo(torch.float32).max
    ends = torch.tensor([0.0, largest, -largest], **kind)
    return torch.cat([x, ends]).clamp(-largest, largest).float()[:, None]


def _as_map(function: Any, x: Tensor) -> Tensor:
    """Apply a per-channel function to one image whose pixels are the rows of ``x``."""
    y: Tensor = function(x.t()[None, :, :, None].contiguous())
    return y[0, :, :, 0].t()
