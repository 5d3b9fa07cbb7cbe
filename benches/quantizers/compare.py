"""Compare quantizers: one recipe, several rows, several seeds; a table and plots.

For each seed, every row starts from the same float network and is trained by the same recipe for
the same number of epochs. Each run is a process (``fatnn train``), by default with one thread,
which uses a CPU's cores best. A failed run does not stop the others. An interrupted comparison is
resumed.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console

from fatnn_rs.errors import ConfigError, FatnnError, UnsupportedError
from fatnn_rs.train.recipe import Recipe, load_recipe
from fatnn_rs.train.run import Run, identity
from quantizers.rows import ALL_ROWS, GROUPS, ROWS, Row

__all__ = ["CompareOptions", "compare"]


@dataclass(frozen=True)
class CompareOptions:
    """What to compare, and where to write it.

    Attributes
    ----------
    recipe
        Name or file.
    settings
        Changes of the recipe, for all rows.
    rows
        Keys of :data:`quantizers.rows.ALL_ROWS`.
    name
        Name of the result files; by default the recipe's.
    seeds
        Number of seeds, from 0 on.
    runs
        Directory of the runs: checkpoints, networks, logs.
    results
        Directory for the table, the figures and the plots.
    data
        Directory of the data set.
    jobs
        Parallel runs.
    threads
        Threads per run.
    download, cpu
        As in :class:`fatnn_rs.train.loop.TrainOptions`.
    """

    recipe: str
    runs: Path
    results: Path
    settings: tuple[str, ...] = ()
    rows: tuple[str, ...] = tuple(ROWS)
    name: str = ""
    seeds: int = 3
    data: Path | None = None
    jobs: int = 1
    threads: int = 1
    download: bool = True
    cpu: bool = False

    def __post_init__(self) -> None:
        """Validate the options."""
        unknown = [name for name in self.rows if name not in ALL_ROWS]
        if unknown:
            raise ConfigError(f"row {unknown[0]!r} is unknown; rows are {', '.join(ALL_ROWS)}")
        if min(self.seeds, self.jobs, self.threads) < 1:
            raise ConfigError(
                f"seeds, jobs and threads must be at least 1, got {self.seeds}, {self.jobs} and "
                f"{self.threads}"
            )


def compare(options: CompareOptions, console: Console) -> dict[str, Any]:
    """Train everything that is not trained yet, and write the results.

    Returns
    -------
    dict
        The content of ``results/NAME.json``.

    Raises
    ------
    ConfigError
        The recipe or a setting is wrong.
    FatnnError
        Runs failed; all others were finished. The directory of a run has its output.
    """
    recipe = load_recipe(options.recipe, options.settings)
    if recipe.float_phase is None or recipe.ternary is None:
        raise ConfigError(
            f"recipe {options.recipe}: a comparison needs both phases, float and ternary"
        )
    _require_matplotlib()
    rows = tuple(dict.fromkeys(options.rows))
    seeds = range(options.seeds)
    _run_all(options, [_float_call(options, seed) for seed in seeds], console)
    calls = [_row_call(options, name, seed) for seed in seeds for name in rows]
    _run_all(options, calls, console)
    results = _collect(options, recipe)
    _write(options, results)
    console.print(table(results), highlight=False, soft_wrap=True)
    return results


@dataclass(frozen=True)
class _Call:
    """One run: its directory, its identity, and the arguments of `fatnn train`."""

    folder: Path
    identity: dict[str, Any]
    arguments: list[str]


def _float_folder(options: CompareOptions, seed: int) -> Path:
    return options.runs / f"float-seed{seed}"


def _float_call(options: CompareOptions, seed: int) -> _Call:
    folder = _float_folder(options, seed)
    recipe = load_recipe(options.recipe, options.settings).float_only()
    what = identity(recipe, seed, 1, options.threads, None)
    return _Call(folder, what, [*_common(options, folder, seed), "--float-only"])


def _row_call(options: CompareOptions, name: str, seed: int) -> _Call:
    folder = options.runs / f"{name}-seed{seed}"
    row = ALL_ROWS[name]
    settings = [part for setting in row.settings for part in ("--set", setting)]
    start = _float_folder(options, seed) / "float.pt" if row.from_float else None
    recipe = load_recipe(options.recipe, (*options.settings, *row.settings))
    what = identity(recipe, seed, 1, options.threads, start)
    given = ["--float-from", str(start)] if start else []
    return _Call(folder, what, [*_common(options, folder, seed), *settings, *given])


def _common(options: CompareOptions, folder: Path, seed: int) -> list[str]:
    settings = [part for setting in options.settings for part in ("--set", setting)]
    place = [] if options.data is None else ["--data", str(options.data)]
    flags = [
        "--download" if options.download else "--no-download",
        *(["--cpu"] if options.cpu else []),
    ]
    fixed = ["--config", options.recipe, "--out", str(folder), "--seed", str(seed), "--json"]
    fixed += ["--threads", str(options.threads)]
    return [*fixed, *place, *flags, *settings]


def _run_all(options: CompareOptions, calls: Sequence[_Call], console: Console) -> None:
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = [
            message
            for message in pool.map(lambda call: _run(call, options.threads, console), calls)
            if message
        ]
    if failed:
        raise FatnnError(f"{len(failed)} of {len(calls)} runs failed; {failed[0]}")


def _run(call: _Call, threads: int, console: Console) -> str | None:
    """Run one call unless it is finished; return the reason if it failed."""
    try:
        if Run(call.folder, call.identity, write=False).result is not None:
            return None
    except FatnnError as error:  # The directory holds another run.
        return str(error)
    call.folder.mkdir(parents=True, exist_ok=True)
    console.print(f"training {call.folder}", highlight=False)
    log = call.folder / "output.txt"
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, "-m", "fatnn_rs", "train", *call.arguments],
            stdout=subprocess.DEVNULL,
            stderr=file,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
    if done.returncode == 0:
        return None
    said = [
        line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("fatnn:")
    ][-1:]
    reason = said[0] if done.returncode == 1 and said else f"exit code {done.returncode}, see {log}"
    return f"{call.folder}: {reason}"


def _result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return found


def _collect(options: CompareOptions, recipe: Recipe) -> dict[str, Any]:
    floats = [_result(_float_folder(options, seed)) for seed in range(options.seeds)]
    everything = list(floats)
    rows = [
        _line(
            "float", Row("float", (), "32 bits", "32 bits", "-"), floats, "float_accuracy", floats
        )
    ]
    for name in options.rows:
        runs = [_result(options.runs / f"{name}-seed{seed}") for seed in range(options.seeds)]
        everything += runs
        rows.append(_line(name, ALL_ROWS[name], runs, "ternary_accuracy", floats))
    machine = floats[0]["machine"]
    return {
        "recipe": options.recipe,
        "settings": list(options.settings),
        "seeds": options.seeds,
        "command": _command(options),
        "options": recipe.to_json(),
        "machine": machine,
        "commits": sorted({str(run["machine"]["commit"]) for run in everything}),
        "rows": rows,
    }


def _command(options: CompareOptions) -> str:
    groups = {rows: "" if name == "all" else f" --rows {name}" for name, rows in GROUPS.items()}
    rows = groups.get(options.rows, f" --rows {','.join(options.rows)}")
    settings = "".join(f" --set {shlex.quote(setting)}" for setting in options.settings)
    threads = "" if options.threads == 1 else f" --threads {options.threads}"
    return (
        f"python -m quantizers --config {options.recipe} --data DATA --seeds {options.seeds}"
        f"{rows}{threads}{settings}"
    )


def _line(
    name: str, row: Row, runs: list[dict[str, Any]], key: str, floats: list[dict[str, Any]]
) -> dict[str, Any]:
    scores = [run[key] for run in runs]
    codes = [run.get("codes_total", 0) for run in runs]
    for run in runs:
        if "rust_accuracy" in run and run["rust_accuracy"] != run["eager_accuracy"]:
            raise FatnnError(f"{name}: Rust and PyTorch differ in accuracy")
    phase = "float" if key == "float_accuracy" else "ternary"
    curves = [
        [line["test_accuracy"] for line in run["log"] if line["phase"] == phase] for run in runs
    ]
    return {
        "name": name,
        **{
            field: value
            for field, value in asdict(row).items()
            if field not in ("settings", "from_float")
        },
        "accuracies": scores,
        "mean": mean(scores),
        "std": stdev(scores) if len(scores) > 1 else None,
        "below_float": mean(run["float_accuracy"] for run in floats) - mean(scores),
        "rust_accuracies": [run.get("rust_accuracy") for run in runs],
        "codes_total": sum(codes),
        "codes_different": sum(run.get("codes_different", 0) for run in runs),
        "file_bytes": runs[0].get("file_bytes"),
        "curves": curves,
    }


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table; the best ternary row is bold."""
    lines = [
        "| quantizer | weights | activations | cost | test accuracy, % | below float "
        "| codes that differ | file, KiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    ternary = [
        row["mean"]
        for row in results["rows"]
        if row["cost"] == "2N" and row["act_bits"] == "ternary"
    ]
    for row in results["rows"]:
        spread = "" if row["std"] is None else f" ± {100 * row['std']:.2f}"
        score = f"{100 * row['mean']:.2f}{spread}"
        if ternary and row["mean"] == max(ternary):
            score = f"**{score}**"
        codes = f"{row['codes_different']} of {row['codes_total']:,}" if row["codes_total"] else "-"
        size = "-" if row["file_bytes"] is None else f"{row['file_bytes'] / 1024:.0f}"
        below = "" if row["name"] == "float" else f"{100 * row['below_float']:.2f}"
        fixed = [row[key] for key in ("title", "weight_bits", "act_bits", "cost")]
        cells = [*fixed, score, below, codes, size]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _write(options: CompareOptions, results: dict[str, Any]) -> None:
    options.results.mkdir(parents=True, exist_ok=True)
    name = options.name or Path(options.recipe).stem
    machine, recipe = results["machine"], results["options"]
    versions = ", ".join(
        f"{key} {value}"
        for key, value in machine["versions"].items()
        if key in ("fatnn-rs", "torch")
    )
    spread = _seeds_caption(results)
    epochs = [recipe[phase]["epochs"] for phase in ("float", "ternary")]
    text = [
        f"# {name}",
        "",
        f"{recipe['description']} {epochs[0]} epochs of float training, then {epochs[1]} of "
        "ternary training from the same float network for every row (except those from scratch); "
        f"{spread}. Accuracies are those of the last epoch, not of the best one. `cost`: passes "
        "over N bits for an inner product of N values.",
        "",
        table(results),
        "",
        f"    {results['command']}",
        "",
        f"{machine['cpu']} ({machine['cpu_id']}), {machine['date'][:10]}, commit "
        f"{', '.join(results['commits'])}; {versions}. All figures, with seeds and curves: "
        f"[{name}.json]({name}.json).",
        "",
        f"![accuracy of every row, and over epochs]({name}.png)",
    ]
    (options.results / f"{name}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (options.results / f"{name}.json").write_text(
        json.dumps(results, indent=1) + "\n", encoding="utf-8"
    )
    _draw(results, options.results / f"{name}.png")


def _seeds_caption(results: dict[str, Any]) -> str:
    seeds = results["seeds"]
    return f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "a comparison draws with matplotlib: pip install 'fatnn-rs[plot]'"
        ) from error


def _draw(results: dict[str, Any], path: Path) -> None:
    """Draw the accuracies with their standard deviation, and the mean curve of every row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    bars, curves = figure.subplots(1, 2)
    rows = results["rows"]
    places = range(len(rows))
    scores = [100 * row["mean"] for row in rows]
    errors = [100 * (row["std"] or 0.0) for row in rows]
    colours = ["black", *(f"C{i}" for i in range(len(rows) - 1))]
    bars.errorbar(scores, places, xerr=errors, fmt="none", ecolor="grey", capsize=3)
    for place, score, colour in zip(places, scores, colours, strict=True):
        bars.plot([score], [place], "o", color=colour)
    bars.set_yticks(list(places), [row["title"] for row in rows])
    bars.invert_yaxis()
    bars.grid(axis="x", alpha=0.3)
    bars.set(xlabel="test accuracy, %", title=_seeds_caption(results))
    for row, colour in zip(rows, colours, strict=True):
        points = [100 * mean(values) for values in zip(*row["curves"], strict=True)]
        curves.plot(range(1, len(points) + 1), points, color=colour, label=row["title"])
    worst = min(100 * min(map(min, row["curves"])) for row in rows)
    curves.set(
        xlabel="epoch of its phase",
        ylabel="test accuracy, %",
        ylim=(max(worst, min(scores) - 6), max(scores) + 0.5),
    )
    curves.set_title("accuracy over epochs")
    curves.grid(alpha=0.3)
    curves.legend(fontsize=8)
    figure.savefig(path, dpi=110)
