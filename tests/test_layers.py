"""Ternary layers: arithmetic, options, state, gradients, calibration, errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs import ConfigError, InputError
from fatnn_rs.nn import TernaryConv1d, TernaryConv2d, TernaryLayer, TernaryLinear, calibrate
from fatnn_rs.nn.layers import held_weights
from fatnn_rs.quant import QUANTIZERS

LAYERS: list[tuple[type[Any], type[Any], tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    (TernaryConv1d, nn.Conv1d, (6, 5, 3), {"padding": 1, "stride": 2}, (2, 6, 11)),
    (TernaryConv2d, nn.Conv2d, (6, 4, 3), {"padding": 1}, (2, 6, 7, 5)),
    (
        TernaryConv2d,
        nn.Conv2d,
        (6, 4, (3, 1)),
        {"padding": (2, 0), "dilation": 2, "groups": 2},
        (2, 6, 9, 5),
    ),
    (TernaryConv2d, nn.Conv2d, (6, 6, 3), {"groups": 6, "padding": "same"}, (2, 6, 7, 5)),
    (TernaryLinear, nn.Linear, (6, 4), {}, (2, 3, 6)),
]


def data(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


#: Quantizers with integer weights, and the others.
INTEGER_QUANTIZERS = [name for name, family in QUANTIZERS.items() if not family.weight.refused]
FLOAT_QUANTIZERS = [name for name in QUANTIZERS if name not in INTEGER_QUANTIZERS]


def test_ttq_is_the_only_quantizer_with_non_integer_weights() -> None:
    assert FLOAT_QUANTIZERS == ["ttq"]


@pytest.mark.parametrize("quantizer", INTEGER_QUANTIZERS)
@pytest.mark.parametrize("act", ["ternary", "uint2", "binary"])
@pytest.mark.parametrize(("ternary", "plain", "args", "kwargs", "shape"), LAYERS)
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_forward_is_the_integer_sum_then_scale_then_bias(
    quantizer: str,
    act: str,
    ternary: Any,
    plain: Any,
    args: Any,
    kwargs: Any,
    shape: Any,
    scale: bool,
    bias: bool,
    half: bool,
) -> None:
    layer = ternary(*args, **kwargs, bias=bias, scale=scale, quantizer=quantizer, act=act)
    x = data(shape).abs() if half else data(shape)
    y = layer(x)
    assert layer.act_quant.half_range is (half or act == "uint2")
    assert set(layer.ternary_weight().unique().tolist()) <= set(layer.weight_quant.levels)
    assert set(layer.act_quant(x).unique().tolist()) <= set(layer.act_quant.levels)
    # torch's own layer computes the same sum in float64; integers are exact in both.
    reference = plain(*args, **kwargs, bias=False).double()
    with torch.no_grad():
        reference.weight.copy_(layer.ternary_weight().double())
        acc = reference(layer.act_quant(x).double())
    assert torch.equal(acc, acc.round())
    assert acc.abs().max() > 0
    expected = acc.float()
    channel = (-1, *([1] * (len(shape) - 2))) if ternary is not TernaryLinear else (-1,)
    if scale:
        expected = expected * layer.scale.detach().view(channel)
    if bias:
        expected = expected + layer.bias.detach().view(channel)
    assert torch.equal(y.detach(), expected)
    assert torch.equal(layer.eval()(x), y)


@pytest.mark.parametrize("quantizer", FLOAT_QUANTIZERS)
@pytest.mark.parametrize(("ternary", "plain", "args", "kwargs", "shape"), LAYERS)
def test_forward_with_non_integer_weights_multiplies_floats(
    quantizer: str, ternary: Any, plain: Any, args: Any, kwargs: Any, shape: Any
) -> None:
    layer = ternary(*args, **kwargs, quantizer=quantizer)
    x = data(shape)
    y = layer(x)
    reference = plain(*args, **kwargs, bias=False).double()
    weight = layer.weight_quant(layer.weight).detach()
    with torch.no_grad():
        reference.weight.copy_(weight)
        acc = reference(layer.act_quant(x).double())
    assert not torch.equal(weight, weight.round())
    assert torch.equal(layer.ternary_weight(), weight.sign().to(torch.int8))
    channel = (-1, *([1] * (len(shape) - 2))) if ternary is not TernaryLinear else (-1,)
    expected = acc * layer.scale.detach().view(channel) + layer.bias.detach().view(channel)
    torch.testing.assert_close(y.detach(), expected.float())
    assert torch.equal(layer.eval()(x), y)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    ("ternary", "shape"), [(TernaryConv1d, (2, 3, 8)), (TernaryConv2d, (2, 3, 8, 6))]
)
def test_padding_comes_before_quantization(mode: str, ternary: Any, shape: tuple[int, ...]) -> None:
    layer = ternary(3, 4, 3, padding=1, padding_mode=mode, bias=False, scale=False)
    x = data(shape)
    y = layer(x)
    padded = functional.pad(x, [1] * (2 * (len(shape) - 2)), mode=mode)
    conv = functional.conv1d if ternary is TernaryConv1d else functional.conv2d
    assert torch.equal(y, conv(layer.act_quant(padded), layer.ternary_weight().float()))


@pytest.mark.parametrize(("ternary", "plain", "args", "kwargs", "shape"), LAYERS)
def test_from_float_keeps_parameters_keys_and_mode(
    ternary: Any, plain: Any, args: Any, kwargs: Any, shape: Any
) -> None:
    module = plain(*args, **kwargs).eval()
    layer = ternary.from_float(module)
    assert layer.weight is module.weight
    assert layer.bias is module.bias
    assert not layer.training
    assert not layer.act_quant.training
    keys = set(layer.state_dict())
    assert set(module.state_dict()) == {"weight", "bias"}
    assert {"weight", "bias", "scale"} < keys
    assert all(
        key.split(".")[0] in ("weight", "bias", "scale", "weight_quant", "act_quant")
        for key in keys
    )
    assert set(dict(module.named_modules())) == {""}  # the float layer itself is unchanged
    missing, unexpected = layer.load_state_dict(module.state_dict(), strict=False)
    assert not unexpected
    assert not {"weight", "bias"} & set(missing)


def test_initial_scale_gives_outputs_close_to_the_float_layer() -> None:
    module = nn.Linear(512, 64)
    x = data((256, 512))
    layer = TernaryLinear.from_float(module)
    y, expected = layer(x), module(x)
    correlation = torch.corrcoef(torch.stack([y.flatten(), expected.flatten()]))[0, 1]
    assert correlation > 0.75
    slope = (y * expected).mean() / expected.square().mean()
    assert 0.6 < slope < 1.2


def test_every_parameter_gets_a_gradient_and_training_moves_codes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(TernaryLinear(16, 32), nn.ReLU(), TernaryLinear(32, 4))
    x, target = data((64, 16)), torch.arange(64) % 4
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    before = model[0].ternary_weight()
    losses = []
    for _ in range(60):
        loss = functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(
            p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters()
        )
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert not torch.equal(before, model[0].ternary_weight())


def test_state_dict_round_trip_gives_the_same_function() -> None:
    source = TernaryConv2d(3, 8, 3, padding=1)
    x = data((2, 3, 6, 6))
    source(x)
    target = TernaryConv2d(3, 8, 3, padding=1)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.eval()(x), source.eval()(x))
    assert torch.equal(copy.deepcopy(source)(x), source(x))


def test_copies_made_with_held_weights_release_them_at_the_end() -> None:
    layer, x = TernaryLinear(16, 8), torch.randn(4, 16)
    layer(x)
    with held_weights(layer):
        copies = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
        assert all(torch.equal(made(x), layer(x)) for made in copies)
    for made in copies:
        before = made(x)
        before.sum().backward()
        assert made.weight.grad is not None
        with torch.no_grad():
            made.weight.neg_()
        assert not torch.equal(made(x), before)


def test_held_weights_are_quantized_once_and_released_at_the_end() -> None:
    layer = TernaryConv2d(3, 8, 3)
    x = data((2, 3, 6, 6))
    expected, codes = layer(x), layer.ternary_weight()
    threads = torch.get_num_threads()
    with held_weights(nn.Sequential(layer)):
        with torch.no_grad():
            layer.weight.neg_()
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer.ternary_weight(), codes)
        assert torch.get_num_threads() == threads
    assert not torch.equal(layer.ternary_weight(), codes)
    with pytest.raises(ZeroDivisionError), held_weights(layer):
        raise ZeroDivisionError
    assert layer._held is None


def test_autocast_keeps_integer_sums_exact() -> None:
    layer = TernaryLinear(4096, 8, bias=False, scale=False)
    x = (layer.ternary_weight() > 0).float()
    expected = layer(x)
    assert expected.abs().max() > 256  # bfloat16 cannot hold all integers above 256
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), expected)


def test_unbatched_input_works() -> None:
    layer = TernaryConv2d(3, 4, 3)
    x = data((1, 3, 5, 5))
    assert torch.equal(layer(x)[0], layer(x[0]))


def test_errors_name_the_cause() -> None:
    with pytest.raises(ConfigError, match="quantizer must be one of 'fatnn'"):
        TernaryLinear(3, 4, quantizer="nope")
    with pytest.raises(ConfigError, match="act_range"):
        TernaryLinear(3, 4, act_range="nope")
    with pytest.raises(ConfigError, match=r"takes a torch\.nn\.Conv2d, got.*Linear"):
        TernaryConv2d.from_float(nn.Linear(3, 4))
    with pytest.raises(ConfigError, match="unknown options"):
        TernaryLinear.from_float(nn.Linear(3, 4), steps=3)
    with pytest.raises(ConfigError, match="too many"):
        TernaryLinear(1 << 23, 1)
    layer = TernaryLinear(3, 4)
    layer.set_name("head.fc")
    with pytest.raises(InputError, match=r"'head\.fc'.*NaN"):
        layer(torch.full((2, 3), torch.nan))
    with pytest.raises(ConfigError, match=r"'head\.fc'.*never initialised"):
        layer.eval()(torch.ones(2, 3))


def test_calibrate_initialises_in_order_and_restores_the_mode() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        TernaryConv2d(8, 8, 3, scale=False),
        nn.BatchNorm2d(8),
    )
    model[1].eval()
    kept = copy.deepcopy(model[1].state_dict())
    calibrate(model, data((4, 3, 9, 9)))
    layer = model[3]
    assert isinstance(layer, TernaryLayer)
    assert layer.layer_name == "3"
    assert layer.act_quant.initialized
    assert layer.act_quant.half_range
    assert [m.training for m in model] == [True, False, True, True, True]
    assert model[4].momentum == 0.1
    assert all(torch.equal(kept[key], value) for key, value in model[1].state_dict().items())
    # The BatchNorm after the ternary layer has the statistics of that layer's integer sums.
    y = model.eval()(data((4, 3, 9, 9)))
    assert y.mean().abs() < 0.05
    assert abs(y.std() - 1) < 0.05


def test_calibrate_takes_one_value_per_channel_and_refuses_models_without_layers() -> None:
    model = nn.Sequential(TernaryLinear(4, 8, scale=False), nn.BatchNorm1d(8))
    calibrate(model, torch.ones(1, 4))
    assert model[0].act_quant.initialized
    with pytest.raises(ConfigError, match="no ternary or int8 layer"):
        calibrate(nn.Linear(2, 2), torch.ones(1, 2))
