"""Every quantizer family: formula, gradient, and networks that train, convert and verify."""

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
        codes.detach(),
        scaled.clamp(top - 3 + (top == 1), top).clamp(0 if top == 2 else -1, top).round(),
    )
    assert set(codes.unique().tolist()) == ({0, 1, 2} if top == 2 else {-1, 0, 1})
    inside = (scaled < top) & (scaled > (0 if top == 2 else -1))
    torch.testing.assert_close(x.grad, g * inside / step)
    expected = (-g * inside * x.detach() / step**2).sum() / math.sqrt(80 * top)
    torch.testing.assert_close(quantizer.step_size.grad, expected)


@pytest.mark.parametrize("per_channel", [False, True])
def test_twn_weights(per_channel: bool) -> None:
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


def rows_of(x: Tensor, per_channel: bool) -> Tensor:
    """Weights as one row for each set of statistics."""
    return x.reshape(len(x) if per_channel else 1, -1)


def test_the_config_names_every_family_and_kind() -> None:
    assert tuple(QUANTIZERS) == config._WEIGHT
    assert config._ACT == ("ternary", "uint2", "binary")
    for family in QUANTIZERS.values():
        assert family._fields[1:] == config._ACT


@pytest.mark.parametrize("per_channel", [False, True])
def test_ttq_weights(per_channel: bool) -> None:
    weight = (
        randn(4, 3, 3, 3) * torch.tensor([0.1, 0.2, 0.4, 0.8]).view(4, 1, 1, 1)
    ).requires_grad_()
    quantizer = TtqWeight(4, per_channel)
    quantizer.initialize(weight)
    rows = rows_of(weight.detach(), per_channel)
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
        rows_of(used.detach(), per_channel), torch.where(above, pos, torch.where(below, -neg, 0.0))
    )
    assert torch.equal(
        rows_of(quantizer.codes(weight), per_channel), above.to(torch.int8) - below.to(torch.int8)
    )
    factor = torch.where(above, pos, torch.where(below, neg, 1.0))
    torch.testing.assert_close(rows_of(weight.grad, per_channel), rows_of(g, per_channel) * factor)
    shared = math.sqrt(weight.numel() // len(pos))
    torch.testing.assert_close(
        quantizer.scale_pos.grad, (rows_of(g, per_channel) * above).sum(1) / shared
    )
    torch.testing.assert_close(
        quantizer.scale_neg.grad, -(rows_of(g, per_channel) * below).sum(1) / shared
    )


def triangle(v: Tensor, reach: Tensor) -> Tensor:
    """Bi-Real's derivative of ``sign``: area 2, zero beyond the reach."""
    return (2 - 2 * v.abs() / reach).clamp(min=0) / reach


@pytest.mark.parametrize("per_channel", [False, True])
def test_sttn_weights(per_channel: bool) -> None:
    weight = (
        randn(4, 3, 3, 3) * torch.tensor([0.1, 0.2, 0.4, 0.8]).view(4, 1, 1, 1)
    ).requires_grad_()
    quantizer = SttnWeight(4, per_channel)
    quantizer.initialize(weight)
    w = rows_of(weight.detach(), per_channel)
    size = w.abs().mean(1, keepdim=True)
    torch.testing.assert_close(
        rows_of(quantizer.offset.detach(), per_channel), (0.7 * size).expand_as(w)
    )
    with torch.no_grad():  # as training might leave them
        quantizer.offset.mul_(1 + 0.5 * randn(4, 3, 3, 3, seed=5))
    o = rows_of(quantizer.offset.detach(), per_channel)
    g = randn(4, 3, 3, 3, seed=4)
    codes = quantizer(weight)
    codes.backward(g)

    assert torch.equal(
        rows_of(codes.detach(), per_channel), torch.where(w.abs() > o.abs(), w.sign(), 0.0)
    )
    assert set(codes.unique().tolist()) == {-1, 0, 1}
    plus, minus = triangle(w + o, 3 * size), triangle(w - o, 3 * size)
    torch.testing.assert_close(
        rows_of(weight.grad, per_channel), rows_of(g, per_channel) * (plus + minus) / 2
    )
    expected = rows_of(g, per_channel) * (plus - minus) / 2
    torch.testing.assert_close(rows_of(quantizer.offset.grad, per_channel), expected)


@pytest.mark.parametrize("per_channel", [False, True])
def test_dorefa_weights(per_channel: bool) -> None:
    weight = (
        randn(4, 3, 3, 3) * torch.tensor([0.1, 0.2, 0.4, 0.8]).view(4, 1, 1, 1)
    ).requires_grad_()
    quantizer = DorefaWeight(4, per_channel)
    quantizer.initialize(weight)
    assert not list(quantizer.parameters())
    g = randn(4, 3, 3, 3, seed=4)
    codes = quantizer(weight)
    codes.backward(g)

    bent = rows_of(weight.detach(), per_channel).tanh()
    most = bent.abs().amax(1, keepdim=True)
    # Two bits over [0, 1], as the paper has it: four even levels.
    unit = bent / (2 * most) + 0.5
    expected = torch.full_like(unit, -3.0)
    for threshold in (1 / 6, 3 / 6, 5 / 6):
        expected += 2 * (unit > threshold)
    assert torch.equal(rows_of(codes.detach(), per_channel), expected)
    assert set(codes.unique().tolist()) == {-3, -1, 1, 3} == set(quantizer.levels)
    torch.testing.assert_close(
        rows_of(weight.grad, per_channel), rows_of(g, per_channel) * 3 * (1 - bent.square()) / most
    )


@pytest.mark.parametrize("per_channel", [False, True])
def test_binary_weights(per_channel: bool) -> None:
    weight = randn(4, 3, 3, 3) * torch.tensor([0.1, 0.2, 0.4, 0.8]).view(4, 1, 1, 1)
    weight[0, 0, 0] = torch.tensor([0.0, -0.0, -1e-30])
    weight.requires_grad_()
    quantizer = BinaryWeight(4, per_channel)
    quantizer.initialize(weight)
    assert not list(quantizer.parameters())
    g = randn(4, 3, 3, 3, seed=4)
    codes = quantizer(weight)
    codes.backward(g)

    w = rows_of(weight.detach(), per_channel)
    assert torch.equal(rows_of(codes.detach(), per_channel), (w >= 0).float() * 2 - 1)
    assert codes[0, 0, 0].tolist() == [1, 1, -1]
    size = w.abs().mean(1, keepdim=True)
    torch.testing.assert_close(rows_of(weight.grad, per_channel), rows_of(g, per_channel) / size)


def signed_inputs() -> Tensor:
    """Inputs of two bits' quantizers: mostly positive, some negative, which become 0."""
    return (randn(8, 5, 4, 4) * 3 + 2).requires_grad_()


def test_fatnn_activations_of_two_bits() -> None:
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


def test_lsq_activations_of_two_bits() -> None:
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


def test_dorefa_activations_of_two_bits() -> None:
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


def test_binary_activations_of_half_range() -> None:
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


def test_binary_activations_of_full_range() -> None:
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
def test_degenerate_weights_are_finite(family: str) -> None:
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
        shown = codes.detach().sign() if quantizer.refused else codes.detach()
        assert torch.equal(quantizer.codes(weight).float(), shown)
        assert set(shown.unique().tolist()) <= set(quantizer.levels)


class Net(nn.Module):
    """A residual block, max pooling, a layer with a bias and no BatchNorm, and a head."""

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

#: Families that convert, and the others.
DEPLOYED = [name for name, family in QUANTIZERS.items() if not family.weight.refused]
REFUSED = [name for name in QUANTIZERS if name not in DEPLOYED]


def trained(family: str, act: str, per_channel: bool) -> tuple[nn.Module, TernaryConfig]:
    """Thirty steps of training; the loss must fall."""
    torch.manual_seed(0)
    options = TernaryConfig(
        weight=family, act=act, overrides={"re:.*": {"per_channel": per_channel}}
    )
    model = prepare(Net(), options, IMAGES)
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
@pytest.mark.parametrize("family", DEPLOYED)
def test_networks_train_convert_verify_and_load(
    family: str, act: str, per_channel: bool, tmp_path: Path
) -> None:
    model, options = trained(family, act, per_channel)
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
        # The weights of a small ternary layer may happen to be signs.
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
    again = prepare(Net(), options)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(IMAGES), model(IMAGES))


@pytest.mark.parametrize("family", REFUSED)
def test_networks_that_no_integer_expresses_are_refused(family: str) -> None:
    model, _ = trained(family, "ternary", False)
    with pytest.raises(ConversionError, match=r"layer 'a\.0': TTQ multiplies .* weight='fatnn'"):
        convert(model, IMAGES)


def test_levels_that_the_engine_does_not_have_are_refused() -> None:
    model, _ = trained("lsq", "ternary", False)
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
@pytest.mark.parametrize("act", config._ACT)
@pytest.mark.parametrize("act_range", ["half", "full"])
def test_infinite_inputs_reach_what_the_quantizer_gives_them(
    act: str, act_range: str, sign: float
) -> None:
    if act == "uint2" and act_range == "full":
        return
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


def test_a_step_that_only_infinity_reaches_is_refused() -> None:
    class Late(LsqActivation):
        """Reaches its top level at infinity only."""

        def quantize(self, x: Tensor) -> Tensor:
            return super().quantize(x).clamp(max=1.0) + (x == math.inf)

    model, _ = trained("lsq", "ternary", False)
    model.b[0].act_quant.__class__ = Late
    with pytest.raises(
        ConversionError,
        match=r"layer 'b\.0': .*staircase over the levels 0, 1, 2 \(at inf it gives 2\)",
    ):
        convert(model, IMAGES)
