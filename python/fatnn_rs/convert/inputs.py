"""Checks of the inputs of a converted network's calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from fatnn_rs.convert.graph import Node
from fatnn_rs.convert.memory_format import has_layout, layout_of
from fatnn_rs.errors import InputError, UnsupportedError
from fatnn_rs.input_hints import IMAGE, shape_hint

__all__ = ["check_call", "check_input", "refuse_tracing"]


def refuse_tracing(values: Sequence[Any]) -> None:
    """Refuse tracers, which would record a result as a constant or fail inside the network.

    Raises
    ------
    UnsupportedError
        If ``torch.jit.trace`` (or the ONNX exporter that uses it), ``torch.fx``, ``torch.func`` or
        ``torch.export`` calls the network.
    """
    who = ""
    if any(isinstance(value, fx.Proxy) for value in values):
        who = "torch.fx"
    elif torch.compiler.is_dynamo_compiling():
        return
    elif torch._C._is_tracing():
        who = "torch.jit.trace (and the ONNX exporter that uses it)"
    elif any(
        isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value)
        for value in values
    ):
        who = "torch.func (vmap, grad, jvp)"
    elif any(isinstance(value, FakeTensor) for value in values):
        who = "torch.export"
    if who:
        raise UnsupportedError(
            f"{who} cannot trace a converted network, whose layers run in Rust; call it outside of "
            "the trace, give torch.compile the model around it, export net.exportable() with "
            "torch.export, or write it with fatnn_rs.save, to a file that runs without torch"
        )


def check_input(node: Node, x: Any) -> None:
    """Check one input against what the network was converted for.

    Raises
    ------
    InputError
        If it is no tensor, or has a wrong device, dtype, layout, rank, channels or fixed size.
    """
    where = f"input {node.name!r}"
    if not isinstance(x, Tensor):
        way = (
            "torch.from_numpy makes one from an array"
            if type(x).__module__ == "numpy"
            else "give one tensor (torch.stack joins several, torch.tensor makes one from numbers)"
            if isinstance(x, (list, tuple))
            else "give a tensor"
        )
        raise InputError(f"{where}: expected a torch tensor, got {type(x).__name__}; {way}")
    if x.device.type != "cpu":
        raise InputError(
            f"{where}: expected a tensor on the CPU, got one on {x.device}; move it with .cpu()"
        )
    if x.is_nested or x.layout != torch.strided or x.is_quantized:
        kind = "nested" if x.is_nested else "quantized" if x.is_quantized else str(x.layout)
        raise InputError(
            f"{where}: expected a dense tensor, got a {kind} one; convert it with .to_dense(), or "
            "pad it"
        )
    dtype = getattr(torch, str(node.dtype))
    if x.dtype != dtype:
        way = ".float()" if dtype == torch.float32 else f".to({dtype})"
        image = IMAGE if x.dtype == torch.uint8 else ""
        raise InputError(f"{where}: expected {dtype}, got {x.dtype}; convert it with {way}{image}")
    shape = node.shape
    if x.dim() != len(shape):
        raise InputError(
            f"{where}: expected {len(shape)} dimensions (as {list(shape)}), got shape "
            f"{list(x.shape)}; {shape_hint(x.shape, shape, 'permute')}"
        )
    fixed = node.attrs["fixed"]
    if any(x.shape[i] != shape[i] for i in fixed):
        free = [str(size) if i in fixed else "any" for i, size in enumerate(shape)]
        raise InputError(
            f"{where}: this network was captured for one shape only, expected [{', '.join(free)}], "
            f"got {list(x.shape)}; convert the model again with example inputs of that shape"
        )
    dim = node.attrs["channel_dim"]
    if dim and x.shape[dim] != shape[dim]:
        raise InputError(
            f"{where}: expected {shape[dim]} channels (dimension {dim}, as {list(shape)}), got "
            f"{x.shape[dim]} in shape {list(x.shape)}; {shape_hint(x.shape, shape, 'permute')}"
        )
    layout = node.attrs.get("layout", "any")
    if layout != "any" and not has_layout(x, layout):
        raise InputError(
            f"{where}: expected the example's memory format ({layout}), got {layout_of(x)} with "
            f"strides {tuple(x.stride())}, which may change the model's results; bring it there "
            "(x.contiguous(), memory_format=torch.channels_last for channels_last), or convert the "
            "model with such an example"
        )
    if "batch" in node.attrs:
        _check_batch(where, x.shape[0], *node.attrs["batch"])


def _check_batch(where: str, got: int, low: int, high: int, multiple: int) -> None:
    if low <= got <= high and got % multiple == 0:
        return
    wanted = f"from {low}" + ("" if high >= (1 << 31) - 1 else f" to {high}")
    factor = "" if multiple == 1 else f", in multiples of {multiple}"
    raise InputError(
        f"{where}: expected a batch {wanted}{factor}, got {got}: the model branches on its size; "
        "convert the model again with example inputs of that batch"
    )


def check_call(nodes: Sequence[Node], tensors: Sequence[Tensor]) -> None:
    """Check that all inputs have the same batch size, if the model was captured so.

    Raises
    ------
    InputError
        If batch sizes differ.
    """
    batches = {x.shape[0] for node, x in zip(nodes, tensors, strict=True) if "batch" in node.attrs}
    if len(batches) > 1:
        raise InputError(
            f"inputs: expected batches of one size, got {sorted(batches)}: the model was captured "
            "with equal ones"
        )
