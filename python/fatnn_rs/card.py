"""What a classifier's outputs and inputs mean, and how it was trained: :class:`Card`.

``fatnn train`` writes a card next to the network: ``net.json`` next to ``net.safetensors``. This
module does not import torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fatnn_rs.errors import ConfigError, FormatError, InputError
from fatnn_rs.pictures import Picture, read_picture

__all__ = ["Card", "ImageInput", "card_file", "card_of", "read_card"]

_MAX_SIDE = 1 << 14


@dataclass(frozen=True)
class ImageInput:
    """How a picture becomes the input of a network.

    The shorter side is scaled to ``resize`` pixels, the middle is cropped to ``height`` x
    ``width``, and pixels in [0, 1] are normalised to ``(pixel - mean) / std``.

    Attributes
    ----------
    channels, height, width
        Shape of an image; 1 channel: grey, 3 channels: red, green, blue.
    resize
        Pixels of the shorter side before the crop.
    mean, std
        One number per channel.

    Raises
    ------
    FormatError
        A field has a wrong type or value.
    """

    channels: int
    height: int
    width: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Validate every field."""
        for name in ("channels", "height", "width", "resize"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _MAX_SIDE:
                raise FormatError(
                    f"image.{name} must be a whole number from 1 to {_MAX_SIDE}, got {size!r:.80}"
                )
        if self.channels not in (1, 3):
            raise FormatError(
                f"image.channels must be 1 (grey) or 3 (colours), got {self.channels}"
            )
        if self.resize < max(self.height, self.width):
            raise FormatError(
                f"image.resize={self.resize} is smaller than the crop, {self.height}x{self.width}"
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if (
                not isinstance(values, tuple)
                or len(values) != self.channels
                or not all(map(_is_float32, values))
            ):
                raise FormatError(
                    f"image.{name} must have a finite number for each of {self.channels} channels, "
                    f"got {values!r:.80}"
                )
        largest = max(
            max(abs(mean), abs(1 - mean)) / std if std > 0 else math.inf
            for mean, std in zip(self.mean, self.std, strict=True)
        )
        if largest > 1e6:
            raise FormatError(
                f"image.std must be positive, and normalised pixels at most a million, got mean "
                f"{list(self.mean)} and std {list(self.std)}"
            )

    def read(self, picture: Picture) -> npt.NDArray[np.float32]:
        """Read and preprocess a picture.

        Parameters
        ----------
        picture
            A file (PNG, JPEG or any other that Pillow reads), a binary file object, or a Pillow
            image. EXIF rotation is applied, and transparent pixels become black.

        Returns
        -------
        numpy.ndarray
            float32 [1, channels, height, width].

        Raises
        ------
        InputError
            Not a picture.
        UnsupportedError
            Pillow is not installed.
        OSError
            The file cannot be read.
        """
        image = read_picture(picture, self.channels)
        # Both roundings are torchvision's, for test images.
        size = [int(self.resize * side / min(image.size)) for side in image.size]
        left, top = round((size[0] - self.width) / 2), round((size[1] - self.height) / 2)
        window = (left, top, left + self.width, top + self.height)
        bilinear = 2  # PIL.Image.Resampling.BILINEAR
        if max(size) > 16 * self.resize:  # Only the middle: a thin picture would become huge.
            across, down = (side / new for side, new in zip(image.size, size, strict=True))
            box = (window[0] * across, window[1] * down, window[2] * across, window[3] * down)
            image = image.resize((self.width, self.height), bilinear, box=box)
        else:
            if size != list(image.size):
                image = image.resize((size[0], size[1]), bilinear)
            image = image.crop(window)
        pixels = np.asarray(image, np.float32).reshape(self.height, self.width, self.channels)
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        normalized = (pixels / np.float32(255) - mean) / std
        return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None])


def _is_float32(value: Any) -> bool:
    """Whether a number is finite as float32."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Card:
    """What a network classifies, how well, and how it was trained.

    Attributes
    ----------
    description
        One line.
    classes
        Name of each output.
    image
        How a picture becomes an input.
    data
        Name of the data set in recipes.
    test_images
        Number of images that the accuracies are from. If ``recipe["holdout"]`` is not 0, these were
        training images that training did not use.
    accuracy
        Fraction of these images that the converted network classifies correctly.
    float_accuracy
        The same for the float model that training started from; None if there was none.
    recipe
        All options of the training.
    seed
        Seed of the training.
    command
        Command that trains it; empty if not known.
    machine
        ``cpu``, ``commit``, ``date`` and ``versions`` of the training.
    limits
        What not to expect of it.

    Raises
    ------
    FormatError
        A field has a wrong type or value.
    """

    description: str
    classes: tuple[str, ...]
    image: ImageInput
    data: str
    test_images: int
    accuracy: float
    float_accuracy: float | None
    recipe: dict[str, Any] = field(hash=False)
    seed: int
    command: str = ""
    machine: dict[str, Any] = field(default_factory=dict, hash=False)
    limits: str = ""

    def __post_init__(self) -> None:
        """Validate every field."""
        for name in ("description", "data", "command", "limits"):
            _check(name, isinstance(getattr(self, name), str), "a string", getattr(self, name))
        for name in ("recipe", "machine"):
            _check(name, isinstance(getattr(self, name), dict), "an object", getattr(self, name))
        _check("image", isinstance(self.image, ImageInput), "an image", self.image)
        names = self.classes
        _check(
            "classes",
            isinstance(names, tuple)
            and all(isinstance(one, str) and one and one.isprintable() for one in names)
            and len(set(names)) == len(names) > 0,
            "different names without line breaks",
            names,
        )
        for name, least in (("test_images", 1), ("seed", 0)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            _check(name, whole, f"a whole number of at least {least}", value)
        for name in ("accuracy", "float_accuracy"):
            value = getattr(self, name)
            fraction = isinstance(value, (int, float)) and not isinstance(value, bool)
            fraction = (fraction and 0 <= value <= 1) or (value is None and name != "accuracy")
            _check(name, fraction, "a fraction from 0 to 1", value)

    def to_json(self) -> str:
        """Return the content of the card's file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def write(self, path: str | Path) -> None:
        """Write the card. A network ``NAME.safetensors`` has the card ``NAME.json``.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @property
    def tested_on(self) -> str:
        """The images that the accuracies are from, in words."""
        what = "held-out training images" if self.recipe.get("holdout") else "test images"
        return f"{self.test_images:,} {what} of {self.data}"

    def __str__(self) -> str:
        """Describe the network in a few lines."""
        image = self.image
        below = "" if self.float_accuracy is None else f" (float {self.float_accuracy:.2%})"
        what = f"{image.channels} x {image.height} x {image.width}"
        lines = [
            self.description,
            f"classes     {', '.join(self.classes[:20])}{', ...' * (len(self.classes) > 20)}",
            f"images      {what}, mean {list(image.mean)}, std {list(image.std)}",
            f"accuracy    {self.accuracy:.2%}{below} of {self.tested_on}",
        ]
        if self.command:
            lines.append(f"trained by  {self.command}")
        where = [str(self.machine[key]) for key in ("cpu", "date") if self.machine.get(key)]
        if self.machine.get("commit"):
            where.append(f"commit {self.machine['commit']}")
        lines.append(f"trained on  {', '.join([*where, f'seed {self.seed}'])}")
        if self.limits:
            lines.append(f"limits      {self.limits}")
        return "\n".join(lines)

    def ranking(self, outputs: Sequence[float], top: int = 5) -> list[tuple[str, float]]:
        """Return the names and probabilities of the most likely classes, best first.

        Parameters
        ----------
        outputs
            The network's outputs for an image, one per class: logits, of which the softmax is
            taken. Numbers of at least 0 that add up to 1 are probabilities already.
        top
            How many classes to return.

        Raises
        ------
        InputError
            ``outputs`` does not have one finite number per class.
        ConfigError
            ``top`` is not a positive whole number.
        """
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise ConfigError(f"top must be a positive whole number, got {top!r}")
        values = np.asarray(outputs, np.float64)
        if values.shape != (len(self.classes),):
            raise InputError(
                f"the network gives outputs of shape {list(values.shape)} for an image, but its "
                f"card has {len(self.classes)} classes; give the card that belongs to it"
            )
        if not np.isfinite(values).all():
            raise InputError(
                f"the network's outputs are not all finite, got {values.tolist()!s:.80}; its "
                "answer means nothing"
            )
        if values.min() < 0 or abs(values.sum() - 1) > 1e-3:
            values = np.exp(values - values.max())
            values /= values.sum()
        order = np.argsort(-values, kind="stable")[:top]
        return [(self.classes[i], float(values[i])) for i in order]


def _check(name: str, valid: bool, expected: str, got: Any) -> None:
    if not valid:
        raise FormatError(f"{name} must be {expected}, got {got!r:.80}")


def card_file(network: Path) -> Path:
    """Return where the card of a network's file is, if it has one."""
    return network.with_suffix(".json")


def card_of(network: Path) -> Card | None:
    """Read the card of a network's file; None if there is none.

    Raises
    ------
    FormatError, OSError
        As :func:`read_card`.
    """
    path = card_file(network)
    return read_card(path) if path.is_file() else None


def read_card(path: str | Path) -> Card:
    """Read a card.

    Raises
    ------
    FormatError
        The file is not a card.
    OSError
        The file cannot be read.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        return _parse(found)
    except (ValueError, RecursionError) as error:  # FormatError is a ValueError
        raise FormatError(
            f"{path}: not a card of this version of fatnn-rs: {error}; train again, or give the "
            "file that came with the network"
        ) from error


def _parse(found: Any) -> Card:
    content = _object("the card", found, Card)
    image = _object("image", content["image"], ImageInput)
    for name in ("mean", "std"):
        if isinstance(image[name], list):
            image[name] = tuple(image[name])
    if isinstance(content["classes"], list):
        content["classes"] = tuple(content["classes"])
    return Card(**{**content, "image": ImageInput(**image)})


def _object(what: str, found: Any, cls: type[Card] | type[ImageInput]) -> dict[str, Any]:
    """Return a copy of a JSON object that has the fields of a class."""
    if not isinstance(found, dict):
        raise FormatError(f"{what} must be an object, got {type(found).__name__}")
    known = {one.name for one in fields(cls)}
    optional = {"command", "machine", "limits"}
    for name in sorted(known - optional - found.keys()):
        raise FormatError(f"{what} has no {name!r}")
    for name in sorted(found.keys() - known):
        raise FormatError(f"{what} has the unknown key {name!r}")
    return dict(found)
