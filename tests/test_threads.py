"""The thread count: who sets it, which values are refused, and what a forked child does."""

import os
import subprocess
import sys
from typing import Any

import pytest

import fatnn_rs as fatnn
from fatnn_rs import _core


@pytest.mark.parametrize("threads", [0, -3, "many", 2.5, True, None, 10**9])
def test_set_num_threads_refuses_wrong_values(threads: Any) -> None:
    before = fatnn.get_num_threads()
    with pytest.raises(
        fatnn.ConfigError, match="number of threads: expected a whole number from 1 to 4096, got "
    ):
        fatnn.set_num_threads(threads)
    assert fatnn.get_num_threads() == before


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("FATNN_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FATNN_NUM_THREADS", "many"),
        ("FATNN_NUM_THREADS", "0"),
        ("FATNN_ISA", "sse9"),
        ("FATNN_KERNEL", "magic"),
    ],
)
def test_wrong_environment_variables_are_refused(name: str, value: str) -> None:
    result = run_python("import fatnn_rs; fatnn_rs.cpu_info()", **{name: value})
    assert result.returncode == 1
    assert f"ConfigError: environment variable {name}: expected " in result.stderr
    assert value in result.stderr


def test_core_follows_torchs_thread_count_until_its_own_is_set() -> None:
    code = """
import torch, fatnn_rs
from fatnn_rs import ops
torch.set_num_threads(3)
torch.ops.fatnn_rs.pack_codes(torch.zeros(1, 4, dtype=torch.int8), 1)
ops.prepack(torch.ones(2, 4, 1, 1, dtype=torch.int8))
torch.ops.fatnn_rs.quantize(torch.zeros(1, 4, 2, 2), [0.0, 1.0], 1)
print(fatnn_rs.get_num_threads())
fatnn_rs.set_num_threads(2)
torch.ops.fatnn_rs.quantize(torch.zeros(1, 4, 2, 2), [0.0, 1.0], 1)
print(fatnn_rs.get_num_threads())
"""
    assert run_python(code).stdout.split() == ["3", "2"]
    assert run_python(code, FATNN_NUM_THREADS="5").stdout.split() == ["5", "2"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_forked_child_starts_its_own_threads() -> None:
    code = """
import os, sys, torch, fatnn_rs
from fatnn_rs import ops
fatnn_rs.set_num_threads(4)
torch.manual_seed(0)
codes = torch.ops.fatnn_rs.pack_codes(torch.randint(-1, 2, (4096, 64)).to(torch.int8), 1)
codes = codes.reshape(16, 16, 16, -1)
weight = ops.prepack(torch.randint(-1, 2, (64, 64, 3, 3)).to(torch.int8))
window = [3, 3], [1, 1], [1, 1], [1, 1]
expected = torch.ops.fatnn_rs.conv_acc(codes, weight, 64, *window).numpy().tobytes()
child = os.fork()
if child == 0:
    import signal
    signal.alarm(60)
    got = torch.ops.fatnn_rs.conv_acc(codes, weight, 64, *window).numpy().tobytes()
    os._exit(0 if got == expected else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
@pytest.mark.parametrize("end", ["os._exit(code)", "raise SystemExit(code)"])
def test_signal_handler_may_fork_during_a_run(end: str) -> None:
    # The handler runs between two layers. The child of the fork has no helping threads.
    code = f"""
import os, signal, sys
import numpy as np
import fatnn_rs
from fatnn_rs import zoo
fatnn_rs.set_num_threads(3)
net = zoo.load("cifar10-fast")
x = np.random.default_rng(0).standard_normal((2000, 3, 32, 32), dtype=np.float32)
expected = np.asarray(net(x)[:4])
children = []
def fork(number, frame):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        code = 0 if np.array_equal(net(x[:4]), expected) else 3
        {end}
    children.append(child)
signal.signal(signal.SIGALRM, fork)
signal.setitimer(signal.ITIMER_REAL, 0.02)
assert np.array_equal(net(x)[:4], expected)
while not children:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_cpu_info_names_kernels_threads_and_features() -> None:
    info = fatnn.cpu_info()
    assert "generic-popcount-scalar" in info["kernels"] or os.environ.get("FATNN_KERNEL")
    assert info["threads"] == fatnn.get_num_threads()
    assert set(info["features"]) <= set(info["features_detected"])
    assert _core.__version__ == fatnn.__version__
