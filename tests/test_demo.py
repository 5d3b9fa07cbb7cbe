"""The demo with one or two epochs: its results, its targets and its errors."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fatnn_rs import ConfigError, FatnnError, cli, demo
from fatnn_rs.train.digits import load_digits
from fatnn_rs.train.recipe import load_recipe


def test_short_demo_writes_consistent_results(tmp_path: Path) -> None:
    text = io.StringIO()
    options = demo.DemoOptions(seeds=1, float_epochs=2, ternary_epochs=1, out=tmp_path, rounds=2)
    before = torch.get_num_threads()
    result = demo.main(options, Console(file=text, width=120))
    assert torch.get_num_threads() == before
    assert result["codes_total"] > 100_000
    assert result["codes_different"] == 0
    for run in result["runs"]:
        assert run["rust_accuracy"] == run["ternary_accuracy"]
        assert run["ternary_accuracy"] > 0.7  # chance is 0.1
        assert run["float_accuracy"] > 0.3
        assert len(run["float_history"]) == 2
        assert len(run["ternary_history"]) == 1
        (folder,) = (tmp_path / "runs").iterdir()
        assert json.loads((folder / "run.json").read_text())["recipe"]["model"] == "digits"
        assert run["codes_total"] == json.loads((folder / "result.json").read_text())["codes_total"]
    sizes = result["sizes"]
    assert sizes["file_bytes"] == (tmp_path / "digits.safetensors").stat().st_size
    # Two bits instead of 32 give 16; kernels that pad 32 channels to 64 give less.
    assert 16 >= sizes["ternary_layers_float_bytes"] / sizes["ternary_layers_packed_bytes"] > 5
    assert sizes["float_network_bytes"] > 5 * sizes["file_bytes"]
    assert {row["batch"] for row in result["latency_ms"]} == {1, 64}
    assert all(row["rust"] > 0 and row["torch"] > 0 for row in result["latency_ms"])
    assert json.loads((tmp_path / "demo.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "ternary, Rust" in text.getvalue()
    targets = result["targets"]
    assert not targets["binding"]
    assert not targets["hold"]  # one epoch is not enough
    assert "targets: missed: ternary mean" in text.getvalue()


def figures(float_value: float, ternary_value: float) -> dict[str, float]:
    return {
        "float_accuracy": float_value,
        "ternary_accuracy": ternary_value,
        "rust_accuracy": ternary_value,
    }


@pytest.mark.parametrize(
    ("float_value", "ternary_value", "hold"),
    [
        (0.99, 0.986, True),
        (0.992, 0.985, True),
        (0.98, 0.99, True),
        (0.985, 0.9849, False),
        (0.995, 0.9875, False),
    ],
)
def test_targets_hold_only_near_the_float_accuracy(
    float_value: float, ternary_value: float, hold: bool
) -> None:
    targets = demo._targets(figures(float_value, ternary_value), demo.DemoOptions())
    assert targets["hold"] is hold
    assert targets["binding"]
    assert not demo._targets(figures(float_value, ternary_value), demo.DemoOptions(seeds=1))[
        "binding"
    ]


@pytest.mark.parametrize("ternary_value", [0.99, 0.9])
def test_missed_targets_make_the_command_fail(
    ternary_value: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The results are written in both cases."""
    real = demo._measure

    def measure(options: demo.DemoOptions, console: Console) -> dict[str, Any]:
        short = dataclasses.replace(options, seeds=1, float_epochs=1, ternary_epochs=1, rounds=2)
        result = real(short, console)
        result["mean"] = figures(0.99, ternary_value)
        result["targets"] = demo._targets(result["mean"], options)
        return result

    monkeypatch.setattr(demo, "_measure", measure)
    arguments = ["demo", "--out", str(tmp_path), "--no-picture"]
    if ternary_value > 0.98:
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        assert left.value.code == 0
        assert "targets: met" in capsys.readouterr().out
    else:
        assert cli.main(arguments) == 1
        shown = capsys.readouterr()
        assert "targets: missed" in shown.out
        assert "fatnn: the demonstration misses its targets" in shown.err
    assert json.loads((tmp_path / "demo.json").read_text())["targets"]["hold"] == (
        ternary_value > 0.98
    )


@pytest.mark.parametrize("name", ["seeds", "float_epochs", "ternary_epochs", "rounds"])
def test_zero_in_an_option_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        demo.DemoOptions(**{name: 0})


def test_digits_are_split_the_same_way_every_time() -> None:
    data = load_digits()
    assert (len(data.train_x), len(data.test_x)) == (1437, 360)
    assert data.train_x.shape[1:] == (1, 8, 8)
    assert 0 <= float(data.train_x.min()) < float(data.train_x.max()) <= 1
    assert torch.equal(data.test_x, load_digits().test_x)
    shares = torch.bincount(data.test_y) / len(data.test_y) - torch.bincount(data.train_y) / len(
        data.train_y
    )
    assert shares.abs().max() < 0.005


def test_diverging_run_ends_the_demo_without_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        demo.DemoOptions, "settings", property(lambda self: ("float.lr=1e30", "ternary.epochs=3"))
    )
    with pytest.raises(FatnnError, match=r"float phase: .*; lower lr"):
        demo.main(
            demo.DemoOptions(seeds=1, out=tmp_path, picture=False), Console(file=io.StringIO())
        )
    assert not (tmp_path / "demo.json").exists()


def test_options_only_shorten_the_digits_recipe() -> None:
    usual, short = (
        load_recipe("digits"),
        load_recipe("digits", demo.DemoOptions(float_epochs=4).settings),
    )
    assert short.float_phase is not None
    assert (short.float_phase.epochs, short.float_phase.warmup_epochs) == (4, 0.5)
    assert (
        short.model_copy(update={"float_phase": usual.float_phase, "ternary": usual.ternary})
        == usual
    )
