"""The command line through its entry point: output, JSON, exit codes and error lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fatnn_rs
from command_line import call


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A saved network: its file, and the network in memory."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 4 * 4, 5),
    )  # fmt: skip
    x = torch.randn(4, 1, 8, 8)
    fatnn_rs.prepare(model, example_inputs=x).eval()
    net = fatnn_rs.convert(model, x)
    path = tmp_path_factory.mktemp("cli") / "net.safetensors"
    fatnn_rs.save(net, path)
    return path, net


def test_info_prints_version_and_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "info", "--json")
    assert code == 0
    figures = json.loads(out)
    assert figures["fatnn_rs"] == fatnn_rs.__version__
    assert figures["kernels"]
    code, out, _ = call(capsys, "info")
    assert code == 0
    assert figures["kernels"][0] in out


@pytest.mark.parametrize("command", [[], ["info"], ["demo"], ["inspect"], ["run"]])
def test_help_prints_the_usage(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    code, out, _ = call(capsys, *command, "--help")
    assert code == 0
    assert "Usage" in out


def test_inspect_prints_the_report_of_a_file(
    capsys: pytest.CaptureFixture[str], saved: tuple[Path, nn.Module]
) -> None:
    code, out, _ = call(capsys, "inspect", str(saved[0]))
    assert code == 0
    assert "conv" in out
    code, out, _ = call(capsys, "inspect", str(saved[0]), "--json")
    assert code == 0
    assert any(row["packed_bytes"] for row in json.loads(out)["rows"])


def test_run_writes_the_networks_output(
    capsys: pytest.CaptureFixture[str], saved: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    path, net = saved
    x = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    code, out, _ = call(
        capsys, "run", str(path), str(tmp_path / "x.npy"), "--out", str(tmp_path / "y"), "--json"
    )
    assert code == 0
    expected = net(torch.from_numpy(x)).numpy()
    assert np.array_equal(np.load(tmp_path / "y"), expected)
    figures = json.loads(out)
    assert figures["argmax"] == expected.argmax(1).tolist()
    code, out, _ = call(capsys, "run", str(path), str(tmp_path / "x.npy"))
    assert code == 0
    assert "output [3, 5]" in out
    np.save(tmp_path / "big.npy", x.astype(">f4"))
    code, out, _ = call(capsys, "run", str(path), str(tmp_path / "big.npy"), "--json")
    assert json.loads(out)["argmax"] == expected.argmax(1).tolist()


def test_errors_print_one_line_and_exit_with_1(
    capsys: pytest.CaptureFixture[str], saved: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    path, _ = saved
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(path.read_bytes()[:-7])
    text = tmp_path / "x.txt"
    text.write_text("1 2 3")
    doubles, shape = tmp_path / "doubles.npy", tmp_path / "shape.npy"
    np.save(doubles, np.zeros((1, 1, 8, 8)))
    np.save(shape, np.zeros((1, 3, 8, 8), np.float32))
    empty = tmp_path / "empty.npy"
    np.save(empty, np.zeros((0, 1, 8, 8), np.float32))
    archive = tmp_path / "x.npz"
    np.savez(archive, a=np.zeros(3))
    for arguments in (
        ("inspect", str(broken)),
        ("inspect", str(text)),
        ("run", str(path), str(text)),
        ("run", str(path), str(doubles)),
        ("run", str(path), str(shape)),
        ("run", str(path), str(archive)),
        ("run", str(path), str(empty)),
    ):
        code, out, err = call(capsys, *arguments)
        assert code == 1, arguments
        assert out == ""
        assert err.startswith("fatnn: ")
        assert err.count("\n") == 1


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call(capsys, "nonsense")[0] == 2
    assert call(capsys, "demo", "--seeds", "0")[0] == 2
    assert call(capsys, "inspect", str(tmp_path / "absent"))[0] == 2


def test_python_dash_m_runs_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fatnn_rs", "info", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout)["python"]
