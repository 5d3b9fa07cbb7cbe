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

#: Seconds for one network, its runtimes and all.
_PATIENCE = 900.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code as for :func:`fatnn_rs.cli.main`."""
    return run_app(app, arguments, "zoo")


@app.command()
def measure(
    networks: Annotated[str, typer.Option(help="Networks, separated by commas; 'all'.")] = "all",
    rounds: Annotated[int, typer.Option(min=3, help="Turns of every candidate.")] = 7,
    results: Annotated[
        Path | None, typer.Option(help="Write table and figures to RESULTS/<cpu>/<date>-zoo.")
    ] = None,
) -> None:
    """Time every network as it is, in other runtimes, and converted; one process each."""
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
    """Measure one network in a process of its own: what a crash takes with it is one row."""
    command = [sys.executable, "-m", "zoo.measure", name, str(rounds)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return Row(name, {"default": Cell(reason=f"not done after {_PATIENCE:.0f} s")})
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        what = f"exit code {done.returncode}: {' '.join(said)}"
        return Row(name, {"default": Cell(reason=what)})
    plain = json.loads(done.stdout.splitlines()[-1])
    cells = {column: Cell(**cell) for column, cell in plain.pop("cells").items()}
    return Row(**plain, cells=cells)


if __name__ == "__main__":
    sys.exit(main())
