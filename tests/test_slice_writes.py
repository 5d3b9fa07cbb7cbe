"""Writes into slices of a tensor: they become joins of parts, so that files hold them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fatnn_rs as fatnn
from nets import exact, ops_of, ready


def filled(x: Tensor) -> Tensor:
    x[:, :3] = 0
    return x


def filled_at_the_end(x: Tensor) -> Tensor:
    x[:, -2:, 1:] = 1.5
    return x


def copied(x: Tensor) -> Tensor:
    y = x * 2
    y[..., 1:-1] = x[..., 2:]
    return y


def added(x: Tensor) -> Tensor:
    y = x.abs()
    y[:, 1:5] += x[:, 3:7]
    return y


def indexed(x: Tensor) -> Tensor:
    y = x + 1
    y[:, 2] = x[:, 0]
    y[:, :, -1] = -1.0
    return y


def methods(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 4:8].neg_()
    y[:, :2].mul_(3).clamp_(-1, 1)
    y[:, 2:3].zero_()
    y[:, 3].fill_(0.25)
    return y


def two_views(x: Tensor) -> Tensor:
    y = x * 1.5
    left, right = y[:, :5], y[:, 3:]
    left.mul_(2)
    right += 1
    return torch.cat([left, right, y], 1)


def broadcast(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 2:6, 1:3] = x[:, 2:6, :1]
    return y


CALLS = [filled, filled_at_the_end, copied, added, indexed, methods, two_views, broadcast]


class Writes(nn.Module):
    def __init__(self, call: Callable[[Tensor], Tensor], branches: bool) -> None:
        super().__init__()
        self.a, self.call, self.branches = nn.Linear(6, 8), call, branches
        self.b, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.branches and x.shape[1] > 100:  # torch.fx cannot trace it
            x = x[:, :100]
        y: Tensor = self.last(self.call(self.b(self.a(x).relu())))
        return y


@pytest.mark.parametrize("branches", [False, True], ids=["fx", "export"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_writes_into_slices(
    call: Callable[[Tensor], Tensor], branches: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 9, 6)
    model = ready(Writes(call, branches), x)
    net = exact(model, x, (torch.randn(1, 9, 6), torch.randn(5, 9, 6)))
    assert "torch" not in ops_of(net)
    fatnn.save(net, tmp_path / "net")
    other = torch.randn(3, 9, 6)
    assert torch.equal(fatnn.load(tmp_path / "net")(other), model(other))


def every_second(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, ::2] = 0
    return y


def diagonal(x: Tensor) -> Tensor:
    y = x.clone()
    y.diagonal(0, 1, 2).zero_()
    return y


@pytest.mark.parametrize("call", [every_second, diagonal], ids=lambda call: call.__name__)
def test_other_writes_still_run_in_torch(call: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 9, 6)
    net = exact(ready(Writes(call, False), x), x, (torch.randn(3, 9, 6),))
    assert "torch" in ops_of(net)


class Chooses(nn.Module):
    """Chooses one of its methods when it is made."""

    def __init__(self, fast: bool) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.forward = self.forward_fast if fast else self.forward_slow

    def forward_fast(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.cat([self.conv(x[:, :4]), x[:, 4:]], 1))
        return y

    def forward_slow(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :4] = self.conv(x[:, :4])
        y: Tensor = self.head(x)
        return y

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[no-redef]
        raise AssertionError("replaced in __init__")


@pytest.mark.parametrize("fast", [True, False])
def test_module_that_chooses_its_forward_is_converted(fast: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 8)
    inside = nn.Sequential(nn.Conv2d(3, 8, 3), Chooses(fast), nn.ReLU(), nn.Conv2d(2, 5, 1))
    for root, given, layers in (
        (inside, x, 4),
        (Chooses(fast), torch.randn(2, 8, 9, 8), 2),
    ):
        net = exact(ready(root, given), given)
        assert net.report.layers_ternary == layers
        assert "torch" not in ops_of(net)
        fatnn.save(net, tmp_path / "net")
