"""What the ladder was aimed at, compared with what was measured. One row each; no figure is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fatnn_rs.bench.ladder.collect import every, figure
from fatnn_rs.bench.ladder.measure import CODES, FLOATS
from fatnn_rs.bench.ladder.rungs import RUNGS

__all__ = ["TARGETS", "Target", "check"]

#: Where, the ratio measured, and between whom.
Found = tuple[str, float, str]


@dataclass(frozen=True)
class Target:
    """A bound on a ratio of times.

    Attributes
    ----------
    title
        What is claimed.
    bound
        Ratios up to it meet the target.
    find
        Every place where the ratio was measured.
    """

    title: str
    bound: float
    find: Callable[[dict[str, Any]], Iterator[Found]]


def where(cell: dict[str, Any]) -> str:
    """Name a cell in a table."""
    return f"{cell['name']}, batch {cell['batch']}, threads {cell['threads']}"


def _of_popcount(results: dict[str, Any], who: str, channels: int = 1) -> Iterator[tuple[dict[str, Any], float]]:
    """Layers with so many channels, and a rung's time as a multiple of ternary popcount's, codes to codes."""
    for cell in every(results, "layer"):
        found = figure(cell, who, CODES)
        if found and found["of_popcount"] and min(cell["row"]["channels"], cell["row"]["out_channels"]) >= channels:
            yield cell, found["of_popcount"]["median"]


def _halved(results: dict[str, Any]) -> Iterator[Found]:
    for cell, ratio in _of_popcount(results, "dorefa-popcount", 128):
        yield where(cell), 1 / ratio, "ternary-popcount / dorefa-popcount"


def _two_bits(results: dict[str, Any]) -> Iterator[Found]:
    found: dict[str, Found] = {}
    for who in (rung for rung in RUNGS if rung.startswith("uint2-")):
        for cell, ratio in _of_popcount(results, who):
            place = where(cell)
            if place not in found or ratio < found[place][1]:
                found[place] = place, ratio, f"{who} / ternary-popcount"
    yield from found.values()


def _int8_peers(results: dict[str, Any]) -> Iterator[Found]:
    layers = [cell for cell in every(results, "layer") if cell["row"]["window"] == 3]
    resnets = [cell for cell in every(results, "network") if "resnet" in cell["name"]]
    for cell in (*layers, *resnets):
        floats = {row["who"]: row["milliseconds"]["median"] for row in cell["figures"] if row["way"] == FLOATS}
        ours = {who: time for who, time in floats.items() if who in RUNGS and RUNGS[who].ternary}
        peers = {who: time for who, time in floats.items() if who.endswith("-int8")}
        if ours and peers:
            mine, other = min(ours, key=lambda who: ours[who]), min(peers, key=lambda who: peers[who])
            yield where(cell), ours[mine] / peers[other], f"{mine} / {other}"


TARGETS: tuple[Target, ...] = (
    Target("ternary popcount takes at most 0.6 of the 4N kernel's time, from 128 channels on", 0.6, _halved),
    Target("2-bit activations, by the fastest family, take at most 1.1 of ternary popcount's time", 1.1, _two_bits),
    Target("the fastest ternary rung is as fast as the fastest int8 peer, floats to floats", 1.0, _int8_peers),
)


def check(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare results with every target: plain data, a list of places for each."""
    return [
        {
            "title": target.title,
            "bound": target.bound,
            "places": [
                {"where": place, "ratio": ratio, "between": between, "met": ratio <= target.bound}
                for place, ratio, between in target.find(results)
            ],
        }
        for target in TARGETS
    ]
