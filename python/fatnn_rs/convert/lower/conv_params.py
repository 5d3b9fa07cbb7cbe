"""Strides and padding of convolution layers."""

from __future__ import annotations

from typing import Any

from fatnn_rs.convert.lower.lowering import Lowering

__all__ = ["pad_before", "split_padding", "window"]


def window(values: Any, dims: int) -> list[int]:
    """Return one integer per spatial dimension."""
    return (
        [int(value) for value in values]
        if isinstance(values, (tuple, list))
        else [int(values)] * dims
    )


def split_padding(layer: Any, dims: int) -> tuple[list[int], dict[str, Any] | None]:
    """Split a convolution's padding into symmetric padding and a separate ``pad`` operation.

    Returns
    -------
    padding
        Symmetric padding per spatial dimension, which the convolution itself does.
    pad
        Attributes of the ``pad`` before the convolution, or None.
    """
    around = [int(value) for value in layer._reversed_padding_repeated_twice]
    if layer.padding_mode != "zeros":
        return [0] * dims, {"pad": around, "mode": layer.padding_mode, "value": 0.0}
    pairs = [(around[2 * i], around[2 * i + 1]) for i in reversed(range(dims))]
    if all(left == right for left, right in pairs):
        return [left for left, _ in pairs], None
    # 'same' with an even kernel: one side has one pixel more.
    return [0] * dims, {"pad": around, "mode": "constant", "value": 0.0}


def pad_before(
    ctx: Lowering, name: str, shape: tuple[int, ...], pad: dict[str, Any] | None
) -> tuple[str, tuple[int, ...]]:
    """Add the ``pad`` operation of :func:`split_padding`; return the value and its shape."""
    if pad is None or not any(pad["pad"]):
        return name, shape
    around = pad["pad"]
    spatial = [
        size + around[2 * i] + around[2 * i + 1]
        for i, size in zip(reversed(range(len(around) // 2)), shape[2:], strict=True)
    ]
    shape = (*shape[:2], *spatial)
    return ctx.emit("pad", [name], pad, suffix="_pad", shape=shape).name, shape
