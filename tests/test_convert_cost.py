"""Costs of a conversion: shared and freed memory, edited graphs; its progress output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fatnn_rs as fatnn
from fatnn_rs import _core
from fatnn_rs.convert.passes.edit import GraphEdit
from fatnn_rs.nn.layers import held_weights
from fatnn_rs.replica import replica
from nets import ready


class Cut(nn.Module):
    """Several segments, separated by LayerNorm and GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x).relu()
        for layer, norm in zip(self.layers[1:], self.norms, strict=True):
            x = functional.gelu(norm(layer(x)))
        return x


def test_progress_is_shown_on_request_only(capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    model = ready(Cut(), x)
    fatnn.convert(model, x)
    assert capfd.readouterr() == ("", "")
    fatnn.convert(model, x, "rust", progress=True)
    out, err = capfd.readouterr()
    phases = [
        "quantize weights",
        "capture",
        "lower",
        "thresholds",
        "pack weights",
        "compare with the model",
    ]
    places = [err.rindex(phase) for phase in [*phases, "float layers in Rust"]]
    assert not out
    assert places == sorted(places)


def test_progress_ends_where_the_conversion_fails(capfd: pytest.CaptureFixture[str]) -> None:
    class Random(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + torch.rand(1)

    x = torch.randn(4, 8)
    model = ready(nn.Sequential(nn.Linear(8, 8), Random(8, 8)), x)
    with pytest.raises(fatnn.ConversionError, match="two results"):
        fatnn.convert(model, x, progress=True)
    assert "capture" in capfd.readouterr().err


def test_a_converted_network_keeps_no_buffers_of_trial_runs() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    model = ready(Cut(), x)
    for float_layers in ("torch", "rust"):
        net = fatnn.convert(model, x, float_layers)
        networks: list[_core.Network] = [segment.network for segment in net.segments]
        assert sum(network.buffer_bytes for network in networks) == 0
        expected = net(x)
        assert sum(network.buffer_bytes for network in networks) > 0
        net.keep_buffers(False)
        assert sum(network.buffer_bytes for network in networks) == 0
        assert torch.equal(net(x), expected)


def test_copies_of_a_model_share_held_weights() -> None:
    x = torch.randn(4, 8)
    model = ready(Cut(), x)
    parameters = dict(model.named_parameters())
    with held_weights(model):
        copied = replica(model)
        for layer, other in zip(model.modules(), copied.modules(), strict=True):
            assert getattr(layer, "_held", None) is getattr(other, "_held", None)
        assert dict(model.named_parameters()).keys() == parameters.keys()


def test_an_edited_graph_knows_its_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    finish, checked = GraphEdit.finish, []

    def finished(self: GraphEdit) -> None:
        finish(self)
        users = self.graph.users()
        assert self.readers.keys() == users.keys() == self.producers.keys()
        for name, readers in users.items():
            assert sorted(map(id, readers)) == sorted(map(id, self.readers[name]))
        assert list(map(id, self.graph.index().values())) == [id(n) for n in self.graph.nodes]
        checked.append(len(self.graph.nodes))

    monkeypatch.setattr(GraphEdit, "finish", finished)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
            self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))
            self.pool, self.last = nn.MaxPool2d(2), nn.Linear(8 * 16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(self.norms[0](self.convs[0](x)).relu())
            y = self.norms[1](self.convs[1](x)).relu()
            x = (self.norms[2](self.convs[2](y)) + self.norms[3](self.convs[3](x))).relu()
            result: Tensor = self.last(x.flatten(1) + 0)
            return result

    torch.manual_seed(0)
    x = torch.rand(2, 8, 8, 8)
    fatnn.convert(ready(Residual(), x), x)
    assert len(checked) == 2
