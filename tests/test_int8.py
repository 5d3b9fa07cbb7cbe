"""Int8 layers: arithmetic compared with float64, gradients, state, preparation, conversion."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fatnn_rs
from fatnn_rs import (
    ConfigError,
    ConversionError,
    FormatError,
    InputError,
    TernaryConfig,
    _core,
    param_groups,
    prepare,
)
from fatnn_rs.convert import convert, summary, verify
from fatnn_rs.nn import Int8Conv1d, Int8Conv2d, Int8Layer, Int8Linear, TernaryLayer, calibrate
from fatnn_rs.quant.int8 import Int8Activation, weight_codes, weight_steps
from nets import Mlp, ResNet, Vgg, exact, image, ops_of, ready

CASES: list[tuple[type[Any], type[Any], tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    (Int8Conv1d, nn.Conv1d, (6, 5, 3), {"padding": 1, "stride": 2}, (2, 6, 11)),
    (Int8Conv2d, nn.Conv2d, (3, 4, 7), {"padding": 3, "stride": 2}, (2, 3, 13, 12)),
    (
        Int8Conv2d,
        nn.Conv2d,
        (6, 4, (3, 1)),
        {"padding": (2, 0), "dilation": 2, "groups": 2},
        (2, 6, 9, 5),
    ),
    (Int8Conv2d, nn.Conv2d, (150, 4, 3), {"padding": 1}, (1, 150, 5, 4)),  # sums beyond float32
    (Int8Linear, nn.Linear, (6, 4), {}, (2, 3, 6)),
    (Int8Linear, nn.Linear, (3000, 4), {}, (2, 3000)),
]


def reference(layer: Any, plain: Any, args: Any, kwargs: Any, x: Tensor) -> Tensor:
    """The layer's function from its parameters, in float64 where that is exact."""
    weight = layer.weight.detach()
    step = layer.act_quant.step.detach()
    steps = weight.abs().flatten(1).amax(1) / 127
    channel = (-1, *[1] * (weight.dim() - 1))
    codes = (x * (1 / step)).round().clamp(-127, 127).double()
    module = plain(*args, **{**kwargs, "bias": False}).double()
    with torch.no_grad():
        module.weight.copy_((weight / steps.view(channel)).round().double())
        acc = module(codes)
    assert torch.equal(acc, acc.round())
    shape = (-1, *[1] * (weight.dim() - 2))
    y = acc.float() * (steps * step).view(shape)
    return y if layer.bias is None else y + layer.bias.detach().view(shape)


@pytest.mark.parametrize(("int8", "plain", "args", "kwargs", "shape"), CASES)
@pytest.mark.parametrize("bias", [False, True])
def test_forward_is_the_integer_sum_then_scale_then_bias(
    int8: Any, plain: Any, args: Any, kwargs: Any, shape: Any, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = int8(*args, **kwargs, bias=bias)
    x = image(*shape)
    y = layer(x)
    assert torch.equal(y.detach(), reference(layer, plain, args, kwargs, x))
    assert torch.equal(layer.eval()(x), y)
    # Eight bits are close to the float layer.
    expected = plain.forward(layer, x)
    assert (y - expected).abs().max() < 0.03 * expected.abs().max()


def test_sums_that_float32_cannot_hold_are_exact() -> None:
    layer = Int8Linear(2001, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(127.0)
        layer.weight[0, 0] = 1.0
    calibrate(layer, torch.full((1, 2001), 127.0))
    layer.act_quant.set_step(1.0)
    x = torch.full((1, 2001), 127.0)
    x[0, 0] = 1.0
    acc = 2000 * 127**2 + 1
    assert acc > 1 << 24
    assert layer.eval()(x).item() == float(torch.tensor(acc).float())


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_comes_before_quantization(mode: str) -> None:
    layer = Int8Conv2d(3, 4, 3, padding=1, padding_mode=mode)
    x = image(2, 3, 8, 6)
    y = layer(x)
    layer.padding, layer.padding_mode = (0, 0), "zeros"
    assert torch.equal(y, layer(functional.pad(x, [1] * 4, mode=mode)))


def test_zero_channels_and_tiny_weights_are_finite() -> None:
    layer = Int8Linear(4, 4)
    with torch.no_grad():
        layer.weight[0] = 0.0
        layer.weight[1] = 1e-42
    y = layer(image(3, 4))
    y.sum().backward()
    assert layer.int8_weight()[0].tolist() == [0, 0, 0, 0]
    assert torch.equal(y[:, 0], layer.bias[0].expand(3))
    assert all(bool(torch.isfinite(p.grad).all()) for p in layer.parameters())
    assert bool(torch.isfinite(y).all())


def test_weights_have_a_step_per_channel_and_the_straight_through_gradient() -> None:
    weight = (image(5, 3, 2, 2) * torch.logspace(-3, 3, 5).view(-1, 1, 1, 1)).requires_grad_()
    steps = weight_steps(weight)
    codes = weight_codes(weight, steps)
    assert torch.equal(codes.detach().abs().flatten(1).amax(1), torch.full((5,), 127.0))
    assert (
        (codes * steps.view(-1, 1, 1, 1) - weight).abs().flatten(1).amax(1).le(0.5001 * steps).all()
    )
    g = image(5, 3, 2, 2, seed=1)
    (codes * steps.view(-1, 1, 1, 1)).backward(g)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, g)


def test_activation_codes_are_rounded_half_to_even_and_clipped() -> None:
    quantizer = Int8Activation()
    quantizer(torch.tensor([1.0, -1.0]))
    quantizer.set_step(0.5)
    x = torch.tensor([0.25, 0.75, -0.25, -1.25, 63.4, 63.5, 1e30, -1e30, torch.inf, -0.0])
    codes = quantizer(x)
    assert codes.tolist() == [0, 2, 0, -2, 127, 127, 127, -127, 127, 0]
    assert not bool(torch.signbit(codes[[0, 2, 9]]).any())


def test_gradients_are_those_of_learned_step_size_quantization() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(6, 4, bias=False)
    x = (image(5, 6) * 3).requires_grad_()
    layer(x.detach())
    step = 0.02  # clips a part
    layer.act_quant.set_step(step)
    g = image(5, 4, seed=2)
    layer(x).backward(g)
    # The layer is a linear one of quantized values; d(step q)/dstep is q - x / step inside, q
    # outside.
    ratio = x.detach().double() / step
    codes = ratio.round().clamp(-127, 127)
    inside = ratio.abs() < 127
    assert 3 < int(inside.sum()) < 27
    weight = (layer.int8_weight().double() * weight_steps(layer.weight).double()[:, None]).detach()
    to_x = g.double() @ weight
    torch.testing.assert_close(x.grad.double(), to_x * inside, rtol=1e-5, atol=1e-6)
    to_step = (to_x * torch.where(inside, codes - ratio, codes)).sum() / (127 * 6) ** 0.5
    torch.testing.assert_close(layer.act_quant.step.grad.double(), to_step, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        layer.weight.grad.double(), g.double().t() @ (codes * step), rtol=1e-4, atol=1e-5
    )


def test_a_step_that_training_pushed_below_zero_comes_back() -> None:
    layer = Int8Linear(4, 2)
    layer(image(3, 4))
    with torch.no_grad():
        layer.act_quant.step.fill_(-1.0)
    y = layer(image(3, 4))
    assert bool(torch.isfinite(y).all())
    (y - 1e6).square().sum().backward()
    assert layer.act_quant.step.grad is not None
    assert bool(torch.isfinite(layer.act_quant.step.grad))


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e20])
def test_the_first_batch_sets_the_step(scale: float) -> None:
    quantizer = Int8Activation()
    x = image(4000) * scale
    quantizer(torch.zeros(3))
    assert not quantizer.initialized
    quantizer(x)
    assert quantizer.initialized
    step = float(quantizer.step.detach())
    assert x.abs().max() / 127 / 16 <= step <= x.abs().max() / 127
    kept = quantizer(x).detach().double() * step
    assert (kept - x).square().mean() < 1e-4 * x.double().square().mean()
    quantizer(x * 5)
    assert float(quantizer.step.detach()) == step


def test_bad_values() -> None:
    layer = Int8Linear(3, 4)
    layer.set_name("head.fc")
    with pytest.raises(ConfigError, match=r"'head\.fc'.*never initialised"):
        layer.eval()(torch.ones(2, 3))
    layer.train()
    for bad in (torch.nan, torch.inf):
        with pytest.raises(InputError, match=r"'head\.fc'.*NaN or infinity"):
            layer(torch.full((2, 3), bad))
    with pytest.raises(InputError, match="floating point"):
        layer(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="empty"):
        layer(torch.ones(0, 3))
    with pytest.raises(ConfigError, match="133001 inputs per output are too many"):
        Int8Linear(133_001, 1)
    # What a layer may have, the core takes.
    layer = Int8Linear(133_000, 1)
    layer(torch.ones(1, 133_000))
    net = convert(nn.Sequential(layer).eval(), torch.ones(1, 133_000))
    assert torch.equal(net(torch.ones(1, 133_000)), layer(torch.ones(1, 133_000)))
    with pytest.raises(ConfigError, match=r"takes a torch\.nn\.Conv2d, got.*Linear"):
        Int8Conv2d.from_float(nn.Linear(3, 4))


@pytest.mark.parametrize(("int8", "plain", "args", "kwargs", "shape"), CASES)
def test_from_float_keeps_parameters_keys_and_mode(
    int8: Any, plain: Any, args: Any, kwargs: Any, shape: Any
) -> None:
    module = plain(*args, **kwargs).eval()
    layer = int8.from_float(module)
    assert layer.weight is module.weight
    assert layer.bias is module.bias
    assert not layer.act_quant.training
    assert set(layer.state_dict()) == {
        "weight",
        "bias",
        "act_quant.step",
        "act_quant.initialized_flag",
    }
    missing, unexpected = layer.load_state_dict(module.state_dict(), strict=False)
    assert not unexpected
    assert not {"weight", "bias"} & set(missing)


def test_state_dict_resumes_calibration() -> None:
    source, target = Int8Conv2d(3, 8, 3, padding=1), Int8Conv2d(3, 8, 3, padding=1)
    x = image(2, 3, 6, 6)
    source(x)
    target.load_state_dict(source.state_dict())
    assert target.act_quant.initialized
    assert torch.equal(target.eval()(x), source.eval()(x))
    target.train()(x * 100)  # does not initialise anew
    assert torch.equal(copy.deepcopy(target).eval()(x), source(x))


def test_autocast_and_narrow_floats_keep_exact_accumulators() -> None:
    layer = Int8Linear(512, 8)
    x = image(4, 512)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), expected)
    for narrow in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(layer).to(narrow)
        assert half(x.to(narrow)).dtype == narrow
        assert (half(x.to(narrow)).float() - expected).abs().max() < 0.02 * expected.abs().max()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.stem = nn.Conv2d(2, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(torch.relu(self.stem(x))).mean((2, 3)))
        return y


INT8 = {"first": "int8", "last": "int8"}


def kinds(model: nn.Module) -> dict[str, str]:
    named = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (Int8Layer, TernaryLayer))
    }
    return {name: type(module).__name__ for name, module in named.items()}


def test_prepare() -> None:
    model = Net()
    keys, weight = set(model.state_dict()), model.stem.weight
    prepare(model, TernaryConfig(**INT8), image(4, 2, 7, 7))
    assert kinds(model) == {"head": "Int8Linear", "body.0": "TernaryConv2d", "stem": "Int8Conv2d"}
    assert keys < set(model.state_dict())
    assert model.stem.weight is weight
    assert model.stem.layer_name == model.stem.act_quant.layer_name == "stem"
    assert model.head.act_quant.initialized
    assert kinds(prepare(Net(), TernaryConfig(first="int8"))) == {
        "body.0": "TernaryConv2d",
        "stem": "Int8Conv2d",
    }
    with pytest.raises(ConfigError, match="already holds quantized layers"):
        prepare(prepare(Net(), TernaryConfig(skip=("body",), **INT8)))


def test_prepare_with_skip_and_overrides() -> None:
    config = TernaryConfig(skip=("stem",), overrides={"re:.*": {"per_channel": True}}, **INT8)
    model = prepare(Net(), config)
    assert kinds(model) == {"head": "Int8Linear", "body.0": "TernaryConv2d"}
    with pytest.raises(
        ConfigError, match=r"names only layers that do not become ternary: stem \(first='int8'\)"
    ):
        prepare(Net(), TernaryConfig(overrides={"stem": {"scale": True}}, **INT8))
    both = nn.Sequential(nn.Linear(3, 3))
    assert kinds(prepare(copy.deepcopy(both), TernaryConfig(first="int8", last="ternary"))) == {
        "0": "Int8Linear"
    }
    with pytest.raises(ConfigError, match=r"nothing is left.*last='float'.*'int8'"):
        prepare(both, TernaryConfig(first="int8"))


def test_calibrate_leaves_batchnorm_behind_an_int8_layer_alone() -> None:
    model = nn.Sequential(Int8Linear(4, 8), nn.BatchNorm1d(8), Int8Linear(8, 2))
    calibrate(model, image(16, 4))
    assert model[0].act_quant.initialized
    assert model[2].act_quant.initialized
    assert torch.equal(model[1].running_mean, torch.zeros(8))


def test_steps_are_not_decayed_and_training_moves_them() -> None:
    torch.manual_seed(0)
    model = prepare(Net(), TernaryConfig(**INT8), image(4, 2, 7, 7))
    decay, plain = param_groups(model, 1e-2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in decay["params"]} == {
        "head.weight",
        "body.0.weight",
        "stem.weight",
    }
    assert {"stem.act_quant.step", "head.act_quant.step"} <= {names[id(p)] for p in plain["params"]}
    optimizer = torch.optim.Adam(param_groups(model, 1e-2), 1e-2)
    x = image(48, 2, 7, 7)
    target = (x.mean((1, 2, 3)) > 0).long()
    before, losses = float(model.head.act_quant.step.detach()), []
    for _ in range(40):
        loss = functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert float(model.head.act_quant.step.detach()) != before


def test_resnet_with_int8_ends(tmp_path: Path) -> None:
    x = image(2, 3, 32, 32)
    model = ready(ResNet(), x, **INT8)
    for float_layers in ("torch", "rust"):
        net = convert(model, x, float_layers)
        assert ops_of(net)[:4] == ["conv2d_int8", "batch_norm", "relu", "max_pool2d"]
        assert ops_of(net)[-1] == "linear_int8"
        ran = {node.name for segment in net.segments for node in segment.nodes}
        assert {node.name for node in net.graph.nodes if node.op.endswith("_int8")} <= ran
        report = verify(model, net, image(3, 3, 40, 33))
        assert report.codes_different == 0
        assert not report.not_compared
    assert verify(model, convert(model, x), x).identical
    fatnn_rs.save(net, tmp_path / "net")
    loaded = fatnn_rs.load(tmp_path / "net")
    assert verify(model, loaded, x).identical
    assert str(loaded.report) == str(convert(model, x).report)
    numpy = fatnn_rs.load_numpy(tmp_path / "net")
    assert numpy(x.numpy()).tobytes() == net(x).numpy().tobytes()
    assert numpy.report.layers_int8 == 2


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "between", [(), (nn.ReLU(),), (nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))]
)
def test_what_follows_an_int8_layer_is_exact(
    between: tuple[nn.Module, ...], channels_last: bool
) -> None:
    x = image(2, 3, 17, 15)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 5, 2, 2), *copy.deepcopy(between), nn.Conv2d(6, 9, 3), nn.Conv2d(9, 4, 1)
    )
    exact(ready(model, x, **INT8), x, (x[:1], image(1, 3, 14, 30)))


@pytest.mark.parametrize("groups", [1, 3])
def test_one_dimension(groups: int) -> None:
    x = image(2, 6, 30)
    model = nn.Sequential(
        nn.Conv1d(6, 9, 5, stride=2, padding=3, dilation=2, groups=groups), nn.BatchNorm1d(9),
        nn.ReLU(),
        nn.Conv1d(9, 6, 3), nn.ReLU(), nn.Conv1d(6, 4, 3, padding=1),
    )  # fmt: skip
    exact(ready(model, x, **INT8), x, (image(1, 6, 41),))


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_padding_that_is_not_alike_on_both_sides_or_not_zero(mode: str) -> None:
    x = image(2, 3, 8, 9)
    padding: Any = "same" if mode == "zeros" else 2
    model = nn.Sequential(
        nn.Conv2d(3, 4, 4, padding=padding, padding_mode=mode), nn.ReLU(), nn.Conv2d(4, 4, 3)
    )
    exact(ready(model, x, first="int8"), x)


def test_mlp_with_bias(tmp_path: Path) -> None:
    x = image(16, 33)
    model = ready(Mlp(), x, **INT8)
    net = exact(model, x, (image(1, 33), image(5, 33, seed=3) * 30))
    assert ops_of(net)[-1] == "linear_int8"
    assert len(net.segments) == 1
    fatnn_rs.save(net, tmp_path / "first")
    fatnn_rs.save(fatnn_rs.load(tmp_path / "first"), tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert np.array_equal(
        fatnn_rs.load_numpy(tmp_path / "first")(x.numpy()), model(x).detach().numpy()
    )


def _put(key: str, value: Any) -> Any:
    return lambda node, arrays: node.__setitem__(key, value)


def _attr(key: str, value: Any) -> Any:
    return lambda node, arrays: node["attrs"].__setitem__(key, value)


def _array(role: str, change: Any) -> Any:
    def apply(node: Any, arrays: Any) -> None:
        arrays[node["tensors"][role]] = np.ascontiguousarray(change(arrays[node["tensors"][role]]))

    return apply


WRONG: dict[str, tuple[Any, str]] = {
    "no step": (
        lambda node, arrays: arrays.pop(node["tensors"].pop("inv_step")),
        '"inv_step" is missing',
    ),
    "no scale": (
        lambda node, arrays: arrays.pop(node["tensors"].pop("scale")),
        '"scale" is missing',
    ),
    "zero step": (
        _array("inv_step", lambda a: a * 0),
        "inv_step must be positive and finite, got 0",
    ),
    "NaN for a step": (
        _array("inv_step", lambda a: a * np.float32("nan")),
        "inv_step must be positive",
    ),
    "two steps": (
        _array("inv_step", lambda a: np.repeat(a, 2)),
        r"inv_step must have shape \(1,\)",
    ),
    "short scale": (_array("scale", lambda a: a[1:]), r"scale must have shape \(8,\), got \[7\]"),
    "float weight": (_array("weight", lambda a: a.astype(np.float32)), "must be int8, got float32"),
    "flat weight": (_array("weight", lambda a: a[0]), "must have 4 dimensions"),
    "-128": (_array("weight", lambda a: np.full_like(a, -128)), "-128"),
    "three strides": (_attr("stride", [1, 1, 1]), '"stride" must have 2 numbers'),
    "zero dilation": (
        _attr("dilation", [0, 1]),
        '"dilation" must be at least 1',
    ),
    "groups": (_attr("groups", 3), "groups do not fit"),
    "an attribute too many": (_attr("layout", "any"), "expected the attributes"),
    "other op": (_put("op", "conv3d_int8"), "unknown op"),
    "two inputs": (_put("inputs", ["x", "x"]), "reads 2 values"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files(name: str, tmp_path: Path) -> None:
    x = image(2, 3, 32, 32)
    net = convert(ready(ResNet(), x, first="int8"), x)
    fatnn_rs.save(net, tmp_path / "net")
    text, arrays, dtypes = _core.load(tmp_path / "net")
    graph = json.loads(text)
    change, says = WRONG[name]
    node = next(node for node in graph["nodes"] if node["op"] == "conv2d_int8")
    change(node, arrays)
    _core.save(tmp_path / "net", json.dumps(graph), arrays, dtypes)
    with pytest.raises(FormatError, match=says):
        fatnn_rs.load(tmp_path / "net")


def test_a_network_of_int8_layers_only() -> None:
    x = image(4, 5)
    model = ready(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), x, **INT8)
    net = convert(model, x)
    report = verify(model, net, x)
    assert report.identical
    assert report.codes_total == 0
    with pytest.raises(ConversionError, match="no code was compared"):
        verify(model, net, x[:0])
    layer = Int8Conv2d(3, 4, 3)
    x = image(2, 3, 5, 5)
    calibrate(layer, x)
    assert torch.equal(convert(layer.eval(), x)(x), layer(x))


def test_verify_sees_a_changed_int8_layer() -> None:
    x = image(2, 3, 32, 32)
    model = ready(ResNet(), x, **INT8)
    net = convert(model, x)
    with torch.no_grad():
        model.fc.act_quant.step.mul_(1.01)
    assert verify(model, net, x).max_abs_diff > 0
    with torch.no_grad():
        model.stem[0].weight.mul_(-1)
    assert verify(model, net, x).codes_different > 0


def test_a_layer_with_hooks_is_named_as_not_compared() -> None:
    x = image(4, 33)
    model = ready(Mlp(), x, **INT8)
    model.fc3.register_forward_hook(lambda module, args, output: output * 2)
    report = verify(model, convert(model, x), x)
    assert report.not_compared == ("fc3",)
    assert not report.identical


def test_nan_is_refused() -> None:
    x = image(4, 33)
    model = ready(Mlp(), x, **INT8)
    net = convert(model, x)
    bad = x.clone()
    bad[2, 3] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        net(bad)
    with pytest.raises(InputError, match="NaN"):
        net.run_observed((bad,), lambda node, result, values: None)
    with pytest.raises(InputError, match="NaN"):
        convert(model, bad)


def test_conversion_needs_a_step() -> None:
    with pytest.raises(ConversionError, match=r"layer '0'.*never initialised"):
        convert(nn.Sequential(Int8Linear(3, 4)).eval(), image(2, 3))


def test_threads_batches_and_infinity() -> None:
    x = image(3, 3, 32, 32)
    model = ready(ResNet(), x, **INT8)
    net = convert(model, x)
    x[0, 0, 0, 0], x[1, 1, 5, 5] = torch.inf, -1e30
    expected = model(x)
    for batch in (x, x[:1], x[:0], x[1:]):
        assert torch.equal(net(batch), model(batch))
    assert torch.equal(net(x), expected)


def test_under_compile() -> None:
    x = image(2, 3, 13, 11)
    net = convert(ready(Vgg(), x, **INT8), x)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), net(x))


def test_one_by_one_gives_the_bits_of_the_engine() -> None:
    x = image(2, 3, 32, 32)
    net = convert(ready(ResNet(), x, **INT8), x)
    assert torch.equal(net.run_observed((x,), None), net(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.run_observed((x,), None), net(x))


def test_report_and_summary() -> None:
    x = image(2, 3, 13, 11)
    plain = Vgg()
    model = ready(copy.deepcopy(plain), x, **INT8)
    net = convert(model, x)
    report = net.report
    assert report.layers_int8 == 2
    assert report.bytes_int8 == 10 * 27 + 5 * 20
    assert report.macs_int8 == 2 * (13 * 11 * 10 * 27 + 100)
    assert "2 int8 layers: " in str(report)
    assert '"macs_int8"' in report.to_json()
    tables = [summary(m, x) for m in (plain, model, net)]
    assert len({table.macs for table in tables}) == 1
    for table in tables[1:]:
        assert (
            [row.weight_bits for row in table.rows]
            == [row.act_bits for row in table.rows]
            == [8, 2, 2, 2, 8]
        )
        assert "of them int8" in str(table)
    assert tables[2].rows[0].kernel == f"rust {fatnn_rs.cpu_info()['int8_kernels'][0]}"
    assert tables[2].rows[0].bytes == 10 * 27 + 4 * (10 + 10 + 1)
    assert tables[1].rows[0].bytes == 10 * 27 + 4 * 10
