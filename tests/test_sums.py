"""Normalisations, reductions, softmax, matrix products and attention, in torch and in Rust."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fatnn_rs as fatnn
from nets import exact, isa_caps, ops_of, ready


class LayerThenFunction(nn.Module):
    """A ternary layer over the last dimension, then the tested function or module."""

    def __init__(self, features: int, call: Callable[..., Any]) -> None:
        super().__init__()
        self.first = nn.Linear(features, features)
        self.call = call if isinstance(call, nn.Module) else None
        self.function = None if isinstance(call, nn.Module) else call
        self.weight = nn.Parameter(torch.randn(features))
        self.bias = nn.Parameter(torch.randn(features))
        self.matrix = nn.Parameter(torch.randn(7, features))
        self.kernel = nn.Parameter(torch.randn(7, 6, 2, 1))
        self.register_buffer("variance", torch.rand(features) + 0.1)
        self.register_buffer("mask", torch.randn(5, 5))

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        return self.call(y) if self.call is not None else self.function(self, y)


class SelfAttention(nn.Module):
    """``nn.MultiheadAttention``; keys and values leave out the first ``skip`` tokens."""

    def __init__(self, batch_first: bool, skip: int = 0, **how: Any) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(24, 3, batch_first=batch_first)
        self.skip, self.how = skip, how
        with torch.no_grad():
            self.layer.in_proj_bias.normal_()
            self.layer.out_proj.bias.normal_()

    def forward(self, x: Tensor) -> Tensor:
        if not self.skip:
            return self.layer(x, x, x, **self.how)[0]
        keys = x[:, self.skip :] if self.layer.batch_first else x[self.skip :]
        return self.layer(x, keys, keys, **self.how)[0]


def split_heads(y: Tensor) -> Tensor:
    return y.reshape(2, 5, 3, 8).permute(0, 2, 1, 3)


OPS_SHAPES_CALLS: list[tuple[str, tuple[int, ...], Any]] = [
    ("layer_norm", (2, 5, 24), nn.LayerNorm(24)),
    ("layer_norm", (2, 5, 24), nn.LayerNorm((5, 24))),
    ("layer_norm", (3, 24), nn.LayerNorm(24, elementwise_affine=False)),
    (
        "layer_norm",
        (2, 5, 24),
        lambda m, y: functional.layer_norm(y, (24,), m.weight, m.bias, 1e-3),
    ),
    ("rms_norm", (2, 5, 24), nn.RMSNorm(24)),
    ("group_norm", (2, 6, 5, 24), nn.GroupNorm(3, 6)),
    ("group_norm", (2, 6, 24), nn.GroupNorm(1, 6, affine=False)),
    (
        "batch_norm",
        (4, 24),
        lambda m, y: functional.batch_norm(y, m.variance, m.variance, m.bias, m.weight),
    ),
    ("linear", (4, 24), lambda m, y: functional.linear(y, m.matrix)),
    ("conv2d", (2, 6, 5, 24), lambda m, y: functional.conv2d(y, m.kernel, stride=(1, 2))),
    ("mean", (2, 5, 3, 24), lambda m, y: y.mean(1)),
    ("mean", (2, 5, 3, 24), lambda m, y: y.mean((1, 3), keepdim=True)),
    ("mean", (2, 5, 3, 24), lambda m, y: torch.mean(y, dim=-1)),
    ("mean", (2, 5, 3, 24), lambda m, y: y.mean()),
    ("sum", (2, 5, 3, 24), lambda m, y: y.sum((0, 2))),
    ("sum", (5, 24), lambda m, y: y.sum(-1, keepdim=True)),
    ("norm", (2, 5, 3, 24), lambda m, y: y.norm(dim=(1, 2), keepdim=True)),
    ("norm", (2, 5, 24), lambda m, y: torch.linalg.vector_norm(y, 1, -1)),
    ("norm", (2, 5, 24), lambda m, y: torch.norm(y, p=2, dim=1)),
    ("norm", (2, 5, 24), lambda m, y: functional.normalize(y, dim=-1)),
    ("norm", (2, 5, 3, 24), lambda m, y: functional.normalize(y, 1, 2)),
    ("var", (2, 5, 3, 24), lambda m, y: y.var((1, 3))),
    ("var", (2, 5, 24), lambda m, y: torch.var(y, 1, unbiased=False, keepdim=True)),
    ("std", (2, 5, 24), lambda m, y: torch.std(y, dim=-1, correction=2)),
    ("std", (2, 5, 3, 24), lambda m, y: y.std()),
    ("addcmul", (2, 5, 24), lambda m, y: torch.addcmul(m.bias, m.weight, y)),
    ("addcmul", (2, 5, 24), lambda m, y: y.addcmul(y[:, :1], m.weight, value=0.3)),
    ("addcmul", (2, 6, 5, 24), lambda m, y: torch.addcmul(y, y.amax(1, True), m.weight)),
    ("addcmul", (2, 5, 24), lambda m, y: torch.lerp(y, y * 2, 0.3)),
    ("addcmul", (2, 5, 24), lambda m, y: torch.lerp(y, y * 2, 0.7)),
    ("addcmul", (2, 5, 24), lambda m, y: y.lerp(y * 2, m.variance)),
    ("amax", (2, 5, 3, 24), lambda m, y: y.amax((1, 2))),
    ("amax", (2, 5, 24), lambda m, y: y.max(1)[0]),
    ("amin", (2, 5, 24), lambda m, y: y.amin(-1, keepdim=True)),
    ("softmax", (2, 5, 24), nn.Softmax(-1)),
    ("softmax", (2, 5, 3, 24), lambda m, y: y.softmax(1)),
    ("log_softmax", (2, 5, 24), nn.LogSoftmax(1)),
    ("log_softmax", (2, 24), lambda m, y: functional.log_softmax(y, dim=-1)),
    ("matmul", (2, 5, 24), lambda m, y: y @ y.transpose(1, 2)),
    ("matmul", (2, 5, 24), lambda m, y: torch.matmul(y, m.matrix.t())),
    ("matmul", (2, 5, 24), lambda m, y: split_heads(y).matmul(split_heads(y).transpose(-1, -2))),
    ("matmul", (2, 700, 24), lambda m, y: torch.bmm(y.transpose(1, 2), y)),
    (
        "attention",
        (2, 5, 24),
        lambda m, y: functional.scaled_dot_product_attention(
            split_heads(y), split_heads(y), split_heads(y)
        ),
    ),
    (
        "attention",
        (2, 5, 24),
        lambda m, y: functional.scaled_dot_product_attention(
            split_heads(y), split_heads(y) * 2, split_heads(y), m.mask
        ),
    ),
    (
        "attention",
        (2, 150, 24),
        lambda m, y: functional.scaled_dot_product_attention(y, y, y, is_causal=True, scale=0.3),
    ),
    ("multihead_attention", (2, 5, 24), SelfAttention(True)),
    ("multihead_attention", (5, 2, 24), SelfAttention(False, need_weights=False)),
    ("multihead_attention", (2, 100, 24), SelfAttention(True, skip=9, need_weights=False)),
    ("multihead_attention", (5, 2, 24), SelfAttention(False, skip=1)),
]


@pytest.mark.parametrize(
    ("op", "shape", "call"),
    OPS_SHAPES_CALLS,
    ids=[f"{i}-{case[0]}" for i, case in enumerate(OPS_SHAPES_CALLS)],
)
def test_torch_runs_by_default_and_rust_agrees_on_every_isa_and_thread_count(
    op: str, shape: tuple[int, ...], call: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    skip = ("call.layer",) if op == "multihead_attention" else ()
    model = ready(LayerThenFunction(shape[-1], call), x, skip=skip)
    net = exact(model, x)
    assert op in ops_of(net)
    assert "torch" not in ops_of(net)
    wanted = model(x).detach().numpy()
    fatnn.save(net, tmp_path / "net")
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import sys, numpy as np, fatnn_rs; net = fatnn_rs.load_numpy(sys.argv[1]);"
        "np.save(sys.argv[3], net(np.load(sys.argv[2])))"
    )
    paths = [str(tmp_path / name) for name in ("net", "x.npy", "out.npy")]
    outputs = []
    for isa, threads in (*((isa, "1") for isa in isa_caps()), ("", "3")):
        env = {**os.environ, "FATNN_NUM_THREADS": threads, **({"FATNN_ISA": isa} if isa else {})}
        done = subprocess.run(
            [sys.executable, "-c", code, *paths], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        outputs.append(np.load(tmp_path / "out.npy"))
        np.testing.assert_allclose(outputs[-1], wanted, rtol=2e-5, atol=2e-5)
    for other in outputs[:-1]:
        np.testing.assert_array_equal(outputs[-1], other)


def test_attention_whose_weights_are_used_stays_in_torch() -> None:
    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(24, 24)
            self.attention = nn.MultiheadAttention(24, 3, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            y = self.first(x)
            return self.attention(y, y, y)

    x = torch.randn(2, 5, 24)
    net = exact(ready(Weights(), x, skip=("attention",)), x)
    assert "torch" in ops_of(net)
