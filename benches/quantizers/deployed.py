"""A trained network next to its float model in other runtimes: accuracy, latency and throughput.

    PYTHONPATH=benches python -m quantizers.deployed RUN [RUN ...] --data DATA

``RUN`` is the directory of a finished ``fatnn train``. Its float model runs in onnxruntime and,
with int8 activations and weights, in onnxruntime and OpenVINO. All runtimes have one thread.
Accuracies are those of all test images; times are medians of interleaved rounds.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn

import fatnn_rs
from fatnn_rs.bench.candidates import use_threads
from fatnn_rs.bench.export import BenchTask
from fatnn_rs.bench.peers import PEERS, arrays_of
from fatnn_rs.bench.timing import interleaved
from fatnn_rs.card import card_file, read_card
from fatnn_rs.cli import DataOption, DownloadOption, run_app
from fatnn_rs.errors import ConfigError
from fatnn_rs.machine import Machine
from fatnn_rs.train.data import Data, ProcessShard, load_data
from fatnn_rs.train.models import build_model
from fatnn_rs.train.recipe import Recipe, parse_recipe
from fatnn_rs.train.run import load_weights, read_state

__all__ = ["DeployedRow", "main", "measure"]

#: Runtimes to compare with → what they run.
_AGAINST = {
    "onnxruntime": "float32, onnxruntime",
    "onnxruntime-int8": "int8, onnxruntime",
    "openvino-int8": "int8, OpenVINO",
}
_LATENCY_BATCH, _THROUGHPUT_BATCH = 1, 64
_CALIBRATION_IMAGES = 512

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code of :func:`fatnn_rs.cli.main`."""
    return run_app(app, arguments, "quantizers.deployed")


@app.command()
def deployed(
    runs: Annotated[list[Path], typer.Argument(help="Directories of finished runs.")],
    data: DataOption = None,
    float_from: Annotated[
        Path | None, typer.Option(help="The float model, if the runs started from this file.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved rounds.")] = 25,
    out: Annotated[Path | None, typer.Option(help="Write the table here, too.")] = None,
    download: DownloadOption = True,
) -> None:
    """Compare trained networks with their float models in other runtimes."""
    tables = []
    for run in runs:
        network = run / "net.safetensors"
        card = read_card(card_file(network))
        recipe = parse_recipe({**card.recipe, "pretrained": False}, str(run))
        images = load_data(recipe, data, download)
        model = _float_model(run, recipe, len(card.classes), float_from)
        rows = measure(network, model, images, rounds)
        tables.append(f"{run.name}: {card.description}\n\n{_table(rows)}")
    machine = Machine.current()
    text = (
        "\n\n".join(tables)
        + f"\n\n    python -m quantizers.deployed RUN --data DATA --rounds {rounds}\n\n"
        + f"{machine.cpu} ({machine.cpu_id}), one thread, {machine.date[:10]}, commit "
        + f"{machine.commit}; "
        + ", ".join(
            f"{name} {machine.versions[name]}"
            for name in ("torch", "onnxruntime", "openvino")
            if name in machine.versions
        )
        + f". Int8 ranges are from {_CALIBRATION_IMAGES} training images.\n"
    )
    print(text, end="")
    if out is not None:
        out.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class DeployedRow:
    """A runtime's figures.

    Attributes
    ----------
    name
        Precision and runtime.
    accuracy
        Fraction of the test images.
    milliseconds
        Per image, at batch 1.
    images_per_second
        At batch 64.
    """

    name: str
    accuracy: float
    milliseconds: float
    images_per_second: float


def measure(network: Path, model: nn.Module, data: Data, rounds: int) -> list[DeployedRow]:
    """Measure a converted network and its float model in other runtimes, each with one thread.

    Parameters
    ----------
    network
        The converted network.
    model
        The float model, in eval mode.
    data
        Test images for the accuracy, training images for the ranges of int8 activations.
    rounds
        Interleaved rounds.
    """
    count = min(_CALIBRATION_IMAGES, data.train_count)
    calibration, _ = next(iter(data.train_batches(0, 0, count, 0, ProcessShard())))
    seconds: dict[str, dict[int, float]] = {}
    accuracies: dict[str, float] = {}
    with use_threads(1), torch.no_grad():
        for batch in (_LATENCY_BATCH, _THROUGHPUT_BATCH):
            with tempfile.TemporaryDirectory() as folder:
                # Contiguous: runtimes then share its memory, and `_accuracy` writes to it.
                x = calibration[:batch].clone(memory_format=torch.contiguous_format)
                parts = torch.split(calibration, batch)
                task = BenchTask(
                    model,
                    (x,),
                    1,
                    Path(folder),
                    tuple((part,) for part in parts[1:] if len(part) == batch),
                )
                assert np.shares_memory(task.feed(["x"])["x"], x.numpy())
                calls = _calls(network, task)
                times = interleaved(calls, rounds)
                for name, values in times.items():
                    seconds.setdefault(name, {})[batch] = float(np.median(values))
                if batch == _THROUGHPUT_BATCH:  # once is enough
                    accuracies = {name: _accuracy(call, x, data) for name, call in calls.items()}
    return [
        DeployedRow(
            name,
            accuracies[name],
            1e3 * found[_LATENCY_BATCH],
            _THROUGHPUT_BATCH / found[_THROUGHPUT_BATCH],
        )
        for name, found in seconds.items()
    ]


def _calls(network: Path, task: BenchTask) -> dict[str, Callable[[], Any]]:
    """Return what runs each runtime on ``task.inputs``, whose memory they share."""
    net = fatnn_rs.load(network, float_layers="rust")
    calls: dict[str, Callable[[], Any]] = {"ternary, fatnn-rs": lambda: net(*task.inputs)}
    for name, shown in _AGAINST.items():
        if missing := PEERS[name].missing():
            raise ConfigError(f"{name}: {', '.join(missing)} not installed; see fatnn bench")
        (calls[shown],) = PEERS[name].build(task).variants.values()
    return calls


def _accuracy(call: Callable[[], Any], x: Tensor, data: Data) -> float:
    """Return the fraction of right answers on the test images, which are copied to ``x``."""
    right = 0
    for images, labels in data.test_batches(len(x)):
        x[: len(images)] = images
        (logits,) = arrays_of(call())
        right += int((logits[: len(images)].argmax(1) == labels.numpy()).sum())
    return right / data.test_count


def _float_model(run: Path, recipe: Recipe, classes: int, float_from: Path | None) -> nn.Module:
    """Return the run's float model."""
    file = run / "float.pt" if float_from is None else float_from
    if not file.is_file():
        raise ConfigError(f"{run}: has no float.pt; give the float model with --float-from")
    model = build_model(recipe, classes)
    load_weights(model, read_state(file), file)
    return model.eval()


def _table(rows: Sequence[DeployedRow]) -> str:
    lines = [
        "| | test accuracy, % | ms per image, batch 1 | images per second, batch 64 |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.name} | {100 * row.accuracy:.2f} | {row.milliseconds:.3g} | "
        f"{float(f'{row.images_per_second:.3g}'):,.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
