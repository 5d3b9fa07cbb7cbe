"""State of quantizers as numbers in buffers, so that whatever copies, averages, casts or saves buffers handles it.

A flag is a float scalar whose sign is what counts. ``initialized_flag`` is positive once the steps
come from data, and a negative hair where data were all zero, for which steps stay at a default.
``half_range_flag`` is negative for full range, positive for half range, and zero (read as half
range) while the data have not decided. An average over models, from a copy that was
made before the first batch too, keeps the sign at once, and so do casts to any float type. Files of
earlier versions hold ``bool`` flags; :func:`convert_flags` reads them.
"""

from __future__ import annotations

import warnings
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["INITIALIZED", "ONLY_ZEROS", "RANGE", "convert_flags", "flag", "read_flag"]

#: Names of the two buffers.
INITIALIZED, RANGE = "initialized_flag", "half_range_flag"

#: ``initialized_flag`` after nothing but zeros: small, so that an average with 1 is positive.
ONLY_ZEROS = -1e-6


def flag(value: float) -> Tensor:
    """Return a new flag."""
    return torch.tensor(float(value), dtype=torch.float32)


def read_flag(buffer: Tensor) -> float | None:
    """Return a flag's value, or None where it cannot be read.

    That is so while a graph is captured, and for meta and fake tensors and those inside
    ``torch.func`` transforms.
    """
    if torch.compiler.is_compiling() or buffer.is_meta:
        return None
    try:
        if torch._C._get_tracing_state() is None:
            return float(buffer.item())
        with warnings.catch_warnings():  # torch.jit.trace warns that the value becomes a constant
            warnings.simplefilter("ignore")
            return float(buffer.item())
    except RuntimeError:  # torch's answer to a value that depends on data it does not have
        return None


def convert_flags(
    tensors: MutableMapping[str, Any], prefix: str = "", half_range: float | None = None
) -> None:
    """Turn ``bool`` flags of earlier versions, in a ``state_dict`` or among a module's buffers, into numbers, in place.

    Parameters
    ----------
    tensors
        Name → tensor.
    prefix
        What the names begin with.
    half_range
        What ``half_range_flag`` is before data decide; None where it is never open.
    """
    initialized, decided = tensors.get(prefix + INITIALIZED), tensors.get(prefix + RANGE)
    if isinstance(decided, Tensor) and decided.dtype == torch.bool:
        number = decided.to(torch.float32) * 2.0 - 1.0
        if half_range is not None and isinstance(initialized, Tensor):
            number = torch.where(initialized > 0, number, torch.full_like(number, half_range))
        tensors[prefix + RANGE] = number
    if isinstance(initialized, Tensor) and initialized.dtype == torch.bool:
        tensors[prefix + INITIALIZED] = initialized.to(torch.float32)
