"""Models by name: ours from :data:`MODELS`, torchvision's and timm's by their own names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fatnn_rs.errors import ConfigError, FatnnError, UnsupportedError
from fatnn_rs.models.cifar_fast import CifarFast
from fatnn_rs.models.cifar_resnet import resnet20, resnet32
from fatnn_rs.models.digits import DigitsNet
from fatnn_rs.models.small_cnn import SmallCnn
from fatnn_rs.models.vgg_small import VggSmall
from fatnn_rs.train.recipe import Recipe

__all__ = ["MODELS", "build_model"]


def _cifar_resnet18(classes: int, **options: Any) -> nn.Module:
    """Torchvision's ResNet-18 for 32x32 images: 3x3 stem, stride 1, no max pooling."""
    model = _torchvision("resnet18", classes, False, **options)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def _torchvision(name: str, classes: int, pretrained: bool, **options: Any) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise UnsupportedError(
            f"{name} needs torchvision, which is missing: pip install 'fatnn-rs[train]'"
        ) from error
    try:
        model: nn.Module = models.get_model(
            name,
            weights="DEFAULT" if pretrained else None,
            **({} if pretrained else {"num_classes": classes}),
            **options,
        )
    except ValueError as error:
        raise ConfigError(
            f"model 'torchvision:{name}': {error}; torchvision.models.list_models() names all"
        ) from error
    return model


def _timm(name: str, classes: int, pretrained: bool, **options: Any) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UnsupportedError(
            f"{name} needs timm, which is missing: pip install 'fatnn-rs[train]'"
        ) from error
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=classes, **options
        )
    except RuntimeError as error:
        raise ConfigError(f"model 'timm:{name}': {error}; timm.list_models() names all") from error
    return model


#: Name in a recipe → constructor, called with (classes, **model_options).
MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits": lambda classes, **options: DigitsNet(classes=classes, **options),
    "small-cnn": SmallCnn,
    "vgg-small": VggSmall,
    "cifar-fast": CifarFast,
    "cifar-resnet20": resnet20,
    "cifar-resnet32": resnet32,
    "cifar-resnet18": _cifar_resnet18,
}


def build_model(recipe: Recipe, classes: int) -> nn.Module:
    """Build a recipe's float model.

    Raises
    ------
    ConfigError
        Unknown name, wrong options, or pretrained weights that cannot be downloaded.
    UnsupportedError
        The library of the model is missing.
    """
    source, _, name = recipe.model.partition(":")
    try:
        if name and source == "torchvision":
            return _torchvision(name, classes, recipe.pretrained, **recipe.model_options)
        if name and source == "timm":
            return _timm(name, classes, recipe.pretrained, **recipe.model_options)
        if recipe.model not in MODELS:
            raise ConfigError(
                f"model {recipe.model!r} is unknown; known are {', '.join(MODELS)}, "
                "torchvision:NAME and timm:NAME"
            )
        if recipe.pretrained:
            raise ConfigError(
                f"model {recipe.model!r} has no pretrained weights, only torchvision's and timm's "
                "have; set pretrained=false"
            )
        return MODELS[recipe.model](classes, **recipe.model_options)
    except FatnnError:
        raise
    except OSError as error:
        raise ConfigError(
            f"model {recipe.model!r}: its pretrained weights cannot be downloaded ({error}); set "
            "pretrained=false, or give a float checkpoint with --float-from"
        ) from error
    except Exception as error:  # A constructor may raise anything.
        raise ConfigError(
            f"model {recipe.model!r} cannot be built: {error}; check model_options"
        ) from error
