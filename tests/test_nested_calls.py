"""Arguments that are containers of tensors: binding, messages, files."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import fatnn_rs
from fatnn_rs import InputError, UnsupportedError, convert, verify
from nets import TwoConvs, image, ready

X, Y = image(4, 4, 6, 6), image(4, 4, 6, 6, seed=1)


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass
class Batch:
    image: Tensor
    extra: dict[str, Any]


class Takes(TwoConvs):
    """Reads two tensors out of a container, and a factor."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, batch: Any, scale: float = 1.0) -> dict[str, Tensor]:
        if self.how in ("list", "tuple"):
            (a, b), factor = batch[:2], 1.0
        elif self.how in ("dict", "ordered"):
            a, b, factor = batch["image"], batch["other"][0], batch["factor"]
        elif self.how == "named":
            a, b, factor = batch.left, batch.right, 1.0
        else:
            a, b, factor = batch.image, batch.extra["more"], batch.extra["factor"]
        return {"sum": self.both(a) + self.both(b) * factor * scale}


def batch(how: str, a: Tensor, b: Tensor) -> Any:
    return {
        "list": [a, b],
        "tuple": (a, b, None, "text"),
        "dict": {"image": a, "other": [b, None], "factor": 2.0},
        "ordered": OrderedDict(image=a, other=[b], factor=0.5),
        "named": Pair(a, b),
        "dataclass": Batch(a, {"more": b, "factor": 3, "flag": True}),
    }[how]


HOW = ["list", "tuple", "dict", "ordered", "named", "dataclass"]


@pytest.mark.parametrize("how", HOW)
def test_arguments_may_be_containers(how: str, tmp_path: Path) -> None:
    given = batch(how, X, Y)
    model = ready(Takes(how), (given,))
    net = convert(model, (given,))
    assert verify(model, net, (given,)).identical
    for n, m in ((2, 6), (5, 7)):  # sizes stay free
        other = batch(how, image(n, 4, m, 6), image(n, 4, m, 6, seed=3))
        for result in (net(other), net(batch=other), net(other, 1.0)):
            assert torch.equal(result["sum"], model(other)["sum"])
    twice = batch(how, X, X)
    assert torch.equal(net(twice)["sum"], model(twice)["sum"])
    if how in ("ordered", "named", "dataclass"):
        with pytest.raises(UnsupportedError, match=r"OrderedDict|Pair|Batch"):
            fatnn_rs.save(net, tmp_path / "net")
        return
    fatnn_rs.save(net, tmp_path / "net")
    assert torch.equal(fatnn_rs.load(tmp_path / "net")(given)["sum"], model(given)["sum"])
    arrays = fatnn_rs.load_numpy(tmp_path / "net")(batch(how, X.numpy(), Y.numpy()))
    expected = model(given)["sum"].detach().numpy()
    np.testing.assert_allclose(arrays["sum"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("how", "other", "says"),
    [
        (
            "list",
            (X, Y),
            r"argument 'batch': the network was converted for a list of 2, got a tuple",
        ),
        ("list", [X], r"argument 'batch': .*a list of 2, got a list of 1"),
        ("list", X, r"argument 'batch': .*a list of 2, got a Tensor"),
        ("tuple", (X, Y, 1, "text"), r"argument 'batch'\[2\]: .*for None, got 1"),
        ("tuple", (X, [Y], None, "text"), r"expected a torch tensor, got list"),
        ("dict", {"image": X}, r"'image', 'other', 'factor', got a dict with 'image';"),
        ("dict", {**batch("dict", X, Y), "factor": 3.0}, r"'batch'\['factor'\]: .*2.0, got 3.0"),
        ("dict", {**batch("dict", X, Y), "other": [Y]}, r"'batch'\['other'\]: .*a list of 2"),
        ("named", (X, Y), r"for a Pair with 'left', 'right', got a tuple of 2"),
        ("dataclass", Batch(X, {}), r"'batch'\['extra'\]: .*got a dict with nothing"),
    ],
)
def test_another_structure_is_one_clear_message(how: str, other: Any, says: str) -> None:
    given = (batch(how, X, Y),)
    net = convert(ready(Takes(how), given), given)
    with pytest.raises(InputError, match=says):
        net(other)
    with pytest.raises(InputError, match=r"'batch' ?: .*|missing|nothing"):
        net()


def test_a_hook_that_sees_the_containers_is_refused() -> None:
    given = (batch("list", X, Y),)
    model = ready(Takes("list"), given)
    model.register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(fatnn_rs.ConversionError, match=r"a hook before its forward.*wrap the"):
        convert(model, given)


class Cache:
    def __init__(self, x: Tensor) -> None:
        self.x = x


class ReturnsCache(TwoConvs):
    def forward(self, x: Tensor) -> Any:
        y = self.both(x)
        return {"y": y, "cache": Cache(y)}


def test_an_object_that_hides_tensors_is_refused_by_name() -> None:
    with pytest.raises(fatnn_rs.ConversionError, match=r"returns a Cache.*use_cache = False"):
        convert(ready(ReturnsCache(), X), X)
