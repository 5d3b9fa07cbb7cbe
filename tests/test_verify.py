"""``verify`` finds every wrong tensor, and raises if there is nothing to compare."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from fatnn_rs import ConversionError, InputError
from fatnn_rs.convert import TernaryNetwork, convert, verify
from nets import Mlp, ResNet, Vgg, image, ready


@pytest.fixture
def resnet() -> nn.Module:
    return ready(ResNet(), image(2, 3, 32, 32), first="float")


IMAGES = image(4, 3, 32, 32, seed=5)


def damaged(net: TernaryNetwork, layer: str, role: str, change: int) -> TernaryNetwork:
    """A network rebuilt with one tensor changed: negated weights, or shifted thresholds."""
    graph = net.graph
    name = next(
        node for node in graph.nodes if node.layer == layer and role in node.tensors
    ).tensors[role]
    tensor = graph.tensors[name].clone()
    if role == "weight":
        tensor[:3] = -tensor[:3]
    else:
        tensor[tensor < 1 << 30] += change  # except thresholds that no sum reaches
    graph.tensors[name] = tensor
    return TernaryNetwork(graph)


def test_report_of_an_exact_network_counts_every_code(resnet: nn.Module) -> None:
    report = verify(resnet, convert(resnet, IMAGES), IMAGES)
    assert report.identical
    assert report.codes_total == sum(row.codes for row in report.rows)
    assert 0 < report.codes_behind_residual < report.codes_total
    assert report.top1_agreement == 1.0
    assert [row.layer for row in report.rows if not row.behind_residual] == [
        "layers.0.conv1",
        "layers.0.conv2",
    ]
    assert json.loads(report.to_json())["codes_different"] == 0
    assert "0 of" in str(report)


def test_wrong_threshold_is_found(resnet: nn.Module) -> None:
    report = verify(
        resnet, damaged(convert(resnet, IMAGES), "layers.0.conv1", "thresholds", 1), IMAGES
    )
    by_layer = {row.layer: row.different for row in report.rows}
    assert by_layer["layers.0.conv1"] == 0  # its inputs are right
    assert by_layer["layers.0.conv2"] > 0  # its results are wrong
    assert report.codes_different >= by_layer["layers.0.conv2"]
    assert not report.identical


def test_flipped_weight_is_found(resnet: nn.Module) -> None:
    report = verify(resnet, damaged(convert(resnet, IMAGES), "layers.1.conv1", "weight", 0), IMAGES)
    assert {row.layer: row.different for row in report.rows}["layers.1.conv2"] > 0
    assert report.codes_behind_residual_different == report.codes_different > 0


def test_wrong_quantizer_step_is_found(resnet: nn.Module) -> None:
    net = convert(resnet, IMAGES)
    steps = next(node for node in net.graph.nodes if node.op == "quantize").tensors["steps"]
    net.graph.tensors[steps] = net.graph.tensors[steps] * 1.05
    assert verify(resnet, TernaryNetwork(net.graph), IMAGES).codes_different > 0


@pytest.mark.parametrize("role", ["scale", "bias"])
def test_wrong_scale_or_bias_is_found(role: str) -> None:
    x = image(16, 33)
    model = ready(nn.Sequential(nn.Linear(33, 9, bias=False), nn.BatchNorm1d(9)), x)
    net = convert(model, x)
    name = net.graph.nodes[-1].tensors[role]
    net.graph.tensors[name] = torch.nextafter(net.graph.tensors[name], torch.tensor(float("inf")))
    report = verify(model, TernaryNetwork(net.graph), x)
    assert 0 < report.max_abs_diff < 1e-4
    assert not report.identical


def test_change_of_the_model_is_found(resnet: nn.Module) -> None:
    net = convert(resnet, IMAGES)
    with torch.no_grad():
        resnet.layers[0].bn1.bias.add_(1.0)
    assert verify(resnet, net, IMAGES).codes_different > 0


def test_model_without_quantized_layers_is_refused(resnet: nn.Module) -> None:
    with pytest.raises(
        ConversionError,
        match="ResNet holds no ternary or int8 layer, so there is nothing to compare",
    ):
        verify(ResNet().eval(), convert(resnet, IMAGES), IMAGES)


def test_inputs_that_compare_no_code_are_refused() -> None:
    x = image(4, 33)
    model = ready(Mlp(), x)
    net = convert(model, x)
    with pytest.raises(ConversionError, match="no code was compared"):
        verify(model, net, x[:0])


def test_network_that_is_not_converted_is_refused(resnet: nn.Module) -> None:
    with pytest.raises(
        ConversionError, match=r"expected what fatnn_rs.convert returns, got ResNet"
    ):
        verify(resnet, resnet, IMAGES)  # type: ignore[arg-type]


def test_model_in_training_mode_is_refused(resnet: nn.Module) -> None:
    net = convert(resnet, IMAGES)
    with pytest.raises(ConversionError, match="training mode"):
        verify(resnet.train(), net, IMAGES)


def test_inputs_that_are_no_tensors_are_refused(resnet: nn.Module) -> None:
    with pytest.raises(InputError, match="expected a tensor"):
        verify(resnet, convert(resnet, IMAGES), [1, 2])


def test_network_of_another_model_is_refused(resnet: nn.Module) -> None:
    x = image(2, 3, 13, 11)
    with pytest.raises(ConversionError, match="not converted"):
        verify(resnet, convert(ready(Vgg(), x), x), x)


def test_no_hooks_remain_even_after_an_error(resnet: nn.Module) -> None:
    net = convert(resnet, IMAGES)
    verify(resnet, net, IMAGES)
    with pytest.raises(InputError):
        verify(resnet, net, IMAGES.double())
    assert not any(module._forward_hooks for module in resnet.modules())


def test_module_in_training_mode_is_named(resnet: nn.Module) -> None:
    net = convert(resnet, IMAGES)
    resnet.layers[1].bn1.train()
    with pytest.raises(ConversionError, match=r"module 'layers.1.bn1' is in training mode"):
        verify(resnet, net, IMAGES)


def test_layers_that_torch_runs_are_not_compared_so_not_identical() -> None:
    x = image(4, 33)
    model = ready(Mlp(), x)
    model.fc2.register_forward_hook(lambda module, args, output: None)
    report = verify(model, convert(model, x), x)
    assert report.not_compared == ("fc2",)
    assert report.codes_total > 0
    assert report.codes_different == report.max_abs_diff == 0
    assert not report.identical


def test_layer_that_only_the_network_ran_is_refused() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(33, 33), nn.Linear(33, 33)
            self.skip = False

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            return x if self.skip else self.two(x)

    x = image(4, 33)
    model = ready(Skipping(), x)
    net = convert(model, x)
    assert verify(model, net, x).identical
    model.skip = True
    with pytest.raises(ConversionError, match="ran quantized layers that the model did not: two"):
        verify(model, net, x)


def test_swapped_model_and_network_are_refused() -> None:
    x = image(4, 33)
    model = ready(Mlp(), x)
    with pytest.raises(ConversionError, match=r"the order is verify\(model, net, inputs\)"):
        verify(convert(model, x), model, x)  # type: ignore[arg-type]
