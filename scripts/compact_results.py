"""Shrink committed results: four significant digits, one line per entry, pictures of 64 colours.

    python scripts/compact_results.py            # rewrite the files that are not compact
    python scripts/compact_results.py --check    # only list them; exit code 1 if there are any

Measurements are reproducible to two or three digits, so more digits only make files larger. Of
networks, the times of layers are not kept. A second run changes nothing.
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


def without_layers(networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep no times of layers: they are for finding out what bounds a network, not for quoting."""
    return [
        {name: value for name, value in network.items() if name != "layers"} for network in networks
    ]


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
        if "-networks" in path.stem:
            results = without_layers(results)
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
