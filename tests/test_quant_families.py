"""Every quantizer family gives the codes and gradients of its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fatnn_rs import config
from fatnn_rs.quant import (
    QUANTIZERS,
    BinaryActivation,
    BinaryWeight,
    DorefaUint2,
    DorefaWeight,
    FatnnUint2,
    LsqActivation,
    LsqUint2,
    LsqWeight,
    SttnWeight,
    TtqWeight,
    TwnWeight,
)


def randn(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("per_channel", [False, True])
def test_lsq_weights_match_the_formula(per_channel: bool) -> None:
    weight = (randn(4, 3, 3, 3) * 0.2).requires_grad_()
    quantizer = LsqWeight(4, per_channel)
    quantizer.initialize(weight)
    step = quantizer.step_size.detach().clone()
    assert bool(((step > 0.1) & (step < 0.4)).all())
    g = randn(4, 3, 3, 3, seed=4)
    codes = quantizer(weight)
    codes.backward(g)

    s = step.view(-1, 1, 1, 1)
    w = weight.detach()
    expected = torch.where(w > s / 2, 1.0, torch.where(w < -s / 2, -1.0, 0.0))
    assert torch.equal(codes.detach(), expected)
    assert set(codes.unique().tolist()) == {-1, 0, 1}
    inside = w.abs() < s
    torch.testing.assert_close(weight.grad, g * inside / s)
    count = weight.numel() // len(step)
    steps_gradient = (-g * inside * w / s**2).reshape(len(step), -1).sum(1) / math.sqrt(count)
    torch.testing.assert_close(quantizer.step_size.grad, steps_gradient)


@pytest.mark.parametrize(("act_range", "top"), [("half", 2), ("full", 1)])
def test_lsq_activations_match_the_formula(act_range: str, top: int) -> None:
    quantizer = LsqActivation(act_range)
    x = randn(8, 5, 4, 4) * 3
    x = (x.abs() if top == 2 else x).requires_grad_()
    quantizer(x.detach())  # initialises the step
    step = quantizer.step
    g = randn(8, 5, 4, 4, seed=4)
    codes = quantizer(x)
    codes.backward(g)

    scaled = x.detach() / step
    assert torch.equal(
        codes.detach(),
        scaled.clamp(top - 3 + (top == 1), top).clamp(0 if top == 2 else -1, top).round(),
    )
    assert set(codes.unique().tolist()) == ({0, 1, 2} if top == 2 else {-1, 0, 1})
    inside = (scaled < top) & (scaled > (0 if top == 2 else -1))
    torch.testing.assert_close(x.grad, g * inside / step)
    expected = (-g * inside * x.detach() / step**2).sum() / math.sqrt(80 * top)
    torch.testing.assert_close(quantizer.step_size.grad, expected)


@pytest.mark.parametrize("per_channel", [False, True])
def test_twn_weights_match_the_formula(per_channel: bool) -> None:
    weight = (
        randn(4, 3, 3, 3) * torch.tensor([0.1, 0.2, 0.4, 0.8]).view(4, 1, 1, 1)
    ).requires_grad_()
    quantizer = TwnWeight(4, per_channel)
    quantizer.initialize(weight)
    assert not list(quantizer.parameters())
    g = randn(4, 3, 3, 3, seed=4)
    codes = quantizer(weight)
    codes.backward(g)

    rows = weight.detach().reshape(4 if per_channel else 1, -1)
    threshold = 0.7 * rows.abs().mean(1, keepdim=True)
    beyond = rows.abs() > threshold
    assert torch.equal(codes.detach().reshape(rows.shape), rows.sign() * beyond)
    scale = (rows.abs() * beyond).sum(1, keepdim=True) / beyond.sum(1, keepdim=True)
    torch.testing.assert_close(weight.grad.reshape(rows.shape), g.reshape(rows.shape) / scale)


def statistics_rows(x: Tensor, per_channel: bool) -> Tensor:
    """Reshape weights to one row per set of statistics: per channel, or all together."""
    return x.reshape(len(x) if per_channel else 1, -1)


def test_config_names_every_weight_family_and_activation_type() -> None:
    assert tuple(QUANTIZERS) == config._WEIGHT
    assert config._ACT == ("ternary", "uint2", "binary")
    for family in QUANTIZERS.values():
        assert family._fields[1:] == config._ACT


@pytest.mark.parametrize("per_channel", [False, True])
def test_ttq_weights_match_the_formula(per_channel: bool) -> None:
    weight = (
        randn(4, 3, 3, 3) * torch.tensor([0.1, 0.2, 0.4, 0.8]).view(4, 1, 1, 1)
    ).requires_grad_()
    quantizer = TtqWeight(4, per_channel)
    quantizer.initialize(weight)
    rows = statistics_rows(weight.detach(), per_channel)
    threshold = 0.05 * rows.abs().amax(1, keepdim=True)
    above, below = rows > threshold, rows < -threshold
    scale_pos = (rows * above).sum(1) / above.sum(1)
    scale_neg = (-rows * below).sum(1) / below.sum(1)
    torch.testing.assert_close(quantizer.scale_pos.detach(), scale_pos)
    torch.testing.assert_close(quantizer.scale_neg.detach(), scale_neg)

    g = randn(4, 3, 3, 3, seed=4)
    used = quantizer(weight)
    used.backward(g)
    pos, neg = (scale.detach()[:, None] for scale in (quantizer.scale_pos, quantizer.scale_neg))
    assert torch.equal(
        statistics_rows(used.detach(), per_channel),
        torch.where(above, pos, torch.where(below, -neg, 0.0)),
    )
    assert torch.equal(
        statistics_rows(quantizer.codes(weight), per_channel),
        above.to(torch.int8) - below.to(torch.int8),
    )
    factor = torch.where(above, pos, torch.where(below, neg, 1.0))
    torch.testing.assert_close(
        statistics_rows(weight.grad, per_channel), statistics_rows(g, per_channel) * factor
    )
    shared = math.sqrt(weight.numel() // len(pos))
    torch.testing.assert_close(
        quantizer.scale_pos.grad, (statistics_rows(g, per_channel) * above).sum(1) / shared
    )
    torch.testing.assert_close(
        quantizer.scale_neg.grad, -(statistics_rows(g, per_channel) * below).sum(1) / shared
    )


def triangle(v: Tensor, reach: Tensor) -> Tensor:
    """Bi-Real's derivative of ``sign``: a triangle of area 2, zero beyond ``reach``."""
    return (2 - 2 * v.abs() / reach).clamp(min=0) / reach


@pytest.mark.parametrize("per_channel", [False, True])
def test_sttn_weights_match_the_formula(per_channel: bool) -> None:
    weight = (
        randn(4, 3, 3, 3) * torch.tensor([0.1, 0.2, 0.4, 0.8]).view(4, 1, 1, 1)
    ).requires_grad_()
    quantizer = SttnWeight(4, per_channel)
    quantizer.initialize(weight)
    w = statistics_rows(weight.detach(), per_channel)
    size = w.abs().mean(1, keepdim=True)
    torch.testing.assert_close(
        statistics_rows(quantizer.offset.detach(), per_channel), (0.7 * size).expand_as(w)
    )
    with torch.no_grad():  # as training might leave them
        quantizer.offset.mul_(1 + 0.5 * randn(4, 3, 3, 3, seed=5))
    o = statistics_rows(quantizer.offset.detach(), per_channel)
    g = randn(4, 3, 3, 3, seed=4)
    codes = quantizer(weight)
    codes.backward(g)

    assert torch.equal(
        statistics_rows(codes.detach(), per_channel), torch.where(w.abs() > o.abs(), w.sign(), 0.0)
    )
    assert set(codes.unique().tolist()) == {-1, 0, 1}
    plus, minus = triangle(w + o, 3 * size), triangle(w - o, 3 * size)
    torch.testing.assert_close(
        statistics_rows(weight.grad, per_channel),
        statistics_rows(g, per_channel) * (plus + minus) / 2,
    )
    expected = statistics_rows(g, per_channel) * (plus - minus) / 2
    torch.testing.assert_close(statistics_rows(quantizer.offset.grad, per_channel), expected)


@pytest.mark.parametrize("per_channel", [False, True])
def test_dorefa_weights_match_the_formula(per_channel: bool) -> None:
    weight = (
        randn(4, 3, 3, 3) * torch.tensor([0.1, 0.2, 0.4, 0.8]).view(4, 1, 1, 1)
    ).requires_grad_()
    quantizer = DorefaWeight(4, per_channel)
    quantizer.initialize(weight)
    assert not list(quantizer.parameters())
    g = randn(4, 3, 3, 3, seed=4)
    codes = quantizer(weight)
    codes.backward(g)

    squashed = statistics_rows(weight.detach(), per_channel).tanh()
    largest = squashed.abs().amax(1, keepdim=True)
    # As in the paper: two bits, four even levels over [0, 1].
    unit = squashed / (2 * largest) + 0.5
    expected = torch.full_like(unit, -3.0)
    for threshold in (1 / 6, 3 / 6, 5 / 6):
        expected += 2 * (unit > threshold)
    assert torch.equal(statistics_rows(codes.detach(), per_channel), expected)
    assert set(codes.unique().tolist()) == {-3, -1, 1, 3} == set(quantizer.levels)
    torch.testing.assert_close(
        statistics_rows(weight.grad, per_channel),
        statistics_rows(g, per_channel) * 3 * (1 - squashed.square()) / largest,
    )


@pytest.mark.parametrize("per_channel", [False, True])
def test_binary_weights_match_the_formula(per_channel: bool) -> None:
    weight = randn(4, 3, 3, 3) * torch.tensor([0.1, 0.2, 0.4, 0.8]).view(4, 1, 1, 1)
    weight[0, 0, 0] = torch.tensor([0.0, -0.0, -1e-30])
    weight.requires_grad_()
    quantizer = BinaryWeight(4, per_channel)
    quantizer.initialize(weight)
    assert not list(quantizer.parameters())
    g = randn(4, 3, 3, 3, seed=4)
    codes = quantizer(weight)
    codes.backward(g)

    w = statistics_rows(weight.detach(), per_channel)
    assert torch.equal(statistics_rows(codes.detach(), per_channel), (w >= 0).float() * 2 - 1)
    assert codes[0, 0, 0].tolist() == [1, 1, -1]
    size = w.abs().mean(1, keepdim=True)
    torch.testing.assert_close(
        statistics_rows(weight.grad, per_channel), statistics_rows(g, per_channel) / size
    )


def signed_inputs() -> Tensor:
    """Inputs of two-bit quantizers: mostly positive, some negative, which become 0."""
    return (randn(8, 5, 4, 4) * 3 + 2).requires_grad_()


def test_fatnn_two_bit_activations_match_the_formula() -> None:
    quantizer = FatnnUint2()
    quantizer(signed_inputs().detach())
    assert quantizer.half_range
    assert quantizer.levels == (0, 1, 2, 3)
    with torch.no_grad():  # steps of different sizes, as training might leave them
        quantizer.alpha1.fill_(1 / 0.9)
        quantizer.alpha2.fill_(1 / 1.6)
        quantizer.alpha3.fill_(1 / 1.2)
    torch.testing.assert_close(torch.tensor(quantizer.step), torch.tensor(3.7 / 3))
    x, g = signed_inputs(), randn(8, 5, 4, 4, seed=4)
    codes = quantizer(x)
    codes.backward(g)

    sizes, ends = [0.9, 1.6, 1.2], [0.0, 0.9, 2.5, 3.7]
    v = x.detach()
    expected = sum((v > ends[i] + sizes[i] / 2).float() for i in range(3))
    assert torch.equal(codes.detach(), expected)
    assert set(codes.unique().tolist()) == {0, 1, 2, 3}
    inside = [(v > ends[i]) & (v < ends[i + 1]) for i in range(3)]
    torch.testing.assert_close(x.grad, g * sum(inside[i] / sizes[i] for i in range(3)))
    for j, alpha in enumerate((quantizer.alpha1, quantizer.alpha2, quantizer.alpha3)):
        slope = inside[j] * (v - ends[j]) + sum(
            inside[i] * sizes[j] ** 2 / sizes[i] for i in range(j + 1, 3)
        )
        torch.testing.assert_close(alpha.grad, (g * slope).sum(), rtol=1e-4, atol=1e-4)


def test_lsq_two_bit_activations_match_the_formula() -> None:
    quantizer = LsqUint2()
    quantizer(signed_inputs().detach())
    step = quantizer.step
    x, g = signed_inputs(), randn(8, 5, 4, 4, seed=4)
    codes = quantizer(x)
    codes.backward(g)

    v = x.detach()
    assert torch.equal(codes.detach(), sum((v > step * (i + 0.5)).float() for i in range(3)))
    assert set(codes.unique().tolist()) == {0, 1, 2, 3}
    inside = (v > 0) & (v < 3 * step)
    torch.testing.assert_close(x.grad, g * inside / step)
    expected = (-g * inside * v / step**2).sum() / math.sqrt(80 * 3)
    torch.testing.assert_close(quantizer.step_size.grad, expected)


def test_dorefa_two_bit_activations_match_the_formula() -> None:
    quantizer = DorefaUint2()
    quantizer(signed_inputs().detach())
    assert not list(quantizer.parameters())
    step = quantizer.step
    x, g = signed_inputs(), randn(8, 5, 4, 4, seed=4)
    codes = quantizer(x)
    codes.backward(g)

    v = x.detach()
    assert torch.equal(codes.detach(), sum((v > step * (i + 0.5)).float() for i in range(3)))
    assert set(codes.unique().tolist()) == {0, 1, 2, 3}
    torch.testing.assert_close(x.grad, g * ((v > 0) & (v < 3 * step)) / step)


def test_half_range_binary_activations_match_the_formula() -> None:
    quantizer = BinaryActivation()
    x, g = (randn(8, 5, 4, 4) * 3).abs().requires_grad_(), randn(8, 5, 4, 4, seed=4)
    quantizer(x.detach())
    assert quantizer.half_range
    step = quantizer.step
    codes = quantizer(x)
    codes.backward(g)

    v = x.detach()
    assert torch.equal(codes.detach(), (v > step / 2).float())
    inside = v < step
    torch.testing.assert_close(x.grad, g * inside / step)
    torch.testing.assert_close(quantizer.alpha.grad, (g * inside * v).sum())


def test_full_range_binary_activations_match_the_formula() -> None:
    quantizer = BinaryActivation()
    x = randn(8, 5, 4, 4) * 3
    x[0, 0, 0] = torch.tensor([0.0, -0.0, 1e-30, -1e-30])
    x.requires_grad_()
    g = randn(8, 5, 4, 4, seed=4)
    quantizer(x.detach())
    assert not quantizer.half_range
    v = x.detach()
    torch.testing.assert_close(torch.tensor(quantizer.step), v.abs().mean())
    codes = quantizer(x)
    codes.backward(g)
    assert torch.equal(codes.detach(), (v >= 0).float() * 2 - 1)
    assert codes[0, 0, 0].tolist() == [1, 1, 1, -1]
    torch.testing.assert_close(x.grad, g * triangle(v, 1.25 * v.abs().mean()))
    assert quantizer.alpha.grad == 0


@pytest.mark.parametrize("family", QUANTIZERS)
def test_constant_zero_and_tiny_weights_give_finite_codes(family: str) -> None:
    for weight in (
        torch.ones(2, 3),
        torch.zeros(2, 3),
        torch.full((1, 1), 3.0),
        randn(4, 4) * 1e-20,
    ):
        quantizer = QUANTIZERS[family].weight(weight.shape[0], per_channel=True)
        quantizer.initialize(weight)
        weight = weight.clone().requires_grad_()
        codes = quantizer(weight)
        codes.sum().backward()
        assert bool(torch.isfinite(codes).all())
        assert bool(torch.isfinite(weight.grad).all())
        expected = codes.detach().sign() if quantizer.refused else codes.detach()
        assert torch.equal(quantizer.codes(weight).float(), expected)
        assert set(expected.unique().tolist()) <= set(quantizer.levels)
