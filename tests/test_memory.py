"""Bytes of a saved network: in the file, and in memory when it runs without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fatnn_rs

pytest.importorskip("torchvision", reason="measures the ResNet-18 of torchvision")

from fatnn_rs.bench.networks import build_and_convert

#: Runs in a process of its own; prints the bytes that loading and running add to the peak.
MEASURE = """
import sys, numpy
import fatnn_rs

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

fatnn_rs.load_numpy  # a lazy import, which must not count
image = numpy.zeros((1, 3, 224, 224), numpy.float32)
before = peak()
net = fatnn_rs.load_numpy(sys.argv[1])
for _ in range(3):
    net(image)
assert "torch" not in sys.modules
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
def test_resnet18_is_small_on_disk_and_in_memory(tmp_path: Path) -> None:
    """The file stays below 3.5 MB, and the peak of loading and running below 40 MB."""
    file = tmp_path / "net.safetensors"
    fatnn_rs.save(build_and_convert("resnet18", ends="int8").net, file)
    size = file.stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(file)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    peak = json.loads(done.stdout)
    print(f"file {size / 1e6:.2f} MB, peak {peak / 1e6:.1f} MB")
    assert size < 3.5e6
    assert 0 < peak < 40e6
