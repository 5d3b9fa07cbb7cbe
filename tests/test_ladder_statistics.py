"""Spreads, the noise floor and ratios of the precision ladder."""

from __future__ import annotations

from typing import Any

import pytest

from ladder import RUNGS, plan
from ladder.collect import collect, figure
from ladder.noise import apply_noise_floor, summarise
from ladder.plan import BenchCase


def test_spread_covers_all_processes() -> None:
    found = summarise([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])
    assert found == {"median": 2.5, "low": 1.5, "high": 5.0, "medians": [2.0, 4.0]}


def test_noise_floor_widens_spreads_to_the_movement_between_processes() -> None:
    def row(*processes: list[float]) -> dict[str, Any]:
        same = summarise([[1.0, 1.0, 1.0]] * len(processes))
        return {"milliseconds": summarise(processes), "over_float32": same, "of_popcount": None}

    def case(kind: str, threads: int, *rows: dict[str, Any]) -> dict[str, Any]:
        return {"kind": kind, "threads": threads, "figures": list(rows)}

    steady, changing = row([10.0] * 3, [10.0] * 3), row([10.0] * 3, [20.0] * 3)
    other, single_process = row([5.0] * 3, [5.0] * 3), row([5.0, 6.0, 7.0])
    found = apply_noise_floor(
        [
            case("layer", 1, steady, changing),
            case("layer", 2, other),
            case("network", 1, single_process),
        ]
    )
    # Two pairs moved by factors of 1 and 2; their 95th percentile is 2 ** 0.95.
    factor = 2.0**0.95
    assert [
        (one["kind"], one["threads"], one["ratios"], one["pairs"], one["factor"]) for one in found
    ] == [
        ("layer", 1, False, 2, pytest.approx(factor)),
        ("layer", 2, False, 1, 1.0),
        ("network", 1, False, 0, 1.0),
    ]
    times = steady["milliseconds"]
    assert (times["low"], times["high"]) == (pytest.approx(10 / factor), pytest.approx(10 * factor))
    assert changing["milliseconds"]["low"] == pytest.approx(15 / factor)
    assert changing["milliseconds"]["high"] == pytest.approx(15 * factor)
    assert (other["milliseconds"]["low"], other["milliseconds"]["high"]) == (5.0, 5.0)
    assert (single_process["milliseconds"]["low"], single_process["milliseconds"]["high"]) == (
        5.5,
        6.5,
    )
    # A figure relative to itself is constant.
    assert steady["over_float32"]["high"] == 1.0


def _process_result(seconds: dict[tuple[str, str, str], list[float]]) -> dict[str, Any]:
    entries = [
        {"who": who, "kind": "rung" if who in RUNGS else "peer", "way": way, "variant": variant,
        "facts": {},
         "seconds": values}
        for (who, way, variant), values in seconds.items()
    ]  # fmt: skip
    row = {"title": "t", "channels": 128, "out_channels": 128, "window": 3}
    record = {"date": "2026-01-01", "load": None}
    spec = {"row": row}
    return {
        "spec": spec,
        "macs": 1,
        "rounds": 3,
        "machine": record,
        "entries": entries,
        "missing": [],
        "failed": [],
    }


def test_ratios_are_taken_within_rounds_for_the_fastest_variant() -> None:
    # The machine runs at half speed in the second round; ratios within rounds cancel that.
    unit = _process_result(
        {
            ("float32", "floats", ""): [8.0, 16.0, 8.0],
            ("ternary-popcount", "codes", "p"): [1.0, 2.0, 1.0],
            ("ternary-table", "codes", "slow"): [9.0, 9.0, 9.0],
            ("ternary-table", "codes", "fast"): [0.5, 1.0, 0.5],
            ("ternary-table", "floats", "fast"): [2.0, 4.0, 2.0],
            ("dorefa-popcount", "codes", "p"): [2.0, 4.0, 2.0],
            ("uint2-popcount", "codes", "p"): [1.2, 2.4, 1.2],
            ("some-int8", "floats", ""): [1.0, 2.0, 1.0],
        }
    )
    case = collect(BenchCase("layer", "made", 1, 1, plan.NATIVE), [unit, unit])
    table = figure(case, "ternary-table", "codes")
    assert table is not None
    assert table["variant"] == "fast"
    assert table["over_float32"] == {
        **dict.fromkeys(("median", "low", "high"), 16.0),
        "medians": [16.0] * 2,
    }
    assert table["of_popcount"]["median"] == 0.5
