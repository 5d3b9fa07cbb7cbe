"""Helpers of the training tests: short settings, runs, saved states, pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fatnn_rs.train.data import load_data
from fatnn_rs.train.loop import TrainOptions, train
from fatnn_rs.train.recipe import load_recipe
from fatnn_rs.train.run import read_state

TOY = ("float.epochs=1", "ternary.epochs=1", "float.warmup_epochs=0", "ternary.warmup_epochs=0")


SHORT = (
    *TOY,
    "batch_size=32",
    "train_images=64",
    "test_images=32",
    "quantize.calibration_images=32",
)


def silent_console() -> Console:
    return Console(file=io.StringIO(), width=200)


def train_recipe(
    tmp_path: Path, name: str, *settings: str, data: Path | None = None, **options: Any
) -> dict[str, Any]:
    recipe = load_recipe(name, settings)
    return train(
        recipe,
        TrainOptions(out=tmp_path, data=data, download=False, cpu=True, **options),
        silent_console(),
    )


def saved_state(folder: Path, name: str = "ternary") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = read_state(folder / f"{name}.pt")["model"]
    return found


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def check_finished_run(result: dict[str, Any], folder: Path) -> None:
    """Assert that a run has finished and that its network in Rust computes what PyTorch does."""
    assert result["codes_total"] > 0
    assert result["codes_different"] == 0
    assert result["rust_accuracy"] == result["eager_accuracy"] == result["ternary_accuracy"]
    assert (folder / "net.safetensors").stat().st_size == result["file_bytes"]
    assert not (folder / "checkpoint.pt").exists()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines == result["log"]


def long_case(*values: Any) -> Any:
    """Mark a case that only ``make test-long`` runs; ``make test`` runs a shorter one like it."""
    return pytest.param(*values, marks=pytest.mark.long)


def make_pictures(folder: Path) -> None:
    """Write a training and a test set of three classes with three pictures each."""
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cat", "dog", "owl"):
            (folder / part / name).mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (40, 52, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")


def save_digit(path: Path, index: int = 0, scale: int = 8) -> int:
    """Write a test image of the digits, ``scale`` times as large, and return its label."""
    data = load_data(load_recipe("digits"), None)
    x, y = next(iter(data.test_batches(index + 1)))
    pixels = (x[index, 0] * 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).resize((8 * scale, 8 * scale), Image.Resampling.NEAREST).save(path)
    return int(y[index])
