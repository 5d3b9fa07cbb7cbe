"""Training runs that are killed and resumed, and runs on several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fatnn_rs.models.digits import DigitsNet
from fatnn_rs.train.phase import _restore_batch_norms, _sync_batch_norms
from fatnn_rs.train.run import read_state
from training import long_case, same_tensors, saved_state

RESUMED_SETTINGS = (
    "train_images=256",
    "batch_size=16",
    "test_images=32",
    "float.epochs=2",
    "ternary.epochs=2",
    "float.warmup_epochs=0.5",
    "ternary.warmup_epochs=0.5",
    "float.optimizer=muon",
    "float.momentum_others=0.8",
    "float.renormalize=true",
    "float.norm_images=64",
    "ternary.norm_images=64",
    "augment.flip=alternating",
    "fast_convolutions=true",
)

#: A run that saves a checkpoint after every iteration, and kills itself after saving the given
#: number of files of the given name.
KILLED_RUN_SCRIPT = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from fatnn_rs.train.loop import TrainOptions, train
from fatnn_rs.train.recipe import load_recipe
from fatnn_rs.train.run import Run
left = int(sys.argv[3])
save = Run.save
def counted(self, name, state):
    global left
    save(self, name, state)
    left -= name == sys.argv[4]
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
Run.save = counted
recipe = load_recipe("digits", sys.argv[2].split(";"))
train(recipe, TrainOptions(out=Path(sys.argv[1]), cpu=True, checkpoint_seconds=0.0))
"""


BETWEEN_PHASES = (
    "quantize.values=int8",
    "quantize.first=int8",
    "quantize.last=int8",
    "train_images=256",
    "test_images=32",
    "float.epochs=2",
    "float.warmup_epochs=1",
    "ternary.epochs=2",
    "ternary.warmup_epochs=1",
)

#: The command ``fatnn``; it fails if threads of the process group are left at the end.
COMMAND_SCRIPT = """
from pathlib import Path
from fatnn_rs.cli import main
try:
    raise SystemExit(main())
finally:
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in names), names
"""


def start_or_resume(
    folder: Path,
    checkpoints: int = -1,
    processes: int = 1,
    settings: tuple[str, ...] = RESUMED_SETTINGS,
    counted: str = "checkpoint",
) -> int:
    """Start or resume a run; return its exit code."""
    several = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "--no-python",
    ]
    launcher = [*several, sys.executable] if processes > 1 else []
    arguments = [
        sys.executable,
        *launcher,
        "-c",
        KILLED_RUN_SCRIPT,
        str(folder),
        ";".join(settings),
        str(checkpoints),
        counted,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        arguments, stderr=subprocess.DEVNULL, env=env, timeout=150, check=False
    ).returncode


def kill_within(folder: Path, phase: str, checkpoints: int, processes: int = 1) -> None:
    """Start or resume a run that is killed in the middle of an epoch of ``phase``."""
    assert start_or_resume(folder, checkpoints, processes) == (
        -signal.SIGKILL if processes == 1 else 1
    )
    state = read_state(folder / "checkpoint.pt")
    assert (state["phase"], state["batch"]) == (phase, 5)


@pytest.mark.parametrize("processes", [1, long_case(2)])
def test_killed_and_resumed_run_ends_with_the_same_weights(processes: int, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start_or_resume(whole, processes=processes) == 0
    # An epoch has 16 iterations, with a checkpoint after each.
    kill_within(broken, "float", 5, processes)
    kill_within(broken, "ternary", 16 - 5 + 16 + 5, processes)
    assert start_or_resume(broken, processes=processes) == 0
    for name in ("float", "ternary"):
        assert same_tensors(saved_state(whole, name), saved_state(broken, name)), name
    assert (whole / "net.safetensors").read_bytes() == (broken / "net.safetensors").read_bytes()
    assert (whole / "log.jsonl").read_bytes() == (broken / "log.jsonl").read_bytes()


def test_run_killed_between_phases_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start_or_resume(whole, settings=BETWEEN_PHASES) == 0
    killed = start_or_resume(broken, 1, settings=BETWEEN_PHASES, counted="float")
    assert killed == -signal.SIGKILL
    assert (broken / "float.pt").exists()
    # The second time, it is killed in the last epoch.
    assert start_or_resume(broken, 3, settings=BETWEEN_PHASES) == -signal.SIGKILL
    assert start_or_resume(broken, settings=BETWEEN_PHASES) == 0
    assert same_tensors(saved_state(whole), saved_state(broken))
    assert (whole / "net.safetensors").read_bytes() == (broken / "net.safetensors").read_bytes()
    assert (whole / "log.jsonl").read_bytes() == (broken / "log.jsonl").read_bytes()


def test_two_processes_train_the_same_weights_as_one(tmp_path: Path) -> None:
    """Averaged gradients give weights that agree within 1e-5 after 8 iterations.

    The model has no BatchNorm, which on CPUs uses the statistics of one process's images.
    """
    common = ["-c", COMMAND_SCRIPT, "train", "--config", "digits", "--cpu", "--threads", "1"]
    options = [
        "model=small-cnn",
        "model_options={norm: false, width: 4}",
        "batch_size=32",
        "train_images=128",
    ]
    options += [
        "float.epochs=1",
        "ternary.epochs=1",
        "ternary.optimizer=sgd",
        "float.optimizer=sgd",
    ]
    options += ["float.lr=0.05", "ternary.lr=0.05", "test_images=33"]
    options += ["float.warmup_epochs=0.5", "ternary.warmup_epochs=0.5"]
    common += ["--json", *(part for option in options for part in ("--set", option))]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    several = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--no-python",
        sys.executable,
    ]
    figures = []
    # The last one finds a finished run.
    for name, launcher in (("one", []), ("two", several), ("two", several)):
        arguments = [sys.executable, *launcher, *common, "--out", str(tmp_path / name)]
        done = subprocess.run(
            arguments, capture_output=True, text=True, env=env, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()  # only one of the two processes prints
        figures.append(json.loads(line))
    one, two = (saved_state(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(
            two[key], value, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
    assert figures[0]["ternary_accuracy"] == figures[1]["ternary_accuracy"]
    assert figures[1] == figures[2]


def test_synchronized_batch_norms_are_replaced_by_the_original_ones() -> None:
    class WithActivation(torch.nn.BatchNorm2d):
        """A BatchNorm subclass as in timm, which torch's SyncBatchNorm replaces."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(super().forward(x))

    head = torch.nn.BatchNorm1d(10, track_running_stats=False)
    model = torch.nn.Sequential(DigitsNet(), torch.nn.Unflatten(1, (10, 1, 1)), WithActivation(10))
    model.extend([torch.nn.Flatten(), head])
    kinds = [type(module) for module in model.modules()]
    own = _sync_batch_norms(model)
    assert (
        sum(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
        == len(own)
        == 11
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_()
        for buffer in model.buffers():
            buffer.copy_(torch.rand(buffer.shape) * 9)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    _restore_batch_norms(model, own)
    assert [type(module) for module in model.modules()] == kinds
    assert model[4] is head
    assert same_tensors(model.state_dict(), before)
