"""The operations on codes as torch runs them: functions that call ``torch.ops.fatnn_rs``.

Values are packed codes, uint8 [N, H, W, B] (H = W = 1 for linear layers, H = 1 in one dimension). A
node's ``dims`` is the number of spatial dimensions of its float value: 0 (linear), 1 or 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fatnn_rs.convert.graph import Node
from fatnn_rs.convert.torch_ops import spatial
from fatnn_rs.errors import InputError
from fatnn_rs.ops import prepack

__all__ = ["CODE_OPS", "squeeze_to"]

Tensors = Mapping[str, Tensor]
Function = Callable[..., Any]


def squeeze_to(y: Tensor, dims: int) -> Tensor:
    """View [N, C, H, W] as [N, C] (dims 0) or [N, C, L] (dims 1)."""
    if dims == 2:
        return y
    return y.flatten(1) if dims == 0 else y.squeeze(2)


def _unsqueeze_from(x: Tensor, dims: int) -> Tensor:
    """Invert :func:`squeeze_to`; a view."""
    if dims == 2:
        return x
    return x[:, :, None, None] if dims == 0 else x.unsqueeze(2)


def _quantize(node: Node, tensors: Tensors) -> Function:
    steps, groups = [float(value) for value in tensors["steps"]], node.attrs["groups"]
    return lambda x: torch.ops.fatnn_rs.quantize(x, steps, groups)


def _blob(node: Node, tensors: Tensors) -> Tensor:
    return prepack(tensors["weight"], node.attrs["groups"], node.attrs["act"])


def _window(node: Node) -> tuple[list[int], list[int], list[int], list[int]]:
    a = node.attrs
    return a["kernel"], a["stride"], a["padding"], a["dilation"]


def _check_map(node: Node, codes: Tensor) -> None:
    """Check the size of a map that a linear layer's kernel must cover."""
    if node.attrs["dims"] == 0 and list(codes.shape[1:3]) != node.attrs["kernel"]:
        raise InputError(
            f"layer {node.layer!r}: expected a map of {'x'.join(map(str, node.attrs['kernel']))} "
            f"pixels before the linear layer, got {'x'.join(map(str, codes.shape[1:3]))}; give "
            "inputs of the size the network was built for"
        )


def _conv_codes(node: Node, tensors: Tensors) -> Function:
    blob, thresholds, out = _blob(node, tensors), tensors["thresholds"], tensors["weight"].shape[0]
    window, groups = _window(node), node.attrs["out_groups"]

    def run(codes: Tensor) -> Tensor:
        _check_map(node, codes)
        result: Tensor = torch.ops.fatnn_rs.conv_codes(
            codes, blob, thresholds, out, *window, groups
        )
        return result

    return run


def _conv_float(node: Node, tensors: Tensors) -> Function:
    blob, out = _blob(node, tensors), tensors["weight"].shape[0]
    scale, bias = tensors.get("scale"), tensors.get("bias")
    window, relu, dims = _window(node), node.attrs["relu"], node.attrs["dims"]

    def run(codes: Tensor, residual: Tensor | None = None) -> Tensor:
        _check_map(node, codes)
        if residual is not None:
            residual = _unsqueeze_from(residual, dims)
        y = torch.ops.fatnn_rs.conv_float(codes, blob, scale, bias, residual, relu, out, *window)
        return squeeze_to(y, dims)

    return run


def _max_pool_codes(node: Node, tensors: Tensors) -> Function:
    window, ceil_mode, kind = _window(node), node.attrs["ceil_mode"], node.codes
    return lambda codes: torch.ops.fatnn_rs.max_pool_codes(codes, *window, ceil_mode, kind)


#: Operation on codes → the function of a node and its tensors by role that binds it.
CODE_OPS: dict[str, Callable[[Node, Tensors], Function]] = {
    "quantize": _quantize,
    "conv_codes": _conv_codes,
    "conv_float": _conv_float,
    "max_pool_codes": _max_pool_codes,
    **spatial.CODES,
}
