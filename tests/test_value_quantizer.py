"""``Int8Value``: its bits, its gradients and its first step; exact means of its values."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fatnn_rs as fatnn
from fatnn_rs.convert.int8_function import Int8Function
from fatnn_rs.convert.scalar import SCALARS
from fatnn_rs.errors import ConfigError, InputError
from fatnn_rs.nn.exact_mean import ExactMean
from fatnn_rs.operations import OPERATIONS
from fatnn_rs.quant.values import STEP_BITS, Int8Value, fake_quantize
from nets import isa_caps, ops_of, ready


def fitted(x: Tensor) -> Int8Value:
    """A quantizer whose first data are ``x``."""
    value = Int8Value()
    value.train()(x)
    return value.eval()


def in_float64(x: Tensor, step: float, low: int, high: int) -> Tensor:
    """Rounded values, computed in float64 with NumPy from the codes."""
    inverse = np.float32(1) / np.float32(step)
    codes = np.clip(np.rint(x.detach().numpy() * inverse), low, high)
    return torch.from_numpy((codes.astype(np.float64) * step).astype(np.float32))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_forward_gives_the_bits_of_the_operation(training: bool, signed: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 7, 7)
    value = fitted(x if signed else x.relu()).train(training)
    assert (value.low, value.high) == ((-128, 127) if signed else (0, 255))
    other = torch.cat([torch.randn(1000) * 3, torch.tensor([0.0, -0.0, 1e30, -1e30])])
    halves = (torch.arange(-300, 300) + 0.5) * value.step
    for given in (x, other, halves):
        made = value(given)
        assert torch.equal(made, in_float64(given, value.step, value.low, value.high))
        plain = fake_quantize(given, value.step, value.low, value.high)
        assert torch.equal(made.view(torch.int32), plain.view(torch.int32))
        assert not bool(((made == 0) & made.signbit()).any())
    assert bool(value(torch.tensor([float("nan")])).isnan().all())
    ends = value(torch.tensor([float("inf"), -float("inf")]))
    assert ends.tolist() == [value.high * value.step, value.low * value.step]


def test_step_has_few_bits_so_that_products_with_codes_are_exact() -> None:
    for scale in (1e-12, 0.0371, 1.0, 3e20):
        value = fitted(torch.randn(1000) * scale)
        mantissa, _ = np.frexp(value.step)
        assert float(mantissa * 2**STEP_BITS).is_integer()
        codes = torch.arange(value.low, value.high + 1)
        exact = codes.double() * value.step
        assert torch.equal((codes.float() * value.step).double(), exact)


@pytest.mark.parametrize("signed", [False, True])
def test_gradients_are_those_of_learned_step_size_quantization(signed: bool) -> None:
    torch.manual_seed(1)
    x = torch.randn(4, 6, 5) * 2
    value = fitted(x if signed else x.relu()).train()
    with torch.no_grad():  # so that values are clipped on both sides
        value.set_step(value.step * 0.5)
    x.requires_grad_()
    weights = torch.randn(x.shape)
    (value(x) * weights).sum().backward()
    step, low, high = value.step, value.low, value.high
    scaled = x.detach().double() / step
    inside = (scaled > low) & (scaled < high)
    assert 0 < int(inside.sum()) < x.numel()
    torch.testing.assert_close(x.grad, weights * inside)
    codes = scaled.clamp(low, high).round()
    wanted = (weights * torch.where(inside, codes - scaled, codes)).sum()
    assert value.log2_step.grad is not None
    unrounded = 2.0 ** float(value.log2_step.detach())
    torch.testing.assert_close(
        value.log2_step.grad.double(), wanted * unrounded * np.log(2), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_training_step_changes_the_step_by_a_factor(size: float, kind: Any) -> None:
    """A change that does not depend on the values' size: updates of the step itself diverged."""
    torch.manual_seed(3)
    x = torch.randn(8, 16, 12, 12).relu() * size
    value = fitted(x).train()
    optimizer, before = kind(value.parameters(), lr=0.1, weight_decay=0.0), value.step
    (value(x * 1.5) / size).square().mean().backward()
    optimizer.step()
    assert 0.9 < value.step / before < 1.1
    assert value.step != before


def test_training_the_step_reduces_the_error() -> None:
    torch.manual_seed(2)
    x = torch.randn(16, 100)
    value = fitted(x).train()
    value.set_step(value.step * 6)
    optimizer = torch.optim.Adam(value.parameters(), lr=2e-2)
    errors = []
    for _ in range(200):
        loss = (value(x) - x).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.2 * errors[0]


@pytest.mark.parametrize("outlier", [1e3, -1e6, 1e12])
def test_one_outlier_does_not_spoil_the_step(outlier: float) -> None:
    x = torch.randn(2, 8, 32, 32, generator=torch.Generator().manual_seed(3))
    usual = fitted(x)
    x[1, 3, 5, 7] = outlier
    value = fitted(x)
    assert value.step < 8 * usual.step
    error = (value(x) - x).detach().flatten()
    error = error[x.flatten() != outlier]
    assert float(error.square().mean()) < 1e-3  # of a variance of 1


def test_first_data_must_be_finite_and_zeros_wait_for_others() -> None:
    with pytest.raises(InputError, match="holds NaN or infinity"):
        fitted(torch.tensor([1.0, float("nan")]))
    value = fitted(torch.zeros(3))
    assert value.saw_only_zeros
    assert value(torch.ones(1)).tolist() == [1.0]  # a step of 1
    with pytest.raises(ConfigError, match="never initialised"):
        Int8Value().eval()(torch.ones(3))


def test_state_is_kept_by_copies_and_checkpoints() -> None:
    value = fitted(torch.randn(100))
    other = Int8Value()
    other.load_state_dict(value.state_dict())
    x = torch.randn(1000)
    for copied in (other.eval(), copy.deepcopy(value)):
        assert torch.equal(copied(x), value(x))


class Pooled(nn.Module):
    """A pool of a rounded value, before a linear layer."""

    def __init__(self, value: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        self.value, self.pool, self.head = value, pool, nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.value(x)).flatten(1))


class Wide(nn.Module):
    """Rounds to multiples of a step with all 24 bits."""

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, 0.0371, -128, 127)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("pool", "op"),
    [
        (ExactMean([2, 3], True), "mean"),
        (ExactMean([-1, -2], False), "mean"),
        (ExactMean([1], False), "mean"),
        (nn.AvgPool2d(3, 2, 1), "avg_pool2d"),
        (nn.AvgPool2d(8, 5, ceil_mode=True, count_include_pad=False), "avg_pool2d"),
    ],
)
def test_exact_means_run_in_the_engine_with_torchs_bits(
    pool: nn.Module, op: str, channels_last: bool
) -> None:
    torch.manual_seed(4)
    x = torch.randn(2, 5, 33, 41) * torch.logspace(-2, 1, 41)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    model = ready(Pooled(fitted(x), pool), x)
    net = fatnn.convert(model, x)
    assert [row.runs for row in net.report.rows if row.op == op] == ["rust float -> float"]
    for _ in range(5):
        other = torch.randn_like(x) * 3
        assert fatnn.verify(model, net, other).identical


def test_means_stay_in_torch_where_the_order_of_additions_matters() -> None:
    torch.manual_seed(5)
    x = torch.randn(2, 5, 33, 41)
    for value, pool in (
        (Wide(), ExactMean([2, 3], True)),
        (nn.ReLU(), ExactMean([2, 3], True)),
        (fitted(x), nn.AvgPool2d(16)),
        (fitted(x), nn.AdaptiveAvgPool2d(1)),
    ):
        model = ready(Pooled(value, pool), x)
        net = fatnn.convert(model, x)
        assert fatnn.verify(model, net, x).identical
        pools = [row for row in net.report.rows if row.op in {"mean"} or "pool" in row.op]
        assert [row.runs for row in pools] == ["torch"]
        assert "fake_quantize" in ops_of(net) or isinstance(value, nn.ReLU)


APPROXIMATE = [op for op in SCALARS if OPERATIONS[op].exactness != "exact"]

#: Attributes of functions that have no defaults for all of them.
ATTRS: dict[str, dict[str, float]] = {"pow": {"exponent": 1.5}}


class OfRounded(nn.Module):
    """Every approximated function of one rounded value, and a ternary layer."""

    def __init__(self, value: Int8Value) -> None:
        super().__init__()
        self.value, self.head = value, nn.Linear(4, 4)
        attrs: list[dict[str, Any]] = [ATTRS.get(op, dict(SCALARS[op].attrs)) for op in APPROXIMATE]
        self.functions = nn.ModuleList(
            Int8Function(value, op, a) for op, a in zip(APPROXIMATE, attrs, strict=True)
        )

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        y = self.value(x)
        return self.head(z), *(function(y) for function in self.functions)


def test_functions_of_rounded_values_have_the_same_bits_everywhere(tmp_path: Path) -> None:
    torch.manual_seed(6)
    x, z = torch.randn(3, 7, 5, 3) * 3, torch.randn(1, 4)
    x[0, 0, 0] = torch.tensor([1e30, -1e30, 0.0])
    value = fitted(x.clamp(-8, 8))
    model = ready(OfRounded(value), (x, z))
    net = fatnn.convert(model, (x, z))
    assert [row.runs for row in net.report.rows if row.op == "lookup"] == [
        "rust float -> float"
    ] * len(APPROXIMATE)
    with torch.no_grad():
        wanted = model(x, z)[1:]
        rounded = value(x)
        every = torch.arange(value.low, value.high + 1) * np.float32(value.step)
        for op, results in zip(APPROXIMATE, wanted, strict=True):
            attrs = ATTRS.get(op, dict(SCALARS[op].attrs)).values()
            together = SCALARS[op].function(every, *attrs)
            at = (rounded / value.step).round().long() - value.low
            assert torch.equal(results.nan_to_num(7.0), together[at].nan_to_num(7.0))
    fatnn.save(net, tmp_path / "net")
    np.savez(tmp_path / "in.npz", x=x.numpy(), z=z.numpy())
    code = (
        "import sys, numpy as np, fatnn_rs; given = np.load(sys.argv[2]);"
        "net = fatnn_rs.load_numpy(sys.argv[1]);"
        "np.savez(sys.argv[3], *net(given['x'], given['z'])[1:])"
    )
    paths = [str(tmp_path / name) for name in ("net", "in.npz", "out.npz")]
    for isa in isa_caps():
        env = {**os.environ, "FATNN_ISA": isa} if isa else dict(os.environ)
        subprocess.run([sys.executable, "-c", code, *paths], env=env, check=True)
        made = np.load(tmp_path / "out.npz").values()
        for one, other in zip(made, wanted, strict=True):
            assert np.array_equal(one, other.numpy(), equal_nan=True)


def test_function_of_rounded_values_has_torchs_gradient() -> None:
    torch.manual_seed(7)
    x = torch.randn(5, 33)
    value = fitted(x)
    function = Int8Function(value, "silu", {}).eval()
    assert not list(function.parameters())
    y = value(x).detach().requires_grad_()
    made = function(y)
    made.square().sum().backward()
    other = y.detach().clone().requires_grad_()
    nn.functional.silu(other).square().sum().backward()
    torch.testing.assert_close(y.grad, other.grad)
    with torch.no_grad():
        assert torch.equal(function(y), made)
    assert bool(function(torch.tensor([float("nan")])).isnan())
    assert torch.equal(function.train()(y), nn.functional.silu(y))
    copied = copy.deepcopy(nn.ModuleList([value, function]))
    assert copied[1].value is copied[0]
