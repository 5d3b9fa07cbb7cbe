"""Random inputs for the tests of the torch ops."""

from __future__ import annotations

import torch
from torch import Tensor

ops = torch.ops.fatnn_rs


def ternary_codes(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randint(
        -1, 2, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed)
    )


def two_bit_codes(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Random two-bit activations."""
    return torch.randint(
        0, 4, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed)
    )


def two_bit_weights(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Random two-bit weights."""
    weight = 2 * two_bit_codes(shape, seed) - 3
    weight.view(-1)[0] = 3  # without a 3 they might be ternary
    return weight


def int8_weights(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(
        -127, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(0)
    )


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values in several memory layouts."""
    wide = torch.zeros(x.shape[0], 2 * x.shape[1], *x.shape[2:])
    wide[:, ::2] = x
    found = {"contiguous": x, "sliced": wide[:, ::2], "requires_grad": x.clone().requires_grad_()}
    if x.dim() == 4:
        found["channels_last"] = x.contiguous(memory_format=torch.channels_last)
        found["transposed"] = x.transpose(2, 3).contiguous().transpose(2, 3)
    if x.dim() == 3:
        found["channels_last"] = x.transpose(1, 2).contiguous().transpose(1, 2)
    return found
