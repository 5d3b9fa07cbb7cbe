"""Compare two ladders of the same machine: which figures differ by more than their noise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fatnn_rs.errors import FormatError
from fatnn_rs.table import render
from ladder.rungs import FLOAT32

__all__ = ["Comparison", "compare"]

#: Suffixes of figures' names.
_TIME, _RATIO = ", ms", ", × float32"


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison. Print it.

    Attributes
    ----------
    compared
        Number of figures in both ladders.
    different
        Figures whose noise ranges do not overlap: name, first figure, second figure, and their
        ratio.
    unmatched
        Names of figures in only one ladder.
    notes
        Other differences of the two ladders.
    """

    compared: int
    different: tuple[tuple[str, str, str, float], ...]
    unmatched: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ratios(self) -> int:
        """How many of the different figures are ratios, which depend less on the machine's load."""
        return sum(where.endswith(_RATIO) for where, *_ in self.different)

    @property
    def agrees(self) -> bool:
        """Whether both ladders have the same figures, at least one, and none differ."""
        return bool(self.compared) and not self.different and not self.unmatched

    def __str__(self) -> str:
        lines = [
            *self.notes,
            f"{self.compared} figures in both, {len(self.different)} differ by more than their "
            f"noise: {len(self.different) - self.ratios} times and {self.ratios} ratios to float32 "
            "in the same rounds",
        ]
        if self.different:
            rows = [[*texts, f"{ratio:.2f}"] for *texts, ratio in self.different]
            lines += [
                "",
                render(["figure", "first", "second", "second / first"], rows, right=(1, 2, 3)),
            ]
        if self.unmatched:
            lines += ["", f"in one only: {len(self.unmatched)}"]
            lines += [f"  {name}" for name in self.unmatched]
        return "\n".join(lines)


def compare(first: Path, second: Path) -> Comparison:
    """Compare two result files of the ladder.

    Two figures differ if their printed noise ranges (``low`` to ``high``) do not overlap.

    Raises
    ------
    FormatError
        A file does not hold the results of a ladder.
    """
    results = [_read(path) for path in (first, second)]
    figures = [_figures(one) for one in results]
    both = [key for key in figures[0] if key in figures[1]]
    different = []
    for key in both:
        a, b = figures[0][key], figures[1][key]
        if a["low"] > b["high"] or b["low"] > a["high"]:
            different.append((key, _text(a), _text(b), b["median"] / a["median"]))
    unmatched = tuple(
        key for one, other in (figures, figures[::-1]) for key in one if key not in other
    )
    notes = tuple(
        f"{what}: {a} and {b}"
        for what in ("cpu", "cpu_id", "commit")
        if (a := results[0]["machine"][what]) != (b := results[1]["machine"][what])
    )
    return Comparison(len(both), tuple(different), unmatched, notes)


def _text(figure: dict[str, float]) -> str:
    return f"{figure['median']:.4g} ({figure['low']:.4g}-{figure['high']:.4g})"


def _figures(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return name → milliseconds or speed-up over float32, for all figures."""
    found = {}
    for case in results["cases"]:
        for row in case["figures"]:
            name = (
                f"{case['name']} b{case['batch']} t{case['threads']} {case['isa']}: "
                f"{row['who']}, {row['way']}"
            )
            found[name + _TIME] = row["milliseconds"]
            if row["over_float32"] is not None and row["who"] != FLOAT32:
                found[name + _RATIO] = row["over_float32"]
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        results: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(
            f"{path}: expected the JSON file that the ladder writes, got no JSON: {error}"
        ) from error
    if not isinstance(results, dict) or not {"cases", "machine"} <= results.keys():
        raise FormatError(f"{path}: expected the JSON file that the ladder writes, got other JSON")
    return results
