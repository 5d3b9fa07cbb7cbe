"""How far a figure may lie from what another ladder finds: by its own rounds, and by all figures' processes together.

A case's few processes cannot tell by themselves how far the next one would lie from them; those of
all cases can. So a figure is printed with a spread of at least what 95 of 100 figures like it (of
layers or of networks, times or ratios, with as many threads) move by from one process to another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import median, quantiles
from typing import Any

from fatnn_rs.bench.timing import Spread

__all__ = ["summarise", "widen"]

#: A figure's parts → whether they are ratios taken inside rounds.
_SUMMARIES = {"milliseconds": False, "over_float32": True}


def summarise(processes: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Summarise all rounds of all processes: median, spread, and each process's median.

    The spread reaches from the lowest lower quartile to the highest upper quartile of any process,
    until :func:`widen`.
    """
    spreads = [Spread.of(values) for values in processes]
    return {
        "median": median(value for values in processes for value in values),
        "low": min(spread.lower for spread in spreads),
        "high": max(spread.upper for spread in spreads),
        "medians": [spread.median for spread in spreads],
    }


def widen(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give every figure of collected cases the least spread of its kind, in place; processes' medians are dropped.

    Returns
    -------
    list of dict
        For every kind of figure ``kind``, ``threads``, ``ratios``, how many pairs of processes were
        compared, and the factor that 95 of 100 pairs stay within (1 where there are fewer than two
        pairs).
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
                # What is divided by itself does not move.
                if row[name] is not None and (row[name]["low"] < row[name]["high"] or not ratios):
                    yield (case["kind"], case["threads"], ratios), row[name]
