"""The zoo's command line: ``PYTHONPATH=benches python -m zoo --help``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fatnn_rs.cli import run_app, split_names
from fatnn_rs.errors import ConfigError
from fatnn_rs.machine import Machine
from zoo import ZOO, report
from zoo.measure import Cell, Row

__all__ = ["main"]

#: Maximum time for one network with all its runtimes.
_TIMEOUT_SECONDS = 900.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code, as :func:`fatnn_rs.cli.main`."""
    return run_app(app, arguments, "zoo")


@app.command()
def measure(
    networks: Annotated[str, typer.Option(help="Networks, separated by commas, or 'all'.")] = "all",
    rounds: Annotated[int, typer.Option(min=3, help="Number of interleaved rounds.")] = 7,
    results: Annotated[
        Path | None, typer.Option(help="Write the table and all figures below this folder.")
    ] = None,
) -> None:
    """Time networks in PyTorch, in other runtimes, and converted; one process per network."""
    names = tuple(ZOO) if networks == "all" else split_names(networks)
    for name in names:
        if name not in ZOO:
            raise ConfigError(f"networks: unknown name {name!r}; known are: {', '.join(ZOO)}")
    machine, console, rows = Machine.current(), Console(stderr=True), []
    for number, name in enumerate(names):
        console.print(f"{number + 1}/{len(names)} {name}", highlight=False)
        rows.append(_row(name, rounds))
    print(report.table(rows))
    if results is not None:
        path = machine.results_file(results, "zoo")
        found = report.as_dict(rows, rounds, machine)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        text = report.markdown(rows, rounds, machine)
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        print(f"written to {path}", file=sys.stderr)


def _row(name: str, rounds: int) -> Row:
    """Measure one network in its own process, so that a crash costs only one row."""
    command = [sys.executable, "-m", "zoo.measure", name, str(rounds)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Row(name, {"default": Cell(reason=f"not done after {_TIMEOUT_SECONDS:.0f} s")})
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        what = f"exit code {done.returncode}: {' '.join(said)}"
        return Row(name, {"default": Cell(reason=what)})
    plain = json.loads(done.stdout.splitlines()[-1])
    cells = {column: Cell(**cell) for column, cell in plain.pop("cells").items()}
    return Row(**plain, cells=cells)


if __name__ == "__main__":
    sys.exit(main())
