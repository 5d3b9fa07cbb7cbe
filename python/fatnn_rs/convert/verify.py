"""``verify``: check that a converted network computes the model's codes.

Both run on the same inputs. In the model, hooks record the results of every ternary layer's
quantizer. In the network, an observer records the packed codes that every ternary layer reads. They
are compared code by code, and so are values between layers that are rounded to int8, unless they
became thresholds of the quantizer that reads them. The codes of int8 layers never leave the engine;
errors in them show in the codes of later layers and in the outputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from fatnn_rs.convert.capture import copies, named_copies
from fatnn_rs.convert.checks import as_root, check_inputs, quantized_layers
from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.convert.levels import act_kind, code_type, stored
from fatnn_rs.convert.network import TernaryNetwork
from fatnn_rs.convert.torch_ops.codes import squeeze_to
from fatnn_rs.convert.verify_values import eager_values, network_values
from fatnn_rs.errors import ConversionError
from fatnn_rs.nn import Int8Layer
from fatnn_rs.operations import products_of
from fatnn_rs.replica import unwrapped
from fatnn_rs.table import render

__all__ = ["VerifyReport", "VerifyRow", "max_abs_diff", "unpacked", "verify"]


@dataclass(frozen=True)
class VerifyRow:
    """One call of one ternary layer, or one int8 value between layers.

    Attributes
    ----------
    layer
        Qualified name of the layer or of the ``Int8Value``.
    call
        Number of its call, from 0.
    codes
        Number of codes that the layer read, or of elements of the value.
    different
        Number of these codes that differ between model and network.
    behind_residual
        Whether the layer's input, or the value, depends on a residual addition.
    """

    layer: str
    call: int
    codes: int
    different: int
    behind_residual: bool


@dataclass(frozen=True)
class VerifyReport:
    """The result of a comparison. Print it, or use ``to_json()``.

    Attributes
    ----------
    codes_total, codes_different
        Number of codes that ternary layers read and of int8 values, and of those that differ.
    codes_behind_residual, codes_behind_residual_different
        The same for layers and values that depend on a residual addition.
    max_abs_diff
        Largest absolute difference between outputs. Two NaNs count as equal.
    top1_agreement
        Share of rows whose largest output is at the same index; None if no output has two
        dimensions.
    not_compared
        Ternary and int8 layers that the network runs in torch.
    rows
        One row per call of a ternary layer or ``Int8Value``.
    """

    codes_total: int
    codes_different: int
    codes_behind_residual: int
    codes_behind_residual_different: int
    max_abs_diff: float
    top1_agreement: float | None
    not_compared: tuple[str, ...]
    rows: tuple[VerifyRow, ...]

    @property
    def identical(self) -> bool:
        """Whether the engine ran every quantized layer, and no code and no output differs."""
        return self.codes_different == 0 and self.max_abs_diff == 0.0 and not self.not_compared

    def to_json(self) -> str:
        """Return the whole report as JSON."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        cells = [
            [
                row.layer,
                str(row.call),
                f"{row.codes:,}",
                f"{row.different:,}",
                "yes" if row.behind_residual else "",
            ]
            for row in self.rows
        ]
        top1 = "" if self.top1_agreement is None else f", top-1 agreement {self.top1_agreement:.4%}"
        lines = [
            render(
                ["layer", "call", "codes", "different", "after residual"], cells, right=(1, 2, 3)
            ),
            f"{self.codes_different:,} of {self.codes_total:,} codes differ "
            f"({self.codes_behind_residual_different:,} of {self.codes_behind_residual:,} after a "
            f"residual addition); outputs differ by at most {self.max_abs_diff:g}{top1}",
        ]
        if self.not_compared:
            lines.append(f"left in torch, not compared: {', '.join(self.not_compared)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _LayerCodes:
    """Codes of one call of a layer: levels, the layer's padding, and the kind of activations."""

    levels: Tensor
    padding: list[int]
    kind: str

    def as_in(self, other: Tensor) -> Tensor:
        """Return the codes to pack, padded if the network's codes ``other`` include the padding."""
        levels = self.levels
        if levels.numel() != other.numel() and any(self.padding):
            levels = functional.pad(levels, self.padding)
        return stored(levels, self.kind).to(torch.int8)


@contextmanager
def _eager_codes(model: nn.Module) -> Iterator[dict[str, list[_LayerCodes]]]:
    """Record the codes of every call of every ternary layer of a model, by hooks.

    An int8 layer that was called has an empty list.
    """
    taken: dict[str, list[_LayerCodes]] = {}
    handles = []

    def hook_for(name: str, layer: Any) -> Any:
        def hook(module: Any, args: Any, output: Tensor) -> None:
            if isinstance(layer, Int8Layer):
                taken[name] = []
                return
            codes, padding = output.detach(), [0, 0]
            if getattr(layer, "padding", 0) == "same" and layer.padding_mode == "zeros":
                padding = layer._reversed_padding_repeated_twice
            # Levels of no known kind belong to another model; they will differ.
            kind = act_kind(module.levels) or "full"
            taken.setdefault(name, []).append(_LayerCodes(codes, padding, kind))

        return hook

    try:
        for name, layer in quantized_layers(model).items():
            handles.append(layer.act_quant.register_forward_hook(hook_for(name, layer)))
        yield taken
    finally:
        for handle in handles:
            handle.remove()


class _NetworkCodes:
    """Records the codes that each ternary layer of a network reads, as int8 in torch's layout.

    An int8 layer that was called has an empty list, as in :func:`_eager_codes`.
    """

    def __init__(self, graph: Graph) -> None:
        self.taken: dict[str, list[Tensor]] = {}
        self.after_residual: dict[str, bool] = {}
        self.added = _after_addition(graph)

    def __call__(self, node: Node, result: Any, values: list[Any]) -> None:
        products = products_of(node.op)
        if products == "int8":
            self.taken[node.layer], self.after_residual[node.layer] = [], False
        if products != "codes":
            return
        self.taken.setdefault(node.layer, []).append(unpacked(node, values[0]))
        self.after_residual[node.layer] = (
            self.after_residual.get(node.layer, False) or node.inputs[0] in self.added
        )


def unpacked(node: Node, codes: Tensor) -> Tensor:
    """Unpack the codes that a layer reads, to int8 with channels second."""
    a = node.attrs
    kind = code_type(a["act"])
    made = torch.ops.fatnn_rs.unpack_codes(codes, a["channels"], a["groups"], kind)
    return squeeze_to(made.permute(0, 3, 1, 2), a["dims"])


def _after_addition(graph: Graph) -> set[str]:
    """Return the names of values that depend on an addition of two tensors."""
    after: set[str] = set()
    for node in graph.nodes:
        adds = node.op == "add" or (node.op == "conv_float" and len(node.inputs) == 2)
        if adds or any(name in after for name in node.inputs):
            after.add(node.name)
    return after


@torch.no_grad()
def verify(model: nn.Module, net: TernaryNetwork, inputs: Any) -> VerifyReport:
    """Compare a converted network with its model on real inputs, code by code.

    Parameters
    ----------
    model
        The prepared and trained model, in eval mode.
    net
        The network that :func:`fatnn_rs.convert.convert` made of it, or that was loaded.
    inputs
        A tensor, a tuple of the model's positional arguments, or a dict of keyword arguments.

    Returns
    -------
    VerifyReport

    Raises
    ------
    ConversionError
        If the model has no ternary or int8 layer or a module in training mode, if ``net`` is not a
        :class:`TernaryNetwork`, if their layers or outputs do not correspond, or if nothing could
        be compared.
    InputError
        If ``inputs`` hold no tensor, or the network refuses them.
    """
    model = unwrapped(model)
    if not isinstance(model, nn.Module):
        raise ConversionError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, TernaryNetwork) and isinstance(net, nn.Module):
        raise ConversionError(
            "verify: the first argument is a converted network; the order is verify(model, net, "
            "inputs), with the prepared model first"
        )
    if not quantized_layers(model):
        raise ConversionError(
            f"{type(model).__name__} holds no ternary or int8 layer, so there is nothing to "
            "compare; give the prepared and trained model that was converted"
        )
    for name, module in model.named_modules():
        if module.training:
            where = f"module {name!r}" if name else "the model"
            raise ConversionError(
                f"{where} is in training mode; call model.eval() before verifying"
            )
    if not isinstance(net, TernaryNetwork):
        raise ConversionError(
            f"net: expected what fatnn_rs.convert returns, got {type(net).__name__}"
        )
    arguments, named = check_inputs("inputs", inputs, model)
    root = as_root(model)
    observer = _NetworkCodes(net.graph)
    with torch.autocast("cpu", enabled=False):
        result = net.run_observed(
            copies(arguments), observer, as_run=True, kwargs=named_copies(named)
        )
        values = network_values(net, arguments, named)
        with _eager_codes(root) as eager, eager_values(root) as eager_int8:
            expected = root(*copies(arguments), **named_copies(named))
    strange = sorted({*observer.taken, *values} - {*eager, *eager_int8})
    if strange:
        raise ConversionError(
            f"the network ran quantized layers that the model did not: {', '.join(strange)}; the "
            'network was not converted from this model (with values="int8", compare with '
            "net.reference())"
        )
    rows = (
        *(row for name in eager for row in _compare_layer(name, eager[name], observer)),
        *(
            row
            for name, made in values.items()
            for row in _compare_values(name, eager_int8[name], made, observer)
        ),
    )
    report = VerifyReport(
        codes_total=sum(row.codes for row in rows),
        codes_different=sum(row.different for row in rows),
        codes_behind_residual=sum(row.codes for row in rows if row.behind_residual),
        codes_behind_residual_different=sum(row.different for row in rows if row.behind_residual),
        max_abs_diff=max_abs_diff(expected, result),
        top1_agreement=_top1(expected, result),
        not_compared=tuple(name for name in eager if name not in observer.taken),
        rows=rows,
    )
    only_int8 = bool(observer.taken) and not any(eager.values())
    if report.codes_total == 0 and not (
        only_int8 and any(one.numel() for one, _ in _tensor_pairs(expected, result))
    ):
        raise ConversionError(
            "no code was compared: the inputs hold no element, or every quantized layer runs in "
            "torch; give a real batch"
        )
    return report


def _compare_layer(
    name: str, eager: list[_LayerCodes], observer: _NetworkCodes
) -> Iterator[VerifyRow]:
    packed = observer.taken.get(name)
    if packed is None:
        return
    if len(packed) != len(eager):
        raise ConversionError(
            f"layer {name!r} ran {len(eager)} times in the model, {len(packed)} times in the "
            "network"
        )
    for call, (codes, other) in enumerate(zip(eager, packed, strict=True)):
        one = codes.as_in(other)
        other = _padded_as(other, one, codes.kind)
        if one.numel() != other.numel():
            raise ConversionError(
                f"layer {name!r} reads {tuple(one.shape)} in the model and {tuple(other.shape)} in "
                "the network: the network was not converted from this model"
            )
        different = int((one.reshape(-1) != other.reshape(-1)).sum())
        yield VerifyRow(name, call, one.numel(), different, observer.after_residual[name])


def _compare_values(
    name: str, eager: list[Tensor], made: list[tuple[str, Tensor]], observer: _NetworkCodes
) -> Iterator[VerifyRow]:
    if len(made) < len(eager):
        return  # some became thresholds of a quantizer, whose codes are compared
    if len(eager) != len(made) or any(
        one.shape != other.shape for one, (_, other) in zip(eager, made, strict=True)
    ):
        raise ConversionError(
            f"value {name!r} has other shapes in the model than in the network: the network was "
            "not converted from this model"
        )
    for call, (one, (node, other)) in enumerate(zip(eager, made, strict=True)):
        yield VerifyRow(name, call, one.numel(), int((one != other).sum()), node in observer.added)


def _padded_as(packed: Tensor, eager: Tensor, kind: str) -> Tensor:
    """Pad a network's codes with zeros if the model padded before the quantizer."""
    if packed.dim() != eager.dim() or packed.shape[:2] != eager.shape[:2]:
        return packed
    more = [one - other for one, other in zip(eager.shape, packed.shape, strict=True)][2:]
    if not any(more) or min(more) < 0 or any(size % 2 for size in more):
        return packed
    padding = [size // 2 for size in reversed(more) for _ in range(2)]
    zero = int(stored(torch.zeros(1, dtype=torch.int8), kind))
    return functional.pad(packed, padding, value=zero)


def _tensor_pairs(expected: Any, result: Any) -> list[tuple[Tensor, Tensor]]:
    left, right = pytree.tree_leaves(expected), pytree.tree_leaves(result)
    pairs = [
        (a, b)
        for a, b in zip(left, right, strict=False)
        if isinstance(a, Tensor) and isinstance(b, Tensor)
    ]
    if len(left) != len(right) or any(a.shape != b.shape for a, b in pairs):
        raise ConversionError(
            f"the model's outputs {[tuple(a.shape) for a in left if isinstance(a, Tensor)]} and "
            f"the network's {[tuple(b.shape) for b in right if isinstance(b, Tensor)]} do not "
            "correspond: the network was not converted from this model"
        )
    return pairs


def max_abs_diff(expected: Any, result: Any) -> float:
    """Return the largest absolute difference between two results; two NaNs count as equal."""
    greatest = 0.0
    for one, other in _tensor_pairs(expected, result):
        if not one.numel():
            continue
        # Excluded from the difference: infinity minus infinity is NaN.
        equal = (one == other) | ((one != one) & (other != other))
        difference = (one.double() - other.double()).abs().masked_fill(equal, 0.0)
        greatest = max(greatest, float(difference.nan_to_num(nan=float("inf")).max()))
    return greatest


def _top1(expected: Any, result: Any) -> float | None:
    for one, other in _tensor_pairs(expected, result):
        if one.dim() == 2 and one.numel() and one.dtype != torch.bool and not one.is_complex():
            return float((one.argmax(1) == other.argmax(1)).double().mean())
    return None
