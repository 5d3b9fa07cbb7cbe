"""Conversion: every code and output is bit for bit the model's, and the right nodes are fused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs import InputError, UnsupportedError
from fatnn_rs.convert import convert, summary, verify
from fatnn_rs.nn import TernaryConv2d, calibrate
from fatnn_rs.report import NotFused, Report
from nets import (
    MODELS,
    Block,
    Branching,
    Mlp,
    PreActivation,
    ResNet,
    TokenMlp,
    TwoInputs,
    Vgg,
    chain_like,
    exact,
    image,
    ops_of,
    ready,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


# The first and last layer of "two inputs" are its only layers, so it needs ternary ones.
@pytest.mark.parametrize(
    ("name", "ends"),
    [
        (n, e)
        for n in MODELS
        for e in ("ternary", "int8", "float")
        if e == "ternary" or n != "two inputs"
    ],
)
def test_models_convert_exactly_and_stay_unchanged(name: str, ends: str) -> None:
    make, inputs, others = MODELS[name]
    torch.manual_seed(1)
    model = ready(make(), inputs, first=ends, last=ends)
    before = copy.deepcopy(model.state_dict())
    exact(model, inputs, others)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert before.keys() == after.keys()
    assert not any(module._forward_hooks for module in model.modules())


def test_channels_last_models_convert_exactly() -> None:
    x = image(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    model = ready(ResNet(), x, first="float").to(memory_format=torch.channels_last)
    exact(model, x, (image(1, 3, 32, 32).contiguous(memory_format=torch.channels_last),))


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_other_batch_sizes_give_the_models_output(batch: int) -> None:
    x = image(2, 3, 12, 12)
    model = ready(PreActivation(), x)
    net = convert(model, x)
    given = image(batch, 3, 12, 12)
    assert torch.equal(net(given), model(given))


def test_resnet_block_becomes_fused_convolutions() -> None:
    x = image(2, 3, 32, 32)
    net = exact(ready(ResNet(), x, first="float", last="float"), x)
    assert ops_of(net) == [
        *("conv2d", "batch_norm", "relu", "max_pool2d"),
        *("quantize", "conv_codes", "conv_float"),
        *("quantize", "conv_codes", "conv_float", "conv_float"),
        *("quantize", "conv_codes", "conv_float"),
        *("adaptive_avg_pool2d", "flatten", "linear"),
    ]
    residual = [
        node for node in net.graph.nodes if node.op == "conv_float" and len(node.inputs) == 2
    ]
    assert len(residual) == 3
    assert all(node.attrs["relu"] for node in residual)
    assert net.report.layers_ternary == 7
    assert net.report.unsaveable == ()


def test_vgg_passes_codes_from_layer_to_layer() -> None:
    x = image(2, 3, 13, 11)
    net = exact(ready(Vgg(), x), x)
    assert ops_of(net) == [
        *("quantize", "conv_codes", "conv_codes", "max_pool_codes", "conv_codes", "max_pool_codes"),
        *("conv_codes", "conv_float", "channel_bias"),
    ]
    linear = next(node for node in net.graph.nodes if node.layer == "classifier.1")
    assert linear.attrs["kernel"] == [2, 2]


def test_linear_layers_on_tokens_are_fused() -> None:
    x = image(2, 7, 12)
    net = exact(ready(TokenMlp(), x), x)
    assert ops_of(net) == [
        "flatten_leading",
        *("quantize", "conv_codes", "conv_codes", "conv_float", "channel_bias"),
        *("reshape_like", "add"),
    ]


def test_verify_compares_every_call_of_a_shared_layer() -> None:
    inputs = (image(2, 4, 6, 6), image(2, 4, 5, 7))
    model = ready(TwoInputs(), inputs)
    report = verify(model, convert(model, inputs), inputs)
    assert [(row.layer, row.call) for row in report.rows][:3] == [
        ("shared", 0),
        ("shared", 1),
        ("shared", 2),
    ]


def test_equal_quantizers_of_one_input_run_once() -> None:
    class TwoReaders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    x = image(2, 4, 6, 6)
    model = ready(TwoReaders(), x)
    assert ops_of(exact(model, x)).count("quantize") == 1
    with torch.no_grad():
        model.b.act_quant.alpha1.mul_(1.5)
    assert ops_of(exact(model, x)).count("quantize") == 2


def prelu(count: int, low: float) -> nn.PReLU:
    layer = nn.PReLU(count)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(low, 1.0, count))
    return layer


BECOMES_THRESHOLDS: dict[str, list[nn.Module]] = {
    "batch norm": [nn.BatchNorm2d(8)],
    "nothing": [],
    "relu": [nn.ReLU()],
    "no affine": [nn.BatchNorm2d(8, affine=False), nn.ReLU()],
    "two batch norms": [nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8)],
    "prelu": [nn.BatchNorm2d(8), prelu(8, 0.0)],
    "one prelu slope": [nn.BatchNorm2d(8), prelu(1, 0.5)],
    "leaky relu": [nn.BatchNorm2d(8), nn.LeakyReLU(0.2)],
    "hardtanh": [nn.BatchNorm2d(8), nn.Hardtanh(-0.7, 0.9)],
    "identity, dropout": [nn.Identity(), nn.BatchNorm2d(8), nn.Dropout(), nn.ReLU()],
    "relu, max-pool": [nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)],
    "max-pool, relu": [nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.ReLU()],
    "max-pools": [nn.MaxPool2d(2), nn.ReLU(), nn.MaxPool2d((1, 2), (2, 1), dilation=2)],
}


@pytest.mark.parametrize("name", BECOMES_THRESHOLDS)
def test_modules_between_layers_become_thresholds(name: str) -> None:
    x = image(2, 3, 12, 12)
    model = ready(chain_like(*copy.deepcopy(BECOMES_THRESHOLDS[name])), x)
    assert "conv_codes" in ops_of(exact(model, x))


STAYS_FLOAT: dict[str, tuple[list[nn.Module], str]] = {
    "negative prelu slope": ([nn.BatchNorm2d(8), prelu(8, -0.5)], "not monotone"),
    "average pool": ([nn.BatchNorm2d(8), nn.AvgPool2d(2)], "avg_pool2d"),
    "max-pool before batch norm": ([nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU()], "may decrease"),
    "unknown module": ([nn.BatchNorm2d(8), nn.GELU()], "gelu"),
    "batch statistics": ([nn.BatchNorm2d(8, track_running_stats=False)], "BatchNorm2d"),
}


@pytest.mark.parametrize("name", STAYS_FLOAT)
def test_modules_that_prevent_thresholds_are_named_in_the_report(name: str) -> None:
    between, why = STAYS_FLOAT[name]
    x = image(2, 3, 12, 12)
    net = exact(ready(chain_like(*copy.deepcopy(between)), x), x)
    assert ops_of(net)[:2] == ["quantize", "conv_float"]
    assert "conv_codes" not in ops_of(net)
    notes = [row.note for row in net.report.rows if row.op == "quantize"]
    assert why in notes[1]
    assert why in str(net.report)


@pytest.mark.parametrize(
    ("mode", "padding", "kernel"),
    [
        ("reflect", 2, 3),
        ("replicate", (1, 2), 3),
        ("circular", 1, 3),
        ("reflect", "same", 3),
        ("zeros", "same", (2, 4)),
        ("zeros", "same", 3),
        ("zeros", "valid", 3),
        ("zeros", (0, 3), (1, 5)),
    ],
)
def test_padding_modes_and_sizes_convert_exactly(mode: str, padding: Any, kernel: Any) -> None:
    x = image(2, 5, 9, 8)
    model = nn.Sequential(
        nn.Conv2d(5, 6, kernel, padding=padding, padding_mode=mode),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, kernel, padding=padding, padding_mode=mode, dilation=1),
    )
    exact(ready(model, x), x)


def test_full_range_activations_become_thresholds() -> None:
    x = image(2, 3, 12, 12)
    model = ready(chain_like(nn.BatchNorm2d(8)), x, overrides={"re:.*": {"act_range": "full"}})
    assert not any(layer.act_quant.half_range for layer in (model[0], model[2]))
    assert "conv_codes" in ops_of(exact(model, x))


def test_a_single_layer_converts() -> None:
    layer = TernaryConv2d(3, 4, 3, padding=1)
    x = image(2, 3, 5, 5)
    calibrate(layer, x)
    layer.eval()
    assert torch.equal(exact(layer, x)(x), layer(x))


def test_model_that_fx_cannot_trace_is_captured_by_export() -> None:
    x = image(2, 3, 8, 8)
    net = exact(ready(Branching(), x), x)
    assert any("torch.export" in note for note in net.report.notes)
    assert "conv_codes" in ops_of(net)


def test_exported_model_takes_only_the_sizes_it_branched_on() -> None:
    class ByBatch(Branching):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.shape[0] == 2 else super().forward(x) * 2

    x = image(2, 3, 8, 8)
    net = exact(ready(Branching(), x), x, (image(4, 3, 8, 8),))
    with pytest.raises(InputError, match=r"expected \[any, 3, 8, 8\], got \[2, 3, 4, 4\]"):
        net(image(2, 3, 4, 4))
    net = exact(ready(ByBatch(), x), x)
    with pytest.raises(InputError, match=r"expected \[2, 3, 8, 8\], got \[3, 3, 8, 8\]"):
        net(image(3, 3, 8, 8))
    single = image(1, 3, 8, 8)
    exact(ready(ByBatch(), x), single)


class InPlace(nn.Module):
    """The shortcut reads its input after the in-place ReLU has changed it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.drop, self.relu = nn.Dropout(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        short = self.drop(x)
        y = self.conv2(self.relu(x))
        y.add_(short)
        functional.relu(y, inplace=True)
        return y


def test_in_place_operations_keep_their_order_and_the_callers_input() -> None:
    x = image(2, 3, 6, 6)
    exact(ready(InPlace(), x), x)
    kept = x.clone()
    net = convert(ready(InPlace(), x), x)
    net(x)
    assert torch.equal(x, kept)


class LstmAndTan(nn.Module):
    """An LSTM and a tangent, which no engine operation expresses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.gain = (
            nn.Conv1d(6, 6, 3, padding=1),
            nn.LSTM(6, 5, batch_first=True),
            nn.Parameter(torch.ones(5)),
        )
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x).transpose(1, 2)
        y, (state, _) = self.lstm(x)
        y = y * self.gain + torch.tan(y[:, :1])
        return self.fc(y), state


@pytest.mark.filterwarnings("ignore:these layers stay float")
def test_unknown_functions_and_modules_stay_in_torch() -> None:
    x = image(2, 6, 9)
    net = exact(ready(LstmAndTan(), x), x)
    assert {"torch: LSTM", "torch: tan"} <= {row.op for row in net.report.rows}
    assert net.report.unsaveable


def test_module_with_a_hook_stays_in_torch() -> None:
    x = image(2, 3, 6, 6)
    model = ready(chain_like(nn.BatchNorm2d(8)), x)
    model[1].register_forward_hook(lambda module, args, output: output * 2)
    net = exact(model, x)
    assert any("hooks" in row.note for row in net.report.rows)


def test_changing_the_model_does_not_change_the_network() -> None:
    x = image(4, 33)
    model = ready(Mlp(), x)
    net = convert(model, x)
    before = net(x)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.3)
    assert torch.equal(net(x), before)


def test_network_refuses_train_mode_and_gives_no_gradient() -> None:
    x = image(4, 33)
    net = convert(ready(Mlp(), x), x)
    assert not net.training
    assert net.eval() is net
    with pytest.raises(UnsupportedError, match="inference only"):
        net.train()
    assert not net(x.requires_grad_()).requires_grad


def test_copied_and_pickled_networks_give_the_same_output() -> None:
    x = image(2, 3, 13, 11)
    net = convert(ready(Vgg(), x), x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), net(x))


def test_network_runs_inside_torch_compile() -> None:
    x = image(2, 3, 13, 11)
    net = convert(ready(Vgg(), x), x)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), net(x))


def test_report_lists_what_was_not_fused_and_why() -> None:
    quantizer = NotFused("block.q", "fuse_quantizer", "it reads an input of the network")
    many = tuple(
        NotFused(f"relu{i}", "fuse_elementwise", "others read the same value") for i in range(6)
    )
    lines = str(Report((), (), (*many, quantizer))).splitlines()
    assert lines[-2:] == [
        "not fused: relu0, relu1, relu2, relu3 and 2 more (fuse_elementwise), because others read "
        "the same value",
        "not fused: block.q (fuse_quantizer), because it reads an input of the network",
    ]
    x = image(1, 3, 13, 11)
    report = convert(ready(Vgg(), x), x, float_layers="rust").report
    assert report.not_fused
    assert {found.rewrite for found in report.not_fused} <= {
        "fuse_elementwise",
        "fuse_max_pool",
        "fuse_quantizer",
    }
    assert "\nnot fused: " in str(report)
    assert '"not_fused"' in report.to_json()


def test_report_row_holds_macs_bytes_and_fused_modules() -> None:
    x = image(1, 3, 13, 11)
    report = convert(ready(Vgg(), x), x).report
    first = next(row for row in report.rows if row.op == "conv_codes")
    assert first.name == "features.0"
    assert first.macs == 10 * 13 * 11 * 27
    assert first.packed_bytes == -(-270 // 5)
    assert "features.1, features.2" in first.note
    assert '"macs_ternary"' in report.to_json()
    assert "rust codes -> codes" in str(report)


def test_summary_of_float_prepared_and_converted_model_agree() -> None:
    x = image(2, 3, 13, 11)
    plain = Vgg()
    model = ready(copy.deepcopy(plain), x)
    net = convert(model, x)
    tables = [summary(m, x) for m in (plain, model, net)]
    assert len({table.macs for table in tables}) == 1
    assert [row.name for row in tables[1].rows] == [row.name for row in tables[2].rows]
    assert [row.shape for row in tables[1].rows] == [row.shape for row in tables[2].rows]
    assert {row.weight_bits for row in tables[0].rows} == {32}
    assert {row.weight_bits for row in tables[2].rows} == {2}
    assert tables[2].bytes < tables[0].bytes / 8
    assert plain.training
    assert "100.0% of them ternary" in str(tables[2])


def test_residual_block_as_the_whole_model() -> None:
    x = image(2, 8, 6, 6)
    exact(ready(Block(8, 8, 1), x), x)


@pytest.mark.parametrize("act", ["binary", "ternary", "uint2"])
@pytest.mark.parametrize("weight", ["fatnn", "binary", "dorefa"])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_padding_with_even_kernels_in_one_dimension(
    act: str, weight: str, dilation: int
) -> None:
    """Padding needs an input value with code 0, which a binary quantizer does not have."""
    torch.manual_seed(0)
    x = image(2, 4, 11)
    layers = [
        nn.Conv1d(4, 5, 2, padding="same", dilation=dilation),
        nn.Conv1d(5, 4, 4, padding="same"),
        nn.Conv1d(4, 4, 1),
    ]
    model = ready(nn.Sequential(*layers), x, act=act, weight=weight)
    net = convert(model, x)
    report = verify(model, net, x)
    assert report.codes_different == 0
    assert report.max_abs_diff == 0.0
    # An extra padding on one side becomes a longer kernel with a zero weight. Binary codes and
    # weights cannot express that, so torch runs the layer and verify does not compare it.
    uneven = [
        layer
        for layer, step in (("0", dilation), ("1", 1))
        if step % 2 and (step > 1 or weight == "dorefa")
    ]
    assert report.not_compared == (tuple(uneven) if act == "binary" else ())


def test_same_padding_with_even_kernels_in_two_dimensions() -> None:
    torch.manual_seed(0)
    x = image(2, 4, 9, 8)
    sizes: list[Any] = [((2, 3), 1), ((3, 4), 1), ((4, 2), (1, 2))]
    layers = [
        nn.Conv2d(4, 4, kernel, padding="same", dilation=dilation) for kernel, dilation in sizes
    ]
    net = exact(ready(nn.Sequential(*layers), x, act="binary"), x, (image(1, 4, 5, 12),))
    assert ops_of(net) == ["quantize", "conv_codes", "conv_codes", "conv_float", "channel_bias"]
