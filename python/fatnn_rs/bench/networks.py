"""The networks that ``fatnn bench`` knows by name. Nothing else in the package does.

Weights are random and BatchNorm is randomised, for time depends on neither; the answers are compared all the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import fatnn_rs
from fatnn_rs.convert import TernaryNetwork
from fatnn_rs.errors import ConfigError, ConversionError, UnsupportedError
from fatnn_rs.models.cifar_resnet import resnet20, resnet32
from fatnn_rs.models.digits import DigitsNet

__all__ = ["ENDS", "NETWORKS", "Network", "Ready", "make"]

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


#: Name → network.
NETWORKS: dict[str, Network] = {
    **{name: Network(_torchvision(name), 3, 224) for name in ("resnet18", "resnet34", "resnet50", "vgg16_bn")},
    "cifar-resnet20": Network(resnet20, 3, 32, sizes_free=False),
    "cifar-resnet32": Network(resnet32, 3, 32, sizes_free=False),
    "mlp": Network(_mlp, 1, 28, sizes_free=False),
    "digits": Network(DigitsNet, 1, 8, sizes_free=False),
}


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


def make(name: str, size: int | None = None, ends: str = "float") -> Ready:
    """Build, prepare and convert one of :data:`NETWORKS`, and verify the result.

    Parameters
    ----------
    name
        Row of :data:`NETWORKS`.
    size
        Height and width of the images; the network's usual one by default, and for networks made for one size.
    ends
        What its first and its last layer are: ``"float"``, ``"int8"`` or ``"ternary"``.

    Raises
    ------
    ConfigError
        An unknown name, a size the network cannot take, or ends that are none of these.
    ConversionError
        Where a code of the converted network differs from its model's.
    UnsupportedError
        torchvision is missing.
    """
    network = NETWORKS.get(name)
    if network is None:
        raise ConfigError(f"unknown network {name!r}; the networks are: {', '.join(NETWORKS)}")
    size = size if size is not None and network.sizes_free else network.size
    if size < 32 and network.sizes_free:
        raise ConfigError(f"size: {name} halves its images five times and needs at least 32 pixels, got {size}")
    config = fatnn_rs.TernaryConfig(first=ends, last=ends)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network.build()
        batch = torch.randn(_CALIBRATION, network.channels, size, size)
        _randomise(model, batch)
    prepared = fatnn_rs.prepare(copy.deepcopy(model), config, batch).eval()
    # What a user would choose for speed: float convolutions are faster in torch, and a network without any is one call.
    net = fatnn_rs.convert(prepared, batch[:1], float_layers="torch" if ends == "float" else "rust")
    check = fatnn_rs.verify(prepared, net, batch[:1])
    if check.codes_different:
        raise ConversionError(f"{name}: {check.codes_different} of {check.codes_total} codes differ from the model's")

    def images(count: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(count, network.channels, size, size, generator=generator)

    return Ready(name, model, net, images, check.codes_total)


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
