"""Output sizes of convolutions and pooling, and bytes per pixel of packed codes."""

from __future__ import annotations

from collections.abc import Sequence

from fatnn_rs.errors import InputError

__all__ = ["conv_size", "packed_bytes", "pool_size"]

#: Codes per word of the packed layout, and bytes of a word (two bit planes).
WORD_CODES = 64
WORD_BYTES = 16


def packed_bytes(channels: int, groups: int = 1) -> int:
    """Return the bytes of one pixel's packed codes: 16 per 64 channels of a group, rounded up.

    Parameters
    ----------
    channels
        Number of channels, a multiple of ``groups``.
    groups
        Groups of the convolution that reads the codes.

    Raises
    ------
    InputError
        Fewer than one channel, or ``groups`` does not divide the channels.
    """
    if channels < 1 or groups < 1 or channels % groups:
        raise InputError(
            f"packed_bytes: expected groups that divide the channels, got {channels} in {groups} "
            "groups"
        )
    return groups * (-(-(channels // groups) // WORD_CODES)) * WORD_BYTES


def conv_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width after a convolution; less than 1 if the kernel does not fit."""
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
    """Height and width after max-pooling; with ``ceil_mode``, no window starts in the padding."""
    if not ceil_mode:
        return conv_size(size, kernel, stride, padding, dilation)
    out = []
    for i in range(2):
        reach = size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1
        count = -(-reach // stride[i]) + 1
        out.append(count - 1 if (count - 1) * stride[i] >= size[i] + padding[i] else count)
    return out[0], out[1]
