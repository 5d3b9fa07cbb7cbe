"""Every quantizer family: its formula and gradient, and that networks of it train, convert and verify."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fatnn_rs import TernaryConfig, param_groups, prepare
from fatnn_rs.convert import convert, verify
from fatnn_rs.quant import QUANTIZERS, LsqActivation, LsqWeight, TwnWeight


def randn(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("per_channel", [False, True])
def test_lsq_weights(per_channel: bool) -> None:
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
def test_lsq_activations(act_range: str, top: int) -> None:
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
        codes.detach(), scaled.clamp(top - 3 + (top == 1), top).clamp(0 if top == 2 else -1, top).round()
    )
    assert set(codes.unique().tolist()) == ({0, 1, 2} if top == 2 else {-1, 0, 1})
    inside = (scaled < top) & (scaled > (0 if top == 2 else -1))
    torch.testing.assert_close(x.grad, g * inside / step)
    expected = (-g * inside * x.detach() / step**2).sum() / math.sqrt(80 * top)
    torch.testing.assert_close(quantizer.step_size.grad, expected)


@pytest.mark.parametrize("per_channel", [False, True])
def test_twn_weights(per_channel: bool) -> None:
    weight = (randn(4, 3, 3, 3) * torch.tensor([0.1, 0.2, 0.4, 0.8]).view(4, 1, 1, 1)).requires_grad_()
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


@pytest.mark.parametrize("family", QUANTIZERS)
def test_degenerate_weights_are_finite(family: str) -> None:
    for weight in (torch.ones(2, 3), torch.zeros(2, 3), torch.full((1, 1), 3.0), randn(4, 4) * 1e-20):
        quantizer = QUANTIZERS[family].weight(weight.shape[0], per_channel=True)
        quantizer.initialize(weight)
        weight = weight.clone().requires_grad_()
        codes = quantizer(weight)
        codes.sum().backward()
        assert bool(torch.isfinite(codes).all())
        assert bool(torch.isfinite(weight.grad).all())
        assert torch.equal(quantizer.codes(weight).float(), codes.detach())


class Net(nn.Module):
    """A residual network of one block, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.c = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.b(self.a(x)) + x)
        y: Tensor = self.head(torch.tanh(self.c(x)).mean((2, 3)))
        return y


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("family", QUANTIZERS)
def test_networks_train_convert_and_verify(family: str, per_channel: bool) -> None:
    torch.manual_seed(0)
    images, labels = randn(32, 2, 7, 7), torch.arange(32) % 3
    config = TernaryConfig(weight=family, overrides={"re:.*": {"per_channel": per_channel}})
    model = prepare(Net(), config, images)
    optimizer = torch.optim.AdamW(param_groups(model, 1e-4), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses
    net = convert(model.eval(), images)
    report = verify(model, net, images)
    assert report.codes_total > 0
    assert report.codes_different == 0
    again = prepare(Net(), config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(images), model(images))
