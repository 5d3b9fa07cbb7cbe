"""Cards, and how pictures become the inputs of networks."""

from __future__ import annotations

import json
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fatnn_rs as fatnn
from fatnn_rs import zoo
from fatnn_rs.card import ImageInput, read_card
from fatnn_rs.train.data import load_data
from fatnn_rs.train.recipe import load_recipe
from training import save_digit


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
    with pytest.raises(fatnn.InputError, match=r"^[^;]*; give a PNG or a JPEG$"):
        grey.read(tmp_path / "float.tiff")
    assert grey.read(Image.new("La", (2, 2), (200, 255))).max() == pytest.approx(200 / 255)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"channels": 2}, "channels must be 1"),
        ({"channels": True}, "channels must be a whole number from 1 to 16384, got True"),
        ({"resize": 7}, "resize=7 is smaller than the crop, 8x8"),
        ({"resize": 10**30}, "resize must be a whole number from 1"),
        ({"height": 0}, "height must be a whole number"),
        ({"width": "8"}, "width must be a whole number from 1 to 16384, got '8'"),
        ({"mean": (0.0, 1.0)}, "mean must have a finite number"),
        ({"mean": (10**400,)}, "mean must have a finite number"),
        ({"mean": [0.0]}, "mean must have a finite number"),
        ({"mean": (True,)}, "mean must have a finite number"),
        ({"mean": (1e30,)}, "normalised pixels at most a million"),
        ({"std": (float("nan"),)}, "std must have a finite number"),
        ({"std": (0.0,)}, "std must be positive"),
        ({"std": (-1.0,)}, "std must be positive"),
        ({"std": (1e-40,)}, "normalised pixels at most a million"),
    ],
)
def test_wrong_preprocessing_is_refused(changes: dict[str, object], error: str) -> None:
    image = ImageInput(1, 8, 8, 8, (0.0,), (1.0,))
    with pytest.raises(fatnn.FormatError, match=error):
        replace(image, **changes)  # type: ignore[arg-type]


def test_cards_survive_their_file_and_damage_is_named(tmp_path: Path) -> None:
    card, file = zoo.card("digits"), tmp_path / "card.json"
    card.write(file)
    assert read_card(file) == card
    assert hash(read_card(file)) == hash(card)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # a byte order mark
    assert read_card(file) == card
    content = json.loads(card.to_json())
    damages = {
        "[]": "the card must be an object, got list",
        "{": "Expecting property name",
        "[" * 200_000: "",
        json.dumps({**content, "more": 1}): "the card has the unknown key 'more'",
        json.dumps({**content, "image": {}}): "image has no 'channels'",
        json.dumps({name: content[name] for name in content if name != "seed"}): "no 'seed'",
    }
    for name, value, error in (
        ("classes", "ab", "classes must be different names"),
        ("classes", [], "classes must be different names"),
        ("classes", ["a", "a"], "classes must be different names"),
        ("classes", ["a\n"], "classes must be different names"),
        ("description", 5, "description must be a string, got 5"),
        ("accuracy", "x", "accuracy must be a fraction"),
        ("accuracy", None, "accuracy must be a fraction"),
        ("accuracy", 5, "accuracy must be a fraction"),
        ("float_accuracy", float("nan"), "float_accuracy must be a fraction"),
        ("test_images", "x", "test_images must be a whole number"),
        ("machine", [], "machine must be an object"),
        ("recipe", "digits", "recipe must be an object"),
        ("seed", -1, "seed must be a whole number of at least 0"),
        ("image", 3, "image must be an object, got int"),
    ):
        damages[json.dumps({**content, name: value})] = error
    for damage, error in damages.items():
        file.write_text(damage)
        with pytest.raises(
            fatnn.FormatError, match=r"card\.json: not a card of this version.*" + re.escape(error)
        ):
            read_card(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(fatnn.FormatError, match=r"card\.json: not a card"):
        read_card(file)


def test_rotation_and_transparency_are_applied(tmp_path: Path) -> None:
    colours = ImageInput(3, 8, 8, 8, (0.0,) * 3, (1.0,) * 3)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = np.rot90(pixels, -1).transpose(2, 0, 1)[None] / np.float32(255)
    np.testing.assert_allclose(colours.read(tmp_path / "turned.png"), turned, atol=1e-6)
    deep = np.full((8, 8), 65535, np.uint16)
    Image.fromarray(deep).save(tmp_path / "clear.png", transparency=65535)
    assert ImageInput(1, 8, 8, 8, (0.0,), (1.0,)).read(tmp_path / "clear.png").max() == 0


def test_thin_pictures_need_little_memory(tmp_path: Path) -> None:
    pixels = np.zeros((20000, 1), np.uint8)
    pixels[10000:] = 255
    Image.fromarray(pixels).save(tmp_path / "thin.png")
    image = ImageInput(1, 224, 224, 256, (0.0,), (1.0,))
    tracemalloc.start()
    x = image.read(tmp_path / "thin.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert x.shape == (1, 1, 224, 224)
    assert x[0, 0, 0].max() < 0.1
    assert x[0, 0, -1].min() > 0.9
    assert peak < 50 << 20
