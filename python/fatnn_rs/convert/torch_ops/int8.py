"""The operations of int8 layers as torch runs them: floats in, floats out, int8 inside.

The engine runs them inside segments. Outside of one (under ``torch.compile``, or when single values
are observed) they call :func:`fatnn_rs.ops.definitions.conv_int8`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fatnn_rs.convert.graph import Node
from fatnn_rs.ops import prepack_int8

__all__ = ["INT8_OPS"]


def _int8(node: Node, tensors: Mapping[str, Tensor]) -> Callable[..., Any]:
    weight, scale, bias = tensors["weight"], tensors["scale"], tensors.get("bias")
    one = [1] * (4 - weight.dim())  # spatial axes that the weight lacks
    weight = weight.reshape(*weight.shape[:2], *one, *weight.shape[2:])
    blob = prepack_int8(weight, node.attrs.get("groups", 1), linear=len(one) == 2)
    inverse, out, kernel = float(tensors["inv_step"]), len(weight), list(weight.shape[2:])
    stride, dilation = (one + node.attrs.get(key, []) for key in ("stride", "dilation"))
    padding = [0] * len(one) + node.attrs.get("padding", [])
    return lambda x: torch.ops.fatnn_rs.conv_int8(
        x, blob, scale, bias, inverse, out, kernel, stride, padding, dilation
    )


#: Int8 operation → the function of a node and its tensors by role that binds it.
INT8_OPS: dict[str, Callable[[Node, Mapping[str, Tensor]], Callable[..., Any]]] = {
    "conv1d_int8": _int8,
    "conv2d_int8": _int8,
    "linear_int8": _int8,
}
