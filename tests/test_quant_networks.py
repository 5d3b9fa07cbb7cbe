"""Networks with every quantizer family train, convert, verify and load, or are refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fatnn_rs import ConversionError, TernaryConfig, config, load_numpy, param_groups, prepare
from fatnn_rs.convert import convert, load, save, summary, verify
from fatnn_rs.quant import (
    QUANTIZERS,
    LsqActivation,
)


def randn(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class SmallResidualNet(nn.Module):
    """A residual block, max pooling, a layer with a bias but no BatchNorm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(2, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.a = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.b = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.d = nn.Sequential(
            nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2, 1)
        )
        self.c = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.b(self.a(x)) + x)
        y: Tensor = self.head(nn.functional.hardtanh(self.c(self.d(x)), -2.0, 2.0).mean((2, 3)))
        return y


IMAGES, LABELS = randn(32, 2, 7, 7), torch.arange(32) % 3


#: Families that convert, and families that convert refuses.
CONVERTIBLE = [name for name, family in QUANTIZERS.items() if not family.weight.refused]


REFUSED = [name for name in QUANTIZERS if name not in CONVERTIBLE]


def train(family: str, act: str, per_channel: bool) -> tuple[nn.Module, TernaryConfig]:
    """Train for thirty steps and assert that the loss falls."""
    torch.manual_seed(0)
    options = TernaryConfig(
        weight=family, act=act, overrides={"re:.*": {"per_channel": per_channel}}
    )
    model = prepare(SmallResidualNet(), options, IMAGES)
    optimizer = torch.optim.AdamW(param_groups(model, 1e-4), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(IMAGES), LABELS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses
    return model.eval(), options


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("act", config._ACT)
@pytest.mark.parametrize("family", CONVERTIBLE)
def test_network_trains_converts_verifies_and_loads(
    family: str, act: str, per_channel: bool, tmp_path: Path
) -> None:
    model, options = train(family, act, per_channel)
    net = convert(model, IMAGES)
    report = verify(model, net, IMAGES)
    assert report.codes_total > 0
    assert report.codes_different == 0, str(report)
    assert report.max_abs_diff == 0.0, str(report)
    path, again_path = tmp_path / "net.safetensors", tmp_path / "again.safetensors"
    save(net, path)
    loaded = load(path)
    assert torch.equal(loaded(IMAGES), net(IMAGES))
    assert verify(model, loaded, IMAGES).codes_different == 0
    save(loaded, again_path)
    assert path.read_bytes() == again_path.read_bytes()
    numpy_net = load_numpy(path)
    arrays = numpy_net(IMAGES.numpy())
    assert torch.equal(torch.from_numpy(arrays), load(path, float_layers="rust")(IMAGES))
    torch.testing.assert_close(torch.from_numpy(arrays), net(IMAGES))
    levels = len(QUANTIZERS[family].weight.levels)
    for rows in (summary(model, IMAGES).rows, summary(net, IMAGES).rows):
        few = [row for row in rows if row.weights != "float32"]
        expected = {2: "binary", 3: "ternary", 4: "two-bit"}[levels]
        # By chance a small ternary layer may have no zero weight; it is then stored as binary.
        kinds = {row.weights for row in few} - ({"binary"} if expected == "ternary" else set())
        assert kinds == {expected}
        assert all(row.weight_bits == (1 if row.weights == "binary" else 2) for row in few)
        assert {row.act_bits for row in few} == {1 if act == "binary" else 2}
    per_byte = {"binary": 8, "ternary": 5, "two-bit": 4}
    dtypes = {
        node.layer: net.graph.dtype(node, "weight")
        for node in net.graph.nodes
        if "weight" in node.tensors
    }
    for report_ in (net.report, numpy_net.report):
        packed = {row.name: row.packed_bytes for row in report_.rows if row.packed_bytes}
        weights = {name: model.get_submodule(name).weight.numel() for name in packed}
        assert packed == {
            name: -(-count // per_byte[dtypes[name]]) for name, count in weights.items()
        }
        assert set(packed) == {"a.0", "b.0", "d.0", "c"}
    kinds = {node.attrs["act"] for node in net.graph.nodes if "act" in node.attrs}
    assert kinds <= ({act} if act != "ternary" else {"half", "full"})
    codes = {"uint2": "two-bit"}.get(act, act)
    assert {node.codes for node in net.graph.nodes if node.codes} == {codes}
    again = prepare(SmallResidualNet(), options)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(IMAGES), model(IMAGES))


@pytest.mark.parametrize("family", REFUSED)
def test_ttq_network_is_refused_by_convert(family: str) -> None:
    model, _ = train(family, "ternary", False)
    with pytest.raises(ConversionError, match=r"layer 'a\.0': TTQ multiplies .* weight='fatnn'"):
        convert(model, IMAGES)


def test_levels_that_the_engine_lacks_are_refused() -> None:
    model, _ = train("lsq", "ternary", False)
    model.b[0].act_quant.half_levels = (0, 1, 2, 3, 4)
    with pytest.raises(
        ConversionError,
        match=r"layer 'b\.0': its activations \(LsqActivation\) .*\{0, 1, 2, 3, 4\}",
    ):
        convert(model, IMAGES)
    del model.b[0].act_quant.half_levels
    model.b[0].weight_quant.levels = (-2, 0, 2)
    with pytest.raises(
        ConversionError, match=r"layer 'b\.0': its weights \(LsqWeight\) .*\{-2, 0, 2\}"
    ):
        convert(model, IMAGES)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("act", "act_range"),
    [("ternary", "half"), ("ternary", "full"), ("uint2", "half"), ("binary", "half"),
     ("binary", "full")],
)  # fmt: skip
def test_infinite_inputs_get_the_quantizers_outermost_level(
    act: str, act_range: str, sign: float
) -> None:
    torch.manual_seed(0)
    x = randn(2, 3, 5, 5)
    x = x.abs() if act_range == "half" else x
    options = TernaryConfig(act=act, first="ternary", last="ternary")
    model = prepare(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), options, x
    ).eval()
    assert model[0].act_quant.half_range is (act_range == "half")
    net = convert(model, x)
    x[0, :, 2, 1:4] = sign * math.inf
    report = verify(model, net, x)
    assert report.codes_total > 0
    assert report.codes_different == 0, str(report)
    top = model[0].act_quant.levels[-1 if sign > 0 else 0]
    assert set(model[0].act_quant(x)[0, :, 2, 1:4].unique().tolist()) == {top}


def test_level_that_only_infinity_reaches_is_refused() -> None:
    class Late(LsqActivation):
        """Reaches its top level only at infinity."""

        def quantize(self, x: Tensor) -> Tensor:
            return super().quantize(x).clamp(max=1.0) + (x == math.inf)

    model, _ = train("lsq", "ternary", False)
    model.b[0].act_quant.__class__ = Late
    with pytest.raises(
        ConversionError,
        match=r"layer 'b\.0': .*staircase over the levels 0, 1, 2 \(at inf it gives 2\)",
    ):
        convert(model, IMAGES)
