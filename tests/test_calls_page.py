"""The examples of docs/calls.md run as printed, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fatnn_rs as fatnn
from fatnn_rs.convert import TernaryNetwork

PAGE = Path(__file__).parent.parent / "docs" / "calls.md"


def test_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "example"}
    examples = re.findall(r"```python\n(.+?)```", PAGE.read_text("utf-8"), re.S)
    assert len(examples) == 6
    for code in examples:
        exec(compile(code, str(PAGE), "exec"), names)
    assert "expected the size of argument 'input', dimension 2, 16" in capsys.readouterr().out
    assert isinstance(names["whole"].backbone, TernaryNetwork)
    assert names["part"].report.layers_ternary > 0
    assert names["before"].shape[2] > 0


def test_what_the_page_says_of_other_values() -> None:
    page = PAGE.read_text("utf-8")
    names: dict[str, Any] = {}
    first = re.findall(r"```python\n(.+?)```", page, re.S)[0]
    exec(compile(first, str(PAGE), "exec"), names)
    with pytest.raises(fatnn.InputError, match=r"'scale': the network was converted for 0.5"):
        names["net"](names["ids"], names["mask"])


class Weighted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, weights: Any, power: int = 1) -> torch.Tensor:
        x = x * torch.from_numpy(weights).float() ** power
        y: torch.Tensor = self.last(self.first(x).relu())
        return y


def test_array_is_a_constant() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(3, 4), np.array([1.0, 2.0, 0.5, 1.0])
    config = fatnn.TernaryConfig(first="ternary", last="ternary")
    model = fatnn.prepare(Weighted(), config, (x, weights)).eval()
    net = fatnn.convert(model, (x, weights))
    assert torch.equal(net(x[:2], weights.copy()), model(x[:2], weights))
    with pytest.raises(fatnn.InputError, match="'weights': the network was converted for"):
        net(x, weights * 2)
    with pytest.raises(fatnn.InputError, match="'weights': the network was converted for"):
        net(x, torch.from_numpy(weights))
