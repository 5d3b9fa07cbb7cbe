"""Interleaved medians: how the demo compares latencies."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

__all__ = ["interleaved_medians"]


def interleaved_medians(calls: Mapping[str, Callable[[], object]], seconds: float, warmup: int = 2) -> dict[str, float]:
    """Time several calls in turn, so that a machine that slows down slows all of them; take medians.

    Parameters
    ----------
    calls
        Name → what to time.
    seconds
        Time to spend on all of them together, warm-up included; every call is timed at least three times.
    warmup
        Untimed calls of each at the beginning.

    Returns
    -------
    dict
        Name → median seconds.
    """
    deadline = time.perf_counter() + seconds
    for call in calls.values():
        for _ in range(warmup):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    rounds = 0
    while rounds < 3 or time.perf_counter() < deadline:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: median(values) for name, values in times.items()}
