"""What the commands ``run``, ``inspect``, ``zoo`` and ``eval`` do with a network's file."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import fatnn_rs
from fatnn_rs.card import Card, card_file, card_of
from fatnn_rs.errors import ConfigError, InputError
from fatnn_rs.report import Report

if TYPE_CHECKING:
    from fatnn_rs.train.data import Data

__all__ = [
    "measure_accuracy",
    "read_report",
    "run_array",
    "run_pictures",
    "show_zoo",
    "train_command",
]


def run_array(network: Path, inputs: Path, out: Path | None, as_json: bool) -> None:
    """Run a network on an array and print the index of each row's largest output."""
    net = fatnn_rs.load(network)
    try:
        array = np.load(inputs, allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{inputs}: expected an array in .npy format: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{inputs}: expected one array in .npy format, got an archive of several")
    if array.dtype.name not in ("float32", "int32", "int64", "bool"):
        raise InputError(
            f"{inputs}: expected float32 (or int32, int64 or bool if the network takes those), got "
            f"{array.dtype}; save array.astype(numpy.float32)"
        )
    if not array.size:
        raise InputError(f"{inputs}: expected samples, got an empty array of shape {array.shape}")
    # In the machine's byte order.
    given: Any = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    if _has_torch():
        import torch

        given = torch.from_numpy(given)
    start = time.perf_counter()
    output = net(given)
    seconds = time.perf_counter() - start
    if isinstance(output, (tuple, list, dict)) or not hasattr(output, "shape"):
        raise InputError(
            f"{network}: the network returns {type(output).__name__}; `run` only shows networks "
            "that return one tensor"
        )
    result = np.asarray(output)
    if out is not None:
        with out.open("wb") as file:  # Given a path, numpy.save would append .npy to it.
            np.save(file, result)
    strongest = result.reshape(len(result), -1).argmax(1).tolist() if result.ndim > 1 else []
    figures = {"shape": list(result.shape), "argmax": strongest, "milliseconds": 1e3 * seconds}
    if as_json:
        print(json.dumps(figures))
        return
    print(
        f"output {list(result.shape)} in {1e3 * seconds:.2f} ms"
        + (f", written to {out}" if out else "")
    )
    print("argmax", *strongest[:50], *(["..."] if len(strongest) > 50 else []))


def run_pictures(network: Path, pictures: Sequence[Path], top: int, as_json: bool) -> None:
    """Print the most likely classes of pictures."""
    from fatnn_rs.zoo import Classifier

    found = Classifier(network).classify(list(pictures), top)
    if as_json:
        rows = [
            {
                "picture": str(path),
                "classes": [{"name": name, "probability": share} for name, share in ranking],
            }
            for path, ranking in zip(pictures, found, strict=True)
        ]
        print(json.dumps(rows))
        return
    for path, ranking in zip(pictures, found, strict=True):
        print(path)
        width = max(len(name) for name, _ in ranking)
        for name, share in ranking:
            print(f"  {name:<{width}}  {share:6.1%}")


def show_zoo(name: str | None, as_json: bool) -> None:
    """List the networks that come with the package, or print a card."""
    from fatnn_rs import zoo

    if name is not None:
        card = zoo.card(name)
        print(json.dumps(asdict(card)) if as_json else card)
        return
    cards = {name: zoo.card(name) for name in zoo.names()}
    if as_json:
        print(json.dumps({name: asdict(card) for name, card in cards.items()}))
        return
    width = max(map(len, cards))
    for name, card in cards.items():
        size = zoo.path(name).stat().st_size / 1024
        print(f"{name:<{width}}  {card.accuracy:.2%}  {size:4.0f} KiB  {card.description}")


def measure_accuracy(
    network: Path,
    config: str | None,
    settings: Sequence[str],
    folder: Path | None,
    download: bool,
    batch: int,
    as_json: bool,
) -> None:
    """Print a network's accuracy on the test images of a recipe, by default its card's."""
    from fatnn_rs.train.data import load_data
    from fatnn_rs.train.recipe import load_recipe

    card = card_of(network)
    source: str | dict[str, Any]
    if config is not None:
        source = config
    elif card is not None:
        source = card.recipe
    else:
        raise ConfigError(
            f"{network}: there is no card {card_file(network).name} next to it that has its "
            "recipe; give --config"
        )
    recipe = load_recipe(source, settings)
    data = load_data(recipe, folder, download)
    if card is not None:
        _check_shape(network, card, data)
    net = fatnn_rs.load(network)
    outputs = net(next(iter(data.test_batches(1)))[0])
    if getattr(outputs, "shape", None) != (1, data.classes):
        shape = list(getattr(outputs, "shape", ()))
        raise InputError(
            f"{network}: gives {shape or type(outputs).__name__} for one image, but data set "
            f"{data.name!r} has {data.classes} classes; give the --config it was trained with"
        )
    start = time.perf_counter()
    right = sum(int((net(x).argmax(1) == y).sum()) for x, y in data.test_batches(batch))
    seconds = time.perf_counter() - start
    figures = {
        "accuracy": right / data.test_count,
        "images": data.test_count,
        "held_out": bool(recipe.holdout),
        "seconds": round(seconds, 2),
    }
    what = "held-out training" if recipe.holdout else "test"
    print(
        json.dumps(figures)
        if as_json
        else f"{right / data.test_count:.2%} of {data.test_count:,} {what} images, {seconds:.1f} s"
    )


def train_command(
    config: str,
    data: Path | None,
    model: str | None,
    settings: Sequence[str],
    float_from: Path | None,
    seed: int,
) -> str:
    """Return the command line that trains the same network on any machine."""
    words = ["fatnn", "train", "--config", config]
    words += [] if data is None else ["--data", "DATA"]
    words += [] if model is None else ["--model", model]
    words += [word for setting in settings for word in ("--set", setting)]
    words += [] if float_from is None else ["--float-from", float_from.name]
    return shlex.join([*words, "--seed", str(seed)])


def _check_shape(network: Path, card: Card, data: Data) -> None:
    """Check that test images have the shape that a network's card names."""
    image = card.image
    if data.shape != (image.channels, image.height, image.width):
        raise InputError(
            f"{network}: takes images of {image.channels}x{image.height}x{image.width}, but data "
            f"set {data.name!r} has {'x'.join(map(str, data.shape))}; leave --config away, or give "
            "the one it was trained with"
        )


def read_report(network: Path) -> Report:
    """Describe a network, with what runs in torch if torch is installed."""
    if _has_torch():
        report: Report = fatnn_rs.load(network).report
        return report
    from fatnn_rs import numpy_network

    return numpy_network.read_report(network)


def _has_torch() -> bool:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True
