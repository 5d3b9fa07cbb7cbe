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
from fatnn_rs.convert.graph import Node
from fatnn_rs.convert.network import TernaryNetwork
from fatnn_rs.convert.ops_int8 import INT8_OPS
from fatnn_rs.errors import InputError
from fatnn_rs.nn import Int8Layer, TernaryLayer
from fatnn_rs.report import TRITS
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
        Bits of one weight and of one activation it reads (2: ternary, 8: int8, 32: float32).
    macs
        Multiply-accumulates for these inputs.
    bytes
        Its parameters in a file: ternary weights five to a byte, int8 weights one, all else float32.
    kernel
        What runs it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weight_bits: int
    act_bits: int
    macs: int
    bytes: int
    kernel: str


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
            {"rows": [asdict(row) for row in self.rows], "macs": self.macs, "bytes": self.bytes}, indent=2
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
        kinds = ["ternary", *(["int8"] if self._share(8) else [])]
        shares = [f"{self._share(bits):.1%} of them {kind}" for kind, bits in zip(kinds, (2, 8), strict=False)]
        return render(head, cells, right=(3, 4, 5, 6)) + (
            f"\n{self.macs:,} MACs, {', '.join(shares) if self.macs else 'none of them ternary'}; {self.bytes:,} bytes "
            "of parameters"
        )

    def _share(self, bits: int) -> float:
        """Share of multiply-accumulates with weights of so many bits."""
        return sum(row.macs for row in self.rows if row.weight_bits == bits) / max(self.macs, 1)


def _kernel(node: Node, weight: Tensor, bits: int) -> str:
    """Name what runs a layer with ``weight`` on this machine."""
    if bits == 32:
        return "torch (float32)"
    if bits == 8:
        return f"rust {_core.int8_kernel_for(node.op == 'linear_int8')}"
    per_group = weight.shape[0] // node.attrs["groups"]
    return f"rust {_core.kernel_for(per_group, math.prod(weight.shape[1:]), node.attrs['dims'] == 0)}"


def _weight_bytes(weights: int, bits: int) -> int:
    """Bytes of so many weights in a file."""
    return -(-weights // TRITS) if bits == 2 else weights * bits // 8


def _model_rows(model: nn.Module, arguments: tuple[Any, ...]) -> list[SummaryRow]:
    rows: list[SummaryRow] = []
    handles = []

    def hook_for(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            bits = 2 if isinstance(module, TernaryLayer) else 8 if isinstance(module, Int8Layer) else 32
            weights = module.weight.numel()
            others = sum(p.numel() for key, p in module.named_parameters(recurse=False) if key != "weight")
            rows.append(
                SummaryRow(
                    name=name,
                    kind=type(module).__name__,
                    shape=tuple(output.shape),
                    weight_bits=bits,
                    act_bits=bits,
                    macs=output.numel() * math.prod(module.weight.shape[1:]),
                    bytes=_weight_bytes(weights, bits) + 4 * others,
                    kernel="torch (float32)" if bits == 32 else "torch (float32, quantizers simulated)",
                )
            )

        return hook

    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    training = {module: module.training for module in model.modules()}
    try:
        for name, module in model.named_modules():
            if isinstance(module, kinds):
                handles.append(module.register_forward_hook(hook_for(name)))
        model.eval()
        model(*(value.clone() if isinstance(value, Tensor) else value for value in arguments))
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
        ternary, int8 = node.op in ("conv_codes", "conv_float"), node.op in INT8_OPS
        if weight is None or not (ternary or int8 or node.op in ("conv1d", "conv2d", "linear")):
            return
        bits = 2 if ternary else 8 if int8 else 32
        # The result of conv_codes is packed: its pixels count, its bytes do not.
        outputs = math.prod(result.shape[:3]) * weight.shape[0] if node.op == "conv_codes" else result.numel()
        batch, *size = result.shape
        if node.op == "conv_codes":
            size = [weight.shape[0], *result.shape[3 - node.attrs["dims"] : 3]]
        others = sum(net.graph.tensors[name].numel() for role, name in node.tensors.items() if role != "weight")
        rows.append(
            SummaryRow(
                name=node.layer or node.name,
                kind=node.op,
                shape=(batch, *size),
                weight_bits=bits,
                act_bits=bits,
                macs=outputs * math.prod(weight.shape[1:]),
                bytes=_weight_bytes(weight.numel(), bits) + 4 * others,
                kernel=_kernel(node, weight, bits),
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
        An eager model (prepared or not; run once in eval mode, modes are put back), or a converted network.
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
    arguments = check_inputs("example_inputs", example_inputs)
    if isinstance(model_or_net, TernaryNetwork):
        return Summary(tuple(_network_rows(model_or_net, arguments)))
    return Summary(tuple(_model_rows(as_root(model_or_net), arguments)))
