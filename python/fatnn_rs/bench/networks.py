"""Networks that ``fatnn bench`` and ``benches/ladder`` know by name.

Weights and BatchNorm are random, because time does not depend on them. Outputs are compared
nevertheless.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import fatnn_rs
from fatnn_rs.convert import TernaryNetwork
from fatnn_rs.errors import ConfigError, ConversionError, UnsupportedError
from fatnn_rs.models.cifar_fast import CifarFast
from fatnn_rs.models.cifar_resnet import resnet20, resnet32
from fatnn_rs.models.digits import DigitsNet
from fatnn_rs.models.small_cnn import SmallCnn

__all__ = [
    "END_TYPES",
    "NETWORKS",
    "BenchNetwork",
    "FloatNetwork",
    "NetworkSpec",
    "build_and_convert",
    "build_float",
    "convert_and_verify",
    "randomised",
]

#: Types of the first and the last layer.
END_TYPES = ("float", "int8", "ternary")

#: Number of images that initialise BatchNorm's statistics and the steps.
_CALIBRATION = 4


@dataclass(frozen=True)
class NetworkSpec:
    """A model to time.

    Attributes
    ----------
    build
        Builds the float model.
    channels, size
        Channels, and height and width of its images.
    sizes_free
        Whether the image size may be changed.
    """

    build: Callable[[], nn.Module]
    channels: int
    size: int
    sizes_free: bool = True


def _torchvision_builder(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        try:
            from torchvision import models
        except ImportError as error:
            raise UnsupportedError(
                f"{name} needs torchvision, which is missing: pip install 'fatnn-rs[bench]'"
            ) from error
        model: nn.Module = getattr(models, name)(weights=None)
        return model

    return build


def _mlp() -> nn.Module:
    """Build a multilayer perceptron for 28x28 images."""
    width = 1024
    hidden = [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    first = [nn.Flatten(), nn.Linear(28 * 28, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*first, *hidden, *copy.deepcopy(hidden), nn.Linear(width, 10))


_TORCHVISION = (
    "resnet18",
    "resnet34",
    "resnet50",
    "vgg16_bn",
    "mobilenet_v2",
    "efficientnet_b0",
)

#: Name → network.
NETWORKS: dict[str, NetworkSpec] = {
    **{name: NetworkSpec(_torchvision_builder(name), 3, 224) for name in _TORCHVISION},
    "cifar-resnet20": NetworkSpec(resnet20, 3, 32, sizes_free=False),
    "cifar-resnet32": NetworkSpec(resnet32, 3, 32, sizes_free=False),
    # As in the recipe cifar10-resnet20.
    "cifar-resnet20-conv": NetworkSpec(partial(resnet20, shortcut="conv"), 3, 32, sizes_free=False),
    "cifar-fast": NetworkSpec(CifarFast, 3, 32, sizes_free=False),
    "small-cnn": NetworkSpec(SmallCnn, 1, 28, sizes_free=False),
    "mlp": NetworkSpec(_mlp, 1, 28, sizes_free=False),
    "digits": NetworkSpec(DigitsNet, 1, 8, sizes_free=False),
}


@dataclass(frozen=True)
class FloatNetwork:
    """A float model with random weights, and images for it.

    Attributes
    ----------
    batch
        Images that initialise the steps.
    images
        Makes a batch of other images of a given size.
    """

    name: str
    model: nn.Module
    batch: Tensor
    images: Callable[[int], Tensor]


@dataclass(frozen=True)
class BenchNetwork:
    """A network ready to be timed: the float model, the converted network, and images for both.

    Attributes
    ----------
    images
        Makes a batch of images of a given size.
    codes
        Number of codes that were compared with the model's; all were equal.
    """

    name: str
    model: nn.Module
    net: TernaryNetwork
    images: Callable[[int], Tensor]
    codes: int


def build_float(name: str, size: int | None = None) -> FloatNetwork:
    """Build one of :data:`NETWORKS`.

    Parameters
    ----------
    name
        Key of :data:`NETWORKS`.
    size
        Height and width of the images, in pixels. None, or a network with a fixed size: its usual
        size.

    Raises
    ------
    ConfigError
        An unknown name, or a size that the network cannot take.
    UnsupportedError
        torchvision is missing.
    """
    network = NETWORKS.get(name)
    if network is None:
        raise ConfigError(f"unknown network {name!r}; the networks are: {', '.join(NETWORKS)}")
    size = size if size is not None and network.sizes_free else network.size
    if size < 32 and network.sizes_free:
        raise ConfigError(
            f"size: {name} halves its images five times and needs at least 32 pixels, got {size}"
        )
    return randomised(name, network, size)


def randomised(name: str, network: NetworkSpec, size: int) -> FloatNetwork:
    """Build a network with random weights and BatchNorm, the same ones each time.

    Parameters
    ----------
    name
        Name of the network, for messages.
    network
        A row of :data:`NETWORKS`, or any other.
    size
        Height and width of the images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network.build()
        batch = torch.randn(_CALIBRATION, network.channels, size, size)
        _randomise(model, batch)

    def images(count: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(count, network.channels, size, size, generator=generator)

    return FloatNetwork(name, model, batch, images)


def convert_and_verify(
    built: FloatNetwork,
    config: fatnn_rs.TernaryConfig,
    float_layers: str,
    values: str = "float32",
) -> tuple[TernaryNetwork, int]:
    """Prepare, convert and verify a copy of a float model; return it and the number of codes.

    Raises
    ------
    ConversionError
        A code of the converted network differs from the model's.
    """
    prepared = fatnn_rs.prepare(copy.deepcopy(built.model), config, built.batch).eval()
    image = built.batch[:1]
    net = fatnn_rs.convert(prepared, image, float_layers=float_layers, values=values)
    check = fatnn_rs.verify(net.reference() if values == "int8" else prepared, net, image)
    if check.codes_different:
        raise ConversionError(
            f"{built.name}: {check.codes_different} of {check.codes_total} codes differ from the "
            "model's; fatnn_rs.verify shows where"
        )
    return net, check.codes_total


def build_and_convert(
    name: str,
    size: int | None = None,
    ends: str = "float",
    values: str = "float32",
) -> BenchNetwork:
    """Build, prepare, convert and verify one of :data:`NETWORKS`.

    Parameters
    ----------
    name, size
        As for :func:`build_float`.
    ends
        Type of the first and the last layer: ``"float"``, ``"int8"`` or ``"ternary"``.
    values
        Type of the values between layers, as for :func:`fatnn_rs.convert`.

    Raises
    ------
    ConfigError
        As for :func:`build_float`, or an unknown type.
    ConversionError
        As for :func:`convert_and_verify`.
    UnsupportedError
        torchvision is missing.
    """
    built = build_float(name, size)
    # The faster choice: torch's float convolutions are faster than ours, but a network without
    # float convolutions runs in one call with "rust".
    float_layers = "torch" if ends == "float" else "rust"
    config = fatnn_rs.TernaryConfig(first=ends, last=ends)
    net, codes = convert_and_verify(built, config, float_layers, values)
    return BenchNetwork(name, built.model, net, built.images, codes)


@torch.no_grad()
def _randomise(model: nn.Module, batch: Tensor) -> None:
    """Give every BatchNorm a random scale and shift, and the statistics of one random batch."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    model.eval()
    for norm in norms:
        if norm.weight is not None:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0.0, 0.2)
        norm.train()
        norm.momentum = 1.0
    model(batch)
    model.eval()
