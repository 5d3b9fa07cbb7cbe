"""What a classifier's outputs and inputs mean, and how it was trained: :class:`Card`.

``fatnn train`` writes a card next to the network: ``net.json`` next to ``net.safetensors``. This
module does not import torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fatnn_rs.errors import FormatError, InputError, UnsupportedError

__all__ = ["Card", "ImageInput", "read_card"]


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
    """

    channels: int
    height: int
    width: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Validate every field."""
        sizes = (self.channels, self.height, self.width, self.resize)
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
            raise FormatError(f"channels, height, width and resize must be positive, got {sizes}")
        if self.channels not in (1, 3):
            raise FormatError(f"channels must be 1 (grey) or 3 (colours), got {self.channels}")
        if self.resize < max(self.height, self.width):
            raise FormatError(
                f"resize={self.resize} is smaller than the crop, {self.height}x{self.width}"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not all(map(math.isfinite, values)):
                raise FormatError(
                    f"{name} must have a finite number for each of {self.channels} channels, got "
                    f"{list(values)}"
                )
        if min(self.std) <= 0:
            raise FormatError(f"std must be positive, got {list(self.std)}")

    def read(self, path: str | Path) -> npt.NDArray[np.float32]:
        """Read a picture.

        Parameters
        ----------
        path
            A PNG, JPEG or any other file that Pillow reads. Transparent pixels become black.

        Returns
        -------
        numpy.ndarray
            float32 [1, channels, height, width].

        Raises
        ------
        InputError
            The file is not a picture.
        UnsupportedError
            Pillow is not installed.
        OSError
            The file cannot be read.
        """
        try:
            from PIL import Image, ImageOps, UnidentifiedImageError
        except ImportError as error:
            raise UnsupportedError(
                "pictures are read by Pillow, which is missing: pip install pillow"
            ) from error
        try:
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file)
                if picture.mode.startswith("I"):  # Pillow would clip 16 bits to 8.
                    deep = np.clip(np.asarray(picture, np.int64) // 256, 0, 255)
                    picture = Image.fromarray(deep.astype(np.uint8))
                elif picture.mode == "F":
                    raise InputError(f"{path}: expected 8 or 16 bits per channel, got floats")
                elif picture.has_transparency_data:
                    black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
                    picture = Image.alpha_composite(black, picture.convert("RGBA"))
                picture = picture.convert("L" if self.channels == 1 else "RGB")
        except UnidentifiedImageError as error:
            raise InputError(f"{path}: expected a picture that Pillow reads: {error}") from error
        except InputError:
            raise
        except (Image.DecompressionBombError, SyntaxError, ValueError) as error:
            raise InputError(f"{path}: the picture cannot be read: {error}") from error
        except OSError as error:
            if error.errno is not None:  # the file, not its content
                raise
            raise InputError(f"{path}: the picture is damaged: {error}") from error
        # Both roundings are torchvision's, for test images.
        size = [int(self.resize * side / min(picture.size)) for side in picture.size]
        if size != list(picture.size):
            picture = picture.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        left, top = round((size[0] - self.width) / 2), round((size[1] - self.height) / 2)
        picture = picture.crop((left, top, left + self.width, top + self.height))
        pixels = np.asarray(picture, np.float32).reshape(self.height, self.width, self.channels)
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        normalized = (pixels / np.float32(255) - mean) / std
        return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None])


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
        Number of test images that the accuracies are from.
    accuracy
        Fraction of the test images that the converted network classifies correctly.
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
    """

    description: str
    classes: tuple[str, ...]
    image: ImageInput
    data: str
    test_images: int
    accuracy: float
    float_accuracy: float | None
    recipe: dict[str, Any]
    seed: int
    command: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    limits: str = ""

    def to_json(self) -> str:
        """Return the content of the card's file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def __str__(self) -> str:
        """Describe the network in a few lines."""
        image = self.image
        below = "" if self.float_accuracy is None else f" (float {self.float_accuracy:.2%})"
        what = f"{image.channels} x {image.height} x {image.width}"
        lines = [
            self.description,
            f"classes     {', '.join(self.classes[:20])}{', ...' * (len(self.classes) > 20)}",
            f"images      {what}, mean {list(image.mean)}, std {list(image.std)}",
            f"accuracy    {self.accuracy:.2%}{below} of {self.test_images:,} test images of "
            f"{self.data}",
        ]
        if self.command:
            lines.append(f"trained by  {self.command}, seed {self.seed}")
        where = [str(self.machine[key]) for key in ("cpu", "date") if self.machine.get(key)]
        if self.machine.get("commit"):
            where.append(f"commit {self.machine['commit']}")
        if where:
            lines.append(f"trained on  {', '.join(where)}")
        if self.limits:
            lines.append(f"limits      {self.limits}")
        return "\n".join(lines)

    def ranking(self, logits: Sequence[float], top: int = 5) -> list[tuple[str, float]]:
        """Return the names and probabilities of the ``top`` most likely classes, best first.

        Raises
        ------
        InputError
            ``logits`` does not have one number per class.
        """
        values = np.asarray(logits, np.float64)
        if values.shape != (len(self.classes),):
            raise InputError(
                f"the network gives outputs of shape {list(values.shape)} for an image, but its "
                f"card has {len(self.classes)} classes; give the card that belongs to it"
            )
        shares = np.exp(values - values.max())
        shares /= shares.sum()
        order = np.argsort(-shares, kind="stable")[:top]
        return [(self.classes[i], float(shares[i])) for i in order]


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
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        image = found.pop("image")
        image = ImageInput(**{**image, **{key: tuple(image[key]) for key in ("mean", "std")}})
        classes = found.pop("classes")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise FormatError(f"classes must be a list of names, got {classes!r}")
        return Card(classes=tuple(classes), image=image, **found)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError(
            f"{path}: not a card of this version of fatnn-rs ({type(error).__name__}: {error}); "
            "train again, or give the file that came with the network"
        ) from error
