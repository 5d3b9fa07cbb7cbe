"""``convert_submodule``: a network replaces a part of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fatnn_rs as fatnn
from fatnn_rs import ConversionError
from fatnn_rs.convert import TernaryNetwork


class Backbone(nn.Module):
    """Two maps, as a dictionary; other modules read ``out_channels``."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 8
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        fine = self.body(self.stem(x)) * scale
        return {"fine": fine, "coarse": fine[:, :, ::2, ::2]}


class Detector(nn.Module):
    """Takes a list of images of several sizes; how many boxes it returns depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Linear(8, 4)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        results = []
        for image in images:
            maps = self.backbone(image[None], scale=2.0)
            flat = maps["fine"].reshape(self.backbone.out_channels, -1).t()
            scores = self.head(flat)
            results.append({"boxes": scores[scores[:, 0] > scores[:, 0].mean()]})
        return results


def detector() -> tuple[Detector, list[Tensor]]:
    torch.manual_seed(0)
    images = [torch.randn(3, 16, 20), torch.randn(3, 12, 9)]
    model = fatnn.prepare(Detector(), example_inputs=(images,))
    return model.eval(), images


def test_detector_with_a_converted_backbone_gives_the_same_boxes() -> None:
    model, images = detector()
    others = [torch.randn(3, 7, 31), torch.randn(3, 24, 24), torch.randn(3, 5, 5)]
    expected = [model(images), model(others)]
    net = fatnn.convert_submodule(model, "backbone", (images,))
    assert isinstance(net, TernaryNetwork)
    assert model.backbone is net
    assert net.out_channels == 8
    for inputs, wanted in zip((images, others), expected, strict=True):
        found = model(inputs)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one["boxes"], other["boxes"])


def test_a_shared_submodule_is_replaced_everywhere() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16)
    layer = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
    model = nn.Sequential(nn.Linear(16, 16), layer, nn.ReLU(), layer)
    fatnn.prepare(model, fatnn.TernaryConfig(last="ternary"), example_inputs=x).eval()
    expected = model(x)
    net = fatnn.convert_submodule(model, "1", x)
    assert model[1] is net
    assert model[3] is net
    assert torch.equal(model(x), expected)


class Reads(nn.Module):
    """Calls a method of its backbone that is not forward."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.backbone.other = lambda x: x + 1  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        return self.backbone.other(self.backbone(x)["fine"])  # type: ignore[operator]


def test_what_cannot_be_replaced_leaves_the_model_as_it_was() -> None:
    x = torch.randn(1, 3, 8, 8)
    model = fatnn.prepare(Reads(), example_inputs=x).eval()
    expected, before = model(x), model.backbone
    with pytest.raises(ConversionError, match=r"submodule 'backbone'.*attributes or methods"):
        fatnn.convert_submodule(model, "backbone", x)
    assert model.backbone is before
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", ["neck", "", "backbone.stem.weight"])
def test_unknown_submodule_is_refused(name: str) -> None:
    model, images = detector()
    with pytest.raises(ConversionError, match=r"has no submodule .*'backbone', 'head'"):
        fatnn.convert_submodule(model, name, (images,))


def test_submodule_that_is_never_called_is_refused() -> None:
    model, images = detector()
    model.unused = nn.Linear(2, 2)
    with pytest.raises(ConversionError, match="does not call it"):
        fatnn.convert_submodule(model, "unused", (images,))
