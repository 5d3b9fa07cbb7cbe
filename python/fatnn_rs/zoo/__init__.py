"""Trained networks that come with the package: :func:`names`, :func:`load`, :func:`card`.

Loading and running them needs NumPy only; pictures are read by Pillow. :func:`load_float` and
:func:`load_prepared` return torch models, to train further.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from fatnn_rs.card import Card, ImageInput, card_file, card_of, read_card
from fatnn_rs.errors import ConfigError, InputError, UnsupportedError
from fatnn_rs.numpy_network import NumpyNetwork, load_numpy
from fatnn_rs.pictures import Picture

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Card",
    "Classifier",
    "ImageInput",
    "card",
    "load",
    "load_float",
    "load_prepared",
    "names",
    "path",
    "read_card",
]

_FOLDER = Path(__file__).parent


class Classifier:
    """A network with the names of its classes. Made by :func:`load`.

    The network's output must be logits or probabilities, one per class. Classifiers of a file can
    be pickled.

    Parameters
    ----------
    network
        A network that :func:`fatnn_rs.save` or ``fatnn train`` wrote, or one that is loaded
        already.
    card
        Its card; None: the file of the same name that ends in ``.json``.

    Attributes
    ----------
    network
        The network, which takes and returns NumPy arrays.
    card
        Classes, preprocessing, accuracy and training.
    path
        The file; None if a loaded network was given.

    Raises
    ------
    InputError
        There is no such file or no card, or card and network do not fit each other.
    FormatError, UnsupportedError, LimitError, OSError
        As :func:`fatnn_rs.load_numpy`.
    """

    network: NumpyNetwork
    card: Card
    path: Path | None

    def __init__(
        self, network: str | os.PathLike[str] | NumpyNetwork, card: Card | None = None
    ) -> None:
        if not isinstance(card, (Card, type(None))):
            raise InputError(
                f"card: expected a Card, got {type(card).__name__}; read a file with "
                "fatnn_rs.zoo.read_card"
            )
        if isinstance(network, NumpyNetwork):
            self.path, self.network = None, network
            if card is None:
                raise InputError("a loaded network has no card of its own; give card=")
            self.card = card
        else:
            self.path = Path(network).absolute()
            self.card = _card_next_to(self.path) if card is None else card
            self.network = load_numpy(self.path)
        self._check_card()

    def _check_card(self) -> None:
        image, inputs, outputs = self.card.image, self.network.inputs, self.network.outputs
        wanted = (image.channels, image.height, image.width)
        if len(inputs) != 1 or inputs[0][1][1:] != wanted:
            raise InputError(
                f"the card is for images of {list(wanted)}, but the network takes "
                f"{', '.join(f'{name} {list(shape)}' for name, shape in inputs)}; give the card "
                "that belongs to it"
            )
        if len(outputs) != 1 or outputs[0][1][1:] != (len(self.card.classes),):
            raise InputError(
                f"the card has {len(self.card.classes)} classes, but the network gives outputs of "
                f"shape {', '.join(str(list(shape)) for _, shape in outputs)}; give the card that "
                "belongs to it"
            )

    def __call__(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the outputs for images that are preprocessed already.

        Parameters
        ----------
        images
            float32 [N, C, H, W].

        Returns
        -------
        numpy.ndarray
            float32 [N, classes].

        Raises
        ------
        InputError
            ``images`` does not fit the network, or the network returns no plain array.
        """
        outputs = self.network(images)
        if not isinstance(outputs, np.ndarray):
            raise InputError(
                f"the network returns a {type(outputs).__name__}; a classifier needs one that "
                "returns one array"
            )
        return outputs

    def classify(self, pictures: Picture | Sequence[Picture], top: int = 5) -> list[Any]:
        """Return class names and probabilities, the most likely class first.

        Parameters
        ----------
        pictures
            A picture, or a list or tuple of them: a file's name, a binary file object, or a Pillow
            image.
        top
            How many classes to return.

        Returns
        -------
        list
            Pairs of name and probability. For a list of pictures, one such list per picture.

        Raises
        ------
        InputError
            Something is not a picture, or the network's outputs are not finite.
        ConfigError
            ``top`` is not a positive whole number.
        UnsupportedError
            Pillow is not installed.
        OSError
            A file cannot be read.
        """
        if isinstance(pictures, (list, tuple)):
            return [self.classify(picture, top) for picture in pictures]
        picture = cast("Picture", pictures)
        return self.card.ranking(self(self.card.image.read(picture))[0], top)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the file's name and the card."""
        if self.path is None:
            raise TypeError(
                "a Classifier of a loaded network cannot be pickled; make it from the file"
            )
        return type(self), (self.path, self.card)

    def __repr__(self) -> str:
        return f"Classifier({len(self.card.classes)} classes; {self.network!r})"


def _card_next_to(path: Path) -> Card:
    """Read the card of a network's file."""
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such file; fatnn_rs.zoo.load(name) loads a network of the zoo: "
            f"{', '.join(names())}"
        )
    card = card_of(path)
    if card is None:
        raise InputError(
            f"{path}: there is no card {card_file(path).name} next to it, which has the names of "
            "the classes and the preprocessing; `fatnn train` writes both, or give card="
        )
    return card


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
    return read_card(card_file(path(name)))


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
    with torch.random.fork_rng(devices=[]):  # Initial weights are random.
        model = build_model(recipe, len(about.classes))
        if phase == "ternary":
            image = about.image
            example = torch.zeros(2, image.channels, image.height, image.width)
            model = prepare(model, recipe.quantize.config(), example)
    model.load_state_dict(load_file(weights))
    return model.eval()
