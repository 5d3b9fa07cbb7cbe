"""What a saved network takes: on disk, and in memory beyond the interpreter, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fatnn_rs

pytest.importorskip("torchvision", reason="the network measured is torchvision's")

from fatnn_rs.bench.networks import make

#: Runs in a process of its own: prints the peak beyond what imports take, in bytes.
MEASURE = """
import sys, numpy
import fatnn_rs

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

fatnn_rs.load_numpy  # imports what it needs
image = numpy.zeros((1, 3, 224, 224), numpy.float32)
before = peak()
net = fatnn_rs.load_numpy(sys.argv[1])
for _ in range(3):
    net(image)
assert "torch" not in sys.modules
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_resnet18_is_small_on_disk_and_in_memory(tmp_path: Path) -> None:
    """Below 3.5 MB in a file, below 40 MB at the peak of loading and running."""
    file = tmp_path / "net.safetensors"
    fatnn_rs.save(make("resnet18", ends="int8").net, file)
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
