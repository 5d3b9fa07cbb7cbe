"""Int8 values between layers: exact, placed by rules, calibrated, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import fatnn_rs as fatnn
from fatnn_rs.convert import TernaryNetwork
from fatnn_rs.quant.values import Int8Value
from nets import ready


def value_names(model: nn.Module) -> list[str]:
    """The names of the rounded values, without the prefix."""
    return [name.partition(".")[2] for name, m in model.named_modules() if isinstance(m, Int8Value)]


def converted(model: nn.Module, x: Any, **how: Any) -> TernaryNetwork:
    """Convert with int8 values, and assert that nothing differs from the reference."""
    net = fatnn.convert(model, x, values="int8", **how)
    report = fatnn.verify(net.reference(), net, x)
    assert report.identical, str(report)
    names = {row.layer for row in report.rows}
    assert {f"int8_values.{name}" for name in value_names(net.reference())} <= names
    return net


WHOLE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 64),
    "resnet50": (lambda: torchvision.models.resnet50(num_classes=10), 64),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), 64),
    "mobilenet_v3": (lambda: torchvision.models.mobilenet_v3_small(num_classes=10), 64),
    "efficientnet_b0": (lambda: torchvision.models.efficientnet_b0(num_classes=10), 64),
    "densenet121": (lambda: torchvision.models.densenet121(num_classes=10), 64),
    "googlenet": (
        lambda: torchvision.models.googlenet(num_classes=10, aux_logits=False, init_weights=False),
        64,
    ),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10), 64),
    "seresnet18": (lambda: timm.create_model("seresnet18", num_classes=10), 64),
    "resnet10t": (lambda: timm.create_model("resnet10t", num_classes=10), 64),
    "convnext": (lambda: timm.create_model("convnext_atto", num_classes=10), 64),
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=10),
        64,
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_network_equals_its_reference_and_keeps_the_models_state(name: str) -> None:
    torch.manual_seed(0)
    build, size = WHOLE[name]
    x = torch.randn(2, 3, size, size)
    model = ready(build(), x, first="int8", last="int8")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    net = converted(model, x)
    reference = net.reference()
    added = set(reference.state_dict()) - set(before)
    assert set(before) <= set(reference.state_dict())
    assert all(key.startswith("int8_values.") for key in added)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
        assert torch.equal(value, reference.state_dict()[key])
        assert value.data_ptr() != reference.state_dict()[key].data_ptr()
    assert fatnn.verify(reference, net, torch.randn(3, 3, size, size)).identical
