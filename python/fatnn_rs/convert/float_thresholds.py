"""The float thresholds of an activation quantizer, found by bisecting the quantizer itself.

A quantizer is a monotone function of a float32, so each level above the lowest is first reached at
one smallest float. Bisection over all float32 values in ascending order finds it exactly in 32
evaluations, independent of the quantizer's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fatnn_rs.errors import ConversionError

__all__ = ["float_steps"]

_LARGEST = 0x7F7FFFFF  # bit pattern of the largest finite float32


def _from_order(keys: np.ndarray) -> Tensor:
    """Float32 values from their rank among all floats: 0 is +0.0, -1 the next float below it."""
    keys = keys.astype(np.int64)
    bits = np.where(keys >= 0, keys, 0x80000000 - keys).astype(np.uint32)
    return torch.from_numpy(bits.view(np.float32).copy())


def _to_order(values: Tensor) -> np.ndarray:
    bits = values.numpy().view(np.uint32).astype(np.int64)
    return np.where(bits < 0x80000000, bits, 0x80000000 - bits)


@torch.no_grad()
def float_steps(
    layer: str, quantizer: Callable[[Tensor], Tensor], levels: tuple[int, ...]
) -> Tensor:
    """Find the smallest float at which ``quantizer`` reaches each level above the lowest.

    Parameters
    ----------
    layer
        Name of the layer, for messages.
    quantizer
        float32 to integer-valued float, elementwise and monotone.
    levels
        Neighbouring integers, ascending.

    Returns
    -------
    Tensor
        float32 [levels - 1], so that ``quantizer(x) = levels[(x >= steps).sum()]`` for finite x.
        Infinity marks a level that no input reaches, not even infinity.

    Raises
    ------
    ConversionError
        If the function is not monotone or has other levels.
    """
    low = np.full(len(levels) - 1, -_LARGEST, dtype=np.int64)
    high = np.full(len(levels) - 1, _LARGEST, dtype=np.int64)
    wanted = torch.tensor(levels[1:], dtype=torch.float32, device="cpu")
    ends = quantizer(_from_order(np.array([-_LARGEST, _LARGEST])))
    always, never = (ends[0] >= wanted).numpy(), (ends[1] < wanted).numpy()
    while (high - low > 1).any():
        middle = (low + high) // 2
        reached = (quantizer(_from_order(middle)) >= wanted).numpy()
        high = np.where(reached, middle, high)
        low = np.where(reached, low, middle)
    steps = _from_order(np.where(always, -_LARGEST, high))
    steps[torch.from_numpy(never)] = float("inf")
    _check(layer, quantizer, levels, steps)
    return steps


def _check(
    layer: str, quantizer: Callable[[Tensor], Tensor], levels: tuple[int, ...], steps: Tensor
) -> None:
    """Compare thresholds and quantizer near each threshold, at evenly spread and normal floats."""
    keys = np.linspace(-_LARGEST, _LARGEST, 4097).astype(np.int64)
    finite = _to_order(steps[torch.isfinite(steps)])
    near = (finite[:, None] + np.arange(-32, 33)).reshape(-1)
    points = _from_order(np.clip(np.concatenate([keys, near]), -_LARGEST, _LARGEST))
    generator = torch.Generator("cpu").manual_seed(0)
    spread = float(steps[torch.isfinite(steps)].abs().max().clamp(max=1e30)) if len(finite) else 1.0
    others = torch.tensor([0.0, float("inf")], dtype=torch.float32, device="cpu")
    usual = torch.randn(4096, generator=generator, dtype=torch.float32, device="cpu")
    points = torch.cat([points, usual * spread * 2, others])
    stairs = (points[:, None] >= steps[torch.isfinite(steps)]).float().sum(1) + levels[0]
    wrong = stairs != quantizer(points)
    if bool(wrong.any()):
        at = float(points[wrong][0])
        got = float(quantizer(points[wrong][:1])[0])
        raise ConversionError(
            f"layer {layer!r}: its activation quantizer is not a monotone staircase over the "
            f"levels {', '.join(map(str, levels))} (at {at:g} it gives {got:g}); use a quantizer "
            "of fatnn_rs.quant, or leave the layer out with TernaryConfig(skip=...)"
        )
