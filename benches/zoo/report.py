"""The zoo's table: milliseconds per network and candidate, and where fatnn-rs is slower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fatnn_rs.machine import Machine
from fatnn_rs.table import render
from zoo.measure import AGAINST, OURS, Row

__all__ = ["as_dict", "markdown", "slower", "table"]

#: The runtimes that the column ``rust`` is compared with.
_RUNTIMES = tuple(name for name in AGAINST if name != "torch")


def _fastest(row: Row, column: str) -> tuple[str, float] | None:
    """Return the fastest runtime other than PyTorch, and its time divided by the column's."""
    over = {
        name: cell.over[column]
        for name in _RUNTIMES
        if (cell := row.cells.get(name)) is not None and column in cell.over
    }
    return min(over.items(), key=lambda item: item[1]) if over else None


def slower(rows: Sequence[Row]) -> list[str]:
    """Return one line per network and runtime that is faster than fatnn-rs."""
    found = []
    for row in rows:
        torch = row.cells.get("torch")
        if torch is not None and torch.over.get("default", 1.0) < 1:
            found.append(
                f"{row.network}: torch takes {torch.over['default']:.2f} of default's time"
            )
        fastest = _fastest(row, "rust")
        if fastest is not None and fastest[1] < 1:
            found.append(f"{row.network}: {fastest[0]} takes {fastest[1]:.2f} of rust's time")
    return found


def _cells(row: Row) -> list[str]:
    def time(name: str) -> str:
        cell = row.cells.get(name)
        if cell is None or cell.milliseconds is None:
            return "failed"
        return f"{cell.milliseconds['median']:.3g}"

    torch, fastest = row.cells.get("torch"), _fastest(row, "rust")
    ratio = torch.over.get("default") if torch is not None else None
    return [
        row.network,
        *(time(name) for name in (*OURS, *AGAINST)),
        "" if ratio is None else f"{ratio:.2f}",
        "" if fastest is None else f"{fastest[1]:.2f} ({fastest[0]})",
    ]


_HEAD = ["network", *OURS, *AGAINST, "torch / default", "fastest runtime / rust"]


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = [
        f"{row.network}: {name}: {cell.reason}"
        for row in rows
        for name, cell in row.cells.items()
        if cell.reason
    ]
    return [*notes, *(f"slower: {text}" for text in slower(rows))]


def table(rows: Sequence[Row]) -> str:
    """Return the table and the notes below it, for a terminal."""
    text = render(_HEAD, [_cells(row) for row in rows], right=tuple(range(1, len(_HEAD) - 1)))
    return "\n".join([text, "", *_notes(rows)])


def markdown(rows: Sequence[Row], rounds: int, machine: Machine) -> str:
    """Return the table, the notes and the machine as Markdown."""
    lines = [
        f"Milliseconds per image of 224×224, one thread, medians of {rounds} interleaved rounds, "
        "`make bench-zoo`.",
        "",
        '`default`: first and last layer float, `float_layers="torch"`. `rust`: first and last '
        'layer int8, `float_layers="rust"`. Above 1 in the last two columns: fatnn-rs is faster.',
        "",
        f"| {' | '.join(_HEAD)} |",
        f"| {' | '.join('---' for _ in _HEAD)} |",
        *(f"| {' | '.join(_cells(row))} |" for row in rows),
        "",
        *(f"- {note}" for note in _notes(rows)),
        *(f"- {line}" for line in machine.lines()),
    ]
    return "\n".join(lines) + "\n"


def as_dict(rows: Sequence[Row], rounds: int, machine: Machine) -> dict[str, Any]:
    """Return rows, settings and machine as plain dicts, lists, strings and numbers."""
    return {
        "rounds": rounds,
        "threads": 1,
        "rows": [asdict(row) for row in rows],
        "slower": slower(rows),
        "machine": asdict(machine),
    }
