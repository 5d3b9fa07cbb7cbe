"""``convert(..., dynamic_shapes=...)``: ranges of sizes, checked in calls and kept in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import fatnn_rs
from fatnn_rs import ConfigError, ConversionError, InputError
from fatnn_rs.convert import convert
from nets import TwoConvs, image, ready

X = image(4, 4, 6, 6)
N, H = Dim("n", min=2, max=16), Dim("h", min=4, max=12)


class Sum(TwoConvs):
    def forward(self, x: Tensor, y: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        z: Tensor = self.both(x) * scale
        return z if y is None else z + self.both(y)


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.conv(x).reshape(-1, 144))
        return y


class Valid(nn.Sequential):
    """Has no padding, so it needs an image of three pixels."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))


class Branches(TwoConvs):
    def forward(self, x: Tensor) -> Tensor:
        return self.both(x).relu() if x.shape[0] > 3 else self.both(x)


def test_a_range_is_checked_in_calls_and_kept_in_files(tmp_path: Path) -> None:
    model = ready(Sum(), X)
    net = convert(model, X, dynamic_shapes=({0: N, 2: H, 3: H, -3: None},))
    fatnn_rs.save(net, tmp_path / "net")
    loaded, numpy = fatnn_rs.load(tmp_path / "net"), fatnn_rs.load_numpy(tmp_path / "net")
    for call in (net, loaded, numpy):
        for shape in ((2, 4, 4, 4), (16, 4, 12, 12), (3, 4, 6, 6)):
            x = image(*shape)
            given = x.numpy() if call is numpy else x
            assert torch.allclose(torch.as_tensor(call(given)), model(x), atol=1e-5)
        for shape, says in (
            ((1, 4, 6, 6), r"argument 'x', dimension 0 \(n\).*from 2 to 16, got 1 in shape"),
            ((17, 4, 6, 6), r"dimension 0 \(n\).*got 17"),
            ((4, 4, 3, 3), r"dimension 2 \(h\).*from 4 to 12, got 3.*dynamic_shapes"),
            ((4, 4, 6, 7), r"dimension 3: expected the size of argument 'x', dimension 2, 6"),
        ):
            x = image(*shape)
            with pytest.raises(InputError, match=says):
                call(x.numpy() if call is numpy else x)
    compiled = torch.compile(net)
    assert torch.equal(compiled(X), model(X))


def test_two_arguments_by_name() -> None:
    model = ready(Sum(), (X, X))
    shapes = {"x": {0: N, 2: 6}, "y": (N, None, Dim.STATIC, Dim.AUTO)}
    net = convert(model, {"x": X, "y": X, "scale": 2.0}, dynamic_shapes=shapes)
    assert torch.equal(net(X, X, scale=2.0), model(X, X, scale=2.0))
    with pytest.raises(InputError, match=r"'x', dimension 2: .* sizes 6, got 7"):
        net(image(4, 4, 7, 6), X, scale=2.0)
    with pytest.raises(InputError, match=r"'y', dimension 0: expected the size of argument 'x'"):
        net(X, X[:3], scale=2.0)


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (3, "got 3 for the arguments x, y, scale; give a tuple"),
        ({"z": None}, "no argument 'z', only x, y, scale"),
        (({4: N},), r"no dimension 4 in the example's shape \[4, 4, 6, 6\]"),
        (({0: "n"},), "expected a torch.export.Dim, got 'n'"),
        (({0: 2 * Dim("k")},), r"computed from another Dim.*Dim\(name, min="),
        (({0: Dim("n", min=5)},), "the example has size 4, which is not from 5; give an example"),
        (({0: H, 2: H},), "share the Dim 'h', but the example's sizes are 4 and 6"),
        ((None, {0: N}), "argument 'y' is no tensor"),
        ((5,), r"argument 'x': got 5 for shape"),
    ],
)
def test_wrong_ranges_are_refused(shapes: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        convert(ready(Sum(), X), X, dynamic_shapes=shapes)


@pytest.mark.parametrize(
    ("make", "shapes", "says"),
    [
        (Sum, {1: Dim("c", min=1, max=8)}, "dimension 1 cannot be from 1 to 8.*channels"),
        (Flat, {2: H}, r"'x', dimension 2|at 'x' \[4, 4, 4, 6\]"),
        (
            Branches,
            {0: N},
            r"dimension 0 cannot be from 2 to 16: the model branches on the batch, which is from 4",
        ),
        (Branches, {2: H}, "dimension 2 cannot be from 4 to 12: input sizes are fixed"),
        (Valid, {2: Dim("h", min=1, max=12)}, "at 'input'.*the model fails.*narrow the range"),
    ],
)
def test_a_range_that_the_network_cannot_take_is_refused(make: Any, shapes: Any, says: str) -> None:
    with pytest.raises(ConversionError, match=says):
        convert(ready(make(), X), X, dynamic_shapes=(shapes,))


def test_a_range_within_the_batches_of_a_branch_is_taken() -> None:
    model = ready(Branches(), X)
    net = convert(model, X, dynamic_shapes=({0: Dim("n", min=4, max=8)},))
    assert torch.equal(net(X), model(X))
    with pytest.raises(InputError, match="from 4 to 8, got 9"):
        net(image(9, 4, 6, 6))
