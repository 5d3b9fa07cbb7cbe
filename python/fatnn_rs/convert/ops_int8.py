"""The operations of int8 layers: rows that read floats and make floats, with integers between.

The engine runs them wherever they stand in a segment. Alone (under ``torch.compile``, or where values are observed one
by one) they are :func:`fatnn_rs.ops.schema.conv_int8`, whose integers are the same and so are its bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.convert.ops_float import FloatOp

__all__ = ["INT8_OPS", "plain_int8"]


def _int8(node: Node, tensors: Mapping[str, Tensor]) -> Callable[..., Any]:
    weight, scale, bias = tensors["weight"], tensors["scale"], tensors.get("bias")
    inverse = float(tensors["inv_step"])
    window = [node.attrs.get(key, []) for key in ("stride", "padding", "dilation")]
    groups = node.attrs.get("groups", 1)
    return lambda x: torch.ops.fatnn_rs.conv_int8(x, weight, scale, bias, inverse, *window, groups)


_CONV: dict[str, type] = {"stride": list, "padding": list, "dilation": list, "groups": int}
_TENSORS = {"weight": True, "scale": True, "inv_step": True, "bias": False}

#: Every operation on 8-bit integers that a file may hold; ``weight`` is int8, other tensors are float32.
INT8_OPS: dict[str, FloatOp] = {
    "conv1d_int8": FloatOp(_int8, _CONV, _TENSORS),
    "conv2d_int8": FloatOp(_int8, _CONV, _TENSORS),
    "linear_int8": FloatOp(_int8, {}, _TENSORS),
}


def plain_int8(graph: Graph) -> list[str]:
    """Names of the int8 tensors that are no ternary codes, which the core has to be told."""
    return sorted({node.tensors["weight"] for node in graph.nodes if node.op in INT8_OPS})
