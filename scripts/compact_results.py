"""Shrink committed results: four significant digits, one line per entry, pictures of 64 colours.

    python scripts/compact_results.py            # rewrite the files that are not compact
    python scripts/compact_results.py --check    # only list them; exit code 1 if there are any

Measurements are reproducible to two or three digits, so more digits only make files larger. Of a
ladder's figures, only those in its plots are kept; its report has the others. A second run changes
nothing.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = ("benches/results/*/20*-*", "docs/results/*")
DIGITS = 4


def rounded(value: Any) -> Any:
    """Round all floats in plain data; integers are counts and stay."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return value


def plotted(results: dict[str, Any]) -> dict[str, Any]:
    """Keep the figures of a ladder that its plots show: ``ladder.plots`` draws the same from them.

    These are the rungs' figures for the first batch size and thread count of each layer and
    network.
    """
    cases: dict[tuple[str, str], dict[str, Any]] = {}
    for case in results["cases"]:
        if case["isa"] == "native":
            cases.setdefault((case["kind"], case["name"]), case)
    kept = {name: results[name] for name in ("command", "machine", "rungs", "accuracies")}
    return {**kept, "cases": [_plotted_case(case, results["rungs"]) for case in cases.values()]}


def _plotted_case(case: dict[str, Any], rungs: dict[str, Any]) -> dict[str, Any]:
    """Keep one figure per rung: codes to codes if there is one, else floats to floats."""
    figures: dict[str, dict[str, Any]] = {}
    for row in sorted(case["figures"], key=lambda row: row["way"] != "codes"):
        if row["who"] in rungs:
            names = ("who", "way", "milliseconds", "over_float32")
            figures.setdefault(row["who"], {name: row[name] for name in names})
    names = ("kind", "name", "batch", "threads", "isa")
    return {**{name: case[name] for name in names}, "figures": list(figures.values())}


def line(value: Any) -> str:
    """Format as JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def lines(value: Any, depth: int = 2) -> str:
    """Format as JSON, with one line per entry of the outer levels, for readable diffs."""
    if depth == 0 or not value or not isinstance(value, (dict, list)):
        return line(value)
    if isinstance(value, list):
        return "[\n" + ",\n".join(lines(item, depth - 1) for item in value) + "\n]"
    return (
        "{\n"
        + ",\n".join(f"{line(name)}:{lines(item, depth - 1)}" for name, item in value.items())
        + "\n}"
    )


def compact(path: Path) -> bytes:
    """Return the compact content of a file."""
    before = path.read_bytes()
    if path.suffix == ".json":
        results = json.loads(before)
        if path.stem.endswith("-ladder"):
            results = plotted(results)
        return (lines(rounded(results)) + "\n").encode()
    if path.suffix == ".png":
        from PIL import Image

        image = Image.open(io.BytesIO(before))
        if image.mode != "P":
            after = io.BytesIO()
            image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
                after, "PNG", optimize=True
            )
            return after.getvalue()
    return before


def main(arguments: list[str]) -> int:
    """Rewrite the files or, with ``--check``, list them."""
    check = arguments == ["--check"]
    paths = [path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]
    found = [(path, after) for path in paths if (after := compact(path)) != path.read_bytes()]
    for path, after in found:
        print(f"{'not compact' if check else 'compacted'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_bytes(after)
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
