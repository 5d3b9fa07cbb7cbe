"""Turn the seconds of all processes of a case into figures: medians, ranges and ratios."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Any

from fatnn_rs.bench.timing import ratios
from ladder.measure import CODES, FLOATS
from ladder.noise import summarise
from ladder.plan import NATIVE, BenchCase
from ladder.rungs import FLOAT32, POPCOUNT

__all__ = ["cases_of", "collect", "figure", "first_per_name", "inside_network"]

#: Seconds of one call: one list per process, one value per round.
Times = list[list[float]]


def collect(case: BenchCase, processes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compute the figures of one case.

    Parameters
    ----------
    case
        The case.
    processes
        Results of its processes, at least one.

    Returns
    -------
    dict
        Plain data. ``figures`` has an entry for each rung or runtime and interface (``way``), for
        the fastest variant.
    """
    times: dict[tuple[str, str], dict[str, Times]] = {}
    kinds: dict[str, str] = {}
    facts: dict[tuple[str, str, str], dict[str, Any]] = {}
    for number, process in enumerate(processes):
        for entry in process["entries"]:
            who, way, variant = entry["who"], entry["way"], entry["variant"]
            kinds[who] = entry["kind"]
            facts.setdefault((who, way, variant), entry["facts"])
            # One list per process; it stays empty if the process has no figure.
            of_all = times.setdefault((who, way), {}).setdefault(variant, [[] for _ in processes])
            of_all[number] = entry["seconds"]
    best = {
        key: min(variants, key=lambda name: _median(variants[name]))
        for key, variants in times.items()
    }
    fastest = {key: times[key][variant] for key, variant in best.items()}
    figures = []
    for (who, way), mine in fastest.items():
        float32 = fastest.get((FLOAT32, FLOATS))
        popcount = fastest.get((POPCOUNT, way))
        figures.append(
            {
                "who": who,
                "kind": kinds[who],
                "way": way,
                "variant": best[who, way],
                "variants": _variants(times[who, way]),
                "milliseconds": summarise(
                    [[1e3 * value for value in values] for values in mine if values]
                ),
                "over_float32": None if float32 is None else _ratio(float32, mine),
                "of_popcount": None if popcount is None else _median_ratio(mine, popcount),
                "facts": facts[who, way, best[who, way]],
            }
        )
    named = {
        what: {row["who"]: row for process in processes for row in process[what]}
        for what in ("missing", "failed")
    }
    return {
        **{name: getattr(case, name) for name in ("kind", "name", "batch", "threads", "isa")},
        "row": processes[0]["spec"]["row"],
        "macs": processes[0]["macs"],
        "rounds": processes[0]["rounds"],
        "processes": len(processes),
        "figures": figures,
        **{what: list(rows.values()) for what, rows in named.items()},
        "dates": [process["machine"]["date"] for process in processes],
        "loads": [process["machine"]["load"] for process in processes],
    }


def _median(times: Times) -> float:
    return median(value for values in times for value in values)


def _variants(times: dict[str, Times]) -> dict[str, float]:
    """Milliseconds of each kernel or memory format; empty if there is only one."""
    return {name: 1e3 * _median(values) for name, values in times.items()} if len(times) > 1 else {}


def _ratio(times: Times, reference: Times) -> dict[str, Any] | None:
    """Divide the times of each round, in processes that measured both."""
    pairs = [(mine, other) for mine, other in zip(times, reference, strict=True) if mine and other]
    return summarise([ratios(mine, other) for mine, other in pairs]) if pairs else None


def _median_ratio(times: Times, reference: Times) -> dict[str, Any] | None:
    found = _ratio(times, reference)
    return None if found is None else {"median": found["median"]}


def figure(case: dict[str, Any], who: str, way: str) -> dict[str, Any] | None:
    """Return the figure of a rung or runtime, or None."""
    found: Iterable[dict[str, Any]] = (
        row for row in case["figures"] if row["who"] == who and row["way"] == way
    )
    return next(iter(found), None)


def inside_network(case: dict[str, Any], who: str) -> dict[str, Any] | None:
    """Return a layer's figure inside a network: codes to codes, else floats to floats."""
    return figure(case, who, CODES) or figure(case, who, FLOATS)


def cases_of(results: dict[str, Any], kind: str, isa: str = NATIVE) -> Iterator[dict[str, Any]]:
    """Yield all collected cases of a kind and an instruction set, in order."""
    for case in results["cases"]:
        if case["kind"] == kind and case["isa"] == isa:
            yield case


def first_per_name(cases: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first case of every layer and network: first batch size and thread count."""
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        found.setdefault(case["name"], case)
    return list(found.values())
