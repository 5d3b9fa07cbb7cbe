"""Memory formats: the order of a tensor's dimensions in memory.

torch chooses its summation order by memory format, so one convolution in two formats may differ in
the last place. Every float function of torch therefore gets its input with the strides that the
eager model had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["has_layout", "in_layout", "layout_of", "row_major", "with_strides"]

#: How much more memory than its elements need a tensor with gaps between them may take.
_MAX_SPREAD = 64


def _strides(shape: torch.Size, order: list[int]) -> tuple[int, ...]:
    """Strides of a dense tensor whose dimensions have this order in memory, outermost first."""
    strides = [1] * len(shape)
    step = 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(int(shape[dim]), 1)
    return tuple(strides)


def row_major(shape: torch.Size) -> tuple[int, ...]:
    """Strides of a contiguous tensor, as torch makes it."""
    return _strides(shape, list(range(len(shape))))


def with_strides(value: Tensor, strides: Sequence[int]) -> Tensor | None:
    """Copy a tensor to memory with these strides, in elements.

    Returns
    -------
    Tensor or None
        None if elements would share memory, except equal ones by a stride of 0, or if gaps would
        take most of the memory.
    """
    if not value.numel():
        return torch.empty(value.shape, dtype=value.dtype, device=value.device)
    # Elements that share memory are written once.
    repeated = [i for i, stride in enumerate(strides) if stride == 0 and value.shape[i] > 1]
    once = value
    for dim in repeated:
        once = once.narrow(dim, 0, 1)
    length = 1
    for stride, size in sorted(zip(strides, once.shape, strict=True)):
        if size > 1 and stride < length:
            return None
        length += (size - 1) * stride
    if length > _MAX_SPREAD * value.numel():
        return None
    memory = torch.zeros(length, dtype=value.dtype, device=value.device)
    made = memory.as_strided(once.shape, strides).copy_(once).expand(value.shape)
    return made if not repeated or torch.equal(made, value) else None


def _channels_last(x: Tensor) -> tuple[int, ...]:
    return _strides(x.shape, [0, 2, 3, 1])


def layout_of(value: Any) -> str:
    """Memory format of a value.

    Returns
    -------
    str
        ``"contiguous"``; ``"channels_last"`` (four dimensions); ``"order:0,2,1"`` for a dense
        tensor whose dimensions have that order, outermost first; ``"any"`` for everything else. If
        two formats fit (one channel, one pixel), the strides decide.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return "any"
    if value.is_contiguous():
        own = value.dim() != 4 or tuple(value.stride()) != _channels_last(value)
        return "contiguous" if own or value.stride() == row_major(value.shape) else "channels_last"
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        return "channels_last"
    strides = tuple(value.stride())
    order = sorted(range(value.dim()), key=lambda dim: -strides[dim])
    dense = value.numel() and tuple(value.stride()) == _strides(value.shape, order)
    return f"order:{','.join(map(str, order))}" if dense else "any"


def _strides_in(value: Tensor, layout: str) -> tuple[int, ...] | None:
    """Return a value's strides in a memory format; None if the format does not fit its rank."""
    if layout == "any":
        return None
    if layout.startswith("order:"):
        order = [int(dim) for dim in layout[6:].split(",")]
        return _strides(value.shape, order) if len(order) == value.dim() else None
    if layout == "contiguous" or value.dim() != 4:
        return row_major(value.shape)
    return _channels_last(value)


def _is_rearranged(value: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether these strides would put elements at other addresses."""
    return any(
        size > 1 and have != want
        for size, have, want in zip(value.shape, value.stride(), strides, strict=True)
    )


def has_layout(value: Tensor, layout: str) -> bool:
    """Whether a value is in a memory format; small tensors can be in several at once."""
    strides = _strides_in(value, layout)
    return strides is None or not value.numel() or not _is_rearranged(value, strides)


def in_layout(value: Any, layout: str) -> Any:
    """Return the value with the strides of a memory format; copied only if it has another."""
    if not isinstance(value, Tensor) or layout == "any" or value.layout != torch.strided:
        return value
    if torch.compiler.is_compiling():  # the compiler must not see strides of dimensions of size 1
        last = layout == "channels_last" and value.dim() == 4
        return value.contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )
    strides = _strides_in(value, layout)
    if strides is None or tuple(value.stride()) == strides:
        return value
    if not _is_rearranged(value, strides) and value.numel():
        return value.as_strided(value.shape, strides)
    made = torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)
    return made.copy_(value)
