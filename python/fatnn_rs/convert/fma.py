"""Replace a layer's float functions by ``acc * scale + bias``, rounded once, if bits stay equal.

torch's BatchNorm in evaluation is ``fma(x, alpha, beta)`` on the CPU. It computes alpha and beta in
an undocumented order, so they are measured: ``beta`` is the function's value at 0, and ``alpha`` is
half the difference of its values at plus and minus a power of two that is large enough to absorb
``beta``. The pair is then checked at the integers that the accumulator can reach, or at floats of
all sizes. If it does not reproduce the function, the float functions stay in torch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fatnn_rs.convert.thresholds import spread

__all__ = ["fma", "same_bits", "sample", "single_fma", "slope"]

_EXPONENTS = (0, 24, 48, 64, 80, 96, 112, 126)
_POINTS = 1024

#: Values per block, so that intermediate results stay in cache.
_BLOCK = 1 << 15

Array = npt.NDArray[np.float32]


def fma(x: Array, scale: Array, bias: Array) -> Array:
    """Compute ``x * scale + bias`` with one rounding to float32, in NumPy.

    The product of two float32 is exact in float64. The float64 sum is rounded to odd (its last bit
    set if bits were lost), which makes the second rounding, to float32, correct (S. Boldo and G.
    Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using
    rounding to odd", IEEE Transactions on Computers 57(4), 2008).
    """
    if x.ndim == 2 and x.size > _BLOCK and scale.ndim == bias.ndim == 1:
        rows = max(1, _BLOCK // x.shape[1])
        return np.concatenate([_fma(x[i : i + rows], scale, bias) for i in range(0, len(x), rows)])
    return _fma(x, scale, bias)


def _fma(x: Array, scale: Array, bias: Array) -> Array:
    product = x.astype(np.float64) * scale.astype(np.float64)
    addend = np.broadcast_to(bias.astype(np.float64), product.shape)
    total = product + addend
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    if not lost.any():
        return total.astype(np.float32)
    bits = total.view(np.int64)
    even = (bits & 1) == 0
    towards = np.where((lost > 0) == (total > 0), 1, -1)
    odd = np.where((lost != 0) & even & np.isfinite(total), bits + towards, bits)
    return odd.view(np.float64).astype(np.float32)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two float32 tensors are equal, including signs of zeros."""
    return torch.equal(one, other) and torch.equal(torch.signbit(one), torch.signbit(other))


@torch.no_grad()
def single_fma(
    function: Callable[[Tensor], Tensor], points: Tensor, dims: int
) -> tuple[Tensor, Tensor | None] | None:
    """Find factors so that ``fma(acc, scale, bias)`` equals ``function(acc)`` at ``points``.

    Parameters
    ----------
    function
        Per-channel function of accumulators laid out by :func:`fatnn_rs.convert.thresholds.spread`.
    points
        int64 [P, n]: accumulators, as :func:`sample` chooses them.
    dims
        Spatial dimensions: 0, 1 or 2.

    Returns
    -------
    tuple of Tensor or None
        ``scale`` and ``bias``, float32 [n]; ``bias`` is None if the product has the same bits
        without it. None if no pair reproduces the function.
    """

    def evaluate(points: Tensor, channels_last: bool = False) -> Tensor:
        x = spread(points, dims)
        if channels_last and dims == 2:
            x = x.contiguous(memory_format=torch.channels_last)
        y = function(x)
        return y if dims == 0 else y.reshape(y.shape[1], -1).t()

    channels = points.shape[1]
    bias = evaluate(torch.zeros(1, channels, dtype=torch.float64, device="cpu"))[0]
    scale = slope(evaluate, channels)
    if scale is None or not bool(torch.isfinite(bias).all()):
        return None
    x, formats = points.float(), (False, True) if dims == 2 else (False,)
    wanted = [evaluate(x, channels_last) for channels_last in formats]
    # In blocks: if scale and bias are wrong, the first block already differs.
    rows = max(1, _BLOCK // max(channels, 1))
    for start in range(0, len(x), rows):
        block = slice(start, start + rows)
        predicted = torch.from_numpy(fma(x[block].numpy(), scale.numpy(), bias.numpy()))
        if not all(same_bits(predicted, one[block]) for one in wanted):
            return None
    # Leave the sum out only if bits stay equal: adding +0 turns -0 into +0.
    bare = not bool(bias.any()) and all(same_bits(x * scale, one) for one in wanted)
    return scale.clone(), None if bare else bias.clone()


def slope(evaluate: Callable[[Tensor], Tensor], channels: int) -> Tensor | None:
    """Return the factor of x in a function that is ``x * factor + constant`` per channel.

    Parameters
    ----------
    evaluate
        The function: points [P, n] to values [P, n].
    channels
        n.

    Returns
    -------
    Tensor or None
        float32 [n]; 0 for constant functions. None if no power of two and its negative give finite
        values.
    """
    scale = torch.full((channels,), float("nan"), dtype=torch.float32, device="cpu")
    powers = [2.0**exponent for exponent in _EXPONENTS]
    signed = [[sign * power] for power in powers for sign in (1.0, -1.0)]
    points = torch.tensor(signed, dtype=torch.float64, device="cpu").expand(-1, channels)
    values = evaluate(points)
    for power, high, low in zip(powers, values[::2], values[1::2], strict=True):
        found = ((high.double() - low.double()) / (2.0 * power)).float()
        scale = torch.where(torch.isfinite(high) & torch.isfinite(low), found, scale)
    return scale if bool(torch.isfinite(scale).all()) else None


def sample(low: Tensor, high: Tensor, most: int = _POINTS) -> Tensor:
    """Return points of each channel's range, int64 [P, n]: all, or an even and random choice."""
    span = high - low
    count = int(span.max()) + 1
    if count <= most:
        return torch.minimum(torch.arange(count, device="cpu")[:, None], span) + low
    generator = torch.Generator("cpu").manual_seed(0)
    half = most // 2
    points = torch.empty(2 * half, len(low), dtype=torch.int64, device="cpu")
    even = torch.linspace(0, 1, half, dtype=torch.float64, device="cpu")[:, None]
    points[:half] = (even * span).round_()
    random = torch.rand(half, len(low), generator=generator, dtype=torch.float64, device="cpu")
    points[half:] = random.mul_(span + 1)
    torch.minimum(points[half:], span, out=points[half:])
    return points.add_(low)
