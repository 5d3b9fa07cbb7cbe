"""Interleaved timing: calls run in turns, so that a slow phase of the machine affects all of them.

A *turn* of a call is a pause if several threads run (other runtimes' workers spin for a moment
after a call), one untimed call to refill caches and wake threads, and timed calls for at least
:data:`TURN_SECONDS`. A *round* is one turn of every call; the order rotates from round to round.
Ratios are taken inside a round, and then the median over the rounds.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

__all__ = ["PAUSE_SECONDS", "TURN_SECONDS", "Quartiles", "interleaved", "ratios"]

#: Minimum time of a turn's timed calls.
TURN_SECONDS = 2e-3

#: Pause before a turn if several threads run.
PAUSE_SECONDS = 5e-3

_MAX_CALLS = 1000


@dataclass(frozen=True)
class Quartiles:
    """Median, minimum and quartiles of a figure over the rounds."""

    median: float
    minimum: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
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
        Name → call to time.
    rounds
        Number of turns of each call.
    pause
        Seconds to wait before a turn.
    on_round
        Called with the number of finished rounds.

    Returns
    -------
    dict
        Name → seconds per call, one value per round.
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
                times[name].append(_time_turn(calls[name], repeats[name], pause))
            if on_round is not None:
                on_round(done + 1)
    finally:
        if collecting:
            gc.enable()
    return times


def ratios(times: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Divide times by those of the same round."""
    return [mine / other for mine, other in zip(times, reference, strict=True)]


def _time_turn(call: Callable[[], object], repeats: int, pause: float) -> float:
    if pause:
        time.sleep(pause)
    call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _repeats(call: Callable[[], object]) -> int:
    """Return how many calls fill a turn, based on the faster of two warm calls."""
    call()
    fastest = math.inf
    for _ in range(2):
        start = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - start)
    return max(1, min(_MAX_CALLS, math.ceil(TURN_SECONDS / max(fastest, 1e-9))))
