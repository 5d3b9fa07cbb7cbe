"""Whether two ladders of the same machine tell the same: figure by figure, within the spreads that they print."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fatnn_rs.errors import FormatError
from fatnn_rs.table import render
from ladder.rungs import FLOAT32

__all__ = ["Comparison", "compare"]

#: Ends of figures' names.
_TIME, _RATIO = ", ms", ", × float32"


@dataclass(frozen=True)
class Comparison:
    """What was compared. Print it.

    Attributes
    ----------
    compared
        Figures in both.
    different
        Those whose spreads do not overlap: where, the first ladder's figure, the second's, as text,
        and their ratio.
    alone
        Figures in one of them only.
    notes
        In what else the two differ.
    """

    compared: int
    different: tuple[tuple[str, str, str, float], ...]
    alone: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ratios(self) -> int:
        """How many of those that differ are ratios, which other work on the machine moves less than times."""
        return sum(where.endswith(_RATIO) for where, *_ in self.different)

    @property
    def holds(self) -> bool:
        """Whether all figures were in both ladders, some at least, and agreed."""
        return bool(self.compared) and not self.different and not self.alone

    def __str__(self) -> str:
        lines = [
            *self.notes,
            f"{self.compared} figures in both, {len(self.different)} differ by more than their spread: "
            f"{len(self.different) - self.ratios} times and {self.ratios} ratios to float32 in the same rounds",
        ]
        if self.different:
            rows = [[*texts, f"{ratio:.2f}"] for *texts, ratio in self.different]
            lines += [
                "",
                render(["figure", "first", "second", "second / first"], rows, right=(1, 2, 3)),
            ]
        if self.alone:
            lines += ["", f"in one only: {len(self.alone)}", *(f"  {name}" for name in self.alone)]
        return "\n".join(lines)


def compare(first: Path, second: Path) -> Comparison:
    """Compare two result files of the ladder.

    Two figures differ where the spreads (``low`` to ``high``) that they are printed with do not
    overlap.

    Raises
    ------
    FormatError
        A file that holds no results of a ladder.
    """
    results = [_read(path) for path in (first, second)]
    figures = [_figures(one) for one in results]
    both = [key for key in figures[0] if key in figures[1]]
    different = []
    for key in both:
        a, b = figures[0][key], figures[1][key]
        if a["low"] > b["high"] or b["low"] > a["high"]:
            different.append((key, _text(a), _text(b), b["median"] / a["median"]))
    alone = tuple(key for one, other in (figures, figures[::-1]) for key in one if key not in other)
    notes = tuple(
        f"{what}: {a} and {b}"
        for what in ("cpu", "cpu_id", "commit")
        if (a := results[0]["machine"][what]) != (b := results[1]["machine"][what])
    )
    return Comparison(len(both), tuple(different), alone, notes)


def _text(figure: dict[str, float]) -> str:
    return f"{figure['median']:.4g} ({figure['low']:.4g}-{figure['high']:.4g})"


def _figures(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Name → milliseconds, and multiples of float32's speed, of every figure."""
    found = {}
    for case in results["cases"]:
        for row in case["figures"]:
            name = f"{case['name']} b{case['batch']} t{case['threads']} {case['isa']}: {row['who']}, {row['way']}"
            found[name + _TIME] = row["milliseconds"]
            if row["over_float32"] is not None and row["who"] != FLOAT32:
                found[name + _RATIO] = row["over_float32"]
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        results: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(
            f"{path}: expected the JSON file of a ladder, got something else: {error}"
        ) from error
    if not isinstance(results, dict) or not {"cases", "machine"} <= results.keys():
        raise FormatError(f"{path}: expected the JSON file that the ladder writes, got other JSON")
    return results
