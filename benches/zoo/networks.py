"""The networks of the zoo, under their names in torchvision and timm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from fatnn_rs.bench.networks import NetworkSpec

__all__ = ["SIZE", "ZOO"]

#: Height and width of the images, in pixels.
SIZE = 224


def _torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    model: nn.Module = getattr(models, name)(weights=None, **options)
    return model


def _timm(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


#: Options of networks that have auxiliary outputs in training only.
_ONE_OUTPUT = {"aux_logits": False, "init_weights": False}

_TORCHVISION: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "resnet50": {},
    "resnext50_32x4d": {},
    "densenet121": {},
    "googlenet": _ONE_OUTPUT,
    "inception_v3": _ONE_OUTPUT,
    "squeezenet1_1": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "shufflenet_v2_x1_0": {},
    "efficientnet_b0": {},
    "regnet_y_400mf": {},
    "convnext_tiny": {},
    "vit_b_16": {},
    "swin_t": {},
}

#: Short name → timm's name.
_TIMM = {
    "resnet26d": "resnet26d",
    "seresnet50": "seresnet50",
    "dla34": "dla34",
    "repvgg_a0": "repvgg_a0",
    "ghostnet_100": "ghostnet_100",
    "tf_efficientnetv2_b0": "tf_efficientnetv2_b0",
    "deit_tiny": "deit_tiny_patch16_224",
    "mixer_s16": "mixer_s16_224",
}


def _networks() -> dict[str, NetworkSpec]:
    builders: dict[str, Callable[[], nn.Module]] = {
        name: partial(_torchvision, name, options) for name, options in _TORCHVISION.items()
    }
    builders |= {name: partial(_timm, full) for name, full in _TIMM.items()}
    return {name: NetworkSpec(build, 3, SIZE) for name, build in builders.items()}


#: Name → network.
ZOO: dict[str, NetworkSpec] = _networks()
