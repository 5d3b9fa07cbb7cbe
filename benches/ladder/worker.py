"""Measure one case in its own process: ``python -m ladder.worker FILE``.

The case comes as JSON on standard input; results go to the file. Lines on standard output that
start with :data:`PROGRESS_MARK` report progress.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fatnn_rs.errors import FatnnError
from fatnn_rs.machine import Machine
from ladder import layers, networks
from ladder.measure import Progress
from ladder.plan import write_json

__all__ = ["PROGRESS_MARK", "main"]

PROGRESS_MARK = "@fatnn "

#: Kind of a case → function that measures it.
_MEASURES: dict[str, Callable[[dict[str, Any], Progress], dict[str, Any]]] = {
    "layer": layers.measure,
    "network": networks.measure,
}


def main() -> int:
    """Measure and write the results; return 1 after an expected error."""

    def progress(what: str, done: int, total: int) -> None:
        print(PROGRESS_MARK + json.dumps([what, done, total]), flush=True)

    given = json.loads(sys.stdin.read())
    spec = given["spec"]
    machine = asdict(Machine.current())
    try:
        found = _MEASURES[spec["case"]["kind"]]({**spec, "cache": given["cache"]}, progress)
    except FatnnError as error:
        print("fatnn:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    write_json(
        Path(sys.argv[1]), {"spec": spec, "process": given["process"], "machine": machine, **found}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
