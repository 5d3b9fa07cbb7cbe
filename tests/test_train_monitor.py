"""The monitor of codes during training, and where its warnings go."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from fatnn_rs import TernaryConfig, prepare
from fatnn_rs.models.digits import DigitsNet
from fatnn_rs.train.loop import TrainOptions, train
from fatnn_rs.train.monitor import CodeMonitor, LayerState
from fatnn_rs.train.recipe import load_recipe
from training import (
    SHORT,
    silent_console,
)


def test_monitor_warns_of_dying_constant_and_saturated_layers() -> None:
    torch.manual_seed(0)
    x = torch.rand(16, 1, 8, 8)
    model = prepare(DigitsNet(), TernaryConfig(), x)
    monitor = CodeMonitor(model)
    first = monitor.look(x)
    assert len(first) == 9
    assert all(state.flips is None for state in first)
    assert model.training
    layer = monitor.layers["blocks.0.conv1"]
    codes = layer.weight_quant.codes(layer.weight)
    assert first[0].weight_zeros == pytest.approx(float((codes == 0).double().mean()))
    with torch.no_grad():
        layer.weight.neg_()
        layer.act_quant.alpha1.fill_(1e-6)
        monitor.layers["blocks.1.conv1"].act_quant.alpha1.fill_(1e6)
        monitor.layers["blocks.1.conv1"].act_quant.alpha2.fill_(1e6)
        monitor.layers["blocks.2.conv1"].weight_quant.alpha_neg.fill_(1e-6)
        monitor.layers["blocks.2.conv1"].weight_quant.alpha_pos.fill_(1e-6)
    second = {state.layer: state for state in monitor.look(x)}
    flipped = float((codes != 0).double().mean())
    assert second["blocks.0.conv1"].flips == pytest.approx(flipped)
    assert second["blocks.3.conv1"].flips == 0.0

    def warnings(name: str) -> str:
        return " ".join(second[name].warnings(0.98))

    assert "dying: 100% of the activation codes" in warnings("blocks.0.conv1")
    assert "stands still" in warnings("blocks.3.conv1")
    assert "dying: 100% of its weight codes are zero" in warnings("blocks.2.conv1")
    state = LayerState("a", 0.3, 0.1, 0.2, 0.99, {"act.alpha1": 2.0})
    assert [text.split(":")[0] for text in state.warnings(0.98)] == ["layer 'a' is saturated"]
    assert state.scalars() == {
        "a/weight_zeros": 0.3,
        "a/flips": 0.1,
        "a/act_zeros": 0.2,
        "a/saturation": 0.99,
        "a/step.act.alpha1": 2.0,
    }


def test_monitor_warnings_reach_console_and_log(tmp_path: Path) -> None:
    console = silent_console()
    recipe = load_recipe("digits", [*SHORT, "monitor.dead=0.2"])
    result = train(recipe, TrainOptions(out=tmp_path, cpu=True), console)
    warned = result["log"][-1]["warnings"]
    assert warned
    assert isinstance(console.file, io.StringIO)
    assert "is dying" in console.file.getvalue()
    assert any((tmp_path / "tensorboard").rglob("events.out.*"))
