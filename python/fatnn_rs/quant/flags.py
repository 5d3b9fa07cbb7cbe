"""State of quantizers, stored as numbers in float buffers.

Only a flag's sign counts. ``initialized_flag`` is positive once the data initialised the steps.
``half_range_flag`` is positive for half range, negative for full range, and zero (treated as half
range) until the data decide. Copies, averages over models and casts keep the sign. Files of earlier
versions hold ``bool`` flags, which :func:`convert_flags` converts.
"""

from __future__ import annotations

import warnings
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["INITIALIZED", "RANGE", "convert_flags", "flag", "read_flag"]

#: Names of the two buffers.
INITIALIZED, RANGE = "initialized_flag", "half_range_flag"


def flag(value: float) -> Tensor:
    """Return a new flag, float32, shape []."""
    return torch.tensor(float(value), dtype=torch.float32)


def read_flag(buffer: Tensor) -> float | None:
    """Return a flag's value, or None if it cannot be read.

    It cannot be read during a graph capture, or if it is a meta or fake tensor or inside a
    ``torch.func`` transform.
    """
    if torch.compiler.is_compiling() or buffer.is_meta:
        return None
    try:
        if torch._C._get_tracing_state() is None:
            return float(buffer.item())
        with warnings.catch_warnings():  # torch.jit.trace warns that the value becomes constant.
            warnings.simplefilter("ignore")
            return float(buffer.item())
    except RuntimeError:  # Raised for fake tensors and inside torch.func transforms.
        return None


def convert_flags(
    tensors: MutableMapping[str, Any], prefix: str = "", half_range: float | None = None
) -> None:
    """Convert ``bool`` flags of earlier versions to numbers, in place.

    Parameters
    ----------
    tensors
        Name → tensor: a ``state_dict``, or a module's buffers.
    prefix
        Prefix of the flags' names.
    half_range
        Initial value of ``half_range_flag``; None if the quantizer has no such flag.
    """
    initialized, decided = tensors.get(prefix + INITIALIZED), tensors.get(prefix + RANGE)
    if isinstance(decided, Tensor) and decided.dtype == torch.bool:
        number = decided.to(torch.float32) * 2.0 - 1.0
        if half_range is not None and isinstance(initialized, Tensor):
            number = torch.where(initialized > 0, number, torch.full_like(number, half_range))
        tensors[prefix + RANGE] = number
    if isinstance(initialized, Tensor) and initialized.dtype == torch.bool:
        tensors[prefix + INITIALIZED] = initialized.to(torch.float32)
