"""Integer thresholds: the function from a ternary layer's accumulator to the next layer's codes, tabulated.

Between the two lie only functions of one channel (scale, bias, BatchNorm, activation) and the next
quantizer. Where the whole is monotone over the accumulator's range it is two integer thresholds per
channel (for two-bit activations three); where it falls, the channel's weights are negated. The
function evaluated is the eager model's own, at every integer of the range where that is affordable,
so the thresholds are exact by construction; functions that are monotone by what they are made of
are bisected.
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

#: Evaluations up to which every integer of the range is tried; beyond, bisection and samples.
EXHAUSTIVE = 1 << 25

#: The same for functions that are known to be monotone, where bisection finds what trying every integer would.
EXHAUSTIVE_IF_MONOTONE = 1 << 17

_CHUNK = 1 << 20
_SAMPLES = 512
_ALWAYS = torch.iinfo(torch.int32).min

#: A threshold that no accumulator reaches.
NEVER = torch.iinfo(torch.int32).max

Function = Callable[[Tensor], Tensor]


class NotANumberError(Exception):
    """The function gives NaN, for which no code stands."""

    def __init__(self, channel: int, accumulator: int) -> None:
        super().__init__(f"channel {channel}, integer sum {accumulator}")


@dataclass(frozen=True)
class Thresholds:
    """``level = (acc >= values).sum(0)``.

    Attributes
    ----------
    values
        int32 [levels - 1, n], ascending, for accumulators of weights that were negated in the channels
        of ``flip``.
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
        What activations may be, in order; 0, which pads, lies between the first and the last, or is
        one of them.

    Returns
    -------
    tuple of Tensor
        int64 [n] each.
    """
    # As float sums, which are fast, and exact: layers whose sums float32 could not hold are refused
    # when they are made.
    flat = weight.flatten(1).float()
    balance, count = flat.sum(1).long(), flat.abs().sum(1).long()
    positive, negative = (count + balance) // 2, (count - balance) // 2
    least, most = levels[0], levels[-1]
    return least * positive - most * negative, most * positive - least * negative


def spread(values: Tensor, dims: int) -> Tensor:
    """Numbers [P, n] as the float tensor a layer of ``dims`` spatial dimensions would give: P pixels, n channels."""
    values = values.float()
    if dims == 0:
        return values.contiguous()
    image = values.t().contiguous()[None]
    return image if dims == 1 else image[..., None]


def _gather(result: Tensor, dims: int) -> Tensor:
    """Reverse of :func:`spread`."""
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
    """Thresholds that reproduce ``function`` over ``[low, high]`` in every channel.

    Parameters
    ----------
    function
        From accumulators, laid out by :func:`spread`, to integer-valued levels.
    low, high
        int64 [n]: the accumulator's range.
    dims
        Spatial dimensions: 0, 1 or 2.
    levels
        Those levels, neighbouring integers, in order.
    monotone
        Whether ``function`` is known to rise or to fall in every channel.

    Returns
    -------
    Thresholds or None
        None where the function is not monotone in some channel.

    Raises
    ------
    NotANumberError
        The function gives NaN somewhere.
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
        """Levels at places counted from the end where the function is lowest."""
        return reached(torch.where(flip, high - points, low + points))

    span, steps = high - low, len(levels) - 1
    count = int(span.max()) + 1
    channels = len(low)
    few = count * channels <= (EXHAUSTIVE_IF_MONOTONE if monotone else EXHAUSTIVE)
    places = _scan(level_at, span, count, steps) if few else _bisect(level_at, span, steps)
    if places is None:
        return None
    # A place p is the accumulator low + p, or, with negated weights, -(high - p).
    origin = torch.where(flip, -high, low)
    values = torch.where(places > span, NEVER, torch.where(places == 0, _ALWAYS, origin + places))
    return Thresholds(values.to(torch.int32), flip)


def _scan(level_at: Function, span: Tensor, count: int, steps: int) -> Tensor | None:
    """Evaluate everywhere; the first place of every level but the lowest, ``span + 1`` where there is none."""
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
    """Bisect, then compare with samples."""
    channels = len(span)
    low = torch.full((steps, channels), -1, dtype=torch.int64, device="cpu")
    high = (span + 1).repeat(steps, 1)
    wanted = torch.arange(1, steps + 1, dtype=torch.float32, device="cpu")[:, None]
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        reached = (middle > span) | _pairwise(level_at, middle.clamp(max=span), wanted)
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


def _pairwise(level_at: Function, points: Tensor, wanted: Tensor) -> Tensor:
    return level_at(points) >= wanted
