"""Sizes: what comes out of a convolution or a pooling, and how many bytes a pixel's codes take."""

from __future__ import annotations

from collections.abc import Sequence

from fatnn_rs.errors import InputError

__all__ = ["conv_size", "packed_bytes", "pool_size"]

#: Codes in one word of the packed layout, and the bytes its two planes take.
WORD_CODES = 64
WORD_BYTES = 16


def packed_bytes(channels: int, groups: int = 1) -> int:
    """Bytes that the packed codes of one pixel take: per group, 16 for every 64 channels begun.

    Parameters
    ----------
    channels
        All channels, a multiple of ``groups``.
    groups
        Groups of the convolution that will read the codes.

    Raises
    ------
    InputError
        Less than one channel, or groups that do not divide them.
    """
    if channels < 1 or groups < 1 or channels % groups:
        raise InputError(
            f"packed_bytes: expected groups that divide the channels, got {channels} in {groups} groups"
        )
    return groups * (-(-(channels // groups) // WORD_CODES)) * WORD_BYTES


def conv_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width after a convolution (may be less than one where the kernel does not fit)."""
    height, width = (
        (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    )
    return height, width


def pool_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[int, int]:
    """Height and width after a max-pooling, by torch's rule: with ``ceil_mode`` no window may start in the padding."""
    if not ceil_mode:
        return conv_size(size, kernel, stride, padding, dilation)
    out = []
    for i in range(2):
        reach = size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1
        count = -(-reach // stride[i]) + 1
        out.append(count - 1 if (count - 1) * stride[i] >= size[i] + padding[i] else count)
    return out[0], out[1]
