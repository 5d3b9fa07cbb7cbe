"""Quantization of values between layers to eight bits.

A value becomes a multiple of a step that eight bits can count::

    code = clip(round(x · (1 / step)), low, high)
    y    = code · step

in float32. ``1 / step`` is rounded once; ``round`` is half to even. A code of 0 gives 0.0, never
-0.0, so that a byte holds all there is to know. The engine computes the same operations.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["fake_quantize"]


def fake_quantize(x: Tensor, step: float, low: int, high: int) -> Tensor:
    """Round ``x`` to multiples of ``step``, from ``low`` to ``high`` steps; without a gradient.

    Parameters
    ----------
    x
        Any shape, float32. NaN stays NaN.
    step
        A positive float32 number.
    low, high
        Integers within [-128, 127] or within [0, 255].
    """
    inverse = float(np.float32(1) / np.float32(step))
    return (torch.clamp(torch.round(x * inverse), low, high) + 0.0) * step
