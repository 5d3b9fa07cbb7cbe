"""How converted networks are called, wrapped, traced and stored; what is refused says why."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fatnn_rs
from fatnn_rs import ConversionError, InputError, UnsupportedError
from fatnn_rs.convert import TernaryNetwork, convert, verify
from nets import ResNet, exact, image, ready

X = image(4, 4, 6, 6)


class Base(nn.Module):
    """Two ternary layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.a, self.b = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)

    def both(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Scaled(Base):
    def forward(self, x: Tensor, scale: float = 1.0, *, shift: int = 0) -> Tensor:
        return self.both(x) * scale + shift


def test_arguments_by_name() -> None:
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
def test_arguments_that_were_fixed(
    args: tuple[Any, ...], kwargs: dict[str, Any], says: str, tmp_path: Path
) -> None:
    model = ready(Scaled(), X)
    net = convert(model, (X, 2.0))
    assert torch.equal(net(X, 2.0), model(X, 2.0))
    with pytest.raises(InputError, match=says):
        net(*args, **kwargs)


class Optional(Base):
    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = True) -> Tensor:
        y = self.both(x)
        y = y if mask is None else y * mask
        return y if flag else -y


def test_tensors_that_may_be_left_out() -> None:
    model = ready(Optional(), X)
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


def test_a_saved_network_is_called_the_same(tmp_path: Path) -> None:
    fatnn_rs.save(convert(ready(Calls(), (X, 3)), (X, 3)), tmp_path / "net")
    net = fatnn_rs.load(tmp_path / "net")
    numpy = fatnn_rs.load_numpy(tmp_path / "net")
    expected = ready(Calls(), (X, 3))(X, 3).detach()
    assert torch.equal(net(X, n=3), expected)
    np.testing.assert_allclose(numpy(X.numpy(), 3), expected.numpy(), rtol=1e-5)
    np.testing.assert_allclose(numpy(n=3, x=X.numpy()), expected.numpy(), rtol=1e-5)
    for call in (net, numpy):
        with pytest.raises(
            InputError, match=r"argument 'n': the network was converted for 3, got 4"
        ):
            call(X if call is net else X.numpy(), 4)


class Calls(Base):
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


class Returns(Base):
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
def test_structures(how: str, tmp_path: Path) -> None:
    from fatnn_rs.convert.structure import same_values

    model = ready(Returns(how), X)
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


class OnBatch(Base):
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
def test_branches_on_the_batch(how: str) -> None:
    model = ready(OnBatch(how), X)
    net = convert(model, X)
    takes = []
    for batch in range(1, 12):
        x = image(batch, 4, 6, 6, seed=batch)
        try:
            got = net(x)
        except InputError as error:
            assert "batch" in str(error) or "one shape only" in str(error)  # noqa: PT017
            continue
        assert torch.equal(got, model(x)), batch
        takes.append(batch)
    assert (
        takes
        == {
            "large": list(range(3, 12)),
            "small": list(range(1, 6)),
            "even": [2, 4, 6, 8, 10],
            "between": [3, 4, 5],
            "exactly": [4],
        }[how]
    )


def test_forward_replaced_on_a_layer() -> None:
    model = ready(
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3)), X
    )
    old = model[1].forward
    model[1].forward = lambda t: old(t) * 0.5
    net = convert(model, X)
    assert torch.equal(net(X), model(X))
    assert any("forward was replaced on the instance" in row.note for row in net.report.rows)
    relu = model[2].forward
    model[2].forward = functools.partial(lambda f, t: f(t) + 1.0, relu)
    assert torch.equal(convert(model, X)(X), model(X))


def test_forward_replaced_on_a_container() -> None:
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 3), inner, nn.Conv2d(4, 4, 3)), X)
    old = inner.forward
    model[1].forward = lambda t: old(t) * 0.5
    assert torch.equal(convert(model, X)(X), model(X))


def test_other_methods_replaced() -> None:
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), X)
    own = model[1]._run
    model[1]._run = lambda *args: own(*args) + 1.0
    assert torch.equal(convert(model, X)(X), model(X))

    class Louder(nn.Conv2d):
        def _conv_forward(self, *args: Any) -> Tensor:
            return super()._conv_forward(*args) * 2.0

    model = ready(nn.Sequential(Louder(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)), X)
    assert torch.equal(convert(model, X)(X), model(X))


def test_forward_replaced_on_the_model() -> None:
    model = ready(Scaled(), X)
    old = model.forward
    model.forward = lambda x: old(x) * 0.5
    net = convert(model, X)
    assert torch.equal(net(X), model(X))


def test_hooks_on_the_model() -> None:
    model = ready(Scaled(), X)
    handle = model.register_forward_hook(lambda module, args, output: output * 3.0)
    assert torch.equal(convert(model, X)(X), model(X))
    handle.remove()


def test_accelerate_hooks() -> None:
    hooks = pytest.importorskip("accelerate.hooks")

    class Doubles(hooks.ModelHook):
        def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
            return output * 2.0

    model = ready(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)), X)
    hooks.add_hook_to_module(model[1], Doubles())
    assert torch.equal(convert(model, X)(X), model(X))


def test_wrappers() -> None:
    model = ready(Base2(), X)
    expected = model(X)
    averaged = torch.optim.swa_utils.AveragedModel(model).eval()
    for wrapped in (nn.DataParallel(model), averaged, torch.compile(model), copy.deepcopy(model)):
        assert torch.equal(convert(wrapped, X)(X), expected)
        assert verify(wrapped, convert(wrapped, X), X).identical
    accelerate = pytest.importorskip("accelerate")
    prepared = (
        accelerate.Accelerator(cpu=True, mixed_precision="bf16")
        .prepare_model(copy.deepcopy(model))
        .eval()
    )
    net = convert(prepared, X)
    assert torch.equal(net(X), expected)


class Base2(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.both(x)


@pytest.fixture(scope="module")
def net() -> TernaryNetwork:
    return convert(ready(Base2(), X, first="float"), X)


@pytest.mark.filterwarnings("ignore")  # torch's own about what is deprecated
def test_tracers_are_refused(net: TernaryNetwork) -> None:
    around = nn.Sequential(net).eval()
    calls: dict[str, Any] = {
        r"torch.jit.trace": lambda m: torch.jit.trace(m, X),
        r"torch.fx": lambda m: torch.fx.symbolic_trace(m),
        r"torch.func": lambda m: torch.vmap(m)(X[None]),
        r"torch.func ": lambda m: torch.func.jvp(m, (X,), (X,)),
        r"torch.export": lambda m: torch.export.export(m, (X,), strict=False),
        r"torch.jit.script": lambda m: torch.jit.script(m),
    }
    for who, call in calls.items():
        for module in (net, around):
            with pytest.raises(UnsupportedError, match=f"{who.strip()}.*cannot"):
                call(module)
    with pytest.raises(UnsupportedError, match=r"fatnn_rs.save"):
        torch.onnx.export(net, (X,), io.BytesIO(), dynamo=False)


def test_state_dict_is_refused(net: TernaryNetwork) -> None:
    for call in (net.state_dict, nn.Sequential(net).state_dict):
        with pytest.raises(UnsupportedError, match=r"no state dict.*fatnn_rs.save"):
            call()
    for call in (net.load_state_dict, nn.Sequential(net).load_state_dict):
        with pytest.raises(UnsupportedError, match=r"takes no state dict.*fatnn_rs.load"):
            call({})
    assert torch.equal(pickle.loads(pickle.dumps(net))(X), net(X))


def test_autocast(net: TernaryNetwork) -> None:
    model = ready(nn.Sequential(Base2(), Base2()), X, first="float", last="float")
    expected = model(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(convert(model, X)(X), expected)
    net = convert(model, X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(X), expected)


@pytest.mark.parametrize("kind", ["dtype", "device", "inference"])
def test_defaults_of_torch(kind: str, tmp_path: Path) -> None:
    model = ready(ResNet(), image(2, 3, 32, 32), first="float", last="int8")
    x = image(2, 3, 32, 32)
    expected = model(x)

    def everything() -> None:
        net = convert(model, x)
        assert torch.equal(net(x), expected)
        assert torch.equal(copy.deepcopy(net)(x), expected)
        assert verify(model, net, x).identical
        fatnn_rs.save(net, tmp_path / "net")
        assert torch.equal(fatnn_rs.load(tmp_path / "net")(x), expected)
        fatnn_rs.summary(net, x)

    if kind == "inference":
        with torch.inference_mode():
            everything()
        return
    try:
        if kind == "dtype":
            torch.set_default_dtype(torch.float64)
        else:
            torch.set_default_device("meta")
        everything()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


class ReadsWeights(Base):
    """As Hugging Face's ViT and Whisper: the forward looks at a layer's dtype and sizes."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.a.in_channels:
            raise ValueError("channels")
        y = self.a(x.to(self.a.weight.dtype))
        return self.b(y + self.a.weight.mean() * self.b.bias.numel())


@pytest.mark.filterwarnings("ignore:these layers do not compute in low precision")
def test_attributes_of_layers_are_read() -> None:
    exact(ready(ReadsWeights(), X), X)


@pytest.mark.parametrize(
    ("change", "eps"),
    [
        (lambda bn: bn.running_var.zero_(), 0.0),
        (lambda bn: bn.running_var.fill_(-1.0), 1e-5),
        (lambda bn: (bn.weight.fill_(3e38), bn.running_var.fill_(1e-4)), 1e-5),
        (lambda bn: (bn.weight.fill_(1e30), bn.running_mean.fill_(1e30)), 1e-5),
    ],
)
def test_norms_that_make_nan(change: Any, eps: float) -> None:
    model = ready(
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)), X
    )
    model[1].eps = eps
    with torch.no_grad():
        change(model[1])
    with pytest.raises(ConversionError, match=r"module '1': channel 0 .*NaN or infinity"):
        convert(model, X)


def test_functions_that_make_nan() -> None:
    chain = nn.Sequential(nn.Conv2d(4, 4, 3), nn.PReLU(4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    model = ready(chain, X)
    with torch.no_grad():
        model[1].weight.fill_(3e38)  # minus infinity, of which a slope of 0 makes NaN
        model[2].weight.fill_(0.0)
    with pytest.raises(
        ConversionError, match=r"layer '0': '1', '2' turn its results into NaN \(channel 0"
    ):
        convert(model, X)


def test_a_norm_with_gamma_zero(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(4, 1, 9, 8), (2, 4, 1, 1), (1, 1, 6, 6), (3, 1, 1, 5)])
def test_formats_of_flat_values(shape: tuple[int, ...], last: bool) -> None:
    """A value with one channel or pixel fits both memory formats; torch gets the model's format."""

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
def test_views_of_the_examples_size(how: str) -> None:
    """``x.view(-1, 64)`` changes the batch size at another image size; a flatten would not."""

    class Views(Base):
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


class TwoOnBatch(Base):
    """Saveable, and captured by export: a branch on the batch size with engine operations only."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.both(x), self.both(y)
        if x.shape[0] > 2:
            a = a + b
        return a.relu() if x.shape[0] < 9 else a


def test_batch_ranges_in_files(tmp_path: Path) -> None:
    model = ready(TwoOnBatch(), (X, X))
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
