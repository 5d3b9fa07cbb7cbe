"""Reads pictures with Pillow: :func:`read_picture`. Does not import torch."""

from __future__ import annotations

import os
import stat
from typing import IO, TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np

from fatnn_rs.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Picture", "read_picture"]

#: A file's name, a binary file object, or a Pillow image.
Picture: TypeAlias = Union[str, "os.PathLike[str]", IO[bytes], "Image"]

_WAY_OUT = "give a PNG or a JPEG"


def read_picture(picture: Picture, channels: int) -> Image:
    """Return a picture as a Pillow image of mode L or RGB.

    EXIF rotation is applied, transparent pixels become black, and 16 bits per channel become 8.

    Parameters
    ----------
    picture
        A file's name, a binary file object, or a Pillow image.
    channels
        1 for grey, 3 for colours.

    Raises
    ------
    InputError
        Not a picture, or one of a kind that is not supported.
    UnsupportedError
        Pillow is not installed.
    OSError
        The file cannot be read.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UnsupportedError(
            "pictures are read by Pillow, which is missing: pip install pillow"
        ) from error
    mode = "L" if channels == 1 else "RGB"
    if isinstance(picture, Image.Image):
        return _convert(picture, mode, "the picture")
    if not isinstance(picture, (str, os.PathLike)) and not hasattr(picture, "read"):
        raise InputError(
            "expected a picture's file name, a binary file object or a Pillow image, got "
            f"{type(picture).__name__}; call the classifier itself with preprocessed arrays"
        )
    name = str(getattr(picture, "name", "the picture"))
    if isinstance(picture, (str, os.PathLike)):
        name = os.fspath(picture)
        if not stat.S_ISREG(os.stat(picture).st_mode):
            raise InputError(f"{name}: expected a picture, but this is not a regular file")
    try:
        with Image.open(picture) as file:
            return _convert(file, mode, name)
    except InputError:  # a ValueError, too
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a picture that Pillow reads; {_WAY_OUT}") from error
    except (Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise InputError(f"{name}: the picture cannot be read: {error}; {_WAY_OUT}") from error
    except OSError as error:
        if error.errno is not None:  # the file, not its content
            raise
        raise InputError(f"{name}: the picture cannot be read: {error}; {_WAY_OUT}") from error


def _convert(image: Any, mode: str, name: str) -> Image:
    from PIL import Image, ImageOps

    is_png = image.format == "PNG"  # a rotated copy has no format
    image = ImageOps.exif_transpose(image)
    # Pillow opens 16-bit PNG files in one of these modes, and would clip them to 8 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and is_png):
        values = np.asarray(image).astype(np.int64)
        deep = values >> 8
        if isinstance(image.info.get("transparency"), int):
            deep[values == image.info["transparency"]] = 0
        image = Image.fromarray(deep.astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise InputError(
            f"{name}: expected 8 or 16 bits per channel, got 32 (mode {image.mode}); {_WAY_OUT}"
        )
    elif image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    if mode == "L" and image.mode in ("LAB", "HSV"):
        image = image.convert("RGB")
    return image.convert(mode)  # type: ignore[no-any-return]
