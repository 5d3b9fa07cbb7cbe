"""The ladder's command line: ``PYTHONPATH=benches python -m ladder --help``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fatnn_rs.bench import PEERS
from fatnn_rs.cli import run_app, split_names, split_numbers
from fatnn_rs.errors import FatnnError, UnsupportedError
from ladder import NETWORKS, RUNGS, SHAPES, command, plan, plots, report
from ladder.compare import compare

__all__ = ["main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code of :func:`fatnn_rs.cli.main`."""
    return run_app(app, arguments, "ladder")


@app.command()
def measure(
    layers: Annotated[str, typer.Option(help="Layers, comma-separated; 'all' or 'none'.")] = "all",
    networks: Annotated[
        str, typer.Option(help="Networks, comma-separated; 'all' or 'none'.")
    ] = "all",
    rungs: Annotated[str, typer.Option(help="Precisions, comma-separated; 'all'.")] = "all",
    batch: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,8",
    threads: Annotated[
        str, typer.Option(help="Thread counts, comma-separated; 'all': one, and all CPUs.")
    ] = "all",
    isa: Annotated[
        str, typer.Option(help="Instruction sets: native, scalar, avx2, ...; 'all' of this CPU.")
    ] = "all",
    against: Annotated[
        str, typer.Option(help="Runtimes to compare with, comma-separated; 'all' or 'none'.")
    ] = "all",
    rounds: Annotated[int, typer.Option(min=3, help="Rounds in each process.")] = 11,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes per case, one after the other.")
    ] = 3,
    out: Annotated[
        Path, typer.Option(help="Directory of the ladder; an interrupted ladder is resumed.")
    ] = Path("runs/ladder"),
    instructions: Annotated[
        Path | None,
        typer.Option(
            help="Output of `cargo bench --bench instructions`.", exists=True, dir_okay=False
        ),
    ] = None,
    accuracies: Annotated[Path, typer.Option(help="Directory of the quantizers' results.")] = Path(
        "docs/results"
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write figures to this file; '-': print them.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Write report, figures, plots to RESULTS/<cpu>/<date>.")
    ] = None,
    pair: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare", help="Only compare two JSON files of ladders.", show_default=False
        ),
    ] = None,
) -> None:
    """Time every precision and other runtimes on the same layers and networks; resumable."""
    if pair is not None:
        compared = compare(*pair)
        print(compared)
        if not compared.agrees:
            raise FatnnError(f"{pair[0]} and {pair[1]} do not agree; see the comparison above")
        return
    if results is not None:
        plots.require_matplotlib()

    def chosen(text: str, every: Sequence[str]) -> tuple[str, ...]:
        return (
            {"all": tuple(every), "none": ()}[text]
            if text in ("all", "none")
            else split_names(text)
        )

    options = plan.LadderOptions(
        layers=chosen(layers, tuple(SHAPES)),
        networks=chosen(networks, tuple(NETWORKS)),
        rungs=chosen(rungs, tuple(RUNGS)),
        batches=split_numbers("--batch", batch),
        threads=() if threads == "all" else split_numbers("--threads", threads),
        isas=chosen(isa, plan.available_isas()),
        against=chosen(against, tuple(PEERS)),
        rounds=rounds,
        processes=processes,
        out=out,
    )
    found = command.ladder(options, Console(stderr=True), instructions, accuracies)
    if json_file == Path("-"):
        print(json.dumps(found, indent=1))
    else:
        print(report.markdown(found))
    if json_file is not None and json_file != Path("-"):
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if results is not None:
        print(f"written to {command.publish(found, results)}", file=sys.stderr)
    failed = command.failures(found)
    if failed:
        raise UnsupportedError(f"not measured: {'; '.join(failed)}; the report says why")


if __name__ == "__main__":
    sys.exit(main())
