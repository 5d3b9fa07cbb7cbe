"""Example inputs of prepare and calibrate: wrong ones raise and leave the model unchanged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fatnn_rs import ConfigError, InputError, TernaryConfig, prepare
from fatnn_rs.nn import TernaryLinear, calibrate

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, torch.zeros(16))


class CountingNet(nn.Module):
    """Counts its calls in a buffer, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.c = (
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, 3),
        )
        self.last: Any = None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.calls += 1
        self.last = x
        y: Tensor = self.c(self.norm(self.b(torch.relu(self.a(x)))) * scale)
        return y


class FailsAfterForward(CountingNet):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        super().forward(x)
        raise KeyError("late")


def unchanged(model: nn.Module, before: nn.Module, layers: dict[str, nn.Module]) -> bool:
    """Whether modules, tensors, modes and hooks are still those of ``before``."""
    state, saved = model.state_dict(), before.state_dict()
    return (
        dict(model.named_modules()) == layers
        and all(
            module.last is None for module in layers.values() if isinstance(module, CountingNet)
        )
        and all(torch.equal(state[key], saved[key]) for key in saved)
        and [m.training for m in model.modules()] == [m.training for m in before.modules()]
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            X.numpy(),
            r"got a NumPy array \[16, 8\] of float32; give torch tensors: torch.from_numpy",
        ),
        ((X.numpy(),), "torch.from_numpy"),
        ({"x": X.numpy()}, "torch.from_numpy"),
        (
            DataLoader(DATA),
            r"got a DataLoader; give one batch without labels: next\(iter\(loader\)\)\[0\]",
        ),
        (DATA, r"got a TensorDataset; give one batch"),
        (iter(DataLoader(DATA)), r"next\(batches\)"),
        ((x for x in [X]), r"got a generator"),
        ([[1.0] * 8], "got a list of 1"),
        ([], "got a list of 0"),
        ("x", "got a str"),
        (3, "got a int"),
        (torch.Tensor, "got a _TensorMeta"),
        ((None, 1.0), "a tuple of 2"),
        (X.to("meta"), "the meta device has none"),
        (
            (X, 1.0, torch.zeros(16)),
            r"does not take a tuple of 3 .*too many positional arguments.*without labels",
        ),
        ((), "a tuple of 0"),
        ({"images": X}, r"fails on a dict with the keys 'images'"),
        (
            X[:, :7],
            r"CountingNet, on cpu, fails on a tensor \[16, 7\] of torch.float32 on cpu "
            r"\(RuntimeError: .*shape, dtype",
        ),
        (X.double(), "torch.float64"),
        (torch.zeros(4, 8, dtype=torch.int64), "torch.int64"),
        (X * torch.nan, r"layer 'b'.*NaN"),
        (X[:0], "empty batch|batch is empty"),
    ],
)
def test_wrong_example_inputs_raise_and_leave_the_model_unchanged(
    inputs: Any, message: str
) -> None:
    for call in (
        lambda m: prepare(m, example_inputs=inputs),
        lambda m: prepare(m.eval(), example_inputs=inputs),
    ):
        model = CountingNet()
        model.norm.eval()
        layers = dict(model.named_modules())
        model_before = copy.deepcopy(model)
        with pytest.raises(InputError, match=message):
            call(model)
        model.train()
        model_before.train()
        assert unchanged(model, model_before, layers)
    model = prepare(CountingNet())
    before = copy.deepcopy(model)
    layers = dict(model.named_modules())
    with pytest.raises(InputError, match=message):
        calibrate(model, inputs)
    assert unchanged(model, before, layers)


@pytest.mark.parametrize("inputs", [X, (X,), [X], (X, 2.0), {"x": X}, {"x": X, "scale": 2.0}])
def test_every_form_of_example_inputs_initialises_the_layers(inputs: Any) -> None:
    model = prepare(CountingNet(), example_inputs=inputs)
    assert model.b.act_quant.initialized
    assert not model.norm.running_mean.eq(0).all()


def test_example_inputs_may_be_a_dict_or_an_object_that_the_model_takes() -> None:
    class Batch:
        def __init__(self) -> None:
            self.x = X

    class Takes(CountingNet):
        def forward(self, batch: Any) -> Tensor:  # type: ignore[override]
            return super().forward(batch["pixels"] if isinstance(batch, dict) else batch.x)

    assert prepare(Takes(), example_inputs={"pixels": X}).b.act_quant.initialized
    assert prepare(Takes(), example_inputs=Batch()).b.act_quant.initialized


def test_model_that_fails_after_its_forward_is_left_unchanged() -> None:
    model = FailsAfterForward()
    layers, before = dict(model.named_modules()), copy.deepcopy(model)
    with pytest.raises(
        InputError, match=r"FailsAfterForward, on cpu, fails on a tensor.*KeyError: 'late'"
    ):
        prepare(model, example_inputs=X)
    assert unchanged(model, before, layers)
    prepared = prepare(FailsAfterForward())
    layers, before = dict(prepared.named_modules()), copy.deepcopy(prepared)
    with pytest.raises(InputError, match="late"):
        calibrate(prepared, X)
    assert unchanged(prepared, before, layers)
    assert not prepared.b.act_quant.initialized


def test_meta_and_lazy_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer 'a' is on the meta device.*load_state_dict"):
        prepare(CountingNet().to("meta"))
    with pytest.raises(ConfigError, match=r"TernaryLinear.*meta device"):
        TernaryLinear.from_float(nn.Linear(2, 2, device="meta"))
    lazy = nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(8), nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(
        ConfigError, match=r"layer '1' \(LazyLinear\) has no shape yet; give.*run one batch"
    ):
        prepare(lazy)
    assert prepare(lazy, TernaryConfig(skip=("1",)), X) is lazy


@pytest.mark.parametrize("size", [1e-40, 1e-38, 1e-30, 1e30])
@pytest.mark.parametrize("weight", ["fatnn", "lsq", "dorefa", "binary"])
@pytest.mark.parametrize("first", ["int8", "ternary"])
def test_tiny_and_huge_examples_give_finite_steps(size: float, weight: str, first: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    x = X.sign() * size
    prepare(model, TernaryConfig(weight=weight, first=first), x)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    with torch.no_grad():
        codes = model[0].act_quant.eval()(x)
    assert bool(torch.isfinite(codes).all())
    if size < 1e-39:
        assert not model[0].act_quant.initialized
        assert bool(torch.isfinite(model.eval()(x)).all())


def test_refused_modules_are_left_unchanged() -> None:
    linear, net = nn.Linear(8, 8), CountingNet()
    for model, call, message in (
        (linear, lambda: prepare(linear, example_inputs=X), "nothing is left to quantize"),
        (net, lambda: calibrate(net, X), "no ternary or int8 layer"),
    ):
        layers, before = dict(model.named_modules()), copy.deepcopy(model)
        with pytest.raises(ConfigError, match=message):
            call()
        assert unchanged(model, before, layers)
