"""``fatnn bench``: time networks by name for all combinations of batch and threads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fatnn_rs.bench.measure import bench
from fatnn_rs.bench.networks import END_TYPES, NETWORKS, build_and_convert
from fatnn_rs.bench.peers import PEERS
from fatnn_rs.bench.results import BenchReport
from fatnn_rs.convert.api import VALUES
from fatnn_rs.errors import ConfigError, FatnnError

__all__ = ["BenchOptions", "main", "to_json", "write_results"]


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Parameters
    ----------
    models
        Keys of :data:`fatnn_rs.bench.networks.NETWORKS`.
    batches, threads
        Batch sizes and thread counts; every combination is measured.
    size
        Height and width of the images, for networks that allow it; by default the usual size.
    against
        Keys of :data:`fatnn_rs.bench.PEERS`; all by default.
    rounds
        Number of rounds.
    ends
        Types of the first and the last layer (:data:`fatnn_rs.bench.networks.END_TYPES`); each is
        measured.
    values
        Types of the values between layers (:data:`fatnn_rs.convert.api.VALUES`); each is
        measured.

    Raises
    ------
    ConfigError
        An unknown name, a number below 1, or nothing to do.
    """

    models: Sequence[str] = ("resnet18",)
    batches: Sequence[int] = (1,)
    threads: Sequence[int] = (1,)
    size: int | None = None
    against: Sequence[str] = tuple(PEERS)
    rounds: int = 25
    ends: Sequence[str] = ("float",)
    values: Sequence[str] = ("float32",)

    def __post_init__(self) -> None:
        """Validate the options."""
        asked: dict[str, Sequence[Any]] = {
            "model": self.models,
            "batch": self.batches,
            "threads": self.threads,
        }
        for what, values in (*asked.items(), ("ends", self.ends), ("values", self.values)):
            if not values:
                raise ConfigError(f"{what}: expected at least one value")
        named: dict[str, tuple[Sequence[str], Iterable[str]]] = {
            "model": (self.models, NETWORKS),
            "against": (self.against, PEERS),
            "ends": (self.ends, END_TYPES),
            "values": (self.values, VALUES),
        }
        for what, (names, known) in named.items():
            for name in names:
                if name not in known:
                    raise ConfigError(
                        f"{what}: unknown name {name!r}; known are: {', '.join(known)}"
                    )
        for what, numbers in (("batch", self.batches), ("threads", self.threads)):
            for number in numbers:
                if number < 1:
                    raise ConfigError(f"{what} must be at least 1, got {number}")


def main(options: BenchOptions, console: Console) -> list[BenchReport]:
    """Measure every combination and show a progress bar.

    Parameters
    ----------
    options
        What to measure.
    console
        Console for the progress bar.

    Returns
    -------
    list of BenchReport
        One per network, type of first and last layer, type of values, batch and number of threads,
        in this order.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    reports = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        for model, ends, values in product(options.models, options.ends, options.values):
            name = model if ends == "float" else f"{model}, {ends} ends"
            name += "" if values == "float32" else f", {values} values"
            progress.update(task, description=f"{name}: preparing", completed=0, total=None)
            ready = build_and_convert(model, options.size, ends, values)
            for batch in options.batches:
                for threads in options.threads:
                    title = f"{name}, batch {batch}, threads {threads}"

                    def show(what: str, done: int, total: int, title: str = title) -> None:
                        progress.update(
                            task, description=f"{title}: {what}", completed=done, total=total
                        )

                    report = bench(
                        ready.net,
                        ready.images(batch),
                        options.against,
                        threads,
                        float_model=ready.model,
                        rounds=options.rounds,
                        label=f"{name}, batch {batch}",
                        progress=show,
                    )
                    reports.append(replace(report, codes_verified=ready.codes))
    return reports


def write_results(reports: Sequence[BenchReport], folder: Path) -> Path:
    """Write reports as JSON to ``folder/<cpu>/<date>-networks.json``.

    If that file exists, the new one gets a number.

    Parameters
    ----------
    reports
        Reports of one run.
    folder
        Created if missing.

    Returns
    -------
    Path
        The JSON file.

    Raises
    ------
    FatnnError
        There are no reports.
    """
    if not reports:
        raise FatnnError("there are no reports to write")
    path = reports[0].machine.results_file(folder, "networks")
    path.write_text(to_json(reports) + "\n", encoding="utf-8")
    return path


def to_json(reports: Sequence[BenchReport]) -> str:
    """Return all reports as one JSON list."""
    return json.dumps([report.as_dict() for report in reports], indent=2)
