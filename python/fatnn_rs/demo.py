"""The demonstration, offline on real data: train a float and a ternary network, convert, verify, save, load, time.

The data are scikit-learn's 8x8 digits, a fifth of them held out. Every figure in the table is measured in this run.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

import fatnn_rs
from fatnn_rs import demo_report
from fatnn_rs.convert import TernaryNetwork
from fatnn_rs.errors import ConfigError, ConversionError, FatnnError
from fatnn_rs.models.digits import DigitsNet
from fatnn_rs.nn import TernaryLayer
from fatnn_rs.operations import products_of
from fatnn_rs.ops import prepack
from fatnn_rs.train.digits import Digits, Epoch, accuracy, fit, load_digits
from fatnn_rs.train.timing import interleaved_medians

__all__ = ["TERNARY_GAP", "TERNARY_MEAN", "DemoOptions", "main"]

#: Targets of the demonstration: least mean accuracy of the ternary networks, and how far it may lie below float's.
TERNARY_MEAN = 0.985
TERNARY_GAP = 0.007


@dataclass(frozen=True)
class DemoOptions:
    """What the demonstration does.

    Parameters
    ----------
    seeds
        How many networks to train, from seed 0 on; the first one is timed and saved.
    float_epochs, ternary_epochs
        Length of training.
    out
        Directory for the network, the picture and the figures; made where it is missing.
    json_path
        Where to write the figures; ``out/demo.json`` by default.
    picture
        Whether to draw (needs matplotlib).
    seconds
        Time for each of the latency measurements.
    """

    seeds: int = 3
    float_epochs: int = 8
    ternary_epochs: int = 12
    out: Path = field(default_factory=lambda: Path("demo-output"))
    json_path: Path | None = None
    picture: bool = True
    seconds: float = 0.6

    def __post_init__(self) -> None:
        """Validate."""
        for name in ("seeds", "float_epochs", "ternary_epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seconds <= 0:
            raise ConfigError(f"seconds must be positive, got {self.seconds}")


@dataclass
class Trained:
    """What one seed gave."""

    seed: int
    float_model: nn.Module
    ternary_model: nn.Module
    float_history: list[Epoch]
    ternary_history: list[Epoch]


def main(options: DemoOptions | None = None, console: Console | None = None) -> dict[str, Any]:
    """Run the demonstration.

    Parameters
    ----------
    options
        ``DemoOptions()`` by default.
    console
        Where the progress bar and the table go; standard output by default.

    Returns
    -------
    dict
        Every figure, as written to the JSON file.

    Raises
    ------
    ConversionError
        Where a code differs between the model and the converted network, or the network loaded from its file does not
        answer as the converted one does.
    FatnnError
        Where the targets are missed although as many networks were trained, and for as long, as by default; everything
        is written and shown before.
    UnsupportedError
        Where scikit-learn or, with ``picture``, matplotlib is missing.
    """
    options = DemoOptions() if options is None else options
    console = Console() if console is None else console
    if options.picture:
        demo_report.require_matplotlib()
    options.out.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = _measure(options, console)
    finally:
        torch.set_num_threads(threads)
    json_path = options.json_path or options.out / "demo.json"
    result["files"]["figures"] = str(json_path)
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    demo_report.show(result, console)
    targets = result["targets"]
    if targets["binding"] and not targets["hold"]:
        raise FatnnError(f"the demonstration misses its targets: {demo_report.targets_line(result)}")
    return result


def _targets(average: dict[str, float], options: DemoOptions) -> dict[str, Any]:
    """Whether the mean accuracies are those promised, and whether they are promised at these options."""
    usual = DemoOptions()
    gap = average["float_accuracy"] - average["rust_accuracy"]
    epsilon = 1e-9  # accuracies are means of fractions
    return {
        "ternary_mean_at_least": TERNARY_MEAN,
        "float_minus_ternary_at_most": TERNARY_GAP,
        "float_minus_ternary": gap,
        "hold": average["rust_accuracy"] >= TERNARY_MEAN - epsilon and gap <= TERNARY_GAP + epsilon,
        "binding": all(
            getattr(options, name) == getattr(usual, name) for name in ("seeds", "float_epochs", "ternary_epochs")
        ),
    }


def _measure(options: DemoOptions, console: Console) -> dict[str, Any]:
    """Everything but the writing and the showing of figures."""
    started = time.perf_counter()
    data = load_digits()
    seeds = _train_all(options, data, console)
    trained_at = time.perf_counter()

    path = options.out / "digits.safetensors"
    runs, networks = [], []
    for trained in seeds:
        figures, network = _deploy(trained, data, path)
        runs.append(figures)
        networks.append(network)
    # Every seed was saved and loaded; the file that stays is the first one's.
    first = networks[0]
    fatnn_rs.save(first, path)

    average = {key: mean(run[key] for run in runs) for key in ("float_accuracy", "ternary_accuracy", "rust_accuracy")}
    result: dict[str, Any] = {
        "data": {"train": len(data.train_x), "test": len(data.test_x), "split": "stratified, seed 0"},
        "options": {"seeds": options.seeds, "epochs": [options.float_epochs, options.ternary_epochs]},
        "runs": runs,
        "mean": average,
        "targets": _targets(average, options),
        "codes_total": sum(run["codes_total"] for run in runs),
        "codes_different": sum(run["codes_different"] for run in runs),
        "sizes": _sizes(seeds[0], first, path),
        "latency_ms": _latencies(seeds[0].float_model, first, data.test_x, options.seconds),
        "cpu": fatnn_rs.cpu_info(),
        "versions": {"torch": torch.__version__},
        "files": {"network": str(path)},
    }
    if options.picture:
        picture = options.out / "demo.png"
        demo_report.draw(
            [(run.seed, run.float_history, run.ternary_history) for run in seeds],
            {name: layer.ternary_weight() for name, layer in _ternary(seeds[0].ternary_model).items()},
            picture,
        )
        result["files"]["picture"] = str(picture)
    result["seconds"] = {"training": trained_at - started, "total": time.perf_counter() - started}
    return result


def _train_all(options: DemoOptions, data: Digits, console: Console) -> list[Trained]:
    """Train the seeds side by side, each on one thread (up to two a core, so that none idles when one ends early).

    One thread each, because layers this small gain little from more, and because results are then the same on every
    number of cores. Making networks (torch's global random generator) and preparing them (``torch.fx`` patches torch
    while it traces) stay outside the threads.
    """
    floats: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            floats.append(DigitsNet())
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with (
        Progress(*columns, console=console, transient=True) as progress,
        ThreadPoolExecutor(
            min(options.seeds, 2 * (os.cpu_count() or 1)), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool,
    ):
        total = options.float_epochs + options.ternary_epochs
        tasks = [progress.add_task(f"seed {seed}", total=total, state="waiting") for seed in range(options.seeds)]

        def report(seed: int, kind: str) -> Callable[[Epoch], None]:
            def update(epoch: Epoch) -> None:
                progress.update(tasks[seed], advance=1, state=f"{kind} {epoch.test_accuracy:.1%}")

            return update

        def train_float(seed: int) -> list[Epoch]:
            epochs, on_epoch = options.float_epochs, report(seed, "float")
            return fit(floats[seed], data, epochs=epochs, lr=5e-3, seed=seed, on_epoch=on_epoch)

        def train_ternary(seed: int) -> list[Epoch]:
            epochs, on_epoch = options.ternary_epochs, report(seed, "ternary")
            teacher = floats[seed]
            return fit(
                ternaries[seed], data, epochs=epochs, lr=6e-3, seed=seed + 1000, teacher=teacher, on_epoch=on_epoch
            )

        float_histories = list(pool.map(train_float, range(options.seeds)))
        calibration = data.train_x[:512]
        ternaries = [fatnn_rs.prepare(copy.deepcopy(model), example_inputs=calibration) for model in floats]
        ternary_histories = list(pool.map(train_ternary, range(options.seeds)))
    columns_of_runs = zip(floats, ternaries, float_histories, ternary_histories, strict=True)
    return [Trained(seed, *parts) for seed, parts in enumerate(columns_of_runs)]


def _deploy(trained: Trained, data: Digits, path: Path) -> tuple[dict[str, Any], TernaryNetwork]:
    """Convert, verify on the whole test set, save, load and run one network."""
    model = trained.ternary_model.eval()
    network = fatnn_rs.convert(model, data.test_x[:8])
    check = fatnn_rs.verify(model, network, data.test_x)
    fatnn_rs.save(network, path)
    loaded = fatnn_rs.load(path)
    if check.codes_different:
        raise ConversionError(
            f"{check.codes_different} of {check.codes_total} codes of the converted network differ from the model's"
        )
    if not torch.equal(_answers(loaded, data.test_x), _answers(network, data.test_x)):
        raise ConversionError(f"{path}: the loaded network does not answer as the converted one does")
    figures = {
        "seed": trained.seed,
        "float_accuracy": accuracy(trained.float_model.eval(), data.test_x, data.test_y),
        "ternary_accuracy": accuracy(model, data.test_x, data.test_y),
        "rust_accuracy": accuracy(loaded, data.test_x, data.test_y),
        "codes_total": int(check.codes_total),
        "codes_different": int(check.codes_different),
        "max_abs_diff": float(check.max_abs_diff),
        "top1_agreement": check.top1_agreement,
        "float_history": [asdict(epoch) for epoch in trained.float_history],
        "ternary_history": [asdict(epoch) for epoch in trained.ternary_history],
    }
    return figures, loaded


@torch.no_grad()
def _answers(network: nn.Module, x: Tensor) -> Tensor:
    answers: Tensor = network(x)
    return answers


def _ternary(model: nn.Module) -> dict[str, TernaryLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, TernaryLayer)}


def _sizes(trained: Trained, network: TernaryNetwork, path: Path) -> dict[str, int]:
    """Bytes: the float network and the file; the ternary layers' weights in float32 and packed for the kernels.

    Packed weights are those of the layers that the network runs, in the layout of this CPU's kernel, padding included.
    """
    layers = _ternary(trained.ternary_model).values()
    graph = network.graph
    ternary = [node for node in graph.nodes if products_of(node.op) == "codes"]
    packed = [
        prepack(graph.tensors[node.tensors["weight"]], node.attrs["groups"], node.attrs["act"]) for node in ternary
    ]
    float_state = trained.float_model.state_dict().values()
    return {
        "float_network_bytes": sum(tensor.numel() * tensor.element_size() for tensor in float_state),
        "file_bytes": path.stat().st_size,
        "ternary_layers_float_bytes": sum(layer.weight.numel() * 4 for layer in layers),
        "ternary_layers_packed_bytes": sum(blob.numel() for blob in packed),
    }


@torch.inference_mode()
def _latencies(model: nn.Module, network: nn.Module, x: Tensor, seconds: float) -> list[dict[str, Any]]:
    """Milliseconds of torch's float network (in the better of two memory layouts) and of the Rust network."""
    model = copy.deepcopy(model).eval()
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch_threads, rust_threads = torch.get_num_threads(), fatnn_rs.get_num_threads()
    rows = []
    try:
        for threads in sorted({1, os.cpu_count() or 1}):
            torch.set_num_threads(threads)
            fatnn_rs.set_num_threads(threads)
            for batch in (1, 64):
                images = x[:batch].contiguous()
                calls = {
                    "torch": lambda images=images: model(images),
                    "torch_channels_last": lambda images=images: channels_last(images),
                    "rust": lambda images=images: network(images),
                }
                times = {name: 1e3 * value for name, value in interleaved_medians(calls, seconds).items()}
                best = min(times["torch"], times["torch_channels_last"])
                rows.append({"batch": batch, "threads": threads, **times, "speedup": best / times["rust"]})
    finally:
        torch.set_num_threads(torch_threads)
        fatnn_rs.set_num_threads(rust_threads)
    return rows
