"""Plain-text tables for reports."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["render"]


def render(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Lay out a table with aligned columns.

    Parameters
    ----------
    head
        Column titles.
    rows
        Rows of cells, one cell per column.
    right
        Indices of right-aligned columns (numbers).
    """
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)
