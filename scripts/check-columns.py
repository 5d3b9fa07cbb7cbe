"""List lines beyond column 100 in tracked sources, scripts and documents.

Long lines are allowed in four places: rows of Markdown tables, also in comments; lines that are
short enough without their URLs, link targets and ``type: ignore`` comments; the campaign's tables
of program text; and files of results, which programs write.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 100
SUFFIXES = {".rs", ".py", ".pyi", ".toml", ".sh", ".yaml", ".yml", ".md"}
NAMES = {"Makefile", ".ci/run"}
CAMPAIGN = ("files.py", "mutations.py", "networks.py", "ops.py", "programs/")
EXCLUDED = (
    "benches/results/",
    "docs/results/",
    *(f"tests/campaign/{name}" for name in CAMPAIGN),
)
TABLE = re.compile(r"\s*(//[/!]|#)?\s*\|.*\|$")
# A link's target `](...)`, a reference's target `[name]: ...`, a bare URL, or a pragma.
LINK = re.compile(r"\]\([^)\s]*\)|(?<=\]:) \S+|https?://[^\s)>]+|  # type: ignore\[[\w,-]+\]$")


def is_checked(name: str) -> bool:
    """Whether a tracked file's lines are checked."""
    return not name.startswith(EXCLUDED) and (name in NAMES or Path(name).suffix in SUFFIXES)


def is_too_long(line: str) -> bool:
    """Whether a line is too long and not of an allowed kind."""
    return len(line) > COLUMNS and not TABLE.fullmatch(line) and len(LINK.sub("", line)) > COLUMNS


def main() -> int:
    """Print the lines that are too long; return 1 if there are any."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    found = [
        f"{name}:{number}: {len(line)} columns"
        for name in tracked
        if is_checked(name) and (ROOT / name).is_file()
        for number, line in enumerate((ROOT / name).read_text("utf-8").splitlines(), 1)
        if is_too_long(line)
    ]
    if found:
        print(f"lines beyond column {COLUMNS}:")
        print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
