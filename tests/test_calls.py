"""Arguments and outputs of converted networks, and the input sizes they accept."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fatnn_rs
from fatnn_rs import InputError, UnsupportedError
from fatnn_rs.convert import convert
from nets import TwoConvs, exact, image, ready

X = image(4, 4, 6, 6)


class Scaled(TwoConvs):
    def forward(self, x: Tensor, scale: float = 1.0, *, shift: int = 0) -> Tensor:
        return self.both(x) * scale + shift


def test_arguments_may_be_passed_by_name() -> None:
    model = ready(Scaled(), X)
    net = convert(model, X)
    expected = model(X)
    for call in (net(X), net(x=X), net(X, 1.0), net(X, scale=1.0), net(x=X, scale=1.0, shift=0)):
        assert torch.equal(call, expected)


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((X, 5.0), {}, r"argument 'scale': the network was converted for 2.0, got 5.0"),
        ((X,), {}, r"argument 'scale': the network was converted for 2.0, got 1.0"),
        ((X, 2), {}, r"argument 'scale': the network was converted for 2.0, got 2;"),
        ((X, 2.0), {"shift": 1}, r"argument 'shift': the network was converted for 0, got 1"),
        ((X, 2.0, 0), {}, r"takes 2 argument\(s\) \(x, scale, shift\), got 3"),
        ((X, 2.0), {"scale": 2.0}, r"'scale' is given twice"),
        ((X, 2.0), {"other": 2.0}, r"takes no argument 'other', only x, scale, shift"),
        ((), {"scale": 2.0}, r"'x' is missing"),
        ((X, X), {}, r"argument 'scale': the network was converted for 2.0, got a Tensor"),
        ((X.numpy(), 2.0), {}, r"expected a torch tensor, got ndarray; torch.from_numpy"),
        (({"x": X}, 2.0), {}, r"expected a torch tensor, got dict"),
        ((X.to_sparse(), 2.0), {}, r"expected a dense tensor"),
    ],
)
def test_wrong_or_changed_arguments_are_refused(
    args: tuple[Any, ...], kwargs: dict[str, Any], says: str
) -> None:
    model = ready(Scaled(), X)
    net = convert(model, (X, 2.0))
    assert torch.equal(net(X, 2.0), model(X, 2.0))
    with pytest.raises(InputError, match=says):
        net(*args, **kwargs)


class OptionalMask(TwoConvs):
    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = True) -> Tensor:
        y = self.both(x)
        y = y if mask is None else y * mask
        return y if flag else -y


def test_optional_tensor_must_be_given_as_at_conversion() -> None:
    model = ready(OptionalMask(), X)
    without, with_mask = convert(model, X), convert(model, (X, X, False))
    assert torch.equal(without(X), model(X))
    assert torch.equal(without(X, None, True), model(X))
    assert torch.equal(with_mask(X, flag=False, mask=X), model(X, X, False))
    with pytest.raises(
        InputError, match=r"argument 'mask': the network was converted for None, got a Tensor"
    ):
        without(X, X)
    with pytest.raises(InputError, match=r"'mask' is missing"):
        with_mask(X, flag=False)


def test_saved_network_takes_the_same_arguments(tmp_path: Path) -> None:
    fatnn_rs.save(convert(ready(Repeats(), (X, 3)), (X, 3)), tmp_path / "net")
    net = fatnn_rs.load(tmp_path / "net")
    numpy = fatnn_rs.load_numpy(tmp_path / "net")
    expected = ready(Repeats(), (X, 3))(X, 3).detach()
    assert torch.equal(net(X, n=3), expected)
    np.testing.assert_allclose(numpy(X.numpy(), 3), expected.numpy(), rtol=1e-5)
    np.testing.assert_allclose(numpy(n=3, x=X.numpy()), expected.numpy(), rtol=1e-5)
    for call in (net, numpy):
        with pytest.raises(
            InputError, match=r"argument 'n': the network was converted for 3, got 4"
        ):
            call(X if call is net else X.numpy(), 4)


class Repeats(TwoConvs):
    def forward(self, x: Tensor, n: int) -> Tensor:
        for _ in range(n):
            x = self.both(x)
        return x


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass
class Result:
    logits: Tensor
    extra: dict[str, Any]
    nothing: None = None


class ReturnsStructure(TwoConvs):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Any:
        y = self.both(x)
        return {
            "list": lambda: [y, y.relu()],
            "dict": lambda: {"z": y, "a": y.flatten(1)},
            "ordered": lambda: OrderedDict(z=y, a=y.relu()),
            "named": lambda: Pair(y, y.relu()),
            "dataclass": lambda: Result(y, {"twice": [y, 2, None, "text"]}),
            "nested": lambda: (y, [{"k": (y, 1)}], OrderedDict(b=[y])),
        }[self.how]()


@pytest.mark.parametrize("how", ["list", "dict", "ordered", "named", "dataclass", "nested"])
def test_output_structure_is_kept(how: str, tmp_path: Path) -> None:
    from fatnn_rs.convert.structure import same_values

    model = ready(ReturnsStructure(how), X)
    net = convert(model, X)
    assert not any("captured by torch.export" in note for note in net.graph.notes)
    for x in (X, image(2, 4, 9, 5)):
        got, expected = net(x), model(x)
        assert type(got) is type(expected)
        assert same_values(got, expected) == ""
    assert same_values(copy.deepcopy(net)(X), model(X)) == ""
    if how in ("named", "dataclass"):
        with pytest.raises(UnsupportedError, match=r"Pair|Result"):
            fatnn_rs.save(net, tmp_path / "net")
        return
    fatnn_rs.save(net, tmp_path / "net")
    loaded = fatnn_rs.load(tmp_path / "net")(X)
    assert same_values(loaded, model(X)) == ""
    if how in ("dict", "ordered"):
        assert list(loaded) == list(model(X))
        assert list(fatnn_rs.load_numpy(tmp_path / "net")(X.numpy())) == list(model(X))


class BranchesOnBatch(TwoConvs):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = self.both(x)
        n = x.shape[0]
        if self.how == "large" and n > 2:
            y = y - y.mean(0)
        if self.how == "small" and n < 6:
            y = y - y.mean(0)
        if self.how == "even" and n % 2 == 0:
            y = y - y.mean(0)
        if self.how == "between" and 3 <= n <= 5:
            y = y - y.mean(0)
        if self.how == "exactly" and n == 4:
            y = y - y.mean(0)
        return y


@pytest.mark.parametrize("how", ["large", "small", "even", "between", "exactly"])
def test_branch_on_batch_size_limits_the_accepted_batch_sizes(how: str) -> None:
    model = ready(BranchesOnBatch(how), X)
    net = convert(model, X)
    accepted = []
    for batch in range(1, 12):
        x = image(batch, 4, 6, 6, seed=batch)
        try:
            got = net(x)
        except InputError as error:
            assert "batch" in str(error) or "one shape only" in str(error)  # noqa: PT017
            continue
        assert torch.equal(got, model(x)), batch
        accepted.append(batch)
    assert (
        accepted
        == {
            "large": list(range(3, 12)),
            "small": list(range(1, 6)),
            "even": [2, 4, 6, 8, 10],
            "between": [3, 4, 5],
            "exactly": [4],
        }[how]
    )


class ReadsWeights(TwoConvs):
    """Reads dtype and sizes of its layers, as Hugging Face's ViT and Whisper do."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.a.in_channels:
            raise ValueError("channels")
        y = self.a(x.to(self.a.weight.dtype))
        return self.b(y + self.a.weight.mean() * self.b.bias.numel())


@pytest.mark.filterwarnings("ignore:these layers do not compute in low precision")
def test_forward_may_read_attributes_of_its_layers() -> None:
    exact(ready(ReadsWeights(), X), X)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(4, 1, 9, 8), (2, 4, 1, 1), (1, 1, 6, 6), (3, 1, 1, 5)])
def test_memory_format_of_tensors_with_one_channel_or_pixel(
    shape: tuple[int, ...], last: bool
) -> None:
    """Such tensors fit both memory formats; torch must get the model's format."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            channels = shape[1]
            self.a = nn.Conv2d(channels, channels, 3, padding=1)
            self.b = nn.Conv2d(channels, 7, 3, padding=1)
            self.c = nn.Conv2d(7, 5, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).relu()).sigmoid())

    x = image(*shape)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    model = ready(Flat(), x, skip=("b",), last="float")
    if last:
        model = model.to(memory_format=torch.channels_last)
    exact(model, x)


@pytest.mark.parametrize("how", ["view", "size", "free"])
def test_view_with_constant_sizes_fixes_the_image_size(how: str) -> None:
    """At another image size ``view(-1, 64)`` would change the batch size."""

    class Views(TwoConvs):
        def forward(self, x: Tensor) -> Tensor:
            y = self.both(x)
            if how == "free":
                y = nn.functional.adaptive_avg_pool2d(y, 2)
            features = 16 if how == "free" else 144
            return y.view(y.size(0) if how == "size" else -1, features).relu()

    model = ready(Views(), X)
    net = convert(model, X)
    assert torch.equal(net(X[:1]), model(X[:1]))
    larger = image(1, 4, 12, 6)
    if how == "free":
        assert torch.equal(net(larger), model(larger))
    else:
        with pytest.raises(InputError, match=r"one shape only, expected \[any, 4, 6, 6\]"):
            net(larger)


class TwoInputsBranchOnBatch(TwoConvs):
    """Branches on the batch size; every operation can be saved."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.both(x), self.both(y)
        if x.shape[0] > 2:
            a = a + b
        return a.relu() if x.shape[0] < 9 else a


def test_saved_network_keeps_its_batch_range(tmp_path: Path) -> None:
    model = ready(TwoInputsBranchOnBatch(), (X, X))
    fatnn_rs.save(convert(model, (X, X)), tmp_path / "net")
    loaded, numpy = fatnn_rs.load(tmp_path / "net"), fatnn_rs.load_numpy(tmp_path / "net")
    for batch in range(1, 12):
        x, y = image(batch, 4, 6, 6, seed=batch), image(batch, 4, 6, 6, seed=-batch)
        if 3 <= batch <= 8:
            assert torch.equal(loaded(x, y), model(x, y))
            np.testing.assert_allclose(
                numpy(x.numpy(), y.numpy()), model(x, y).detach().numpy(), rtol=1e-5, atol=1e-6
            )
            continue
        with pytest.raises(InputError, match=r"batch.*from 3 to 8"):
            loaded(x, y)
        with pytest.raises(InputError, match=r"batch.*from 3 to 8"):
            numpy(x.numpy(), y.numpy())
    for call, (x, y) in ((loaded, (X, X[:3])), (numpy, (X.numpy(), X[:3].numpy()))):
        with pytest.raises(InputError, match=r"one size"):
            call(x, y)
