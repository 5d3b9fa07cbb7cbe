"""``summary``: a model or a converted network, layer by layer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fatnn_rs import _core
from fatnn_rs.config import TernaryConfig
from fatnn_rs.convert.checks import as_root, check_inputs
from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.convert.network import TernaryNetwork
from fatnn_rs.errors import ConfigError, InputError
from fatnn_rs.operations import makes_codes, products_of
from fatnn_rs.replica import unwrapped
from fatnn_rs.report import macs
from fatnn_rs.table import render

__all__ = ["WEIGHT_BITS", "Summary", "SummaryRow", "bits", "kind_of_levels", "summary"]


@dataclass(frozen=True)
class SummaryRow:
    """A layer of a model or network.

    Attributes
    ----------
    name
        Qualified name.
    kind
        Class of the layer, or operation of the network.
    shape
        Shape of its result.
    weight_bits, act_bits
        Bits per weight, and per activation that it reads: 1 (binary), 2 (ternary or two-bit), 8
        (int8) or 32 (float32). For a converted network, only levels that occur are counted.
    macs
        Multiply-accumulates for these inputs.
    bytes
        Size of its parameters in a file. A byte holds five ternary weights, four two-bit weights or
        one int8 weight. All other parameters are float32.
    kernel
        What runs it.
    weights
        ``"ternary"``, ``"binary"``, ``"two-bit"``, ``"int8"`` or ``"float32"``.
    note
        For a float model: what ``prepare`` would make of the layer. For a prepared model: why the
        layer stays float, or a warning about it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weight_bits: int
    act_bits: int
    macs: int
    bytes: int
    kernel: str
    weights: str
    note: str = ""


@dataclass(frozen=True)
class Summary:
    """All layers of a model or network. Print it, or use ``to_json()``."""

    rows: tuple[SummaryRow, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers."""
        return sum(row.macs for row in self.rows)

    @property
    def bytes(self) -> int:
        """Size of all layers' parameters in a file, in bytes."""
        return sum(row.bytes for row in self.rows)

    def to_json(self) -> str:
        """Return the table as JSON."""
        return json.dumps(
            {"rows": [asdict(row) for row in self.rows], "macs": self.macs, "bytes": self.bytes},
            indent=2,
        )

    def __str__(self) -> str:
        cells = [
            [
                row.name,
                row.kind,
                "x".join(map(str, row.shape)),
                str(row.weight_bits),
                str(row.act_bits),
                f"{row.macs:,}",
                f"{row.bytes:,}",
                row.kernel,
                row.note,
            ]
            for row in self.rows
        ]
        head = [
            "layer",
            "kind",
            "shape",
            "weight bits",
            "act bits",
            "MACs",
            "bytes",
            "kernel",
            "note",
        ]
        few = [kind for kind in ("ternary", "binary", "two-bit") if self._share(kind)] or [
            "ternary"
        ]
        kinds = [*few, *(["int8"] if self._share("int8") else [])]
        shares = [f"{self._share(kind):.1%} of them {kind}" for kind in kinds]
        return render(head, cells, right=(3, 4, 5, 6)) + (
            f"\n{self.macs:,} MACs, {', '.join(shares) if self.macs else 'none of them ternary'}; "
            f"{self.bytes:,} bytes of parameters"
        )

    def _share(self, kind: str) -> float:
        """Return the share of multiply-accumulates with weights of a kind."""
        return sum(row.macs for row in self.rows if row.weights == kind) / max(self.macs, 1)


#: Type of weights → bits per weight.
WEIGHT_BITS = {"binary": 1, "ternary": 2, "two-bit": 2, "int8": 8, "float32": 32}


def bits(levels: int) -> int:
    """Return the bits that encode a number of levels."""
    return (levels - 1).bit_length()


def kind_of_levels(levels: int) -> str:
    """Return the type of weights with a number of levels."""
    return {2: "binary", 4: "two-bit"}.get(levels, "ternary")


def _kernel(node: Node, weight: Tensor, kind: str) -> str:
    """Name what runs a layer on this machine; its ``weight`` has the type ``kind``."""
    products = products_of(node.op)
    if products == "int8":
        depthwise = weight.dim() > 2 and weight.shape[1] == 1 and node.attrs["groups"] > 1
        return f"rust {_core.int8_kernel_for(weight.dim() == 2, depthwise)}"
    if products != "codes":
        return "torch (float32)"
    per_group, reduction = weight.shape[0] // node.attrs["groups"], math.prod(weight.shape[1:])
    linear, kinds = node.attrs["dims"] == 0, (node.attrs["act"], kind)
    taps = math.prod(weight.shape[2:])
    return f"rust {_core.kernel_for(per_group, reduction, linear, *kinds, taps)}"


def _levels_of_codes(graph: Graph, name: str) -> int:
    """Count the levels that a value's codes can have: its distinct reachable thresholds plus 1."""
    nodes = graph.index()
    node = nodes[name]
    while not node.tensors:  # the operation only moves or joins codes
        node = nodes[node.inputs[0]]
    steps = graph.tensor(node, "steps" if node.op == "quantize" else "thresholds")
    assert steps is not None, "the schema checked it"
    steps = steps.reshape(len(steps), -1)
    never = torch.inf if steps.is_floating_point() else torch.iinfo(steps.dtype).max
    reached = (steps < never).any(1)
    reached[1:] &= (steps[1:] > steps[:-1]).any(1)
    return 1 + max(1, int(reached.sum()))


def _read_shape(node: Node, weight: Tensor, value: Any) -> tuple[int, ...]:
    """Return the shape of a layer's input; for packed codes, the shape without packing."""
    shape = tuple(value.shape)
    if products_of(node.op) != "codes":
        return shape
    return (shape[0], weight.shape[1] * node.attrs["groups"], *shape[1:3])


def _network_rows(
    net: TernaryNetwork, arguments: tuple[Any, ...], named: dict[str, Any]
) -> list[SummaryRow]:
    rows: list[SummaryRow] = []

    def observe(node: Node, result: Any, values: list[Any]) -> None:
        weight = net.graph.tensor(node, "weight")
        products = products_of(node.op)
        if weight is None or products == "none":
            return
        kind, act_bits = net.graph.dtype(node, "weight"), 8 if products == "int8" else 32
        if products == "codes":
            act_bits = bits(_levels_of_codes(net.graph, node.inputs[0]))
        batch, *size = result.shape
        if makes_codes(node.op):  # the last dimension is packed bytes
            size = [weight.shape[0], *result.shape[3 - node.attrs["dims"] : 3]]
        others = sum(
            net.graph.tensors[name].numel()
            for role, name in node.tensors.items()
            if role != "weight"
        )
        rows.append(
            SummaryRow(
                name=node.layer or node.name,
                kind=node.op,
                shape=(batch, *size),
                weight_bits=WEIGHT_BITS[kind],
                act_bits=act_bits,
                macs=macs(
                    node.op,
                    (batch, *size),
                    tuple(weight.shape),
                    (_read_shape(node, weight, values[0]),),
                    node.attrs,
                ),
                bytes=_core.file_bytes(kind, weight.numel()) + 4 * others,
                kernel=_kernel(node, weight, kind),
                weights=kind,
            )
        )

    net.run_observed(arguments, observe, kwargs=named)
    return rows


@torch.no_grad()
def summary(
    model_or_net: nn.Module, example_inputs: Any = None, config: TernaryConfig | None = None
) -> Summary:
    """Describe the convolutions and linear layers of a model or a converted network.

    For a float model, notes say what :func:`fatnn_rs.prepare` would make of each layer. For a
    prepared model, they say why a layer stays float.

    Parameters
    ----------
    model_or_net
        A float or prepared model, or a converted network. A model runs once in eval mode; its
        training modes are then restored.
    example_inputs
        A tensor, a tuple of positional arguments, or a dict of arguments by name. Optional for a
        model: without them, shapes and multiply-accumulates are unknown.
    config
        For a float model: the configuration for ``prepare``; ``TernaryConfig()`` by default.

    Returns
    -------
    Summary
        Print it, or use ``to_json()``.

    Raises
    ------
    InputError
        If ``model_or_net`` is not a module, or ``example_inputs`` hold no tensor or are missing for
        a network.
    ConfigError
        If ``config`` is not a ``TernaryConfig``, or names layers that the model does not have.
    """
    from fatnn_rs.convert.summary_model import model_rows

    if not isinstance(model_or_net, nn.Module):
        raise InputError(
            "summary: expected a torch.nn.Module or a converted network, got "
            f"{type(model_or_net).__name__}"
        )
    if config is not None and not isinstance(config, TernaryConfig):
        raise ConfigError(f"config must be a TernaryConfig, got {type(config).__name__}")
    model_or_net = unwrapped(model_or_net)
    if example_inputs is None and not isinstance(model_or_net, TernaryNetwork):
        return Summary(tuple(model_rows(as_root(model_or_net), config)))
    if isinstance(model_or_net, TernaryNetwork):
        names = {argument.name for argument in model_or_net.graph.arguments}
        if isinstance(example_inputs, Mapping) and names and names.issuperset(example_inputs):
            return Summary(tuple(_network_rows(model_or_net, (), dict(example_inputs))))
        arguments, _ = check_inputs("example_inputs", example_inputs)
        return Summary(tuple(_network_rows(model_or_net, arguments, {})))
    call = check_inputs("example_inputs", example_inputs, model_or_net)
    rows = model_rows(as_root(model_or_net), config, (example_inputs, *call))
    return Summary(tuple(rows))
