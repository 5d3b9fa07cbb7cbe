"""Interleaved timing: everything is measured in turns, so that a machine that slows down slows all of them.

A *turn* of one candidate is a pause where several threads run (other runtimes' workers go on
spinning for a moment after they finished), one untimed call, which brings its weights and its
threads back, and then timed calls until at least :data:`TURN_SECONDS` have passed. A *round* is one
turn of every candidate; the order rotates from round to round. Ratios are taken inside a round, and
only then is their median taken.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

__all__ = ["PAUSE_SECONDS", "TURN_SECONDS", "Spread", "interleaved", "ratios"]

#: Least time of a turn's timed calls: short networks are called several times.
TURN_SECONDS = 2e-3

#: Pause before a turn where more than one thread runs.
PAUSE_SECONDS = 5e-3

_MOST_CALLS = 1000


@dataclass(frozen=True)
class Spread:
    """Median, minimum and quartiles of one figure over the rounds."""

    median: float
    minimum: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least two values."""
        lower, _, upper = quantiles(values, n=4, method="inclusive")
        return cls(median(values), min(values), lower, upper)


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    pause: float = 0.0,
    on_round: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Time several calls in turns.

    Parameters
    ----------
    calls
        Name → what to time.
    rounds
        How many turns each of them gets.
    pause
        Seconds to wait before a turn.
    on_round
        Called with the number of finished rounds.

    Returns
    -------
    dict
        Name → seconds of one call, one value per round.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for done in range(rounds):
            first = done % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(_turn(calls[name], repeats[name], pause))
            if on_round is not None:
                on_round(done + 1)
    finally:
        if collecting:
            gc.enable()
    return times


def ratios(times: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Divide round by round."""
    return [mine / other for mine, other in zip(times, reference, strict=True)]


def _turn(call: Callable[[], object], repeats: int, pause: float) -> float:
    if pause:
        time.sleep(pause)
    call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _repeats(call: Callable[[], object]) -> int:
    """How many calls fill a turn, from the faster of two calls after a first one."""
    call()
    fastest = math.inf
    for _ in range(2):
        start = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - start)
    return max(1, min(_MOST_CALLS, math.ceil(TURN_SECONDS / max(fastest, 1e-9))))
