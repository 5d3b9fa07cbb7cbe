"""The FATNN quantizers: codes, thresholds, gradients, initialisation and state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from fatnn_rs import ConfigError, InputError
from fatnn_rs.config import _WEIGHT
from fatnn_rs.quant import QUANTIZERS, FatnnActivation, FatnnWeight
from fatnn_rs.quant.base import MIN_STEP, fit_step, round_ste


def activation_quantizer(act_range: str, alpha1: float, alpha2: float) -> FatnnActivation:
    """Return an initialised activation quantizer with these reciprocal steps."""
    quantizer = FatnnActivation(act_range)
    quantizer.initialize(
        torch.tensor([0.5, 1.0]) if act_range == "half" else torch.tensor([-1.0, 1.0])
    )
    with torch.no_grad():
        quantizer.alpha1.fill_(alpha1)
        quantizer.alpha2.fill_(alpha2)
    return quantizer


def next_above(value: float) -> Tensor:
    return torch.nextafter(torch.tensor(value), torch.tensor(torch.inf))


def next_below(value: float) -> Tensor:
    return torch.nextafter(torch.tensor(value), torch.tensor(-torch.inf))


def test_config_names_every_quantizer() -> None:
    assert set(QUANTIZERS) == set(_WEIGHT)


def test_half_range_code_rises_only_above_a_threshold() -> None:
    quantizer = activation_quantizer(
        "half", 2.0, 4.0
    )  # thresholds 0.25 and 0.5 + 0.125, exact in binary
    x = torch.stack(
        [
            next_below(0.25),
            torch.tensor(0.25),
            next_above(0.25),
            next_below(0.625),
            torch.tensor(0.625),
            next_above(0.625),
        ]
    )
    assert quantizer(x).tolist() == [0, 0, 1, 1, 1, 2]


def test_full_range_code_changes_only_beyond_a_threshold() -> None:
    quantizer = activation_quantizer("full", 4.0, 2.0)  # thresholds -0.125 and 0.25
    x = torch.stack(
        [
            next_below(-0.125),
            torch.tensor(-0.125),
            next_above(-0.125),
            next_below(0.25),
            torch.tensor(0.25),
            next_above(0.25),
        ]
    )
    assert quantizer(x).tolist() == [-1, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("act_range", ["half", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_activation_codes_are_monotone_and_zero_stays_zero(
    act_range: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(7)
    for _ in range(50):
        alpha1, alpha2 = (10.0 ** torch.empty(2).uniform_(-3, 3, generator=generator)).tolist()
        quantizer = activation_quantizer(act_range, alpha1, alpha2)
        edges = torch.tensor([0.5 / alpha1, 1 / alpha1, 1 / alpha1 + 0.5 / alpha2, 0.5 / alpha2])
        near = (edges[:, None] * (1 + torch.arange(-200, 201) * 6e-8)).flatten()
        x = (
            torch.cat([near, -near, torch.tensor([0.0, -0.0, 1e30, -1e30, torch.inf, -torch.inf])])
            .sort()
            .values
        )
        codes = quantizer(x.to(dtype))
        assert bool((codes.diff() >= 0).all())
        assert set(codes.tolist()) <= ({0, 1, 2} if act_range == "half" else {-1, 0, 1})
        assert quantizer(torch.zeros(3, dtype=dtype)).tolist() == [0, 0, 0]


def test_half_range_gradients_match_the_formula() -> None:
    a1, a2 = 2.0, 5.0
    quantizer = activation_quantizer("half", a1, a2)
    x = torch.tensor(
        [-0.3, 0.1, 0.4, 0.55, 0.65, 0.9], requires_grad=True
    )  # 1/a1 = 0.5, top end 0.7
    g = torch.tensor([1.0, 2.0, -3.0, 5.0, 7.0, 11.0])
    quantizer(x).backward(g)
    first = (x.detach() > 0) & (x.detach() < 1 / a1)
    second = (x.detach() > 1 / a1) & (x.detach() < 1 / a1 + 1 / a2)
    assert first.sum() == 2
    assert second.sum() == 2
    torch.testing.assert_close(x.grad, g * (first * a1 + second * a2))
    torch.testing.assert_close(
        quantizer.alpha1.grad, (g * (first * x.detach() + second * a2 / a1**2)).sum()
    )
    torch.testing.assert_close(quantizer.alpha2.grad, (g * second * (x.detach() - 1 / a1)).sum())


def test_full_range_gradients_match_the_formula() -> None:
    a1, a2 = 2.0, 5.0
    quantizer = activation_quantizer("full", a1, a2)
    x = torch.tensor([-0.9, -0.4, -0.1, 0.05, 0.15, 0.4], requires_grad=True)
    g = torch.tensor([1.0, 2.0, -3.0, 5.0, 7.0, 11.0])
    quantizer(x).backward(g)
    negative = torch.tensor([0.0, 1, 1, 0, 0, 0])
    positive = torch.tensor([0.0, 0, 0, 1, 1, 0])
    torch.testing.assert_close(x.grad, g * (negative * a1 + positive * a2))
    torch.testing.assert_close(quantizer.alpha1.grad, (g * negative * x.detach()).sum())
    torch.testing.assert_close(quantizer.alpha2.grad, (g * positive * x.detach()).sum())


@pytest.mark.parametrize("per_channel", [False, True])
def test_weight_values_and_gradients_match_the_formula(per_channel: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = (torch.randn(4, 3, 3, 3, generator=generator) * 0.2 + 0.05).requires_grad_()
    quantizer = FatnnWeight(4, per_channel)
    with torch.no_grad():
        quantizer.alpha_neg.fill_(0.7)
        quantizer.alpha_pos.fill_(0.9)
    g = torch.randn(weight.shape, generator=generator)
    codes = quantizer(weight)
    codes.backward(g)

    rows = weight.detach().double().reshape(4 if per_channel else 1, -1)
    std = rows.std(dim=1, unbiased=False, keepdim=True)
    normal = (rows - rows.mean(dim=1, keepdim=True)) / std
    low = torch.where(normal < -0.5 / 0.7, -1.0, 0.0)
    expected = torch.where(normal > 0.5 / 0.9, 1.0, low)
    assert torch.equal(codes.detach().reshape(rows.shape), expected.float())
    assert set(codes.unique().tolist()) == {-1, 0, 1}

    alpha = torch.where(normal < 0, 0.7, 0.9).double()
    inside = (normal * alpha).abs() < 1
    rows_g = g.double().reshape(rows.shape)
    torch.testing.assert_close(
        weight.grad.double().reshape(rows.shape),
        rows_g * inside * alpha / std,
        rtol=1e-5,
        atol=1e-6,
    )
    total = (rows_g * inside * normal * (normal < 0)).sum(dim=1)
    torch.testing.assert_close(quantizer.alpha_neg.grad.double(), total, rtol=1e-4, atol=1e-5)
    total = (rows_g * inside * normal * (normal >= 0)).sum(dim=1)
    torch.testing.assert_close(quantizer.alpha_pos.grad.double(), total, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("restore_threads")
def test_weight_codes_are_the_forwards_on_one_and_two_threads() -> None:
    weight = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(1))
    quantizer = FatnnWeight(64)
    quantizer.initialize(weight)
    torch.set_num_threads(1)
    one = quantizer.codes(weight)
    torch.set_num_threads(2)
    two = quantizer.codes(weight)
    assert one.dtype == torch.int8
    assert torch.equal(one, two)
    assert torch.equal(one.float(), quantizer(weight))


def test_constant_and_tiny_weights_give_finite_codes() -> None:
    for weight in (
        torch.ones(2, 3),
        torch.zeros(2, 3),
        torch.full((1, 1), 3.0),
        torch.randn(4, 4) * 1e-20,
    ):
        quantizer = FatnnWeight(weight.shape[0], per_channel=True)
        quantizer.initialize(weight)
        assert bool(torch.isfinite(quantizer(weight)).all())


def test_negative_step_is_clamped_and_its_gradient_raises_it() -> None:
    quantizer = activation_quantizer("half", -1.0, 1.0)
    x = torch.tensor([0.5], requires_grad=True)
    y = quantizer(x)
    assert y.item() == 0
    (-y).sum().backward()
    assert quantizer.alpha1.grad is not None
    assert float(quantizer.alpha1.grad) < 0  # gradient descent raises the reciprocal of the step
    assert float(MIN_STEP) > 0


def test_round_is_half_to_even_and_has_no_negative_zero() -> None:
    y = round_ste(torch.tensor([-1.5, -0.5, -0.3, 0.5, 1.5, 2.5]))
    assert y.tolist() == [-2, 0, 0, 0, 2, 2]
    assert not bool(torch.signbit(y[1:]).any())


def test_fit_step_finds_exact_levels_at_any_magnitude() -> None:
    for size in (1e-30, 1.0, 1e30):
        x = torch.tensor([-1.0, 0.0, 0.0, 1.0]).repeat(9) * size
        assert fit_step(x, -1, 1) == pytest.approx(size, rel=1e-5)
    assert fit_step(torch.zeros(4), 0, 2) == 0.0
    assert fit_step(torch.tensor([-8.0, 0.0, 3.0, 127.0]), -127, 127) == 1.0
    assert fit_step(torch.zeros(4), -127, 127) == 0.0
    # Least-squares ternary step of the normal distribution: 1.224 standard deviations.
    normal = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert fit_step(normal, -1, 1) == pytest.approx(1.224, rel=0.06)


@pytest.mark.parametrize(("low", "half"), [(0.0, True), (-0.01, False)])
def test_first_batch_decides_between_half_and_full_range(low: float, half: bool) -> None:
    quantizer = FatnnActivation()
    assert not quantizer.initialized
    quantizer(torch.tensor([low, 0.5, 1.0]))
    assert quantizer.initialized
    assert quantizer.half_range is half
    quantizer(torch.tensor([-5.0, 5.0]))
    assert quantizer.half_range is half


def test_batch_of_zeros_does_not_initialise_the_quantizer() -> None:
    quantizer = FatnnActivation()
    assert quantizer(torch.zeros(4)).tolist() == [0, 0, 0, 0]
    assert not quantizer.initialized
    quantizer(torch.tensor([-1.0, 1.0]))
    assert quantizer.initialized
    assert not quantizer.half_range


def test_uninitialised_quantizer_raises_in_eval_mode() -> None:
    quantizer = FatnnActivation().eval()
    quantizer.layer_name = "block.conv"
    with pytest.raises(ConfigError, match=r"'block\.conv'.*never initialised.*example_inputs"):
        quantizer(torch.ones(3))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_or_infinity_in_the_first_batch_raises(bad: float) -> None:
    with pytest.raises(InputError, match="NaN or infinity"):
        FatnnActivation()(torch.tensor([1.0, bad]))


def test_wrong_inputs_and_options_raise() -> None:
    with pytest.raises(InputError, match="floating point"):
        FatnnActivation()(torch.ones(3, dtype=torch.int64))
    with pytest.raises(InputError, match="empty"):
        FatnnActivation()(torch.ones(0, 3))
    with pytest.raises(InputError, match="act_range='half'"):
        FatnnActivation("half")(torch.tensor([-1.0]))
    with pytest.raises(ConfigError, match="act_range"):
        FatnnActivation("quarter")
    with pytest.raises(ConfigError, match="out_channels"):
        FatnnWeight(0)


def test_state_dict_keeps_range_and_initialisation() -> None:
    source = FatnnActivation()
    source(torch.tensor([0.0, 1.0, 2.0]))
    target = FatnnActivation()
    target.load_state_dict(source.state_dict())
    target.eval()
    assert target.initialized
    assert target.half_range
    x = torch.linspace(-1, 3, 50)
    assert torch.equal(target(x), source(x))
    assert torch.equal(copy.deepcopy(target)(x), source(x))
