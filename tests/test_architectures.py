"""Small configurations of architectures that people use: whole, trained a step, no code differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fatnn_rs
from fatnn_rs import ConversionError, TernaryConfig, convert, prepare
from whole_models import whole

INT8_ENDS = TernaryConfig(first="int8", last="int8")


class WeightNormedTCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = torch.nn.utils.parametrizations.weight_norm
        self.a = norm(nn.Conv1d(4, 16, 3, padding=2))
        self.b = norm(nn.Conv1d(16, 16, 3, padding=4, dilation=2))
        self.down, self.head = nn.Conv1d(4, 16, 1), nn.Conv1d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)[:, :, :-2].relu()
        y = self.b(y)[:, :, :-4].relu()
        result: Tensor = self.head((y + self.down(x)).relu())
        return result


class RecurrentFlow(nn.Module):
    """Shares its layers over steps and over two images, as RAFT does."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3))
        self.gate, self.new = (nn.Conv2d(34, 16, 3, padding=1) for _ in range(2))
        self.flow = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
        f, g = self.features(first), self.features(second)
        state, flow, made = torch.tanh(f), (f * g)[:, :2], []
        for _ in range(2):
            x = torch.cat([state, g, flow], 1)
            z = torch.sigmoid(self.gate(x))
            state = (1 - z) * state + z * torch.tanh(self.new(x))
            flow = flow + self.flow(state)
            made.append(flow)
        return made


class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.head = nn.Conv1d(1, 16, 1), nn.Conv1d(16, 8, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(16, 32, 2, dilation=2**i) for i in range(3))
        self.mixed = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for i, (dilated, mixed) in enumerate(zip(self.dilated, self.mixed, strict=True)):
            a, b = dilated(functional.pad(x, (2**i, 0))).chunk(2, 1)
            x = x + mixed(torch.tanh(a) * torch.sigmoid(b))
        result: Tensor = self.head(x.relu())
        return result


class Experts(nn.Module):
    """A mixture of experts with masks."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.router, self.head = nn.Linear(8, 16), nn.Linear(16, 3), nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        share = torch.softmax(self.router(h), -1)
        best, out = share.topk(2, -1).indices, torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            chosen = (best == i).any(-1, keepdim=True)
            out = out + torch.where(chosen, expert(h) * share[..., i : i + 1], 0.0)
        result: Tensor = self.head(out)
        return result


class Graph(nn.Module):
    """Passes messages along edges with gather and scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.message = nn.Linear(8, 16), nn.Linear(32, 16)
        self.update, self.head = nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.start(x).relu()
        sent = self.message(torch.cat([h[edges[0]], h.index_select(0, edges[1])], 1)).relu()
        got = torch.zeros_like(h).index_add(0, edges[1], sent)
        result: Tensor = self.head(self.update(torch.cat([h, got], 1)).relu())
        return result


OWN: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "TCN": lambda: (WeightNormedTCN(), torch.randn(2, 4, 30)),
    "flow": lambda: (RecurrentFlow(), (torch.randn(2, 3, 24, 32), torch.randn(2, 3, 24, 32))),
    "WaveNet": lambda: (WaveNet(), torch.randn(2, 1, 64)),
    "experts": lambda: (Experts(), torch.randn(2, 6, 8)),
    "graph": lambda: (Graph(), (torch.randn(10, 8), torch.randint(0, 10, (2, 30)))),
}


@pytest.mark.parametrize("name", OWN)
def test_hand_written_architecture(name: str) -> None:
    torch.manual_seed(0)
    model, x = OWN[name]()
    whole(model, x, INT8_ENDS)


TIMM = ["lcnet_050", "convnext_atto", "test_efficientnet"]


@pytest.mark.parametrize("name", TIMM)
def test_timm_architecture(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    whole(timm.create_model(name, num_classes=5), torch.randn(2, 3, 64, 64), INT8_ENDS)


def test_wav2vec2_has_strided_values_and_converts() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16, 16),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        mask_time_prob=0.0,
        layerdrop=0.0,
    )
    torch.manual_seed(0)
    whole(transformers.Wav2Vec2Model(config), torch.randn(2, 800), INT8_ENDS)


def test_gpt2_says_how_to_leave_out_its_cache(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=64,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
        activation_function="gelu",
    )
    torch.manual_seed(0)
    model, ids = transformers.GPT2Model(config), torch.randint(1, 64, (2, 12))
    prepare(model, INT8_ENDS, ids)
    with pytest.raises(ConversionError, match=r"DynamicCache.*use_cache = False"):
        convert(model.eval(), ids)
    model.config.use_cache = False
    net = convert(model, ids)
    assert fatnn_rs.verify(model, net, ids).identical
    fatnn_rs.save(net, tmp_path / "net")
    loaded = fatnn_rs.load(tmp_path / "net")
    expected = model(ids).last_hidden_state
    assert torch.equal(loaded(ids)["last_hidden_state"], expected)
