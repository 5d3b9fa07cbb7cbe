"""The noise of figures: how far they may be from those of another run of the ladder.

A case has too few processes to estimate its noise, but all cases together have enough. The noise of
a kind of figures is the 95th percentile of their changes between two processes. Figures are of one
kind if they are all times or all ratios, of layers or of networks, with the same number of threads.
No printed range is narrower than that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import median, quantiles
from typing import Any

from fatnn_rs.bench.timing import Quartiles

__all__ = ["apply_noise_floor", "summarise"]

#: Parts of a figure → whether they are ratios taken inside rounds.
_SUMMARIES = {"milliseconds": False, "over_float32": True}


def summarise(processes: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return median, range and each process's median, over all rounds and processes.

    The range is from the lowest lower quartile to the highest upper quartile of any process;
    :func:`apply_noise_floor` may widen it.
    """
    quartiles = [Quartiles.of(values) for values in processes]
    return {
        "median": median(value for values in processes for value in values),
        "low": min(one.lower for one in quartiles),
        "high": max(one.upper for one in quartiles),
        "medians": [one.median for one in quartiles],
    }


def apply_noise_floor(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Widen the ranges of all figures to the noise of their kind, in place; drop ``medians``.

    Returns
    -------
    list of dict
        One per kind of figure: ``kind``, ``threads``, ``ratios``, ``pairs`` (number of pairs of
        processes compared) and ``factor`` (95th percentile of the pairs' ratios; 1 for fewer than
        two pairs).
    """
    kinds: dict[tuple[str, int, bool], list[dict[str, Any]]] = {}
    for key, summary in _summaries(cases):
        kinds.setdefault(key, []).append(summary)
    found = []
    for (kind, threads, ratios), summaries in kinds.items():
        moves = [
            abs(math.log(a / b))
            for summary in summaries
            for a, b in combinations(summary["medians"], 2)
            if a > 0 < b
        ]
        factor = math.exp(quantiles(moves, n=20, method="inclusive")[-1]) if len(moves) > 1 else 1.0
        for summary in summaries:
            summary["low"] = min(summary["low"], summary["median"] / factor)
            summary["high"] = max(summary["high"], summary["median"] * factor)
        found.append(
            {
                "kind": kind,
                "threads": threads,
                "ratios": ratios,
                "pairs": len(moves),
                "factor": factor,
            }
        )
    for case in cases:
        for row in case["figures"]:
            for name in _SUMMARIES:
                if row[name] is not None:
                    row[name].pop("medians", None)
    return found


def _summaries(
    cases: Sequence[dict[str, Any]],
) -> Iterator[tuple[tuple[str, int, bool], dict[str, Any]]]:
    for case in cases:
        for row in case["figures"]:
            for name, ratios in _SUMMARIES.items():
                # A figure divided by itself has no noise.
                if row[name] is not None and (row[name]["low"] < row[name]["high"] or not ratios):
                    yield (case["kind"], case["threads"], ratios), row[name]
