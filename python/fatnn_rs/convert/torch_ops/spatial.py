"""Operations that change the spatial size, as torch runs them: on floats and on packed codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fatnn_rs.convert.graph import Node

__all__ = ["CODES", "FLOATS"]

Function = Callable[..., Any]
Bind = Callable[[Node, Mapping[str, Tensor]], Function]


def _interpolate(node: Node, tensors: Mapping[str, Tensor]) -> Function:
    how = _interpolate_arguments(node)
    linear = "mode" not in node.attrs
    if not linear:
        how["mode"] = node.attrs["mode"]
    if "antialias" in node.attrs:
        how["antialias"] = node.attrs["antialias"]

    def run(x: Tensor, like: Tensor | None = None) -> Tensor:
        mode = {"mode": "linear" if x.dim() == 3 else "bilinear"} if linear else {}
        size = {} if like is None else {"size": like.shape[2:]}
        return functional.interpolate(x, **{**how, **mode, **size})

    return run


def _interpolate_arguments(node: Node) -> dict[str, Any]:
    """Return keyword arguments for ``interpolate``."""
    a = node.attrs
    how: dict[str, Any] = {}
    if a["size"]:
        how["size"] = a["size"]
    elif a["factors"]:
        how |= {"scale_factor": a["factors"], "recompute_scale_factor": a["recompute"]}
    return how | ({"align_corners": a["align_corners"]} if "align_corners" in a else {})


def _interpolate_codes(node: Node, tensors: Mapping[str, Tensor]) -> Function:
    a = node.attrs
    axes = max(len(a["size"]), len(a["factors"]))
    if axes == 2 and any(factor % 1 for factor in a["factors"]):
        return _interpolate_codes_by_factors(node)

    def indices(count: int, axis: int, size: int | None) -> Tensor:
        """Return the pixels that torch takes along an axis: interpolate a row of their numbers."""
        how: dict[str, Any] = {"mode": a["mode"]}
        if size is not None:
            how["size"] = size
        elif a["size"]:
            how["size"] = a["size"][axis]
        else:
            how |= {"scale_factor": a["factors"][axis], "recompute_scale_factor": a["recompute"]}
        numbers = torch.arange(count, dtype=torch.float32)[None, None]
        return functional.interpolate(numbers, **how)[0, 0].long()

    def run(codes: Tensor, like: Tensor | None = None) -> Tensor:
        sizes = [None, None] if like is None else [1, *like.shape[2:]][-2:]
        first_axis = 2 - axes if like is None else 4 - like.dim()
        for axis in range(first_axis, 2):
            size = sizes[axis]
            taken = indices(
                codes.shape[1 + axis], axis - first_axis, None if size is None else int(size)
            )
            codes = codes.index_select(1 + axis, taken)
        return codes

    return run


def _interpolate_codes_by_factors(node: Node) -> Function:
    """Interpolate maps of row and column numbers: with factors, sizes and format may count."""
    how = {**_interpolate_arguments(node), "mode": node.attrs["mode"]}
    last = node.attrs.get("layout", "").split("|")[0] == "channels_last"
    many = last and node.shape[1] > 3

    def run(codes: Tensor) -> Tensor:
        height, width = codes.shape[1:3]
        numbers = torch.zeros(2, 4 if many else 1, height, width)
        numbers[0] = torch.arange(height)[:, None]
        numbers[1] = torch.arange(width)
        order = torch.channels_last if many else torch.contiguous_format
        made = functional.interpolate(numbers.contiguous(memory_format=order), **how)
        rows, columns = made[0, 0, :, 0].long(), made[1, 0, 0].long()
        return codes.index_select(1, rows).index_select(2, columns)

    return run


def _crop(x: Tensor, crop: list[int], first: int) -> Tensor:
    """Crop two dimensions, from ``first`` on, by [before, after] each."""
    for axis in range(2):
        before, after = crop[2 * axis : 2 * axis + 2]
        x = x.narrow(first + axis, before, x.shape[first + axis] - before - after)
    return x


def _depth_to_space(node: Node, tensors: Mapping[str, Tensor]) -> Function:
    (height, width), groups = node.attrs["block"], node.attrs["groups"]
    crop, blocks_first = node.attrs["crop"], node.attrs["mode"] == "DCR"

    def run(x: Tensor) -> Tensor:
        line = x.dim() == 3
        x = x[:, :, None] if line else x
        n, channels, h, w = x.shape
        if blocks_first:
            parts = x.reshape(n, groups, height, width, -1, h, w).permute(0, 1, 4, 5, 2, 6, 3)
        else:
            parts = x.reshape(n, 1, -1, height, width, h, w).permute(0, 1, 2, 5, 3, 6, 4)
        whole = parts.reshape(n, channels // (height * width), h * height, w * width)
        made = _crop(whole, crop, 2)
        return made[:, :, 0] if line else made

    return run


def _depth_to_space_codes(node: Node, tensors: Mapping[str, Tensor]) -> Function:
    (height, width), groups = node.attrs["block"], node.attrs["groups"]
    crop = node.attrs["crop"]

    def run(codes: Tensor) -> Tensor:
        n, h, w, size = codes.shape
        parts = codes.reshape(n, h, w, groups, height, width, -1).permute(0, 1, 4, 2, 5, 3, 6)
        whole = parts.reshape(n, h * height, w * width, size // (height * width))
        return _crop(whole, crop, 1).contiguous()

    return run


def _conv_transpose(function: Function) -> Bind:
    def bind(node: Node, tensors: Mapping[str, Tensor]) -> Function:
        weight, bias, a = tensors["weight"], tensors.get("bias"), node.attrs
        how = (a["stride"], a["padding"], a["output_padding"], a["groups"], a["dilation"])
        return lambda x: function(x, weight, bias, *how)

    return bind


def _adaptive_max(function: Function) -> Bind:
    def bind(node: Node, tensors: Mapping[str, Tensor]) -> Function:
        size = [value or None for value in node.attrs["size"]]
        return lambda x: function(x, size[0] if len(size) == 1 else size)

    return bind


def _instance_norm(node: Node, tensors: Mapping[str, Tensor]) -> Function:
    weight, bias, eps = tensors.get("weight"), tensors.get("bias"), node.attrs["eps"]
    return lambda x: functional.instance_norm(x, None, None, weight, bias, True, 0.0, eps)


#: Operation on floats → function of a node and its tensors by role.
FLOATS: dict[str, Bind] = {
    "interpolate_nearest": _interpolate,
    "interpolate_linear": _interpolate,
    "interpolate_filter": _interpolate,
    "depth_to_space": _depth_to_space,
    "conv_transpose1d": _conv_transpose(functional.conv_transpose1d),
    "conv_transpose2d": _conv_transpose(functional.conv_transpose2d),
    "adaptive_max_pool1d": _adaptive_max(functional.adaptive_max_pool1d),
    "adaptive_max_pool2d": _adaptive_max(functional.adaptive_max_pool2d),
    "instance_norm": _instance_norm,
}

#: Operation on packed codes → function of a node and its tensors by role.
CODES: dict[str, Bind] = {
    "interpolate_nearest_codes": _interpolate_codes,
    "depth_to_space_codes": _depth_to_space_codes,
}
