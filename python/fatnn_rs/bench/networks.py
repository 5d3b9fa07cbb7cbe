"""The networks that ``fatnn bench`` knows by name, and the ladder in ``benches/ladder``.

Weights are random and BatchNorm is randomised, for time depends on neither; the answers are
compared all the same.
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
from fatnn_rs.models.cifar_resnet import resnet20, resnet32
from fatnn_rs.models.digits import DigitsNet
from fatnn_rs.models.small_cnn import SmallCnn

__all__ = ["ENDS", "NETWORKS", "Built", "Network", "Ready", "build", "built", "make", "quantized"]

#: What the first and the last layer may be.
ENDS = ("float", "int8", "ternary")

#: Images in the batch that initialises statistics and step sizes.
_CALIBRATION = 4


@dataclass(frozen=True)
class Network:
    """A model to time.

    Attributes
    ----------
    build
        Makes the float model.
    channels, size
        Of its images.
    sizes_free
        Whether ``--size`` applies.
    """

    build: Callable[[], nn.Module]
    channels: int
    size: int
    sizes_free: bool = True


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        try:
            from torchvision import models
        except ImportError as error:
            raise UnsupportedError(
                f"{name} comes with torchvision, which is missing: pip install 'fatnn-rs[bench]'"
            ) from error
        model: nn.Module = getattr(models, name)(weights=None)
        return model

    return build


def _mlp() -> nn.Module:
    """Build a plain multilayer perceptron on images of 28 × 28."""
    width = 1024
    hidden = [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    first = [nn.Flatten(), nn.Linear(28 * 28, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*first, *hidden, *copy.deepcopy(hidden), nn.Linear(width, 10))


_TORCHVISION = ("resnet18", "resnet34", "resnet50", "vgg16_bn", "mobilenet_v2")

#: Name → network.
NETWORKS: dict[str, Network] = {
    **{name: Network(_torchvision(name), 3, 224) for name in _TORCHVISION},
    "cifar-resnet20": Network(resnet20, 3, 32, sizes_free=False),
    "cifar-resnet32": Network(resnet32, 3, 32, sizes_free=False),
    "cifar-resnet20-conv": Network(
        partial(resnet20, shortcut="conv"), 3, 32, sizes_free=False
    ),  # the recipe's
    "small-cnn": Network(SmallCnn, 1, 28, sizes_free=False),
    "mlp": Network(_mlp, 1, 28, sizes_free=False),
    "digits": Network(DigitsNet, 1, 8, sizes_free=False),
}


@dataclass(frozen=True)
class Built:
    """A float model with random weights, and images for it.

    Attributes
    ----------
    batch
        Images that initialise step sizes.
    images
        Makes so many others.
    """

    name: str
    model: nn.Module
    batch: Tensor
    images: Callable[[int], Tensor]


@dataclass(frozen=True)
class Ready:
    """A network ready to be timed: the float model, the converted network, and a generator of images.

    Attributes
    ----------
    codes
        How many codes of the converted network were compared with its model's; none differed.
    """

    name: str
    model: nn.Module
    net: TernaryNetwork
    images: Callable[[int], Tensor]
    codes: int


def build(name: str, size: int | None = None) -> Built:
    """Build one of :data:`NETWORKS`.

    Parameters
    ----------
    name
        Row of :data:`NETWORKS`.
    size
        Height and width of the images; the network's usual one by default, and for networks made
        for one size.

    Raises
    ------
    ConfigError
        An unknown name, or a size the network cannot take.
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
    return built(name, network, size)


def built(name: str, network: Network, size: int) -> Built:
    """Build a network with random weights and BatchNorm, the same ones each time.

    Parameters
    ----------
    name
        What it is called.
    network
        Any, not only a row of :data:`NETWORKS`.
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

    return Built(name, model, batch, images)


def quantized(
    built: Built, config: fatnn_rs.TernaryConfig, float_layers: str
) -> tuple[TernaryNetwork, int]:
    """Prepare and convert a copy of a float model, and verify the result; how many codes were compared.

    Raises
    ------
    ConversionError
        Where a code of the converted network differs from its model's.
    """
    prepared = fatnn_rs.prepare(copy.deepcopy(built.model), config, built.batch).eval()
    net = fatnn_rs.convert(prepared, built.batch[:1], float_layers=float_layers)
    check = fatnn_rs.verify(prepared, net, built.batch[:1])
    if check.codes_different:
        raise ConversionError(
            f"{built.name}: {check.codes_different} of {check.codes_total} codes differ from the model's"
        )
    return net, check.codes_total


def make(name: str, size: int | None = None, ends: str = "float") -> Ready:
    """Build, prepare and convert one of :data:`NETWORKS`, and verify the result.

    Parameters
    ----------
    name, size
        As for :func:`build`.
    ends
        What its first and its last layer are: ``"float"``, ``"int8"`` or ``"ternary"``.

    Raises
    ------
    ConfigError
        As :func:`build`, or ends that are none of these.
    ConversionError
        As :func:`quantized`.
    UnsupportedError
        torchvision is missing.
    """
    built = build(name, size)
    # What a user would choose for speed: float convolutions are faster in torch, and a network
    # without any is one call.
    float_layers = "torch" if ends == "float" else "rust"
    net, codes = quantized(built, fatnn_rs.TernaryConfig(first=ends, last=ends), float_layers)
    return Ready(name, built.model, net, built.images, codes)


@torch.no_grad()
def _randomise(model: nn.Module, batch: Tensor) -> None:
    """Give every BatchNorm a random scale and shift, and the statistics of one random batch; leave eval mode."""
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
