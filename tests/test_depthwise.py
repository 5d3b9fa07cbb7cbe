"""Depthwise convolutions: which layer prepare makes of them, and exact conversion."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fatnn_rs import ConfigError, TernaryConfig, _core, prepare
from fatnn_rs.convert import convert, summary
from fatnn_rs.errors import FatnnError
from fatnn_rs.nn import Int8Conv1d, Int8Conv2d, TernaryConv2d
from fatnn_rs.ops import prepack_int8
from fatnn_rs.train.recipe import Quantize
from nets import Mobile, exact, image, ops_of, ready


class MobileBlock(nn.Module):
    """A depthwise convolution, ``body.3``, between two 1x1 convolutions, as in MobileNet."""

    def __init__(
        self, channels: int = 70, kernel: int = 3, stride: int = 1, multiplier: int = 1
    ) -> None:
        super().__init__()
        wide = channels * multiplier
        self.body = nn.Sequential(
            nn.Conv2d(3, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU6(),
            nn.Conv2d(channels, wide, kernel, stride, kernel // 2, groups=channels, bias=False),
            nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, 8, 1), nn.BatchNorm2d(8),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


LAYER_TYPES = {"int8": Int8Conv2d, "ternary": TernaryConv2d, "float": nn.Conv2d}


@pytest.mark.parametrize("kind", LAYER_TYPES)
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_option_selects_the_layer_type(kind: str, multiplier: int) -> None:
    model = prepare(
        MobileBlock(multiplier=multiplier), TernaryConfig(depthwise=kind, first="ternary")
    )
    assert type(model.body[3]) is LAYER_TYPES[kind]
    assert type(model.body[0]) is TernaryConv2d
    assert type(prepare(MobileBlock()).body[3]) is Int8Conv2d


def test_depthwise_option_covers_grouped_convolutions_with_few_channels() -> None:
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(36, 4, 3, groups=4), nn.Conv2d(32, 4, 3, groups=4),
        nn.Conv1d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3),
    )  # fmt: skip
    model = prepare(layers, TernaryConfig(first="ternary", last="ternary"))
    assert [type(layer) for layer in model] == [
        TernaryConv2d,
        TernaryConv2d,
        Int8Conv2d,
        Int8Conv1d,
        TernaryConv2d,
    ]


def test_precedence_of_first_depthwise_and_skip() -> None:
    def kind(**config: Any) -> type:
        model = nn.Sequential(
            nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        )
        return type(prepare(model, TernaryConfig(**config))[0])

    assert kind() is nn.Conv2d
    assert kind(first="ternary") is Int8Conv2d
    assert kind(first="int8", depthwise="ternary") is Int8Conv2d
    assert kind(first="int8", depthwise="float") is nn.Conv2d
    assert kind(first="ternary", depthwise="ternary") is TernaryConv2d
    assert kind(first="ternary", skip=("0",)) is nn.Conv2d


def test_overrides_set_depthwise_for_one_layer() -> None:
    config = TernaryConfig(
        first="ternary", overrides={"body.3": {"depthwise": "ternary", "per_channel": True}}
    )
    model = prepare(MobileBlock(), config)
    assert type(model.body[3]) is TernaryConv2d
    assert model.body[3].weight_quant.per_channel
    config = TernaryConfig(
        depthwise="ternary", overrides={"body": {"depthwise": "float"}}, last="ternary"
    )
    assert type(prepare(MobileBlock(), config).body[3]) is nn.Conv2d
    with pytest.raises(ConfigError, match=r"'body\.6' names no convolution with small"):
        prepare(
            MobileBlock(),
            TernaryConfig(last="ternary", overrides={"body.6": {"depthwise": "float"}}),
        )
    with pytest.raises(ConfigError, match=r"body\.3 \(depthwise='int8'\)"):
        prepare(
            MobileBlock(),
            TernaryConfig(last="ternary", overrides={"body.3": {"per_channel": True}}),
        )


def test_unknown_depthwise_value_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="depthwise must be 'int8' or 'ternary' or 'float', got 'binary'"
    ):
        TernaryConfig(depthwise="binary")
    with pytest.raises(ConfigError, match=r"overrides\['a'\]\['depthwise'\] must be"):
        TernaryConfig(overrides={"a": {"depthwise": None}})


def test_config_copies_and_pickles_depthwise() -> None:
    config = TernaryConfig(depthwise="float", overrides={"a": {"depthwise": "int8"}})
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert config.options_for("a").depthwise == "int8"
    assert config.options_for("b").depthwise == "float"
    assert Quantize(depthwise="ternary").config().depthwise == "ternary"
    assert Quantize().config() == TernaryConfig()


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (7, 1), (5, 2)])
@pytest.mark.parametrize("multiplier", [1, 3])
def test_kernels_strides_and_multipliers_convert_exactly(
    kernel: int, stride: int, multiplier: int
) -> None:
    x = image(2, 3, 17, 15)
    model = ready(MobileBlock(70, kernel, stride, multiplier), x, first="int8")
    net = exact(model, x, (x[:1] * 9, image(1, 3, 14, 30), -x))
    assert ops_of(net).count("conv2d_int8") == 2
    assert len(net.segments) == 1


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.SiLU()])
@pytest.mark.parametrize("act", ["ternary", "uint2"])
def test_an_int8_stem_with_any_window_converts_exactly(activation: nn.Module, act: str) -> None:
    """The stem runs inside the depthwise layer, and that inside the quantizer of its floats."""
    x = image(2, 3, 31, 45)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), copy.deepcopy(activation),
        nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
        nn.Conv2d(24, 8, 1),
    )  # fmt: skip
    prepared = ready(model, x, first="int8", act=act)
    net = exact(prepared, x, (x[:1] * 9, image(3, 3, 8, 200), image(1, 3, 1, 1), -x))
    if not isinstance(activation, nn.SiLU):  # whose floats torch computes
        timed = net.node_seconds(x)
        assert len(net.segments) == 1
        assert sum(node.op == "conv2d_int8" for node in net.graph.nodes) == 2
        assert not {n.name for n in net.graph.nodes if n.op == "conv2d_int8"} & set(timed)


ACTIVATIONS = (nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.4, 0.7), nn.Hardtanh(0.3, 0.5), nn.Hardswish())


@pytest.mark.parametrize("before", ACTIVATIONS)
@pytest.mark.parametrize(
    "after", [nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.MaxPool2d(2), nn.Identity()]
)
def test_activations_around_a_depthwise_layer_convert_exactly(
    before: nn.Module, after: nn.Module
) -> None:
    x = image(2, 3, 9, 11)
    model = nn.Sequential(
        nn.Conv2d(3, 20, 1), nn.BatchNorm2d(20), copy.deepcopy(before),
        nn.Conv2d(20, 20, 3, padding=1, groups=20), nn.BatchNorm2d(20), copy.deepcopy(after),
        nn.Conv2d(20, 4, 1),
    )  # fmt: skip
    exact(ready(model, x), x, (image(1, 3, 30, 7, seed=4) * 20,))


def test_relu6_before_a_depthwise_layer_is_fused_into_its_quantizer() -> None:
    x = image(2, 3, 9, 11)
    net = exact(ready(MobileBlock(), x), x)
    assert not any("body.2" in found.layer for found in net.report.not_fused), net.report


def test_summary_names_the_depthwise_kernel() -> None:
    x = image(2, 3, 9, 11)
    rows = {
        row.name: row for row in summary(convert(ready(MobileBlock(), x, first="int8"), x), x).rows
    }
    assert "depthwise" in rows["body.3"].kernel
    assert "depthwise" not in rows["body.0"].kernel


def test_dilated_depthwise_conv1d_converts_exactly() -> None:
    x = image(2, 6, 50)
    model = nn.Sequential(
        nn.Conv1d(6, 24, 3), nn.BatchNorm1d(24), nn.ReLU(),
        nn.Conv1d(24, 24, 9, padding=8, dilation=2, groups=24), nn.BatchNorm1d(24), nn.ReLU(),
        nn.Conv1d(24, 5, 1),
    )  # fmt: skip
    exact(ready(model, x), x, (image(1, 6, 77),))


@pytest.mark.parametrize("kind", ["int8", "ternary"])
def test_depthwise_and_grouped_layers_convert_exactly_in_one_network(kind: str) -> None:
    x = image(2, 3, 9, 10)
    net = exact(ready(Mobile(), x, depthwise=kind), x, (image(1, 3, 4, 4),))
    assert ("conv2d_int8" in ops_of(net)) == (kind == "int8")


def test_nan_input_is_refused() -> None:
    x = image(1, 3, 9, 11)
    net = convert(ready(MobileBlock(), x, first="int8"), x)
    x[0, 1, 2, 3] = torch.nan
    with pytest.raises(FatnnError, match=r"body\.0.*NaN"):
        net(x)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_nan_between_a_stem_and_a_depthwise_layer_is_the_first_one(
    kernel: int, stride: int
) -> None:
    """An overflow in BatchNorm becomes NaN in Hardswish; some lines are read by no window."""
    x = image(2, 3, 34, 41)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.Hardswish(),
        nn.Conv2d(24, 24, kernel, stride, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
        nn.Conv2d(24, 8, 1),
    )  # fmt: skip
    model = ready(model, x, first="int8")
    with torch.no_grad():
        model[1].weight[3], model[1].running_var[3] = 7e37, 0.05
    net = convert(model, x * 0)
    floats = model[:3](x * 5).permute(0, 2, 3, 1).flatten()
    first = int(floats.isnan().nonzero()[0])
    with pytest.raises(FatnnError, match=rf"'3'.* element {first} is NaN"):
        net(x * 5)


def test_conv_int8_op_uses_the_depthwise_kernel_and_gives_the_layers_bits() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 40, 9, 7)
    layer = Int8Conv2d(40, 80, 3, padding=1, groups=40)
    layer.train()(x)
    layer.eval()
    packed = prepack_int8(layer.int8_weight(), 40)
    assert "depthwise" in _core.packed_info(packed.numpy())["name"]
    step = float(layer.act_quant.positive_step().reciprocal())
    conv, scale, bias = torch.ops.fatnn_rs.conv_int8, layer.output_scale(), layer.bias.detach()
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(
            conv(given, packed, scale, bias, step, 80, [3, 3], [1, 1], [1, 1]), layer(given)
        )


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "dilation"),
    [(3, 3, 1, 1, 1), (37, 5, 2, 2, 1), (64, 3, 1, 2, 2), (40, (1, 7), (1, 3), (0, 3), 1)],
)
def test_float_depthwise_layers_run_in_rust(
    channels: int, kernel: Any, stride: Any, padding: Any, dilation: int
) -> None:
    class TwoOutputs(nn.Sequential):
        def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
            floats = self[0](input)
            return floats, self[1](floats)

    torch.manual_seed(0)
    layer = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels)
    x = torch.randn(3, channels, 13, 15)
    model = ready(TwoOutputs(layer, nn.Conv2d(channels, 8, 1)), x, depthwise="float")
    net = convert(model, x, float_layers="rust")
    assert [row.runs for row in net.report.rows if row.op == "conv2d"] == ["rust float -> float"]
    weight, bias = layer.weight.double(), layer.bias.double()  # type: ignore[union-attr]
    double = nn.functional.conv2d(x.double(), weight, bias, stride, padding, dilation, channels)
    assert torch.allclose(net(x)[0].double(), double, atol=1e-5)
