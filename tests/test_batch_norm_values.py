"""BatchNorms whose weights or statistics give NaN, zero or tiny factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fatnn_rs
from fatnn_rs import ConversionError
from fatnn_rs.convert import convert
from nets import image, ready

X = image(4, 4, 6, 6)


@pytest.mark.parametrize(
    ("change", "eps"),
    [
        (lambda bn: bn.running_var.zero_(), 0.0),
        (lambda bn: bn.running_var.fill_(-1.0), 1e-5),
        (lambda bn: (bn.weight.fill_(3e38), bn.running_var.fill_(1e-4)), 1e-5),
        (lambda bn: (bn.weight.fill_(1e30), bn.running_mean.fill_(1e30)), 1e-5),
    ],
)
def test_batch_norm_that_makes_nan_is_refused(change: Any, eps: float) -> None:
    model = ready(
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)), X
    )
    model[1].eps = eps
    with torch.no_grad():
        change(model[1])
    with pytest.raises(ConversionError, match=r"module '1': channel 0 .*NaN or infinity"):
        convert(model, X)


def test_functions_that_make_nan_are_refused() -> None:
    chain = nn.Sequential(nn.Conv2d(4, 4, 3), nn.PReLU(4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    model = ready(chain, X)
    with torch.no_grad():
        model[1].weight.fill_(3e38)  # the PReLU gives -inf, and -inf times 0 is NaN
        model[2].weight.fill_(0.0)
    with pytest.raises(
        ConversionError, match=r"layer '0': '1', '2' turn its results into NaN \(channel 0"
    ):
        convert(model, X)


def test_batch_norm_with_zero_and_tiny_weights_is_exact(tmp_path: Path) -> None:
    class Floats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.norm(x)
            return y, self.conv(y)

    model = ready(Floats(), X)
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([0.0, -0.0, 1e-30, 1.0]))
        model.norm.bias.copy_(torch.tensor([1.5, -2.0, 0.25, 0.0]))
    net = convert(model, X)
    fatnn_rs.save(net, tmp_path / "net")
    rust, numpy = (
        fatnn_rs.load(tmp_path / "net", float_layers="rust"),
        fatnn_rs.load_numpy(tmp_path / "net"),
    )
    for size in (1.0, 1e10, 1e20, 3e37, 1e-30, 1e-42):
        x = X.sign() * size
        assert torch.equal(net(x)[0], model(x)[0]), size
        for one, other in zip(rust(x), numpy(x.numpy()), strict=True):
            np.testing.assert_array_equal(one.numpy(), other)
