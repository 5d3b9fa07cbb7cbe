"""Integer thresholds from a ternary layer's accumulator to the next layer's codes.

Between accumulator and codes there are only per-channel functions (scale, bias, BatchNorm,
activation) and the next quantizer. If their composition is monotone over the accumulator's range,
it is two integer thresholds per channel (three for two-bit activations). If it falls, the channel's
weights are negated.

The thresholds are exact by construction: the eager model's own functions are evaluated at every
integer of the range. Functions known to be monotone, and ranges that are too large, are bisected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "NEVER",
    "NotANumberError",
    "Thresholds",
    "accumulator_range",
    "integer_thresholds",
    "spread",
]

#: Up to this many evaluations every integer of the range is tried; beyond it, bisection.
EXHAUSTIVE = 1 << 25

#: The same for functions known to be monotone, for which bisection is exact too.
EXHAUSTIVE_IF_MONOTONE = 1 << 17

_CHUNK = 1 << 20
_SAMPLES = 512
_ALWAYS = torch.iinfo(torch.int32).min

#: A threshold that no accumulator reaches.
NEVER = torch.iinfo(torch.int32).max

Function = Callable[[Tensor], Tensor]


class NotANumberError(Exception):
    """The function returns NaN, which has no code."""

    def __init__(self, channel: int, accumulator: int) -> None:
        super().__init__(f"channel {channel}, integer sum {accumulator}")


@dataclass(frozen=True)
class Thresholds:
    """``level = (acc >= values).sum(0)``.

    Attributes
    ----------
    values
        int32 [levels - 1, n], ascending, for accumulators of the weights after the channels in
        ``flip`` were negated.
    flip
        bool [n].
    """

    values: Tensor
    flip: Tensor


def accumulator_range(weight: Tensor, levels: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Least and greatest accumulator of every output channel, from its weights.

    Parameters
    ----------
    weight
        int8 [n, ...].
    levels
        The values of activations, ascending. They include or enclose 0, the padding value.

    Returns
    -------
    tuple of Tensor
        int64 [n] each.
    """
    # Float sums are fast, and exact: layers whose sums float32 cannot hold are refused earlier.
    flat = weight.flatten(1)
    sums = [
        (rows.sum(1).long(), rows.abs().sum(1).long())
        for rows in (block.float() for block in torch.split(flat, max(1, _CHUNK // flat.shape[1])))
    ]
    balance, count = (torch.cat(parts) for parts in zip(*sums, strict=True))
    positive, negative = (count + balance) // 2, (count - balance) // 2
    low, high = levels[0], levels[-1]
    return low * positive - high * negative, high * positive - low * negative


def spread(values: Tensor, dims: int) -> Tensor:
    """Lay out numbers [P, n] as a layer's float output: P pixels, n channels, ``dims`` axes."""
    values = values.float()
    if dims == 0:
        return values.contiguous()
    image = values.t().contiguous()[None]
    return image if dims == 1 else image[..., None]


def _gather(result: Tensor, dims: int) -> Tensor:
    """Invert :func:`spread`."""
    if dims == 0:
        return result
    return result.reshape(result.shape[1], -1).t()


@torch.no_grad()
def integer_thresholds(
    function: Function,
    low: Tensor,
    high: Tensor,
    dims: int,
    levels: tuple[int, ...],
    monotone: bool = False,
) -> Thresholds | None:
    """Find thresholds that reproduce ``function`` over ``[low, high]`` in every channel.

    Parameters
    ----------
    function
        From accumulators, laid out by :func:`spread`, to integer-valued levels.
    low, high
        int64 [n]: range of the accumulator, both ends included.
    dims
        Spatial dimensions: 0, 1 or 2.
    levels
        The possible results: consecutive integers, ascending.
    monotone
        Whether ``function`` is known to rise or to fall in every channel.

    Returns
    -------
    Thresholds or None
        None if the function is not monotone in some channel.

    Raises
    ------
    NotANumberError
        If the function returns NaN.
    """

    def reached(points: Tensor) -> Tensor:
        found = _gather(function(spread(points, dims)), dims) - levels[0]
        if bool(found.isnan().any()):
            place, channel = (int(i) for i in found.isnan().nonzero()[0])
            raise NotANumberError(channel, int(points.expand_as(found)[place, channel]))
        return found

    first, last = reached(low[None])[0], reached(high[None])[0]
    flip = last < first

    def level_at(points: Tensor) -> Tensor:
        """Levels at distances from the end of the range where the function is lowest."""
        return reached(torch.where(flip, high - points, low + points))

    span, steps = high - low, len(levels) - 1
    count = int(span.max()) + 1
    channels = len(low)
    few = count * channels <= (EXHAUSTIVE_IF_MONOTONE if monotone else EXHAUSTIVE)
    places = _scan(level_at, span, count, steps) if few else _bisect(level_at, span, steps)
    if places is None:
        return None
    # Distance p is accumulator low + p; with negated weights it is -(high - p).
    origin = torch.where(flip, -high, low)
    values = torch.where(places > span, NEVER, torch.where(places == 0, _ALWAYS, origin + places))
    return Thresholds(values.to(torch.int32), flip)


def _scan(level_at: Function, span: Tensor, count: int, steps: int) -> Tensor | None:
    """Evaluate everywhere; return the first distance of each level, ``span + 1`` if it has none."""
    channels = len(span)
    places = torch.zeros(steps, channels, dtype=torch.int64, device="cpu")
    step = max(1, _CHUNK // channels)
    before = torch.zeros(channels, dtype=torch.float32, device="cpu")
    for start in range(0, count, step):
        points = torch.arange(start, min(start + step, count), device="cpu")[:, None]
        level = level_at(torch.minimum(points, span))
        if bool((level.diff(dim=0, prepend=before[None]) < 0).any()):
            return None
        before = level[-1]
        inside = points <= span
        for index in range(steps):
            places[index] += ((level < index + 1) & inside).sum(0)
    return places


def _bisect(level_at: Function, span: Tensor, steps: int) -> Tensor | None:
    """Bisect, then check the result at samples; None if they differ."""
    channels = len(span)
    low = torch.full((steps, channels), -1, dtype=torch.int64, device="cpu")
    high = (span + 1).repeat(steps, 1)
    wanted = torch.arange(1, steps + 1, dtype=torch.float32, device="cpu")[:, None]
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        reached = (middle > span) | _reaches_level(level_at, middle.clamp(max=span), wanted)
        open_ = high - low > 1
        high = torch.where(open_ & reached, middle, high)
        low = torch.where(open_ & ~reached, middle, low)
    generator = torch.Generator("cpu").manual_seed(0)
    random = torch.rand(_SAMPLES, channels, generator=generator, dtype=torch.float64, device="cpu")
    random = (random * (span + 1)).long()
    near = torch.cat([high + offset for offset in range(-2, 3)])
    points = torch.cat([random, near.clamp(min=0), span[None]]).minimum(span)
    stairs = (points >= high[:, None]).float().sum(0)
    return high if torch.equal(level_at(points), stairs) else None


def _reaches_level(level_at: Function, points: Tensor, wanted: Tensor) -> Tensor:
    return level_at(points) >= wanted
