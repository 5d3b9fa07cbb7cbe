"""A graph's operations as torch runs them: on floats, int8 and codes, and ``torch`` nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fatnn_rs.convert.graph import Graph, Node, Ref, map_refs
from fatnn_rs.convert.memory_format import in_layout
from fatnn_rs.convert.torch_ops.codes import CODE_OPS
from fatnn_rs.convert.torch_ops.floats import FLOAT_OPS
from fatnn_rs.convert.torch_ops.int8 import INT8_OPS

__all__ = ["RUNTIME_OPS", "bind"]

#: Operation → the function that binds a node and its tensors by role; without ``torch``, ``input``.
RUNTIME_OPS: dict[str, Callable[[Node, Mapping[str, Tensor]], Callable[..., Any]]] = {
    **{name: row.bind for name, row in FLOAT_OPS.items()},
    **INT8_OPS,
    **CODE_OPS,
}


#: Elementwise functions that torch computes by one formula in whole vectors, and by another for the
#: remaining elements.
_EVERYWHERE = ("sigmoid", "silu", "tanh")

#: A power of two that is larger than the step of torch's vectorized loops on any CPU.
_STEP = 256


def _whole_vectors(value: Any) -> bool:
    """Whether torch computes all elements in whole vectors, so that their order changes no bit.

    Copies to another memory format and back, which this avoids, take longer than the function.
    """
    return (
        isinstance(value, Tensor)
        and not torch.compiler.is_compiling()
        and value.numel() % _STEP == 0
        and torch.get_num_threads() == 1
        and (
            value.is_contiguous()
            or (value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last))
        )
    )


def bind(graph: Graph, node: Node) -> Callable[..., Any]:
    """Return the function that computes a node from its input values."""
    if node.op == "torch":
        return _bind_torch(node)
    tensors = {role: graph.tensors[name] for role, name in node.tensors.items()}
    function = RUNTIME_OPS[node.op](node, tensors)
    layout = node.attrs.get("layout", "any")
    if layout == "any":
        return function
    # One layout per input value.
    layouts = layout.split("|")

    plain = node.op in _EVERYWHERE

    def run(*values: Any) -> Any:
        if plain and _whole_vectors(values[0]):
            return function(*values)
        # A repeated value stays one object: attention tests whether queries are the keys.
        made = {
            (id(value), layout): in_layout(value, layout)
            for value, layout in zip(values, layouts, strict=True)
        }
        return function(
            *(made[id(value), layout] for value, layout in zip(values, layouts, strict=True))
        )

    return run


def _bind_torch(node: Node) -> Callable[..., Any]:
    """Wrap a torch node's call; inputs get the memory formats that the eager model had."""
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
