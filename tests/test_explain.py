"""``explain``: what a float model would become; the model itself does not change."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fatnn_rs as fatnn
from nets import ready

#: The models hold recurrent layers, of which `prepare` warns.
pytestmark = pytest.mark.filterwarnings("ignore:these layers stay float")


class Model(nn.Module):
    """Convolutions, a GRU, and a buffer that forward writes in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.body, self.gru = nn.Conv1d(8, 8, 3, padding=1), nn.GRU(8, 8, batch_first=True)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.norm(self.stem(x)).relu()).relu()
        result: Tensor = self.head(self.drop(self.gru(x.transpose(1, 2))[0][:, -1]))
        return result


def state_of(model: nn.Module) -> Any:
    modules = [
        (name, type(m), m.training, dict(m._forward_hooks), sorted(vars(m)), list(m._modules))
        for name, m in model.named_modules()
    ]
    values = {
        name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()
    }
    return modules, values


def test_a_model_and_the_generators_stay_as_they_were() -> None:
    model, seen = Model(), []
    model.body.register_forward_hook(lambda module, args, output: seen.append(0))
    model.train()
    x = torch.randn(2, 4, 6)
    given, (modules, values) = x.clone(), state_of(model)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    report = fatnn.explain(model, x)
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]
    assert torch.equal(x, given)
    again, now = state_of(model)
    assert again == modules
    assert all(
        now[name][0] == kept and torch.equal(now[name][1], value)
        for name, (kept, value) in values.items()
    )
    assert report.refused == ""
    assert {row.name: row.rule for row in report.rows if row.runs == "torch"}["gru"] == "unknown"


def test_explain_agrees_with_prepare_and_convert() -> None:
    torch.manual_seed(0)
    model, x = Model().eval(), torch.randn(2, 4, 6)
    config = fatnn.TernaryConfig(first="int8")
    told = fatnn.explain(model, x, config)
    assert not any(isinstance(m, fatnn.nn.TernaryLayer) for m in model.modules())
    made = fatnn.convert(fatnn.prepare(model, config, x).eval(), x).report
    assert [(r.name, r.op, r.runs, r.macs) for r in told.rows] == [
        (r.name, r.op, r.runs, r.macs) for r in made.rows
    ]
    assert told.overview == made.overview
    assert told.layers_int8 == 1
    # Prepared models, too.
    assert fatnn.explain(model, x).overview == made.overview


def test_warnings_of_prepare_are_notes(recwarn: pytest.WarningsRecorder) -> None:
    class Idle(Model):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(8, 8)

    report = fatnn.explain(Idle(), torch.randn(2, 4, 6))
    assert any("'unused'" in note for note in report.notes)
    assert not recwarn.list


class Counting(Model):
    """Another result at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


def test_models_that_cannot_be_converted_get_a_reason_and_shares() -> None:
    model, x = Counting(), torch.randn(2, 4, 6)
    report = fatnn.explain(model, x)
    assert model.calls == 0
    assert "two results for the same inputs" in report.refused
    assert not report.saveable
    assert f"It cannot be converted: {report.refused}" in str(report)
    steps = 2 * 6
    assert report.macs_ternary == steps * 8 * 8 * 3
    assert report.macs_float == steps * (8 * 4 * 3 + 2 * 3 * 8 * 8) + 2 * 3 * 8
    assert {row.name for row in report.rows} == {"stem", "body", "head", "others"}
    assert set(report.as_dict()) == set(fatnn.explain(Model(), x).as_dict())


@pytest.mark.parametrize(
    ("model", "inputs", "why"),
    [
        (nn.ReLU(), torch.randn(2, 3), "holds no nn.Conv1d"),
        (nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 3), "nothing is left to quantize"),
        (Model(), torch.randn(2, 5, 6), "fails on"),
        (Model(), torch.full((2, 4, 6), float("nan")), "NaN"),
    ],
)
def test_report_says_why_a_model_cannot_be_converted(
    model: nn.Module, inputs: Tensor, why: str
) -> None:
    report = fatnn.explain(model, inputs)
    assert why in report.refused
    assert "It cannot be converted" in report.overview


def test_shared_parameters_stay_shared_in_the_copy() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.body, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.last.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(self.first(x).relu()).relu()
            with torch.no_grad():
                self.first.weight.add_(1)
            result: Tensor = self.last(x)
            return result

    model, x = Tied(), torch.randn(4, 8)
    kept = model.first.weight.clone()
    report = fatnn.explain(model, x)
    assert report.refused  # a converted network keeps no state
    assert torch.equal(model.first.weight, kept)
    assert model.first.weight is model.last.weight


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(fatnn.ConfigError, match=r"torch\.nn\.Module"):
        fatnn.explain(torch.relu, torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(fatnn.ConfigError, match="TernaryConfig"):
        fatnn.explain(Model(), torch.ones(1), {})  # type: ignore[arg-type]
    with pytest.raises(fatnn.InputError, match="expected a tensor"):
        fatnn.explain(Model(), None)
    x = torch.randn(2, 4, 6)
    prepared = ready(Model(), x)
    assert fatnn.explain(prepared, x).refused == ""
