"""Everything a network can run: the union of float, int8 and code operations, plus ``torch`` and ``input``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fatnn_rs.convert.graph import Graph, Node, Ref, map_refs
from fatnn_rs.convert.ops_code import CODE_OPS, CodeOp
from fatnn_rs.convert.ops_float import FLOAT_OPS, FloatOp
from fatnn_rs.convert.ops_int8 import INT8_OPS

__all__ = ["RUNTIME_OPS", "bind", "in_layout", "layout_of"]

#: Every operation but ``torch``, which exists in memory only, and ``input``.
RUNTIME_OPS: dict[str, FloatOp | CodeOp] = {**FLOAT_OPS, **INT8_OPS, **CODE_OPS}


def layout_of(value: Any) -> str:
    """Memory format of a value: ``"contiguous"``, ``"channels_last"``, or ``"any"`` for everything else."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return "any"
    if value.is_contiguous():
        return "contiguous"
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        return "channels_last"
    return "any"


def in_layout(value: Any, layout: str) -> Any:
    """Return the value in that memory format; copied only where it is in another."""
    if not isinstance(value, Tensor) or layout == "any":
        return value
    if layout == "contiguous" or value.dim() != 4:
        return value.contiguous()
    return value.contiguous(memory_format=torch.channels_last)


def bind(graph: Graph, node: Node) -> Callable[..., Any]:
    """Return a node's function of its input values."""
    if node.op == "torch":
        return _bind_torch(node)
    row = RUNTIME_OPS[node.op]
    function = row.bind(node, {role: graph.tensors[name] for role, name in node.tensors.items()})
    layout = node.attrs.get("layout", "any")
    if layout == "any":
        return function
    return lambda x: function(in_layout(x, layout))


def _bind_torch(node: Node) -> Callable[..., Any]:
    """Wrap a torch node's call, arguments filled in; inputs are brought to the memory formats the eager model had."""
    assert node.call is not None
    assert node.arguments is not None
    call, (args, kwargs) = node.call, node.arguments
    layouts = dict(zip(node.inputs, node.attrs["layouts"], strict=True))

    def run(*values: Any) -> Any:
        known = dict(zip(node.inputs, values, strict=True))

        def fill(ref: Ref) -> Any:
            return in_layout(known[ref.name], layouts[ref.name])

        return call(*map_refs(args, fill), **map_refs(kwargs, fill))

    return run
