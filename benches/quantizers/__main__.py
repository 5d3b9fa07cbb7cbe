"""Command line of the comparison: ``PYTHONPATH=benches python -m quantizers --help``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fatnn_rs.cli import (
    DataOption,
    DownloadOption,
    RecipeOption,
    SettingsOption,
    run_app,
    split_names,
)
from quantizers.compare import CompareOptions, compare
from quantizers.rows import GROUPS

__all__ = ["main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code of :func:`fatnn_rs.cli.main`."""
    return run_app(app, arguments, "quantizers")


@app.command()
def measure(
    config: RecipeOption,
    data: DataOption = None,
    rows: Annotated[
        str, typer.Option(help="Rows, comma-separated, or 'all', 'ablations' or 'options'.")
    ] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Runs per row.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Parallel runs.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads per run.")] = 1,
    runs: Annotated[
        Path | None, typer.Option(help="Directory of the runs; runs/RECIPE by default.")
    ] = None,
    results: Annotated[
        Path, typer.Option(help="Directory for the table, the figures and the plot.")
    ] = Path("docs/results"),
    settings: SettingsOption = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Do not use a GPU.")] = False,
    download: DownloadOption = True,
) -> None:
    """Train all quantizers from the same float networks by one recipe; write a table and a plot."""
    options = CompareOptions(
        recipe=config,
        runs=runs or Path("runs") / Path(config).stem,
        results=results,
        settings=tuple(settings or ()),
        rows=GROUPS[rows] if rows in GROUPS else split_names(rows),
        name=f"{Path(config).stem}-{rows}" if rows in GROUPS and rows != "all" else "",
        seeds=seeds,
        data=data,
        jobs=jobs,
        threads=threads,
        download=download,
        cpu=cpu,
    )
    compare(options, Console())


if __name__ == "__main__":
    sys.exit(main())
