"""``fatnn demo``: train float and ternary networks, convert, verify, save, load and time them.

Each seed is one run of the recipe ``digits``, shortened. The data are scikit-learn's 8x8 digits, a
fifth of them held out. Every figure of the table is measured in this run.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

import fatnn_rs
from fatnn_rs import demo_report
from fatnn_rs.bench.timing import PAUSE_SECONDS, interleaved
from fatnn_rs.convert import TernaryNetwork
from fatnn_rs.errors import ConfigError, FatnnError
from fatnn_rs.machine import usable_cpus
from fatnn_rs.operations import products_of
from fatnn_rs.train.data import Data, load_data
from fatnn_rs.train.loop import TrainOptions, train
from fatnn_rs.train.models import build_model
from fatnn_rs.train.recipe import load_recipe
from fatnn_rs.train.run import read_state

__all__ = ["TERNARY_GAP", "TERNARY_MEAN", "DemoOptions", "main"]

#: Targets: minimum mean accuracy of the ternary networks, and how far it may be below float.
TERNARY_MEAN = 0.985
TERNARY_GAP = 0.007

_RECIPE = "digits"

#: Modules that the fork server imports before it forks the training processes.
_PRELOADED = ["fatnn_rs.demo", "sklearn.model_selection", "torch._dynamo"]


@dataclass(frozen=True)
class DemoOptions:
    """Options of the demo.

    Parameters
    ----------
    seeds
        Number of networks to train, from seed 0 on. The first one is timed and kept.
    float_epochs, ternary_epochs
        Epochs of the two phases.
    out
        Directory for the network, the picture, the figures and the training runs; created if
        missing.
    picture
        Whether to draw training curves and weight codes (needs matplotlib).
    rounds
        Timed rounds of the latency measurements.
    """

    seeds: int = 3
    float_epochs: int = 6
    ternary_epochs: int = 10
    out: Path = field(default_factory=lambda: Path("demo-output"))
    picture: bool = True
    rounds: int = 15

    def __post_init__(self) -> None:
        """Validate."""
        for name in ("seeds", "float_epochs", "ternary_epochs", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def settings(self) -> tuple[str, ...]:
        """Changes of the recipe: fewer epochs, and a warm-up in proportion."""
        phases = {"float": self.float_epochs, "ternary": self.ternary_epochs}
        return tuple(
            f"{phase}.{key}={value}"
            for phase, epochs in phases.items()
            for key, value in (("epochs", epochs), ("warmup_epochs", epochs / 8))
        )


def main(options: DemoOptions | None = None, console: Console | None = None) -> dict[str, Any]:
    """Run the demo.

    Parameters
    ----------
    options
        ``DemoOptions()`` by default.
    console
        Console for the progress bar and the table; standard output by default.

    Returns
    -------
    dict
        Every figure, as written to ``out/demo.json``.

    Raises
    ------
    FatnnError
        A training run failed, for instance because PyTorch and Rust differ. Or the targets were
        missed with the default number of networks and epochs, after everything was written.
    UnsupportedError
        matplotlib is missing, and ``picture`` needs it.
    """
    options = DemoOptions() if options is None else options
    console = Console() if console is None else console
    if options.picture:
        demo_report.require_matplotlib()
    options.out.mkdir(parents=True, exist_ok=True)
    result = _measure(options, console)
    json_path = options.out / "demo.json"
    result["files"]["figures"] = str(json_path)
    json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    demo_report.show(result, console)
    targets = result["targets"]
    if targets["binding"] and not targets["hold"]:
        raise FatnnError(
            f"the demonstration misses its targets: {demo_report.targets_line(result)}"
        )
    return result


def _targets(average: dict[str, float], options: DemoOptions) -> dict[str, Any]:
    """Compare mean accuracies with the targets, which are binding for the default options only."""
    usual = DemoOptions()
    gap = average["float_accuracy"] - average["rust_accuracy"]
    epsilon = 1e-9  # Tolerance for rounding of the means.
    return {
        "ternary_mean_at_least": TERNARY_MEAN,
        "float_minus_ternary_at_most": TERNARY_GAP,
        "float_minus_ternary": gap,
        "hold": average["rust_accuracy"] >= TERNARY_MEAN - epsilon and gap <= TERNARY_GAP + epsilon,
        "binding": all(
            getattr(options, name) == getattr(usual, name)
            for name in ("seeds", "float_epochs", "ternary_epochs")
        ),
    }


def _measure(options: DemoOptions, console: Console) -> dict[str, Any]:
    """Train and measure; return all figures."""
    started = time.perf_counter()
    recipe = load_recipe(_RECIPE, options.settings)
    data = load_data(recipe, None)
    folders = [options.out / "runs" / f"seed-{seed}" for seed in range(options.seeds)]
    _train_all(options, folders, console)
    trained_at = time.perf_counter()

    runs = [_figures(seed, folder) for seed, folder in enumerate(folders)]
    path = options.out / "digits.safetensors"
    shutil.copyfile(folders[0] / "net.safetensors", path)
    network = fatnn_rs.load(path)
    float_model = build_model(recipe, data.classes)
    float_model.load_state_dict(read_state(folders[0] / "float.pt")["model"])
    average = {
        key: mean(run[key] for run in runs)
        for key in ("float_accuracy", "ternary_accuracy", "rust_accuracy")
    }
    codes = _codes(network)
    result: dict[str, Any] = {
        "data": {"train": data.train_count, "test": data.test_count, "split": "stratified, seed 0"},
        "options": {
            "seeds": options.seeds,
            "epochs": [options.float_epochs, options.ternary_epochs],
        },
        "runs": runs,
        "mean": average,
        "targets": _targets(average, options),
        "codes_total": sum(run["codes_total"] for run in runs),
        "codes_different": sum(run["codes_different"] for run in runs),
        "sizes": _sizes(float_model, network, codes, path),
        "latency_ms": _latencies(float_model, network, data, options.rounds),
        "cpu": fatnn_rs.cpu_info(),
        "versions": {"torch": torch.__version__},
        "files": {"network": str(path)},
    }
    if options.picture:
        picture = options.out / "demo.png"
        demo_report.draw(runs, codes, picture)
        result["files"]["picture"] = str(picture)
    result["seconds"] = {"training": trained_at - started, "total": time.perf_counter() - started}
    return result


def _train_all(options: DemoOptions, folders: Sequence[Path], console: Console) -> None:
    """Train the seeds in parallel, each in a process with one thread.

    Such small layers gain little from more threads, and results do not depend on the number of
    cores. Two processes per CPU keep all CPUs busy when one ends early.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    context: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload(_PRELOADED)  # Imports take longer than a training phase.
    workers = min(options.seeds, 2 * usable_cpus())
    with (
        Progress(*columns, console=console, transient=True) as progress,
        ProcessPoolExecutor(workers, context) as pool,
    ):
        task = progress.add_task("training networks", total=options.seeds)
        runs = [
            pool.submit(_train, options.settings, seed, folder)
            for seed, folder in enumerate(folders)
        ]
        for run in as_completed(runs):
            run.result()
            progress.advance(task)


def _train(settings: Sequence[str], seed: int, folder: Path) -> None:
    """Run the recipe in an empty directory, with one thread; for a process of its own."""
    torch.set_num_threads(1)
    if folder.exists():  # Do not resume an earlier demo.
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    with (folder / "output.txt").open("w", encoding="utf-8") as file:
        train(
            load_recipe(_RECIPE, settings),
            TrainOptions(folder, seed=seed, cpu=True),
            Console(file=file),
        )


def _figures(seed: int, folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    names = (
        "float_accuracy",
        "ternary_accuracy",
        "rust_accuracy",
        "codes_total",
        "codes_different",
    )
    histories = {
        f"{phase}_history": [
            {name: line[name] for name in ("epoch", "loss", "test_accuracy")}
            for line in result["log"]
            if line["phase"] == phase
        ]
        for phase in ("float", "ternary")
    }
    return {"seed": seed, **{name: result[name] for name in names}, **histories}


def _codes(network: TernaryNetwork) -> dict[str, Tensor]:
    """Return the weight codes of each ternary layer."""
    graph = network.graph
    return {
        node.layer or node.name: graph.tensors[node.tensors["weight"]]
        for node in graph.nodes
        if products_of(node.op) == "codes"
    }


def _sizes(
    model: nn.Module, network: TernaryNetwork, codes: dict[str, Tensor], path: Path
) -> dict[str, int]:
    """Return sizes in bytes: both networks, and the ternary layers' weights as float32 and packed.

    Packed weights have the layout of this CPU's kernels, with padding.
    """
    products = [product for segment in network.segments for product in segment.network.products]
    return {
        "float_network_bytes": sum(
            tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()
        ),
        "file_bytes": path.stat().st_size,
        "ternary_layers_float_bytes": sum(4 * weight.numel() for weight in codes.values()),
        "ternary_layers_packed_bytes": sum(size for _, _, size in products),
    }


@torch.inference_mode()
def _latencies(
    model: nn.Module, network: nn.Module, data: Data, rounds: int
) -> list[dict[str, Any]]:
    """Time torch's float network, in two memory layouts, and the Rust network, in milliseconds."""
    model = copy.deepcopy(model).eval()
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch_threads, rust_threads = torch.get_num_threads(), fatnn_rs.get_num_threads()
    rows = []
    try:
        for threads in sorted({1, os.cpu_count() or 1}):
            torch.set_num_threads(threads)
            fatnn_rs.set_num_threads(threads)
            for batch in (1, 64):
                images = next(iter(data.test_batches(batch)))[0].contiguous()
                calls = {
                    "torch": lambda images=images: model(images),
                    "torch_channels_last": lambda images=images: channels_last(images),
                    "rust": lambda images=images: network(images),
                }
                seconds = interleaved(calls, rounds, PAUSE_SECONDS if threads > 1 else 0.0)
                times = {name: 1e3 * median(values) for name, values in seconds.items()}
                best = min(times["torch"], times["torch_channels_last"])
                rows.append(
                    {"batch": batch, "threads": threads, **times, "speedup": best / times["rust"]}
                )
    finally:
        torch.set_num_threads(torch_threads)
        fatnn_rs.set_num_threads(rust_threads)
    return rows
