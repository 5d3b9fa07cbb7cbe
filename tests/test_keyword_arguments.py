"""Forwards with keyword-only arguments: prepared, converted, verified, saved and called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fatnn_rs
from fatnn_rs import ConversionError, InputError, explain, summary
from fatnn_rs.convert import convert, verify
from nets import TwoConvs, image, ready

X = image(4, 4, 6, 6)
MASK = (image(4, 4, 6, 6, seed=1) > 0).float()


class KeywordOnly(TwoConvs):
    def forward(
        self, x: Tensor, scale: float = 1.0, *, mask: Tensor | None = None, flip: bool = False
    ) -> Tensor:
        y = self.both(x) * scale
        y = y if mask is None else y * mask
        return -y if flip else y


class OnlyKeywords(TwoConvs):
    def forward(self, *, x: Tensor, pair: list[Tensor]) -> dict[str, Tensor]:
        return {"y": self.both(x) + pair[0] * pair[1]}


class AnyKeywords(TwoConvs):
    def forward(self, x: Tensor, **others: Any) -> Tensor:
        return self.both(x) * others["mask"] if "mask" in others else self.both(x)


class BranchesToo(KeywordOnly):
    """Branches on its size, so torch.fx cannot trace it."""

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        y: Tensor = super().forward(x, mask=mask)
        return y + 1 if x.shape[0] > 2 else y


class TwoKeywords(TwoConvs):
    def forward(self, x: Tensor, *, plus: Tensor, minus: Tensor) -> Tensor:
        return self.both(x) + plus - minus


def test_the_order_of_keywords_does_not_matter(tmp_path: Path) -> None:
    plus, minus = image(4, 4, 6, 6, seed=2), image(4, 4, 6, 6, seed=3)
    model = ready(TwoKeywords(), {"x": X, "plus": plus, "minus": minus})
    expected = model(X, plus=plus, minus=minus)
    for example in ({"minus": minus, "plus": plus, "x": X}, {"x": X, "plus": plus, "minus": minus}):
        net = convert(model, example)
        fatnn_rs.save(net, tmp_path / "net")
        for one in (net, fatnn_rs.load(tmp_path / "net")):
            assert torch.equal(one(X, plus=plus, minus=minus), expected)
            assert torch.equal(one(minus=minus, x=X, plus=plus), expected)
        assert verify(model, net, example).identical


@pytest.mark.parametrize("kind", [KeywordOnly, AnyKeywords, BranchesToo])
def test_a_keyword_only_tensor_is_an_input(kind: type[nn.Module], tmp_path: Path) -> None:
    example = {"x": X, "mask": MASK}
    model = ready(kind(), example)
    expected = model(X, mask=MASK)
    net = convert(model, example)
    fatnn_rs.save(net, tmp_path / "net")
    for one in (net, fatnn_rs.load(tmp_path / "net")):
        assert torch.equal(one(X, mask=MASK), expected)
        assert torch.equal(one(mask=MASK, x=X), expected)
        assert verify(model, one, example).identical
        with pytest.raises(InputError, match="'mask' is missing"):
            one(X)
        with pytest.raises(InputError, match=r"takes \d argument\(s\) \(x,.*mask.*\), got"):
            one(X, 1.0, MASK)
    numpy = fatnn_rs.load_numpy(tmp_path / "net")
    made = numpy(X.numpy(), mask=MASK.numpy())
    np.testing.assert_allclose(made, expected.detach().numpy(), rtol=1e-5)
    rows = summary(net, example).rows
    assert [row.name for row in rows] == [row.name for row in summary(model, example).rows]


def test_a_keyword_only_value_is_fixed() -> None:
    model = ready(KeywordOnly(), X)
    net = convert(model, {"x": X, "flip": True})
    assert torch.equal(net(X, flip=True), model(X, flip=True))
    with pytest.raises(InputError, match="'flip': the network was converted for True, got False"):
        net(X)
    with pytest.raises(InputError, match="'mask': the network was converted for None, got a Ten"):
        net(X, flip=True, mask=MASK)


def test_containers_may_be_keyword_only(tmp_path: Path) -> None:
    example = {"x": X, "pair": [X, MASK]}
    model = ready(OnlyKeywords(), example)
    fatnn_rs.save(convert(model, example), tmp_path / "net")
    net = fatnn_rs.load(tmp_path / "net")
    assert torch.equal(net(**example)["y"], model(**example)["y"])
    with pytest.raises(InputError, match="takes 0 argument"):
        net(X)


@pytest.mark.parametrize(
    ("example", "says"),
    [
        ({"mask": MASK}, r"KeywordOnly.forward needs 'x', which is missing among mask"),
        ({"x": X, "maks": MASK}, r"names of arguments.*x, scale, mask, flip\), got 'maks'"),
        ({"x": 1.0, "flip": True}, "expected a tensor"),
    ],
)
def test_wrong_examples_are_refused(example: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        convert(ready(KeywordOnly(), X), example)


def test_a_hook_that_sees_the_keywords_is_refused() -> None:
    model = ready(KeywordOnly(), X)
    model.register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(ConversionError, match="takes keyword-only arguments and has a hook"):
        convert(model, {"x": X, "mask": MASK})


def test_explain_takes_the_same_example() -> None:
    report = explain(KeywordOnly().eval(), {"x": X, "mask": MASK})
    assert "ternary" in report.overview


class Calls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = KeywordOnly()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x, mask=x.abs(), flip=True)
        return y


def test_a_submodule_may_be_called_by_keyword() -> None:
    model = ready(Calls(), X)
    expected = model(X)
    fatnn_rs.convert_submodule(model, "inner", X)
    assert torch.equal(model(X), expected)
