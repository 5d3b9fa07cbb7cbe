"""``python -m quantizers.deployed``: a trained network next to its float model elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fatnn_rs.card import read_card
from fatnn_rs.train.data import load_data
from fatnn_rs.train.loop import TrainOptions, train
from fatnn_rs.train.models import build_model
from fatnn_rs.train.recipe import load_recipe
from fatnn_rs.train.run import read_state
from quantizers import deployed

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")

SHORT = ("float.epochs=3", "ternary.epochs=3", "quantize.first=int8", "quantize.last=int8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the digits."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    train(load_recipe("digits", SHORT), TrainOptions(out=folder, cpu=True))
    return folder


def test_table_has_the_accuracies_of_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.md"
    with pytest.raises(SystemExit) as leaving:
        deployed.main([str(run), "--rounds", "3", "--out", str(out)])
    assert not leaving.value.code
    text = capsys.readouterr().out
    assert out.read_text() == text
    rows = dict(re.findall(r"^\| (\w+, \w[\w-]+) \| ([\d.]+) \| [\d.]+ \| [\d,]+ \|$", text, re.M))
    card = read_card(run / "net.json")
    assert card.float_accuracy is not None
    assert rows["ternary, fatnn-rs"] == f"{100 * card.accuracy:.2f}"
    assert rows["float32, onnxruntime"] == f"{100 * card.float_accuracy:.2f}"
    for name in ("int8, onnxruntime", "int8, OpenVINO"):
        assert abs(float(rows[name]) - 100 * card.float_accuracy) < 3
    assert len(set(rows.values())) > 1


def test_pictures_of_three_channels(pictures: Path, tmp_path: Path) -> None:
    settings = (
        *SHORT, "data=folder", "image_size=32", "augment={}", "batch_size=9", "model=cifar-fast",
        "model_options={width: 0.125}", "ternary.distill=0",
    )  # fmt: skip
    options = TrainOptions(out=tmp_path, data=pictures, cpu=True)
    result = train(load_recipe("digits", settings), options)
    recipe = load_recipe("digits", settings)
    model = build_model(recipe, 3)
    model.load_state_dict(read_state(tmp_path / "float.pt")["model"])
    with torch.no_grad():  # answers that differ from image to image
        model.classifier.weight.mul_(100)  # type: ignore[union-attr, operator]
    data = load_data(recipe, pictures)
    x, y = next(iter(data.test_batches(9)))
    right = float((model.eval()(x).argmax(1) == y).float().mean())
    rows = {row.name: row for row in deployed.measure(tmp_path / "net.safetensors", model, data, 3)}
    assert rows["float32, onnxruntime"].accuracy == pytest.approx(right)
    assert rows["ternary, fatnn-rs"].accuracy == result["rust_accuracy"]


def test_run_without_its_float_model_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("net.json", "net.safetensors"):
        (copy / name).write_bytes((run / name).read_bytes())
    assert deployed.main([str(copy), "--rounds", "3"]) == 1
    assert "has no float.pt; give the float model with --float-from" in capsys.readouterr().err
