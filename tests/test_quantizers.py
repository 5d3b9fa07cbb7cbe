"""The comparison of quantizers, with one epoch per phase."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import quantizers.__main__
from fatnn_rs import ConfigError, FatnnError
from quantizers.compare import CompareOptions, compare
from quantizers.rows import ABLATIONS, ALL_ROWS

TOY = ("float.epochs=1", "ternary.epochs=1", "float.warmup_epochs=0", "ternary.warmup_epochs=0")
SHORT = (
    *TOY,
    "batch_size=32",
    "train_images=64",
    "test_images=32",
    "quantize.calibration_images=32",
)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_compare_writes_accuracies_of_every_row_and_seed(tmp_path: Path) -> None:
    console = quiet()
    options = CompareOptions(
        recipe="digits",
        runs=tmp_path / "runs",
        results=tmp_path / "results",
        settings=SHORT,
        rows=("fatnn", "scratch"),
        name="quantizers",
        seeds=2,
        jobs=2,
        cpu=True,
    )
    results = compare(options, console)
    assert [row["name"] for row in results["rows"]] == ["float", "fatnn", "scratch"]
    float_row, fatnn, scratch = results["rows"]
    assert scratch["curves"] != fatnn["curves"]
    runs = [
        json.loads((tmp_path / "runs" / f"fatnn-seed{seed}" / "result.json").read_text())
        for seed in range(2)
    ]
    assert fatnn["accuracies"] == [run["rust_accuracy"] for run in runs]
    assert fatnn["mean"] == pytest.approx(sum(fatnn["accuracies"]) / 2)
    assert fatnn["std"] == pytest.approx(
        abs(fatnn["accuracies"][0] - fatnn["accuracies"][1]) / 2**0.5
    )
    assert fatnn["below_float"] == pytest.approx(float_row["mean"] - fatnn["mean"])
    assert fatnn["codes_total"] == sum(run["codes_total"] for run in runs) > 0
    page = (tmp_path / "results" / "quantizers.md").read_text()
    # The better row is bold; which of two short runs is better depends on the CPU's rounding.
    bold = "**" if fatnn["mean"] >= scratch["mean"] else ""
    assert f"| FATNN | ternary | ternary | 2N | {bold}{100 * fatnn['mean']:.2f}" in page
    assert "python -m quantizers --config digits" in page
    assert (tmp_path / "results" / "quantizers.png").stat().st_size > 10_000
    with pytest.raises(
        FatnnError,
        match=r"float-seed0 holds a run with other settings \(recipe.float.epochs: 1 there, 2",
    ):
        compare(replace(options, settings=(*SHORT, "float.epochs=2")), console)
    before = (tmp_path / "runs" / "fatnn-seed0" / "result.json").stat().st_mtime_ns
    assert compare(options, console)["rows"] == results["rows"]
    assert (tmp_path / "runs" / "fatnn-seed0" / "result.json").stat().st_mtime_ns == before


def test_wrong_options_and_failing_runs_raise(tmp_path: Path) -> None:
    def options(**changes: Any) -> CompareOptions:
        return CompareOptions(
            recipe="digits", runs=tmp_path / "runs", results=tmp_path, cpu=True, **changes
        )

    with pytest.raises(ConfigError, match=f"row 'nope' is unknown; rows are {', '.join(ALL_ROWS)}"):
        options(rows=("nope",))
    with pytest.raises(ConfigError, match="seeds, jobs and threads must be at least 1"):
        options(seeds=0)
    with pytest.raises(ConfigError, match="needs both phases"):
        compare(options(settings=("float=null",)), quiet())
    with pytest.raises(
        FatnnError, match=r"1 of 1 runs failed; .*float-seed0: fatnn: float phase: the loss became"
    ):
        compare(
            options(
                settings=(*SHORT, "float.lr=1e30", "float.optimizer=sgd"), rows=("fatnn",), seeds=1
            ),
            quiet(),
        )


def test_command_line_passes_its_options_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[CompareOptions] = []
    monkeypatch.setattr(
        quantizers.__main__, "compare", lambda options, console: seen.append(options)
    )
    given = (
        "--config",
        "fashion-mnist",
        "--rows",
        "ablations",
        "--set",
        "batch_size=8",
        "--seeds",
        "1",
    )
    with pytest.raises(SystemExit) as left:
        quantizers.__main__.main(given)
    assert left.value.code == 0
    (options,) = seen
    assert (options.rows, options.name) == (("fatnn", *ABLATIONS), "fashion-mnist-ablations")
    assert (options.settings, options.seeds, options.runs) == (
        ("batch_size=8",),
        1,
        Path("runs/fashion-mnist"),
    )
    assert quantizers.__main__.main([*given, "--rows", "nope"]) == 1
    assert capsys.readouterr().err.startswith("quantizers: row 'nope' is unknown")
