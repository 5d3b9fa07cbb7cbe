"""Trained networks that come with the package: :func:`names`, :func:`load`, :func:`card`.

Loading and running them needs NumPy only; pictures are read by Pillow. :func:`load_float` and
:func:`load_prepared` return torch models, to train further.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fatnn_rs.card import Card, read_card
from fatnn_rs.errors import ConfigError, InputError, UnsupportedError
from fatnn_rs.numpy_network import NumpyNetwork, load_numpy

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Classifier", "card", "load", "load_float", "load_prepared", "names", "path"]

_FOLDER = Path(__file__).parent


class Classifier:
    """A network with the names of its classes. Made by :func:`load`.

    Parameters
    ----------
    path
        A network that :func:`fatnn_rs.save` or ``fatnn train`` wrote.
    card
        Its card; None: the file of the same name that ends in ``.json``.

    Attributes
    ----------
    network
        The network, which takes and returns NumPy arrays.
    card
        Classes, preprocessing, accuracy and training.

    Raises
    ------
    InputError
        There is no card.
    FormatError, UnsupportedError, OSError
        As :func:`fatnn_rs.load_numpy`.
    """

    network: NumpyNetwork
    card: Card

    def __init__(self, path: str | os.PathLike[str], card: Card | None = None) -> None:
        if card is None:
            beside = Path(path).with_suffix(".json")
            if not beside.is_file():
                raise InputError(
                    f"{os.fspath(path)}: there is no card {beside.name} next to it, which has the "
                    "names of the classes and the preprocessing; `fatnn train` writes both"
                )
            card = read_card(beside)
        self.network, self.card = load_numpy(path), card

    def __call__(self, images: npt.NDArray[np.float32]) -> Any:
        """Return the logits of images that are preprocessed already.

        Parameters
        ----------
        images
            float32 [N, C, H, W].

        Returns
        -------
        numpy.ndarray
            float32 [N, classes].
        """
        return self.network(images)

    def classify(
        self, pictures: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], top: int = 5
    ) -> list[Any]:
        """Return class names and probabilities, the most likely class first.

        Parameters
        ----------
        pictures
            A picture's file, or a sequence of them.
        top
            How many classes to return.

        Returns
        -------
        list
            Pairs of name and probability (the softmax of the logits). For a sequence, one such list
            per picture.

        Raises
        ------
        InputError
            A file is not a picture.
        UnsupportedError
            Pillow is not installed.
        """
        if isinstance(pictures, (str, os.PathLike)):
            return self.classify([pictures], top)[0]  # type: ignore[no-any-return]
        found = []
        for picture in pictures:
            logits = self.network(self.card.image.read(os.fspath(picture)))
            found.append(self.card.ranking(logits[0], top))
        return found

    def __repr__(self) -> str:
        return f"Classifier({len(self.card.classes)} classes; {self.network!r})"


def names() -> tuple[str, ...]:
    """Return the names of all networks."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.json")))


def path(name: str) -> Path:
    """Return the file of a network.

    Raises
    ------
    ConfigError
        There is no such network.
    """
    if name not in names():
        raise ConfigError(f"zoo: there is no network {name!r}; there are {', '.join(names())}")
    return _FOLDER / f"{name}.safetensors"


def card(name: str) -> Card:
    """Return what a network does, and how it was trained. Print it.

    Raises
    ------
    ConfigError
        There is no such network.
    """
    return read_card(path(name).with_suffix(".json"))


def load(name: str) -> Classifier:
    """Load a network.

    Raises
    ------
    ConfigError
        There is no such network.
    """
    return Classifier(path(name))


def load_float(name: str) -> nn.Module:
    """Return the trained float model that a network was made from, in eval mode. Needs torch.

    Raises
    ------
    ConfigError
        There is no such network.
    UnsupportedError
        The package does not have the float weights, because they are large; or torch or a library
        for training is not installed.
    """
    return _trained(name, "float")


def load_prepared(name: str) -> nn.Module:
    """Return the trained ternary model that a network was converted from, in eval mode.

    It can be trained further and converted again. Needs torch.

    Raises
    ------
    ConfigError, UnsupportedError
        As :func:`load_float`.
    """
    return _trained(name, "ternary")


def _trained(name: str, phase: str) -> nn.Module:
    weights = path(name).with_name(f"{name}.{phase}.safetensors")
    about = card(name)
    if not weights.is_file():
        raise UnsupportedError(
            f"zoo: the package has no {phase} weights of {name!r}, because they are large; train "
            f"them: {about.command}"
        )
    try:
        import torch
        from safetensors.torch import load_file

        from fatnn_rs.prepare import prepare
        from fatnn_rs.train.models import build_model
        from fatnn_rs.train.recipe import parse_recipe
    except ImportError as error:
        raise UnsupportedError(
            f"zoo: models to train need torch and more ({error}): pip install 'fatnn-rs[train]'"
        ) from error
    recipe = parse_recipe({**about.recipe, "pretrained": False}, f"{name}.json")
    model = build_model(recipe, len(about.classes))
    if phase == "ternary":
        image = about.image
        example = torch.zeros(2, image.channels, image.height, image.width)
        model = prepare(model, recipe.quantize.config(), example)
    model.load_state_dict(load_file(weights))
    return model.eval()
