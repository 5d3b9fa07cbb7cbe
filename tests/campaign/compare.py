"""Differences between the outputs of two networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def difference(expected: Any, got: Any) -> str | None:
    """Describe how two outputs differ, or return None; all NaNs count as equal."""
    left, left_spec = pytree.tree_flatten(expected)
    right, right_spec = pytree.tree_flatten(got)
    if left_spec != right_spec:
        return f"structure: expected {left_spec}, got {right_spec}"[:300]
    for one, other in zip(left, right, strict=True):
        if isinstance(one, Tensor) != isinstance(other, Tensor):
            return f"expected {type(one).__name__}, got {type(other).__name__}"
        if not isinstance(one, Tensor):
            if one != other or type(one) is not type(other):
                return f"expected {one!r}, got {other!r}"
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            return (
                f"expected {one.dtype} {tuple(one.shape)}, got {other.dtype} {tuple(other.shape)}"
            )
        same = (one == other) | ((one != one) & (other != other))
        if one.is_floating_point():
            same &= (one != 0) | (one.signbit() == other.signbit())
        if not bool(same.all()):
            gap = (one.double() - other.double()).abs()[~same]
            count = f"{int((~same).sum())} of {one.numel()}"
            return f"{count} values differ, by up to {float(gap.max()):g}"
    return None


def _max_abs(value: Any) -> float:
    leaves = [
        t
        for t in pytree.tree_leaves(value)
        if isinstance(t, Tensor) and t.numel() and t.is_floating_point()
    ]
    return max((float(t.abs().max()) for t in leaves), default=0.0)


def relative_difference(expected: Any, got: Any) -> float:
    """Return the largest difference relative to the largest value; inf if shapes differ."""
    left, right = pytree.tree_leaves(expected), pytree.tree_leaves(got)
    worst = 0.0
    scale = max(_max_abs(expected), 1e-30)
    for one, other in zip(left, right, strict=False):
        if isinstance(one, Tensor) and one.is_floating_point():
            other = torch.as_tensor(other)
            if one.shape != other.shape:
                return float("inf")
            same = (one == other) | ((one != one) & (other != other))
            gap = (one.double() - other.double()).abs()[~same]
            worst = max(worst, float(gap.max()) / scale if gap.numel() else 0.0)
            if gap.numel() and bool(gap.isnan().any()):
                return float("inf")
    return worst
