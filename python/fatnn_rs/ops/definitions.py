"""Definitions of the ops: schemas and fake kernels, which torch needs to trace them.

:data:`OPS` is the table; :mod:`fatnn_rs.ops.kernels` has a real kernel for every entry. A fake
kernel checks the arguments as the real one does, and returns an empty tensor of the right shape,
dtype and strides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fatnn_rs.errors import InputError
from fatnn_rs.ops.arguments import (
    check_code_type,
    check_codes,
    check_devices,
    check_geometry,
    check_given,
    check_groups,
    check_output,
    check_tensor,
    check_vector,
)
from fatnn_rs.ops.geometry import conv_size, packed_bytes, pool_size

__all__ = ["LIBRARY", "OPS"]

#: Owns the registrations: they last as long as this object.
LIBRARY: Any = torch.library.Library("fatnn_rs", "DEF")  # type: ignore[no-untyped-call]


def quantize(x: Tensor, thresholds: Sequence[float], groups: int = 1) -> Tensor:
    """Codes of ``x``: the level is the number of thresholds ``t`` with ``x >= t``.

    Two thresholds make ternary codes: level - 1, in {-1, 0, +1}. Three make two-bit codes: the
    level, in {0, 1, 2, 3}.

    Parameters
    ----------
    x
        float32 [N, C], [N, C, L] or [N, C, H, W].
    thresholds
        Two or three exact float32 values in nondecreasing order. No value of ``x`` reaches an
        infinite threshold, not even infinity.
    groups
        Groups of the convolution that reads the codes.

    Returns
    -------
    Tensor
        uint8 [N, H, W, B].

    Raises
    ------
    InputError
        Wrong dtype, device, rank or groups; NaN in ``x``; wrong number of thresholds, or
        thresholds that decrease or are NaN.
    """
    check_tensor("quantize", "x", x, torch.float32, (2, 3, 4))
    if len(thresholds) not in (2, 3) or not all(a <= b for a, b in pairwise(thresholds)):
        raise InputError(
            "fatnn_rs::quantize: thresholds: expected two or three numbers, none below the one "
            f"before, got {list(thresholds)}; infinity marks a level that no input reaches"
        )
    batch, channels = x.shape[0], x.shape[1]
    check_groups("quantize", channels, groups)
    height = x.shape[2] if x.dim() == 4 else 1
    width = x.shape[-1] if x.dim() > 2 else 1
    return x.new_empty((batch, height, width, packed_bytes(channels, groups)), dtype=torch.uint8)


def pack_codes(codes: Tensor, groups: int = 1, code_type: str = "ternary") -> Tensor:
    """Pack int8 codes, channels last: [..., C] to uint8 [..., B].

    ``code_type``: ``"ternary"``, {-1, 0, +1}; ``"binary"``, {-1, 0}; ``"two-bit"``, {0, 1, 2, 3}.

    Raises
    ------
    InputError
        Wrong dtype, device, rank or groups; an unknown ``code_type``; a value that it lacks.
    """
    check_code_type("pack_codes", code_type)
    check_tensor("pack_codes", "codes", codes, torch.int8, (2, 3, 4))
    check_groups("pack_codes", codes.shape[-1], groups)
    return codes.new_empty(
        (*codes.shape[:-1], packed_bytes(codes.shape[-1], groups)), dtype=torch.uint8
    )


def unpack_codes(
    packed: Tensor, channels: int, groups: int = 1, code_type: str = "ternary"
) -> Tensor:
    """Unpack codes, uint8 [..., B] to int8 [..., C]; ``code_type`` as in :func:`pack_codes`.

    Raises
    ------
    InputError
        Wrong dtype, device or rank; an unknown ``code_type``; a B that does not fit ``channels``
        and ``groups``.
    """
    check_code_type("unpack_codes", code_type)
    check_tensor("unpack_codes", "packed", packed, torch.uint8, (2, 3, 4))
    if channels < 1:
        raise InputError(f"fatnn_rs::unpack_codes: channels: expected at least 1, got {channels}")
    check_groups("unpack_codes", channels, groups)
    if packed.shape[-1] != packed_bytes(channels, groups):
        raise InputError(
            f"fatnn_rs::unpack_codes: packed: expected {packed_bytes(channels, groups)} bytes a "
            f"pixel for {channels} channels in {groups} groups, got {packed.shape[-1]}"
        )
    return packed.new_empty((*packed.shape[:-1], channels), dtype=torch.int8)


def _check_conv(
    op: str,
    codes: Tensor,
    weight: Tensor,
    out_channels: int,
    window: tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]],
) -> tuple[int, int, int]:
    """Check arguments common to the convolutions; return batch, height and width of the output."""
    check_codes(op, "codes", codes)
    check_tensor(op, "weight", weight, torch.uint8, (1,))
    check_devices(op, codes=codes, weight=weight)
    check_geometry(op, *window)
    if out_channels < 1:
        raise InputError(f"fatnn_rs::{op}: out_channels: expected at least 1, got {out_channels}")
    size = codes.shape[1:3]
    height, width = check_output(op, conv_size(size, *window), size)
    return codes.shape[0], height, width


def _new_map(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a new channels-last tensor: no view, so that callers may change it in place."""
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def conv_acc(
    codes: Tensor,
    weight: Tensor,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """Convolution of codes with integer accumulators as output.

    Parameters
    ----------
    codes
        uint8 [N, H, W, B].
    weight
        uint8, packed by :func:`fatnn_rs.ops.prepack` on this machine for the codes' levels.
    out_channels, kernel, stride, padding, dilation
        Parameters of the convolution; pairs are (height, width).

    Returns
    -------
    Tensor
        int32 [N, out_channels, OH, OW], memory channels last.
    """
    batch, height, width = _check_conv(
        "conv_acc", codes, weight, out_channels, (kernel, stride, padding, dilation)
    )
    return _new_map(codes, (batch, out_channels, height, width), torch.int32)


def conv_codes(
    codes: Tensor,
    weight: Tensor,
    thresholds: Tensor,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    out_groups: int = 1,
) -> Tensor:
    """Convolution from codes to codes: the level is ``(acc >= thresholds).sum(0)``.

    Parameters
    ----------
    thresholds
        int32 [2, out_channels] for ternary output codes, [3, out_channels] for two-bit ones; in
        nondecreasing order.
    out_groups
        Groups of the convolution that reads the result.

    The other parameters are those of :func:`conv_acc`.

    Returns
    -------
    Tensor
        uint8 [N, OH, OW, B'].
    """
    check_given("conv_codes", thresholds=thresholds)
    batch, height, width = _check_conv(
        "conv_codes", codes, weight, out_channels, (kernel, stride, padding, dilation)
    )
    check_devices("conv_codes", codes=codes, weight=weight, thresholds=thresholds)
    rows = 3 if thresholds.dim() == 2 and len(thresholds) == 3 else 2
    check_vector("conv_codes", "thresholds", thresholds, (rows, out_channels), torch.int32)
    check_groups("conv_codes", out_channels, out_groups)
    return codes.new_empty((batch, height, width, packed_bytes(out_channels, out_groups)))


def conv_float(
    codes: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """Convolution from codes to float32: ``fma(acc, scale, bias)``, then ``+ residual``, then ReLU.

    Parameters
    ----------
    scale, bias
        float32 [out_channels] or None. Without ``bias``: ``acc * scale``; without both: ``acc``.
    residual
        float32 [N, out_channels, OH, OW] or None; its addition rounds separately.
    relu
        Whether negative results become zero.

    The other parameters are those of :func:`conv_acc`.

    Returns
    -------
    Tensor
        float32 [N, out_channels, OH, OW], memory channels last.
    """
    batch, height, width = _check_conv(
        "conv_float", codes, weight, out_channels, (kernel, stride, padding, dilation)
    )
    check_devices(
        "conv_float", codes=codes, weight=weight, scale=scale, bias=bias, residual=residual
    )
    check_vector("conv_float", "scale", scale, (out_channels,), torch.float32)
    check_vector("conv_float", "bias", bias, (out_channels,), torch.float32)
    if bias is not None and scale is None:
        raise InputError(
            "fatnn_rs::conv_float: bias: expected a scale with it, got none; give a scale of ones"
        )
    check_vector(
        "conv_float", "residual", residual, (batch, out_channels, height, width), torch.float32
    )
    return _new_map(codes, (batch, out_channels, height, width), torch.float32)


def conv_int8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    inv_step: float,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """8-bit convolution or linear layer from float32 to float32: ``acc * scale``, then ``+ bias``.

    ``acc`` is the exact sum of int8 weights times ``clip(round(x * inv_step), -127, 127)``.

    Parameters
    ----------
    x
        float32 [N, C], [N, C, L] or [N, C, H, W]; the first two are treated as images of height 1.
    weight
        uint8, packed by :func:`fatnn_rs.ops.prepack_int8` on this machine.
    scale, bias
        float32 [out_channels]; ``bias`` may be None.
    inv_step
        Reciprocal of the input's step, an exact float32 value.
    out_channels, kernel, stride, padding, dilation
        Parameters of the convolution; pairs are (height, width).

    Returns
    -------
    Tensor
        float32, with the rank of ``x``, channels second, memory channels last.

    Raises
    ------
    InputError
        Wrong dtype, device, rank or size; NaN in ``x``.
    """
    check_tensor("conv_int8", "x", x, torch.float32, (2, 3, 4))
    check_tensor("conv_int8", "weight", weight, torch.uint8, (1,))
    check_devices("conv_int8", x=x, weight=weight, scale=scale, bias=bias)
    window = (kernel, stride, padding, dilation)
    check_geometry("conv_int8", *window)
    if out_channels < 1:
        raise InputError(
            f"fatnn_rs::conv_int8: out_channels: expected at least 1, got {out_channels}"
        )
    check_given("conv_int8", scale=scale)
    check_vector("conv_int8", "scale", scale, (out_channels,), torch.float32)
    check_vector("conv_int8", "bias", bias, (out_channels,), torch.float32)
    if not 0 < inv_step < math.inf:
        raise InputError(
            f"fatnn_rs::conv_int8: inv_step: expected a positive number, got {inv_step}"
        )
    source = [1, 1, *x.shape[2:]][-2:]
    size = check_output("conv_int8", conv_size(source, *window), source)
    return x.new_empty((x.shape[0], *size[4 - x.dim() :], out_channels)).movedim(-1, 1)


def max_pool_codes(
    codes: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
    code_type: str = "ternary",
) -> Tensor:
    """Max-pooling of codes. Arguments as in ``torch.nn.functional.max_pool2d``.

    Padding is never the maximum. ``code_type`` is that of the codes: see :func:`pack_codes`.

    Returns
    -------
    Tensor
        uint8 [N, OH, OW, B].
    """
    check_code_type("max_pool_codes", code_type)
    check_codes("max_pool_codes", "codes", codes)
    check_geometry("max_pool_codes", kernel, stride, padding, dilation)
    if any(2 * padding[i] > kernel[i] for i in range(2)):
        raise InputError(
            f"fatnn_rs::max_pool_codes: padding: expected at most half the kernel {list(kernel)}, "
            f"got {list(padding)}"
        )
    size = codes.shape[1:3]
    height, width = check_output(
        "max_pool_codes", pool_size(size, kernel, stride, padding, dilation, ceil_mode), size
    )
    return codes.new_empty((codes.shape[0], height, width, codes.shape[3]))


_WINDOW = "int[2] kernel, int[2] stride=1, int[2] padding=0, int[2] dilation=1"

#: Name of each op → (arguments, fake kernel).
OPS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "quantize": ("Tensor x, float[] thresholds, int groups=1", quantize),
    "pack_codes": ("Tensor codes, int groups=1, str code_type='ternary'", pack_codes),
    "unpack_codes": (
        "Tensor packed, int channels, int groups=1, str code_type='ternary'",
        unpack_codes,
    ),
    "conv_acc": (f"Tensor codes, Tensor weight, int out_channels, {_WINDOW}", conv_acc),
    "conv_codes": (
        "Tensor codes, Tensor weight, Tensor thresholds, int out_channels, "
        f"{_WINDOW}, int out_groups=1",
        conv_codes,
    ),
    "conv_float": (
        "Tensor codes, Tensor weight, Tensor? scale, Tensor? bias, Tensor? residual, bool relu, "
        "int out_channels, " + _WINDOW,
        conv_float,
    ),
    "conv_int8": (
        "Tensor x, Tensor weight, Tensor scale, Tensor? bias, float inv_step, int out_channels, "
        + _WINDOW,
        conv_int8,
    ),
    "max_pool_codes": (
        f"Tensor codes, {_WINDOW}, bool ceil_mode=False, str code_type='ternary'",
        max_pool_codes,
    ),
}

for _name, (_arguments, _fake) in OPS.items():
    LIBRARY.define(f"{_name}({_arguments}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"fatnn_rs::{_name}", _fake, lib=LIBRARY)
