"""``summary``: a model or a converted network, layer by layer."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fatnn_rs import _core
from fatnn_rs.convert.checks import as_root, check_inputs
from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.convert.network import TernaryNetwork
from fatnn_rs.errors import FatnnError, InputError
from fatnn_rs.nn import Int8Layer, TernaryLayer
from fatnn_rs.operations import makes_codes, products_of
from fatnn_rs.replica import unwrapped
from fatnn_rs.report import macs
from fatnn_rs.table import render

__all__ = ["Summary", "SummaryRow", "summary"]


@dataclass(frozen=True)
class SummaryRow:
    """One layer.

    Attributes
    ----------
    name
        Qualified name.
    kind
        Class of the layer, or operation of the network.
    shape
        Of its result.
    weight_bits, act_bits
        Bits that tell the levels of one weight, and of one activation it reads, apart (1: binary,
        2: ternary or four levels, 8: int8, 32: float32). Of a network, levels that occur count.
    macs
        Multiply-accumulates for these inputs.
    bytes
        Its parameters in a file: ternary weights, binary ones too, five to a byte, two-bit ones
        four, int8 weights one, all else float32.
    kernel
        What runs it.
    weights
        ``"ternary"``, ``"binary"``, ``"two-bit"``, ``"int8"`` or ``"float32"``.
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


@dataclass(frozen=True)
class Summary:
    """All layers. Print it, or take ``to_json()``."""

    rows: tuple[SummaryRow, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers."""
        return sum(row.macs for row in self.rows)

    @property
    def bytes(self) -> int:
        """Bytes of all layers' parameters in a file."""
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
            ]
            for row in self.rows
        ]
        head = ["layer", "kind", "shape", "weight bits", "act bits", "MACs", "bytes", "kernel"]
        few = [kind for kind in ("ternary", "binary", "two-bit") if self._share(kind)] or [
            "ternary"
        ]
        kinds = [*few, *(["int8"] if self._share("int8") else [])]
        shares = [f"{self._share(kind):.1%} of them {kind}" for kind in kinds]
        return render(head, cells, right=(3, 4, 5, 6)) + (
            f"\n{self.macs:,} MACs, {', '.join(shares) if self.macs else 'none of them ternary'}; {self.bytes:,} bytes "
            "of parameters"
        )

    def _share(self, kind: str) -> float:
        """Share of multiply-accumulates with weights of a kind."""
        return sum(row.macs for row in self.rows if row.weights == kind) / max(self.macs, 1)


#: Type of weights → bits that tell their levels apart.
_WEIGHT_BITS = {"binary": 1, "ternary": 2, "two-bit": 2, "int8": 8, "float32": 32}


def _bits(levels: int) -> int:
    """Bits that tell so many levels apart."""
    return (levels - 1).bit_length()


def _kind_of_levels(levels: int) -> str:
    return {2: "binary", 4: "two-bit"}.get(levels, "ternary")


def _kernel(node: Node, weight: Tensor, kind: str) -> str:
    """Name what runs a layer with ``weight``, of type ``kind``, on this machine."""
    products = products_of(node.op)
    if products == "int8":
        depthwise = weight.dim() > 2 and weight.shape[1] == 1 and node.attrs["groups"] > 1
        return f"rust {_core.int8_kernel_for(weight.dim() == 2, depthwise)}"
    if products != "codes":
        return "torch (float32)"
    per_group, reduction = weight.shape[0] // node.attrs["groups"], math.prod(weight.shape[1:])
    linear, kinds = node.attrs["dims"] == 0, (node.attrs["act"], kind)
    return f"rust {_core.kernel_for(per_group, reduction, linear, *kinds, math.prod(weight.shape[2:]))}"


def _levels_of_codes(graph: Graph, name: str) -> int:
    """How many levels the codes of a value have: one more than there are thresholds that differ and are reached."""
    nodes = graph.index()
    node = nodes[name]
    while not node.tensors:  # moves or joins codes
        node = nodes[node.inputs[0]]
    steps = graph.tensor(node, "steps" if node.op == "quantize" else "thresholds")
    assert steps is not None, "the schema checked it"
    steps = steps.reshape(len(steps), -1)
    never = torch.inf if steps.is_floating_point() else torch.iinfo(steps.dtype).max
    reached = (steps < never).any(1)
    reached[1:] &= (steps[1:] > steps[:-1]).any(1)
    return 1 + max(1, int(reached.sum()))


def _is_transposed(module: nn.Module) -> bool:
    return isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d))


def _macs(module: Any, value: Tensor) -> int:
    """Products of a layer: of a transposed one per element that it reads, of others per element of the result."""
    weight: Tensor = module.weight
    return value.numel() * math.prod(weight.shape[1:])


def _read_shape(node: Node, weight: Tensor, value: Any) -> tuple[int, ...]:
    """Shape of what a layer reads; of packed codes, that of what they stand for."""
    shape = tuple(value.shape)
    if products_of(node.op) != "codes":
        return shape
    return (shape[0], weight.shape[1] * node.attrs["groups"], *shape[1:3])


def _model_rows(model: nn.Module, arguments: tuple[Any, ...]) -> list[SummaryRow]:
    rows: list[SummaryRow] = []
    handles = []

    def hook_for(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            kind, act_bits = "int8" if isinstance(module, Int8Layer) else "float32", 8
            if isinstance(module, TernaryLayer):
                kind = _kind_of_levels(len(module.weight_quant.levels))
                act_bits = _bits(len(module.act_quant.levels or module.act_quant.half_levels))
            elif kind == "float32":
                act_bits = 32
            weights = module.weight.numel()
            others = sum(
                p.numel() for key, p in module.named_parameters(recurse=False) if key != "weight"
            )
            rows.append(
                SummaryRow(
                    name=name,
                    kind=type(module).__name__,
                    shape=tuple(output.shape),
                    weight_bits=_WEIGHT_BITS[kind],
                    act_bits=act_bits,
                    macs=_macs(module, args[0] if _is_transposed(module) else output),
                    bytes=_core.file_bytes(kind, weights) + 4 * others,
                    kernel="torch (float32)"
                    if kind == "float32"
                    else "torch (float32, quantizers simulated)",
                    weights=kind,
                )
            )

        return hook

    kinds = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)
    training = {module: module.training for module in model.modules()}
    try:
        for name, module in model.named_modules():
            if isinstance(module, kinds):
                handles.append(module.register_forward_hook(hook_for(name)))
        model.eval()
        try:
            model(*(value.clone() if isinstance(value, Tensor) else value for value in arguments))
        except FatnnError:
            raise
        except Exception as error:  # the model's own
            raise InputError(
                f"summary: {type(model).__name__} fails on the example inputs ({type(error).__name__}: {error}); give "
                "inputs that the model accepts"
            ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return rows


def _network_rows(net: TernaryNetwork, arguments: tuple[Any, ...]) -> list[SummaryRow]:
    rows: list[SummaryRow] = []

    def observe(node: Node, result: Any, values: list[Any]) -> None:
        weight = net.graph.tensor(node, "weight")
        products = products_of(node.op)
        if weight is None or products == "none":
            return
        kind, act_bits = net.graph.dtype(node, "weight"), 8 if products == "int8" else 32
        if products == "codes":
            act_bits = _bits(_levels_of_codes(net.graph, node.inputs[0]))
        batch, *size = result.shape
        if makes_codes(node.op):  # packed: its pixels count, its bytes do not
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
                weight_bits=_WEIGHT_BITS[kind],
                act_bits=act_bits,
                macs=macs(
                    node.op,
                    (batch, *size),
                    tuple(weight.shape),
                    _read_shape(node, weight, values[0]),
                    node.attrs.get("input_products"),
                ),
                bytes=_core.file_bytes(kind, weight.numel()) + 4 * others,
                kernel=_kernel(node, weight, kind),
                weights=kind,
            )
        )

    net.run_observed(arguments, observe)
    return rows


@torch.no_grad()
def summary(model_or_net: nn.Module, example_inputs: Any) -> Summary:
    """Describe the convolutions and linear layers of a model or a converted network.

    Parameters
    ----------
    model_or_net
        An eager model (prepared or not; run once in eval mode, modes are put back), or a converted
        network.
    example_inputs
        A tensor, or a tuple of positional arguments.

    Returns
    -------
    Summary
        Printable; ``to_json()``.

    Raises
    ------
    InputError
        ``model_or_net`` is no module; ``example_inputs`` hold no tensor.
    """
    if not isinstance(model_or_net, nn.Module):
        raise InputError(
            f"summary: expected a torch.nn.Module or a converted network, got {type(model_or_net).__name__}"
        )
    model_or_net = unwrapped(model_or_net)
    arguments = check_inputs("example_inputs", example_inputs)
    if isinstance(model_or_net, TernaryNetwork):
        return Summary(tuple(_network_rows(model_or_net, arguments)))
    return Summary(tuple(_model_rows(as_root(model_or_net), arguments)))
