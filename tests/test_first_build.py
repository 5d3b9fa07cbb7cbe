"""Peers that crash: the report names them, and the benchmark goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fatnn_rs.bench.export import BenchTask
from fatnn_rs.bench.first_build import first_builds
from fatnn_rs.bench.peers import PEERS
from zoo import ZOO, measure, report

FILES = ("onnxruntime", "openvino", "onnxruntime-int8")

#: Statements of a fake runtime package, which run when it is imported.
ENDS = {
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": "signal SIGSEGV",
    "import os; os._exit(3)": "exit code 3",
    "raise RuntimeError('no such CPU')": "",
}


@pytest.mark.parametrize(("source", "end"), ENDS.items(), ids=["signal", "exit", "error"])
def test_a_peer_that_ends_its_process_is_named(
    source: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any(PEERS[name].missing() for name in FILES):
        pytest.skip("onnxruntime or openvino is not installed")
    package = tmp_path / "openvino"
    package.mkdir()
    (package / "__init__.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    task = BenchTask(model, (torch.zeros(1, 3, 8, 8),), 1, tmp_path)
    died = first_builds(task, ("torch", *FILES))
    expected = {"openvino": f"it ended the process that built it first ({end})"} if end else {}
    assert died == expected


def test_the_zoo_says_where_it_is_slower() -> None:
    row = measure.Row("resnet18")
    for name, over in {"default": 1.0, "rust": 1.0, "torch": 0.5, "onnxruntime": 2.0}.items():
        row.cells[name] = measure.Cell({"median": 4.0}, {"default": over, "rust": over})
    row.cells["openvino-int8"] = measure.Cell(reason="failed: signal SIGSEGV")
    text = report.table([row])
    assert report.slower([row]) == ["resnet18: torch takes 0.50 of default's time"]
    assert "resnet18: openvino-int8: failed: signal SIGSEGV" in text
    assert "2.00 (onnxruntime)" in text
    assert len(ZOO) == 23
