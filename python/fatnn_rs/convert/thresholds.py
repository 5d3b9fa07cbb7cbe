"""Integer thresholds: the function from a ternary layer's accumulator to the next layer's codes, tabulated.

Between the two lie only functions of one channel (scale, bias, BatchNorm, activation) and the next quantizer. Where the
whole is monotone over the accumulator's range it is two integer thresholds per channel; where it falls, the channel's
weights are negated. The function evaluated is the eager model's own, at every integer of the range where that is
affordable, so the thresholds are exact by construction; functions that are monotone by what they are made of are
bisected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Thresholds", "accumulator_range", "integer_thresholds", "spread"]

#: Evaluations up to which every integer of the range is tried; beyond, bisection and samples.
EXHAUSTIVE = 1 << 25

#: The same for functions that are known to be monotone, where bisection finds what trying every integer would.
EXHAUSTIVE_IF_MONOTONE = 1 << 17

_CHUNK = 1 << 20
_SAMPLES = 512
_ALWAYS = torch.iinfo(torch.int32).min
_NEVER = torch.iinfo(torch.int32).max

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Thresholds:
    """``level = (acc >= values[0]) + (acc >= values[1])``.

    Attributes
    ----------
    values
        int32 [2, n], for accumulators of weights that were negated in the channels of ``flip``.
    flip
        bool [n].
    """

    values: Tensor
    flip: Tensor


def accumulator_range(weight: Tensor, half_range: bool) -> tuple[Tensor, Tensor]:
    """Least and greatest accumulator of every output channel, from its weights.

    Parameters
    ----------
    weight
        int8 [n, ...] in {-1, 0, +1}.
    half_range
        Whether activations are {0, 1, 2} (else {-1, 0, +1}).

    Returns
    -------
    tuple of Tensor
        int64 [n] each.
    """
    # As float sums, which are fast, and exact: there are fewer weights than integers in a float32.
    flat = weight.flatten(1).float()
    balance, count = flat.sum(1).long(), flat.abs().sum(1).long()
    positive, negative = (count + balance) // 2, (count - balance) // 2
    if half_range:
        return -2 * negative, 2 * positive
    return -(positive + negative), positive + negative


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
    function: Function, low: Tensor, high: Tensor, dims: int, base: int, monotone: bool = False
) -> Thresholds | None:
    """Thresholds that reproduce ``function`` over ``[low, high]`` in every channel.

    Parameters
    ----------
    function
        From accumulators, laid out by :func:`spread`, to integer-valued levels ``base .. base + 2``.
    low, high
        int64 [n]: the accumulator's range.
    dims
        Spatial dimensions: 0, 1 or 2.
    base
        The lowest level.
    monotone
        Whether ``function`` is known to rise or to fall in every channel.

    Returns
    -------
    Thresholds or None
        None where the function is not monotone in some channel.
    """

    def levels(points: Tensor) -> Tensor:
        return _gather(function(spread(points, dims)), dims) - base

    first, last = levels(low[None])[0], levels(high[None])[0]
    flip = last < first

    def rising(points: Tensor) -> Tensor:
        """Levels at places counted from the end where the function is lowest."""
        return levels(torch.where(flip, high - points, low + points))

    span = high - low
    count = int(span.max()) + 1
    channels = len(low)
    few = count * channels <= (EXHAUSTIVE_IF_MONOTONE if monotone else EXHAUSTIVE)
    places = _scan(rising, span, count, channels) if few else _bisect(rising, span)
    if places is None:
        return None
    # A place p is the accumulator low + p, or, with negated weights, -(high - p).
    origin = torch.where(flip, -high, low)
    values = torch.where(places > span, _NEVER, torch.where(places == 0, _ALWAYS, origin + places))
    return Thresholds(values.to(torch.int32), flip)


def _scan(rising: Function, span: Tensor, count: int, channels: int) -> Tensor | None:
    """Evaluate everywhere; the first places of levels 1 and 2, ``span + 1`` where there are none."""
    places = torch.zeros(2, channels, dtype=torch.int64)
    step = max(1, _CHUNK // channels)
    before = torch.zeros(channels)
    for start in range(0, count, step):
        points = torch.arange(start, min(start + step, count))[:, None]
        level = rising(torch.minimum(points, span))
        if bool((level.diff(dim=0, prepend=before[None]) < 0).any()):
            return None
        before = level[-1]
        inside = points <= span
        for index in range(2):
            places[index] += ((level < index + 1) & inside).sum(0)
    return places


def _bisect(rising: Function, span: Tensor) -> Tensor | None:
    """Bisect, then compare with samples."""
    channels = len(span)
    low = torch.full((2, channels), -1)
    high = (span + 1).repeat(2, 1)
    wanted = torch.tensor([[1.0], [2.0]])
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        reached = torch.where(middle > span, torch.tensor(True), _pairwise(rising, middle.clamp(max=span), wanted))
        open_ = high - low > 1
        high = torch.where(open_ & reached, middle, high)
        low = torch.where(open_ & ~reached, middle, low)
    generator = torch.Generator().manual_seed(0)
    random = (torch.rand(_SAMPLES, channels, generator=generator, dtype=torch.float64) * (span + 1)).long()
    near = torch.cat([high + offset for offset in range(-2, 3)])
    points = torch.cat([random, near.clamp(min=0), span[None]]).minimum(span)
    stairs = (points >= high[0]).float() + (points >= high[1]).float()
    return high if torch.equal(rising(points), stairs) else None


def _pairwise(rising: Function, points: Tensor, wanted: Tensor) -> Tensor:
    return rising(points) >= wanted
