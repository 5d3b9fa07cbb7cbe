"""Trained networks of the package, cards, pictures, and the hub's files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelHubMixin
from PIL import Image
from torch import nn

import fatnn_rs as fatnn
from fatnn_rs import cli, zoo
from fatnn_rs.card import Card, ImageInput, read_card
from fatnn_rs.hub import HubNetwork
from fatnn_rs.train.data import load_data
from fatnn_rs.train.recipe import load_recipe

WITH_WEIGHTS = [name for name in zoo.names() if name == "fashion-mnist"]


def save_digit(path: Path, index: int = 0, scale: int = 8) -> int:
    """Write a test image of the digits, ``scale`` times as large, and return its label."""
    data = load_data(load_recipe("digits"), None)
    x, y = next(iter(data.test_batches(index + 1)))
    pixels = (x[index, 0] * 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).resize((8 * scale, 8 * scale), Image.Resampling.NEAREST).save(path)
    return int(y[index])


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


def test_picture_is_preprocessed_like_the_test_images(tmp_path: Path) -> None:
    data = load_data(load_recipe("digits"), None)
    save_digit(tmp_path / "0.png", scale=1)
    x = next(iter(data.test_batches(1)))[0].numpy()
    np.testing.assert_array_equal(data.image_input.read(tmp_path / "0.png"), x)


@pytest.mark.parametrize("size", [(50, 40), (33, 100), (64, 64), (41, 43), (300, 20)])
def test_picture_is_preprocessed_like_those_of_a_folder(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            noise = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / part / name / "p.png")
    settings = ["data=folder", "image_size=21", "batch_size=2", "augment={}"]
    data = load_data(load_recipe("digits", settings), tmp_path)
    assert data.class_names == ("a", "b")
    (x, _), *_ = data.test_batches(1)
    got = data.image_input.read(tmp_path / "val" / "a" / "p.png")
    np.testing.assert_allclose(got, x.numpy(), atol=1e-5)


def test_pictures_are_scaled_cropped_and_normalised(tmp_path: Path) -> None:
    image = ImageInput(3, 4, 4, 8, (0.5, 0.0, 0.25), (0.5, 1.0, 2.0))
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 8:24] = (255, 51, 255)  # after scaling to 8 x 16, the middle 8 columns
    Image.fromarray(pixels).save(tmp_path / "a.png")
    x = image.read(tmp_path / "a.png")
    assert x.dtype == np.float32
    assert x.shape == (1, 3, 4, 4)
    expected = np.array([1.0, 0.2, 0.375], np.float32)[None, :, None, None]
    np.testing.assert_allclose(x, np.broadcast_to(expected, x.shape), rtol=1e-6)
    # A grey picture and a palette for three channels; a colour picture for one.
    for mode in ("L", "P", "LA", "RGBA", "CMYK", "1", "I;16"):
        Image.new(mode, (5, 9)).save(tmp_path / "m.tiff")
        assert image.read(tmp_path / "m.tiff").shape == (1, 3, 4, 4)
        grey = ImageInput(1, 4, 4, 4, (0.0,), (1.0,))
        assert grey.read(tmp_path / "m.tiff").shape == (1, 1, 4, 4)
    clear = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    clear.save(tmp_path / "clear.png")
    assert ImageInput(1, 4, 4, 4, (0.0,), (1.0,)).read(tmp_path / "clear.png").max() == 0


def test_sixteen_bit_pictures_keep_their_brightness(tmp_path: Path) -> None:
    grey = ImageInput(1, 2, 2, 2, (0.0,), (1.0,))
    Image.fromarray(np.full((2, 2), 32768, np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_allclose(grey.read(tmp_path / "deep.png"), 0.5, atol=0.01)
    Image.new("F", (2, 2)).save(tmp_path / "float.tiff")
    with pytest.raises(fatnn.InputError, match=r"float\.tiff: expected 8 or 16 bits per channel"):
        grey.read(tmp_path / "float.tiff")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"channels": 2}, "channels must be 1"),
        ({"channels": True}, "must be positive"),
        ({"resize": 7}, "resize=7 is smaller than the crop, 8x8"),
        ({"height": 0}, "must be positive"),
        ({"mean": (0.0, 1.0)}, "mean must have a finite number"),
        ({"std": (float("nan"),)}, "std must have a finite number"),
        ({"std": (0.0,)}, "std must be positive"),
    ],
)
def test_wrong_preprocessing_is_refused(changes: dict[str, object], error: str) -> None:
    image = ImageInput(1, 8, 8, 8, (0.0,), (1.0,))
    with pytest.raises(fatnn.FormatError, match=error):
        replace(image, **changes)  # type: ignore[arg-type]


def test_cards_survive_their_file_and_damage_is_named(tmp_path: Path) -> None:
    card, file = zoo.card("digits"), tmp_path / "card.json"
    file.write_text(card.to_json())
    assert read_card(file) == card
    content = json.loads(card.to_json())
    for damage in (
        "[]",
        "{",
        json.dumps({**content, "more": 1}),
        json.dumps({**content, "classes": "ab"}),
        json.dumps({**content, "image": {}}),
        json.dumps({name: value for name, value in content.items() if name != "seed"}),
    ):
        file.write_text(damage)
        with pytest.raises(fatnn.FormatError, match=r"card\.json: not a card of this version"):
            read_card(file)


def test_ranking_refuses_a_card_of_another_network(tmp_path: Path) -> None:
    save_digit(tmp_path / "0.png")
    card = replace(zoo.card("digits"), classes=("a", "b"))
    with pytest.raises(fatnn.InputError, match=r"shape \[10\] for an image, but its card has 2"):
        zoo.Classifier(zoo.path("digits"), card).classify(tmp_path / "0.png")
    net = tmp_path / "net.safetensors"
    net.write_bytes(zoo.path("digits").read_bytes())
    with pytest.raises(fatnn.InputError, match=r"no card net\.json next to it"):
        zoo.Classifier(net)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return the exit code, standard output and standard error of the command line."""
    try:
        code = cli.main(arguments)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_line_lists_the_zoo_and_classifies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, "zoo")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(zoo.names())
    code, out, _ = call(capsys, "zoo", "digits")
    assert out.rstrip("\n") == str(zoo.card("digits"))
    code, out, _ = call(capsys, "zoo", "digits", "--json")
    assert Card(**json.loads(out)).seed == 0
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
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    np.save(tmp_path / "a.npy", np.zeros((1, 1, 8, 8), np.float32))
    picture, array = str(tmp_path / "text.png"), str(tmp_path / "a.npy")
    code, _, err = call(capsys, "run", "digits", picture)
    assert code == 1
    assert "text.png: expected a picture that Pillow reads" in err
    code, _, err = call(capsys, "run", "digits", array, picture)
    assert code == 1
    assert "one array, or pictures, but not both" in err
    code, _, err = call(capsys, "run", "digits", picture, "--out", str(tmp_path / "b.npy"))
    assert code == 1
    assert "--out is for arrays" in err
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


def test_hub_files_are_written_and_read_again(tmp_path: Path) -> None:
    network = HubNetwork(zoo.path("digits"))
    assert isinstance(network, ModelHubMixin)
    network.save_pretrained(tmp_path / "repository")
    names = {file.name for file in (tmp_path / "repository").iterdir()}
    assert names == {"README.md", "config.json", "net.json", "net.safetensors"}
    page = (tmp_path / "repository" / "README.md").read_text()
    assert "library_name: fatnn-rs" in page
    assert str(network.card) in page
    again = HubNetwork.from_pretrained(tmp_path / "repository")
    x = np.random.default_rng(0).standard_normal((3, 1, 8, 8), np.float32)
    np.testing.assert_array_equal(again(x), network(x))
    assert again.card == network.card
    label = save_digit(tmp_path / "a.png")
    assert again.classifier().classify(tmp_path / "a.png")[0][0] == str(label)
    again.save_pretrained(tmp_path / "repository")  # onto itself
    HubNetwork.from_pretrained(str(tmp_path / "repository"))


def test_hub_network_without_a_card_or_a_file(tmp_path: Path) -> None:
    net = tmp_path / "net.safetensors"
    net.write_bytes(zoo.path("digits").read_bytes())
    network = HubNetwork(net)
    assert network.card is None
    with pytest.raises(fatnn.ConfigError, match="has no card"):
        network.classifier()
    network.save_pretrained(tmp_path / "repository")
    assert HubNetwork.from_pretrained(tmp_path / "repository").card is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(fatnn.FormatError, match=r"expected net\.safetensors there"):
        HubNetwork.from_pretrained(tmp_path / "empty")
