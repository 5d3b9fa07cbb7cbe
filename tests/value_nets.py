"""Models with int8 values that the tests share, and a helper that converts and compares them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fatnn_rs as fatnn
from fatnn_rs.convert import TernaryNetwork
from fatnn_rs.quant.values import Int8Value

IMAGE, TOKENS = (2, 3, 16, 16), (2, 5, 6)


def value_names(model: nn.Module) -> list[str]:
    """The names of the rounded values, without the prefix."""
    return [name.partition(".")[2] for name, m in model.named_modules() if isinstance(m, Int8Value)]


def converted(model: nn.Module, x: Any, **how: Any) -> TernaryNetwork:
    """Convert with int8 values, and assert that nothing differs from the reference."""
    net = fatnn.convert(model, x, values="int8", **how)
    report = fatnn.verify(net.reference(), net, x)
    assert report.identical, str(report)
    compared = {row.layer for row in report.rows if row.layer.startswith("int8_values.")}
    # Others became thresholds of the quantizer that reads them.
    assert compared == {node.layer for node in net.graph.nodes if node.op == "fake_quantize"}
    assert compared <= {f"int8_values.{name}" for name in value_names(net.reference())}
    return net


def norm(channels: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]


class Stem(nn.Module):
    """A max-pool between the stem and a residual block that does not change the size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.block = nn.Sequential(*norm(8), nn.ReLU(), *norm(8))
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        return self.last(functional.relu(x + self.block(x)))


class Squeeze(nn.Module):
    """Squeeze and excitation, with SiLU before and hardsigmoid inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.silu(self.body(x))
        scale = self.up(self.down(y.mean((2, 3), keepdim=True)).relu())
        return self.last(y * functional.hardsigmoid(scale))


class Join(nn.Module):
    """Two branches, joined, upsampled and joined with the first one again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.c = nn.Conv2d(10, 4, 3, padding=1)
        self.last = nn.Conv2d(14, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).relu(), self.b(x)
        joined = torch.cat([a, functional.max_pool2d(b, 3, 1, 1)], 1)
        return self.last(torch.cat([joined, self.c(joined)], 1))


class Attention(nn.Module):
    """A transformer block; queries, scores and probabilities stay float."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.out, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        scores = (self.q(y) * 0.5) @ self.k(y).transpose(1, 2)
        x = x + self.out(torch.softmax(scores, -1) @ self.v(y))
        return self.last(functional.gelu(x))


class Returned(nn.Module):
    """The residual stream is also an output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.a(x).relu()
        return x, self.c(x + self.b(x))
