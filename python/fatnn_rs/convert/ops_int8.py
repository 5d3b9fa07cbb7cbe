"""The operations of int8 layers: rows that read floats and make floats, with integers between.

The engine runs them in its segments. Alone (under ``torch.compile``, or where values are observed one by one) they are
:func:`fatnn_rs.ops.schema.conv_int8`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.convert.ops_float import FloatOp
from fatnn_rs.ops import prepack_int8

__all__ = ["INT8_OPS", "plain_int8"]


def _int8(node: Node, tensors: Mapping[str, Tensor]) -> Callable[..., Any]:
    weight, scale, bias = tensors["weight"], tensors["scale"], tensors.get("bias")
    one = [1] * (4 - weight.dim())  # axes that a map of less than two dimensions lacks
    weight = weight.reshape(*weight.shape[:2], *one, *weight.shape[2:])
    blob = prepack_int8(weight, node.attrs.get("groups", 1), linear=len(one) == 2)
    inverse, out, kernel = float(tensors["inv_step"]), len(weight), list(weight.shape[2:])
    stride, dilation = (one + node.attrs.get(key, []) for key in ("stride", "dilation"))
    padding = [0] * len(one) + node.attrs.get("padding", [])
    return lambda x: torch.ops.fatnn_rs.conv_int8(x, blob, scale, bias, inverse, out, kernel, stride, padding, dilation)


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
