"""Trained networks of the package, cards, pictures, and the hub's files."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fatnn_rs as fatnn
from command_line import call
from fatnn_rs import zoo
from fatnn_rs.train.data import load_data
from fatnn_rs.train.recipe import load_recipe
from training import save_digit

WITH_WEIGHTS = [name for name in zoo.names() if name == "fashion-mnist"]


def test_every_network_has_a_complete_card() -> None:
    assert {"cifar10-fast", "digits", "fashion-mnist"} <= set(zoo.names())
    for name in zoo.names():
        card = zoo.card(name)
        assert zoo.path(name).stat().st_size < 1_000_000
        assert len(set(card.classes)) == len(card.classes) == 10
        assert 0.85 < card.accuracy <= 1
        assert card.float_accuracy is not None
        assert card.float_accuracy > card.accuracy
        assert card.command.startswith("fatnn train --config ")
        assert card.limits
        assert set(card.machine) == {"cpu", "commit", "date", "versions"}
        assert not str(card.machine["commit"]).endswith("+")
        text = str(card)
        assert f"{card.accuracy:.2%} (float {card.float_accuracy:.2%})" in text
        (network_input,) = zoo.load(name).network.inputs
        image = card.image
        assert network_input[1][1:] == (image.channels, image.height, image.width)


@pytest.mark.parametrize("name", zoo.names())
def test_networks_reach_the_accuracy_on_their_cards(
    name: str, request: pytest.FixtureRequest
) -> None:
    card, net = zoo.card(name), zoo.load(name)
    folder = None if card.data == "digits" else request.getfixturevalue("data_folder")
    data = load_data(load_recipe(card.recipe), folder, download=False)
    assert data.class_names == card.classes
    assert data.image_input == card.image
    assert data.test_count == card.test_images
    some = data.subset(None, 1000)
    right = sum(
        int((net(x.numpy()).argmax(1) == y.numpy()).sum()) for x, y in some.test_batches(250)
    )
    expected, count = card.accuracy, some.test_count
    if count == card.test_images:
        assert right / count == expected
    else:  # four standard deviations of the accuracy of a subset
        assert abs(right / count - expected) < 4 * (expected * (1 - expected) / count) ** 0.5


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_weights_of_the_zoo_make_its_network_again(name: str) -> None:
    image = zoo.card(name).image
    x = torch.randn(16, image.channels, image.height, image.width)
    prepared = zoo.load_prepared(name)
    assert not prepared.training
    net = fatnn.convert(prepared, x)
    assert fatnn.verify(prepared, net, x).codes_different == 0
    expected = zoo.load(name)(x.numpy())
    np.testing.assert_allclose(net(x).numpy(), expected, rtol=1e-5, atol=1e-5)
    model = zoo.load_float(name)
    kinds = {type(module) for module in model.modules()}
    assert nn.Conv2d in kinds
    assert not [kind for kind in kinds if kind.__module__.startswith("fatnn_rs.nn")]
    assert model(x).shape == (16, len(zoo.card(name).classes))


def test_unknown_names_and_missing_weights_are_refused() -> None:
    with pytest.raises(fatnn.ConfigError, match=r"no network 'resnet'; there are .*digits"):
        zoo.load("resnet")
    with pytest.raises(fatnn.UnsupportedError, match=r"no float weights of 'digits'.*fatnn train"):
        zoo.load_float("digits")
    with pytest.raises(fatnn.UnsupportedError, match="no ternary weights of 'digits'"):
        zoo.load_prepared("digits")


def test_classify_returns_names_and_probabilities(tmp_path: Path) -> None:
    labels = [save_digit(tmp_path / f"{i}.png", i) for i in range(4)]
    net = zoo.load("digits")
    for i, label in enumerate(labels):
        ranking = net.classify(tmp_path / f"{i}.png", top=10)
        assert ranking[0][0] == str(label)
        shares = [share for _, share in ranking]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)
    several = net.classify([str(tmp_path / f"{i}.png") for i in range(4)], top=1)
    assert [ranking[0][0] for ranking in several] == list(map(str, labels))
    assert net.classify([]) == []


def test_card_of_another_network_is_refused(tmp_path: Path) -> None:
    card = zoo.card("digits")
    with pytest.raises(fatnn.InputError, match=r"images of \[1, 8, 8\], but .* \[2, 1, 28, 28\]"):
        zoo.Classifier(zoo.path("fashion-mnist"), card)
    for image in (replace(card.image, height=5), replace(card.image, height=16, resize=16)):
        with pytest.raises(fatnn.InputError, match="the card is for images of"):
            zoo.Classifier(zoo.path("digits"), replace(card, image=image))
    with pytest.raises(fatnn.InputError, match=r"card has 2 classes, but .* \[2, 10\]"):
        zoo.Classifier(zoo.path("digits"), replace(card, classes=("a", "b")))
    with pytest.raises(fatnn.InputError, match=r"expected a Card, got str"):
        zoo.Classifier(zoo.path("digits"), "net.json")  # type: ignore[arg-type]
    net = tmp_path / "net.safetensors"
    with pytest.raises(fatnn.InputError, match=r"no such file; .* network of the zoo: cifar10"):
        zoo.Classifier(net)
    net.write_bytes(zoo.path("digits").read_bytes())
    with pytest.raises(fatnn.InputError, match=r"no card net\.json next to it"):
        zoo.Classifier(net)
    with pytest.raises(fatnn.InputError, match="no card of its own"):
        zoo.Classifier(fatnn.load_numpy(net))
    card.write(tmp_path / "net.json")
    assert zoo.Classifier(net).card == card


def test_outputs_that_are_no_finite_array_are_refused(tmp_path: Path) -> None:
    card = zoo.card("digits")
    for outputs in ([float("nan")] * 10, [float("inf")] + [0.0] * 9):
        with pytest.raises(fatnn.InputError, match="not all finite"):
            card.ranking(outputs)
    with pytest.raises(fatnn.InputError, match=r"shape \[3\] for an image, but its card has 10"):
        card.ranking([0.0] * 3)
    for top in (0, -1, 2.5, "3", None, True):
        with pytest.raises(fatnn.ConfigError, match="top must be a positive whole number"):
            card.ranking([0.0] * 10, top)  # type: ignore[arg-type]
    shares = [0.05] * 8 + [0.4, 0.2]
    assert card.ranking(shares, 2) == [("8", 0.4), ("9", 0.2)]  # probabilities already

    class Dict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flatten, self.linear = nn.Flatten(), nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.linear(self.flatten(x))}

    x = torch.randn(2, 1, 8, 8)
    config = fatnn.TernaryConfig(first="int8", last="int8")
    model = fatnn.prepare(Dict(), config, example_inputs=x).eval()
    fatnn.save(fatnn.convert(model, x), tmp_path / "dict.safetensors")
    save_digit(tmp_path / "0.png")
    with pytest.raises(fatnn.InputError, match="returns a dict; a classifier needs"):
        zoo.Classifier(tmp_path / "dict.safetensors", card).classify(tmp_path / "0.png")


def test_classify_takes_files_and_images_and_refuses_the_rest(tmp_path: Path) -> None:
    label, net = str(save_digit(tmp_path / "0.png")), zoo.load("digits")
    expected = net.classify(tmp_path / "0.png")
    assert expected[0][0] == label
    with (tmp_path / "0.png").open("rb") as file, Image.open(tmp_path / "0.png") as image:
        assert net.classify([file, image, str(tmp_path / "0.png")]) == [expected] * 3
    for wrong in (None, 5, b"0.png", np.zeros((8, 8)), {str(tmp_path / "0.png")}):
        with pytest.raises(fatnn.InputError, match="expected a picture's file name, a binary"):
            net.classify(wrong)  # type: ignore[arg-type]
    os.mkfifo(tmp_path / "fifo.png")
    for name in ("fifo.png", "."):
        with pytest.raises(fatnn.InputError, match="not a regular file"):
            net.classify(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        net.classify(tmp_path / "missing.png")
    again = pickle.loads(pickle.dumps(net))
    assert again.classify(tmp_path / "0.png") == expected
    assert copy.deepcopy(net).card == net.card
    with pytest.raises(TypeError, match="cannot be pickled; make it from the file"):
        pickle.dumps(zoo.Classifier(net.network, net.card))


def test_command_line_lists_the_zoo_and_classifies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, "zoo")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(zoo.names())
    code, out, _ = call(capsys, "zoo", "digits")
    assert out.rstrip("\n") == str(zoo.card("digits"))
    code, out, _ = call(capsys, "zoo", "digits", "--json")
    assert json.loads(out) == json.loads(zoo.card("digits").to_json())
    assert call(capsys, "zoo", "cats")[0] == 1

    label = save_digit(tmp_path / "a.png")
    code, out, _ = call(capsys, "run", "digits", str(tmp_path / "a.png"), "--top", "3")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == str(tmp_path / "a.png")
    assert lines[1].split()[0] == str(label)
    assert lines[1].endswith("%")
    assert len(lines) == 4
    both = [str(tmp_path / "a.png")] * 2
    code, out, _ = call(capsys, "run", "digits", *both, "--json")
    rows = json.loads(out)
    assert [row["classes"][0]["name"] for row in rows] == [str(label)] * 2

    code, out, _ = call(capsys, "eval", "digits", "--json")
    assert json.loads(out)["accuracy"] == zoo.card("digits").accuracy
    assert call(capsys, "inspect", "digits")[0] == 0


def test_command_line_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    np.save(tmp_path / "a.npy", np.zeros((1, 1, 8, 8), np.float32))
    picture, array = str(tmp_path / "text.png"), str(tmp_path / "a.npy")
    code, _, err = call(capsys, "run", "digits", picture)
    assert code == 1
    assert "text.png: not a picture that Pillow reads; give a PNG or a JPEG" in err
    for others in (picture, array):
        code, _, err = call(capsys, "run", "digits", array, others)
        assert code == 2
        assert "give one array, or only pictures" in " ".join(err.replace("│", " ").split())
    code, _, err = call(capsys, "run", "digits", picture, "--out", str(tmp_path / "b.npy"))
    assert code == 2
    assert "--out is for arrays" in err
    upper = tmp_path / "B.NPY"
    upper.write_bytes(Path(array).read_bytes())
    assert call(capsys, "run", "digits", str(upper))[0] == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert call(capsys, "run", "digits", array)[0] == 0  # a directory is no network
    for name in ("", "."):
        code, _, err = call(capsys, "run", name, array)
        assert code == 2
        assert ("is a directory" in err) == (name == ".")
    code, _, err = call(capsys, "eval", "fashion-mnist", "--config", "digits")
    assert code == 1
    assert "takes images of 1x28x28, but data set 'digits' has 1x8x8" in err
    code, _, err = call(capsys, "run", "digit", array)
    assert code == 2
    assert "'digit' does not exist" in err
    net = tmp_path / "net.safetensors"
    net.write_bytes(zoo.path("digits").read_bytes())
    code, _, err = call(capsys, "eval", str(net))
    assert code == 1
    assert "no card net.json" in err
    save_digit(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    code, _, err = call(capsys, "run", "digits", str(tmp_path / "cut.png"))
    assert code == 1
    assert "cut.png: " in err


NO_TORCH = """
import sys
sys.modules["torch"] = None
import fatnn_rs as fatnn
from fatnn_rs import cli
for name in fatnn.zoo.names():
    net = fatnn.zoo.load(name)
    print(net.classify(sys.argv[1], top=1)[0][0])
    try:
        fatnn.zoo.load_prepared(name)
    except fatnn.UnsupportedError as error:
        assert "torch" in str(error) or "large" in str(error), error
for arguments in (["zoo"], ["run", "digits", sys.argv[1]]):
    try:
        cli.main(arguments)
    except SystemExit as leaving:
        assert not leaving.code
from fatnn_rs.hub import HubNetwork
HubNetwork(fatnn.zoo.path("digits"))
"""


def test_zoo_works_without_torch(tmp_path: Path) -> None:
    label = save_digit(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, str(tmp_path / "a.png")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(label) in done.stdout.splitlines()[: len(zoo.names())]
