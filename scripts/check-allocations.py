"""Find allocations that abort the process where memory runs out, in the core and its bindings.

Sizes that data decides go through ``fatnn::memory``, whose functions return an error. A vector of a
few elements, or one that is no longer than a text that was read, may be made otherwise: its line
says why, in a comment ``// small: ...``. Tests, the reference and the command-line binary are not
looked at.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("rust/fatnn/src", "rust/fatnn-py/src")
EXCLUDED = ("rust/fatnn/src/bin", "rust/fatnn/src/reference.rs", "rust/fatnn/src/memory.rs")
ABORTING = re.compile(
    r"vec!\[[^\]]*;|\.to_vec\(\)|Vec::with_capacity|(?<!try_)\breserve(_exact)?\(\w+\)|\.resize\(|\.repeat\("
)


def found(path: Path) -> list[str]:
    """Offending lines of a file, in front of its tests."""
    offending = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip() == "#[cfg(test)]":
            break
        code, _, comment = line.partition("//")
        if ABORTING.search(code) and not comment.strip().startswith("small"):
            offending.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    return offending


def main() -> int:
    """Print what was found; 1 where that is anything."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.rs"))]
    lines = [
        line
        for path in paths
        if not str(path.relative_to(ROOT)).startswith(EXCLUDED)
        for line in found(path)
    ]
    if lines:
        print(
            "allocations that abort where there is no memory; use fatnn::memory, or say why they are small:"
        )
        print("\n".join(lines))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
