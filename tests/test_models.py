"""The models of the recipes: with every option they train, convert and verify."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import nn

import fatnn_rs
from fatnn_rs import ConfigError
from fatnn_rs.models.cifar_fast import CifarFast
from fatnn_rs.models.cifar_resnet import CifarResNet
from fatnn_rs.models.small_cnn import SmallCnn
from fatnn_rs.models.vgg_small import VggSmall

BLOCK_OPTIONS = [
    {"shortcut": shortcut, "order": order, "identity_norm": norm}
    for shortcut, order, norm in product(("block", "conv"), ("post", "pre"), (False, True))
]


def train_and_convert(model: nn.Module, images: torch.Tensor) -> None:
    """Train for two steps, convert, and assert that every code is the same."""
    labels = torch.arange(len(images)) % 10
    fatnn_rs.prepare(model, example_inputs=images)
    optimizer = torch.optim.SGD(fatnn_rs.param_groups(model, 1e-4), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    net = fatnn_rs.convert(model.eval(), images)
    report = fatnn_rs.verify(model, net, images)
    assert report.codes_total > 0
    assert report.codes_different == 0
    assert not report.not_compared


@pytest.mark.parametrize(
    "options", BLOCK_OPTIONS, ids=lambda options: "-".join(map(str, options.values()))
)
def test_every_block_option_of_cifar_resnet_converts_exactly(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = CifarResNet(8, 10, **options)  # type: ignore[arg-type]
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    extra = (3 if options["shortcut"] == "block" else 6) if options["identity_norm"] else 0
    assert (convolutions, norms) == (7, 7 + extra + (options["order"] == "pre"))
    train_and_convert(model, torch.randn(8, 3, 32, 32))


def test_default_block_is_the_papers_and_unknown_options_are_refused() -> None:
    torch.manual_seed(0)
    default, explicit = (
        CifarResNet(8),
        CifarResNet(8, shortcut="block", order="post", identity_norm=False),
    )
    assert default.state_dict().keys() == explicit.state_dict().keys()
    for wrong in ({"shortcut": "none"}, {"order": "middle"}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be"):
            CifarResNet(8, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (SmallCnn, (1, 28, 28)),
        (lambda: SmallCnn(norm=False, width=8), (1, 28, 28)),
        (lambda: SmallCnn(channels=3), (3, 20, 20)),
        (lambda: VggSmall(width=16), (3, 32, 32)),
        (lambda: CifarFast(width=0.5, norm_weight=True), (3, 32, 32)),
    ],
)
def test_small_networks_convert_exactly(
    build: Callable[[], nn.Module], shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    train_and_convert(build(), torch.randn(4, *shape))


def test_models_have_the_documented_parameter_counts() -> None:
    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    assert round(count(SmallCnn()), -3) == 61_000
    assert round(count(VggSmall()) / 1e6, 1) == 4.7
    assert round(count(CifarFast()) / 1e6, 2) == 1.97
    assert round(count(CifarFast(width=1.5)) / 1e6, 2) == 4.42
