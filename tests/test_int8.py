"""Int8 layers: arithmetic compared with float64, gradients, state, prepare and calibrate."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs import (
    ConfigError,
    InputError,
    TernaryConfig,
    param_groups,
    prepare,
)
from fatnn_rs.convert import convert
from fatnn_rs.nn import Int8Conv1d, Int8Conv2d, Int8Layer, Int8Linear, TernaryLayer, calibrate
from fatnn_rs.quant.int8 import Int8Activation, weight_codes, weight_steps
from nets import image

LAYERS: list[tuple[type[Any], type[Any], tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    (Int8Conv1d, nn.Conv1d, (6, 5, 3), {"padding": 1, "stride": 2}, (2, 6, 11)),
    (Int8Conv2d, nn.Conv2d, (3, 4, 7), {"padding": 3, "stride": 2}, (2, 3, 13, 12)),
    (
        Int8Conv2d,
        nn.Conv2d,
        (6, 4, (3, 1)),
        {"padding": (2, 0), "dilation": 2, "groups": 2},
        (2, 6, 9, 5),
    ),
    (
        Int8Conv2d,
        nn.Conv2d,
        (150, 4, 3),
        {"padding": 1},
        (1, 150, 5, 4),
    ),  # sums that float32 cannot hold
    (Int8Linear, nn.Linear, (6, 4), {}, (2, 3, 6)),
    (Int8Linear, nn.Linear, (3000, 4), {}, (2, 3000)),
]


def expected_output(layer: Any, plain: Any, args: Any, kwargs: Any, x: Tensor) -> Tensor:
    """Compute the layer's output from its parameters; the integer sum is exact in float64."""
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


@pytest.mark.parametrize(("int8", "plain", "args", "kwargs", "shape"), LAYERS)
@pytest.mark.parametrize("bias", [False, True])
def test_forward_is_the_integer_sum_then_scale_then_bias(
    int8: Any, plain: Any, args: Any, kwargs: Any, shape: Any, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = int8(*args, **kwargs, bias=bias)
    x = image(*shape)
    y = layer(x)
    assert torch.equal(y.detach(), expected_output(layer, plain, args, kwargs, x))
    assert torch.equal(layer.eval()(x), y)
    # With eight bits the output is close to the float layer's.
    expected = plain.forward(layer, x)
    assert (y - expected).abs().max() < 0.03 * expected.abs().max()


def test_integer_sums_beyond_float32_are_exact() -> None:
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


def test_zero_and_tiny_weights_give_finite_results_and_gradients() -> None:
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


def test_weights_have_a_step_per_channel_and_a_straight_through_gradient() -> None:
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


def test_gradients_match_the_lsq_formula() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(6, 4, bias=False)
    x = (image(5, 6) * 3).requires_grad_()
    layer(x.detach())
    step = 0.02  # clips some inputs
    layer.act_quant.set_step(step)
    g = image(5, 4, seed=2)
    layer(x).backward(g)
    # d(step * q)/dstep is q - x / step if x is not clipped, else q.
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


def test_negative_step_gives_finite_outputs_and_gradient() -> None:
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
def test_first_batch_that_is_not_zero_sets_the_step(scale: float) -> None:
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


def test_wrong_inputs_and_too_large_layers_are_refused() -> None:
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
    # The core takes the largest layer that the class allows.
    layer = Int8Linear(133_000, 1)
    layer(torch.ones(1, 133_000))
    net = convert(nn.Sequential(layer).eval(), torch.ones(1, 133_000))
    assert torch.equal(net(torch.ones(1, 133_000)), layer(torch.ones(1, 133_000)))
    with pytest.raises(ConfigError, match=r"takes a torch\.nn\.Conv2d, got.*Linear"):
        Int8Conv2d.from_float(nn.Linear(3, 4))


@pytest.mark.parametrize(("int8", "plain", "args", "kwargs", "shape"), LAYERS)
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


def test_state_dict_keeps_the_calibrated_step() -> None:
    source, target = Int8Conv2d(3, 8, 3, padding=1), Int8Conv2d(3, 8, 3, padding=1)
    x = image(2, 3, 6, 6)
    source(x)
    target.load_state_dict(source.state_dict())
    assert target.act_quant.initialized
    assert torch.equal(target.eval()(x), source.eval()(x))
    target.train()(x * 100)  # keeps the step of the first batch
    assert torch.equal(copy.deepcopy(target).eval()(x), source(x))


def test_autocast_is_exact_and_half_precision_layers_are_close() -> None:
    layer = Int8Linear(512, 8)
    x = image(4, 512)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), expected)
    for narrow in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(layer).to(narrow)
        assert half(x.to(narrow)).dtype == narrow
        assert (half(x.to(narrow)).float() - expected).abs().max() < 0.02 * expected.abs().max()


class HeadBodyStem(nn.Module):
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


INT8_FIRST_AND_LAST = {"first": "int8", "last": "int8"}


def layer_types(model: nn.Module) -> dict[str, str]:
    named = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (Int8Layer, TernaryLayer))
    }
    return {name: type(module).__name__ for name, module in named.items()}


def test_prepare_makes_the_first_and_last_layer_int8() -> None:
    model = HeadBodyStem()
    keys, weight = set(model.state_dict()), model.stem.weight
    prepare(model, TernaryConfig(**INT8_FIRST_AND_LAST), image(4, 2, 7, 7))
    assert layer_types(model) == {
        "head": "Int8Linear",
        "body.0": "TernaryConv2d",
        "stem": "Int8Conv2d",
    }
    assert keys < set(model.state_dict())
    assert model.stem.weight is weight
    assert model.stem.layer_name == model.stem.act_quant.layer_name == "stem"
    assert model.head.act_quant.initialized
    assert layer_types(prepare(HeadBodyStem(), TernaryConfig(first="int8"))) == {
        "body.0": "TernaryConv2d",
        "stem": "Int8Conv2d",
    }
    with pytest.raises(ConfigError, match="already holds quantized layers"):
        prepare(prepare(HeadBodyStem(), TernaryConfig(skip=("body",), **INT8_FIRST_AND_LAST)))


def test_prepare_combines_int8_with_skip_and_overrides() -> None:
    config = TernaryConfig(
        skip=("stem",), overrides={"re:.*": {"per_channel": True}}, **INT8_FIRST_AND_LAST
    )
    model = prepare(HeadBodyStem(), config)
    assert layer_types(model) == {"head": "Int8Linear", "body.0": "TernaryConv2d"}
    with pytest.raises(
        ConfigError, match=r"names only layers that do not become ternary: stem \(first='int8'\)"
    ):
        prepare(
            HeadBodyStem(),
            TernaryConfig(overrides={"stem": {"scale": True}}, **INT8_FIRST_AND_LAST),
        )
    both = nn.Sequential(nn.Linear(3, 3))
    assert layer_types(
        prepare(copy.deepcopy(both), TernaryConfig(first="int8", last="ternary"))
    ) == {"0": "Int8Linear"}
    with pytest.raises(ConfigError, match=r"nothing is left.*last='float'.*'int8'"):
        prepare(both, TernaryConfig(first="int8"))


def test_calibrate_keeps_the_statistics_of_batch_norm_after_an_int8_layer() -> None:
    model = nn.Sequential(Int8Linear(4, 8), nn.BatchNorm1d(8), Int8Linear(8, 2))
    model[1].num_batches_tracked.fill_(1)
    calibrate(model, image(16, 4))
    assert model[0].act_quant.initialized
    assert model[2].act_quant.initialized
    assert torch.equal(model[1].running_mean, torch.zeros(8))


def test_steps_have_no_weight_decay_and_training_changes_them() -> None:
    torch.manual_seed(0)
    model = prepare(HeadBodyStem(), TernaryConfig(**INT8_FIRST_AND_LAST), image(4, 2, 7, 7))
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
