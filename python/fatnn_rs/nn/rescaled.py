"""Detects a BatchNorm that is fused into the weight of a quantized layer."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["RESCALED", "is_rescaled"]

#: Message, after the layer's name.
RESCALED = (
    "its weight was replaced by one with other factors per channel, as fusing a BatchNorm does "
    "(torch.nn.utils.fusion). The quantizer's steps do not follow, so the model would compute "
    "something else. Leave the BatchNorm in the model: convert fuses it without changing a result. "
    "To start from a fused model, fuse it before prepare"
)

#: Relative difference of two factors of one channel that counts as rounding.
_ROUNDING = 1e-4


def is_rescaled(old: Tensor, new: Tensor) -> bool:
    """Whether a weight is another one times a factor per channel, and not the same everywhere."""
    if old.shape != new.shape or old.dim() < 2 or old.is_meta or new.is_meta:
        return False
    old, new = old.detach().to(new.device, torch.float64), new.detach().double()
    if torch.equal(old, new) or not bool(old.any()):
        return False
    # Transposed convolutions have their output channels second.
    return any(_by_channel(old.movedim(dim, 0), new.movedim(dim, 0)) for dim in (0, 1))


def _by_channel(old: Tensor, new: Tensor) -> bool:
    old, new = old.flatten(1), new.flatten(1)
    if old.shape[1] < 2:  # every weight would be another one times factors
        return False
    squares = (old * old).sum(1, keepdim=True)
    factors = (old * new).sum(1, keepdim=True) / squares.clamp_min(1e-300)
    rest = (new - factors * old).abs().amax(1)
    return bool((rest <= _ROUNDING * new.abs().amax(1)).all())
