"""Find allocations in the core and its bindings that abort the process if memory runs out.

Allocations whose size depends on data use ``fatnn::memory``, whose functions return an error. Other
allocations need a comment ``// small: ...`` on their line that says why they are small. The script
ignores tests, the reference and the command-line program.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("rust/fatnn/src", "rust/fatnn-py/src")
EXCLUDED = ("rust/fatnn/src/bin", "rust/fatnn/src/reference.rs", "rust/fatnn/src/memory.rs")
ABORTING = re.compile(
    r"vec!\[[^\]]*;|\.to_vec\(\)|Vec::with_capacity|(?<!try_)\breserve(_exact)?\(\w+\)"
    r"|\.resize\(|\.repeat\("
)


def found(path: Path) -> list[str]:
    """Return the offending lines of a file, up to its tests."""
    offending = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip() == "#[cfg(test)]":
            break
        code, _, comment = line.partition("//")
        if ABORTING.search(code) and not comment.strip().startswith("small"):
            offending.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    return offending


def main() -> int:
    """Print the offending lines; return 1 if there are any."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.rs"))]
    lines = [
        line
        for path in paths
        if not str(path.relative_to(ROOT)).startswith(EXCLUDED)
        for line in found(path)
    ]
    if lines:
        print(
            "allocations that abort if memory runs out; use fatnn::memory, "
            "or add a comment `// small: REASON`:"
        )
        print("\n".join(lines))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
