"""Checks of the ops' arguments. They read only metadata, so real and fake kernels share them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fatnn_rs import _core
from fatnn_rs.errors import InputError
from fatnn_rs.ops.geometry import packed_bytes

__all__ = [
    "check_code_type",
    "check_codes",
    "check_devices",
    "check_geometry",
    "check_given",
    "check_groups",
    "check_output",
    "check_tensor",
    "check_vector",
]

#: Names of the types of packed codes.
CODE_TYPES = _core.CODE_TYPES


def check_given(op: str, **tensors: Tensor | None) -> None:
    """Check that required arguments are tensors: torch accepts None in place of a tensor.

    Raises
    ------
    InputError
        Names the first argument that is not a tensor.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"fatnn_rs::{op}: {name}: expected a tensor, got {type(tensor).__name__}"
            )


def check_tensor(
    op: str, name: str, tensor: Tensor, dtype: torch.dtype, ranks: Sequence[int]
) -> None:
    """Check device, dtype and rank of one argument.

    Raises
    ------
    InputError
        Names the op, the argument, what was expected and what was given.
    """
    where = f"fatnn_rs::{op}: {name}"
    check_given(op, **{name: tensor})
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized:
        kind = (
            "nested"
            if tensor.is_nested
            else "quantized"
            if tensor.is_quantized
            else str(tensor.layout)
        )
        way = (
            "convert it with .dequantize()"
            if tensor.is_quantized
            else "convert it with .to_dense() or padding"
        )
        raise InputError(f"{where}: expected a dense tensor, got a {kind} one; {way}")
    if tensor.device.type not in ("cpu", "meta"):
        raise InputError(
            f"{where}: expected a tensor on the CPU, got one on {tensor.device}; move it with "
            ".cpu()"
        )
    if tensor.dtype != dtype:
        way = (
            "convert it with .float()"
            if dtype == torch.float32
            else f"convert it with .to({dtype})"
        )
        raise InputError(f"{where}: expected {dtype}, got {tensor.dtype}; {way}")
    if tensor.dim() not in ranks:
        wanted = " or ".join(str(rank) for rank in ranks)
        raise InputError(
            f"{where}: expected {wanted} dimensions, got shape {tuple(tensor.shape)}; reshape it"
        )


def check_devices(op: str, **tensors: Tensor | None) -> None:
    """Check that all tensors are on the CPU, or all on meta, whose kernel computes nothing.

    Raises
    ------
    InputError
        Names two arguments on different devices.
    """
    given = {name: tensor.device.type for name, tensor in tensors.items() if tensor is not None}
    first, device = next(iter(given.items()))
    for name, other in given.items():
        if other != device:
            raise InputError(
                f"fatnn_rs::{op}: {name}: expected a tensor on {device!r} as {first}, got one on "
                f"{other!r}; move all tensors to the CPU"
            )


def check_groups(op: str, channels: int, groups: int) -> None:
    """Check that there is at least one channel, and that ``groups`` divides the channels."""
    if channels < 1:
        raise InputError(f"fatnn_rs::{op}: channels: expected at least 1, got {channels}")
    if groups < 1 or channels % groups:
        raise InputError(
            f"fatnn_rs::{op}: groups: expected a divisor of the {channels} channels, got {groups}; "
            "use the groups of the convolution that reads the codes"
        )


def check_codes(
    op: str, name: str, codes: Tensor, channels: int | None = None, groups: int = 1
) -> None:
    """Check packed codes, uint8 [N, H, W, B]; B must fit ``channels`` and ``groups``."""
    check_tensor(op, name, codes, torch.uint8, (4,))
    width = codes.shape[3]
    if channels is not None:
        if width != packed_bytes(channels, groups):
            raise InputError(
                f"fatnn_rs::{op}: {name}: expected {packed_bytes(channels, groups)} bytes a pixel "
                f"for {channels} channels in {groups} groups, got {width}; pack the codes with the "
                "same channels and groups"
            )
    elif width < 1 or width % 16:
        raise InputError(
            f"fatnn_rs::{op}: {name}: expected a whole number of 16-byte words a pixel, got "
            f"{width} bytes; make codes with fatnn_rs::quantize or fatnn_rs::pack_codes"
        )


def check_code_type(op: str, name: str) -> None:
    """Check that ``name`` is the name of a code type."""
    if name not in CODE_TYPES:
        names = ", ".join(f'"{known}"' for known in CODE_TYPES)
        raise InputError(f"fatnn_rs::{op}: code_type: expected one of {names}, got {name!a}")


def check_vector(
    op: str, name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Check the shape and dtype of an optional tensor with one value per output channel."""
    if tensor is None:
        return
    check_tensor(op, name, tensor, dtype, (len(shape),))
    if tuple(tensor.shape) != shape:
        raise InputError(
            f"fatnn_rs::{op}: {name}: expected shape {shape}, got {tuple(tensor.shape)}; give one "
            "value per output channel"
        )


def check_geometry(
    op: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """Check the (height, width) pairs of a window: all at least 1, padding at least 0."""
    for name, values, minimum in (
        ("kernel", kernel, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if len(values) != 2 or any(value < minimum for value in values):
            raise InputError(
                f"fatnn_rs::{op}: {name}: expected two integers of at least {minimum} (height, "
                f"width), got {list(values)}"
            )


def check_output(op: str, size: tuple[int, int], source: Sequence[int]) -> tuple[int, int]:
    """Check that at least one window fits into the padded input."""
    if size[0] < 1 or size[1] < 1:
        raise InputError(
            f"fatnn_rs::{op}: the input of {source[0]}x{source[1]} pixels is smaller than the "
            f"kernel (output {size[0]}x{size[1]}); use a larger input or more padding"
        )
    return size
