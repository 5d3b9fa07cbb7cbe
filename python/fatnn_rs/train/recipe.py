"""Recipes: one validated YAML file with everything that decides the result of training.

A recipe has up to two phases. ``float`` trains the float model; ``ternary`` prepares that model and
continues. Without ``float``, the ternary model starts from a float checkpoint, from pretrained
weights or from scratch. Without ``ternary``, only a float model is trained.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from fatnn_rs.errors import ConfigError
from fatnn_rs.train.sections import Augment, Monitor, Phase, Quantize, Section

__all__ = ["Recipe", "load_recipe", "parse_recipe", "recipe_names"]


class Recipe(Section):
    """A whole training run.

    Attributes
    ----------
    description
        Free text.
    model
        A key of :data:`fatnn_rs.train.models.MODELS`, ``"torchvision:NAME"`` or ``"timm:NAME"``.
    model_options
        Arguments of the model's constructor.
    pretrained
        Start the float model from torchvision's or timm's weights, which may be downloaded. Images
        are normalised with ImageNet's mean and standard deviation, for all models.
    data
        A key of :data:`fatnn_rs.train.data.DATASETS`.
    train_images, test_images
        Use only so many images of the data set, for quick trials; None: all.
    holdout
        Test on so many of the training images, and train on the others, to choose options without
        the test images; 0: test on the test images.
    whiten_images
        Number of training images whose patches set the filters of the first convolution, which are
        then not trained (:func:`fatnn_rs.models.cifar_fast.whiten_`); 0: train it as usual.
    image_size
        Side of the crops of an image folder's pictures, in pixels.
    batch_size
        Images per iteration, over all processes together.
    augment, float_phase (``float`` in YAML), ternary, quantize, monitor
        See their classes in :mod:`fatnn_rs.train.sections`.
    compile
        Whether to use ``torch.compile``: the first iteration takes a minute, later ones less.
    mixed_precision
        ``"bf16"``, ``"fp16"`` or None. Sums of codes are exact in all three.
    fast_convolutions
        In the ternary phase on a CPU, compute the sums of convolutions with the engine's kernels,
        their gradients in the dtype of ``mixed_precision``, and FATNN's activations in one pass
        (:mod:`fatnn_rs.nn.mixed`). Sums and codes are the same. Not with ``compile``.
    verify_images
        Test images whose codes are compared between PyTorch and Rust at the end; None: all.
    """

    description: str = ""
    model: str
    model_options: dict[str, Any] = Field(default_factory=dict)
    pretrained: bool = False
    data: str
    train_images: int | None = Field(default=None, ge=1)
    test_images: int | None = Field(default=None, ge=1)
    holdout: int = Field(default=0, ge=0)
    whiten_images: int = Field(default=0, ge=0)
    image_size: int = Field(default=224, ge=8)
    batch_size: int = Field(ge=2)
    augment: Augment = Augment()
    float_phase: Phase | None = Field(default=None, alias="float")
    ternary: Phase | None = None
    quantize: Quantize = Quantize()
    monitor: Monitor = Monitor()
    compile: bool = False
    mixed_precision: Literal["bf16", "fp16"] | None = None
    fast_convolutions: bool = False
    verify_images: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.float_phase is None and self.ternary is None:
            raise ValueError("a recipe needs a phase: 'float', 'ternary', or both")
        if self.fast_convolutions and self.compile:
            raise ValueError(
                "fast_convolutions: compiled models do not use them; set compile=false, or "
                "fast_convolutions=false"
            )
        if self.float_phase is not None and self.float_phase.distill:
            raise ValueError(
                "float.distill: only the ternary phase has a teacher; set float.distill=0"
            )
        if self.float_phase is not None and self.float_phase.freeze_epochs:
            raise ValueError(
                "float.freeze_epochs: only the ternary phase has codes; set float.freeze_epochs=0"
            )
        return self

    def batch_size_of(self, phase: Phase) -> int:
        """Return a phase's images per iteration."""
        return phase.batch_size or self.batch_size

    def batch_sizes(self) -> dict[str, int]:
        """Return the option that decides it → images per iteration, for every phase."""
        sizes = {}
        for name, phase in (("float.", self.float_phase), ("ternary.", self.ternary)):
            if phase is not None:
                key = f"{name}batch_size" if phase.batch_size else "batch_size"
                sizes[key] = self.batch_size_of(phase)
        return sizes

    def float_only(self) -> Recipe:
        """Return a recipe for only the float model, without settings that do not affect it.

        Raises
        ------
        ConfigError
            There is no float phase.
        """
        if self.float_phase is None:
            raise ConfigError(
                "the recipe has no float phase to train; add one with "
                "--set float='{epochs: ..., lr: ...}'"
            )
        return self.model_copy(
            update={
                "description": "",
                "ternary": None,
                "quantize": Quantize(),
                "monitor": Monitor(),
                "fast_convolutions": False,
                "verify_images": None,
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Return every field, defaults included, as plain data."""
        return self.model_dump(mode="json", by_alias=True)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("fatnn_rs").joinpath("recipes")
    return sorted(
        item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")
    )


def load_recipe(source: str | Path | dict[str, Any], settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply settings to it.

    Parameters
    ----------
    source
        A YAML file, the name of a recipe of this package, or a recipe's data, as in a card.
    settings
        ``"key=value"`` pairs such as ``"ternary.epochs=2"``; values are YAML.

    Raises
    ------
    ConfigError
        No such recipe, invalid YAML, an unknown key (the closest known one is named) or an invalid
        value.
    """
    if isinstance(source, dict):
        name, data = "of the card", copy.deepcopy(source)
    else:
        name = str(source)
        data = _read(name)
    for setting in settings:
        _apply_setting(data, setting)
    return parse_recipe(data, name)


def _read(name: str) -> dict[str, Any]:
    """Read the YAML file of a recipe."""
    import yaml

    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(
                f"recipe {name}: no such file; recipes by name are {', '.join(recipe_names())}"
            )
        text = path.read_bytes().decode("utf-8", errors="replace")
    elif name in recipe_names():
        text = (
            resources.files("fatnn_rs")
            .joinpath("recipes")
            .joinpath(f"{name}.yaml")
            .read_text(encoding="utf-8")
        )
    else:
        raise ConfigError(
            f"recipe {name!r}: give a .yaml file or one of {', '.join(recipe_names())}"
        )
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {name} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(
            f"recipe {name}: expected a mapping of options, got {type(data).__name__}"
        )
    return data


def parse_recipe(data: dict[str, Any], name: str) -> Recipe:
    """Validate a recipe that was read from YAML.

    Raises
    ------
    ConfigError
        A key is unknown, missing or has an invalid value; the first such key is named.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"recipe {name}: {_explain(error)}") from error


def _apply_setting(data: dict[str, Any], setting: str) -> None:
    import yaml

    key, separator, value = setting.partition("=")
    if not separator or not key:
        raise ConfigError(f"setting {setting!r}: expected key=value, as ternary.epochs=2")
    *parents, last = key.split(".")
    place = data
    for parent in parents:
        inner = place.setdefault(parent, {})
        if inner is None:
            inner = place[parent] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"setting {setting!r}: {parent!r} is not a section of recipes")
        place = inner
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"setting {setting!r}: {value!r} is not YAML") from error


def _explain(error: ValidationError) -> str:
    """Return one sentence about the first error."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if first["type"] == "missing":
        return f"{key!r} is missing"
    got = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}{got}" if key else message


def _known_keys(path: Iterable[int | str]) -> list[str]:
    """Return the keys of the section at ``path``."""
    section: type[BaseModel] = Recipe
    sections: dict[str, type[BaseModel]] = {
        "augment": Augment,
        "float": Phase,
        "ternary": Phase,
        "quantize": Quantize,
        "monitor": Monitor,
    }
    for part in path:
        section = sections.get(str(part), section)
    return [field.alias or name for name, field in section.model_fields.items()]
