"""``verify`` must see what is wrong, and must not be able to succeed on nothing."""

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


X = image(4, 3, 32, 32, seed=5)


def damaged(net: TernaryNetwork, layer: str, role: str, change: int) -> TernaryNetwork:
    """The network with every value of one tensor changed a little, built anew."""
    graph = net.graph
    name = next(
        node for node in graph.nodes if node.layer == layer and role in node.tensors
    ).tensors[role]
    tensor = graph.tensors[name].clone()
    if role == "weight":
        tensor[:3] = -tensor[:3]
    else:
        tensor[tensor < 1 << 30] += change  # but not the thresholds that are never reached
    graph.tensors[name] = tensor
    return TernaryNetwork(graph)


def test_identical(resnet: nn.Module) -> None:
    report = verify(resnet, convert(resnet, X), X)
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


def test_sees_a_wrong_threshold(resnet: nn.Module) -> None:
    report = verify(resnet, damaged(convert(resnet, X), "layers.0.conv1", "thresholds", 1), X)
    by_layer = {row.layer: row.different for row in report.rows}
    assert by_layer["layers.0.conv1"] == 0  # it reads the right codes
    assert by_layer["layers.0.conv2"] > 0  # and makes wrong ones
    assert report.codes_different >= by_layer["layers.0.conv2"]
    assert not report.identical


def test_sees_a_flipped_weight(resnet: nn.Module) -> None:
    report = verify(resnet, damaged(convert(resnet, X), "layers.1.conv1", "weight", 0), X)
    assert {row.layer: row.different for row in report.rows}["layers.1.conv2"] > 0
    assert report.codes_behind_residual_different == report.codes_different > 0


def test_sees_a_wrong_step(resnet: nn.Module) -> None:
    net = convert(resnet, X)
    steps = next(node for node in net.graph.nodes if node.op == "quantize").tensors["steps"]
    net.graph.tensors[steps] = net.graph.tensors[steps] * 1.05
    assert verify(resnet, TernaryNetwork(net.graph), X).codes_different > 0


@pytest.mark.parametrize("role", ["scale", "bias"])
def test_sees_a_wrong_epilogue(role: str) -> None:
    x = image(16, 33)
    model = ready(nn.Sequential(nn.Linear(33, 9, bias=False), nn.BatchNorm1d(9)), x)
    net = convert(model, x)
    name = net.graph.nodes[-1].tensors[role]
    net.graph.tensors[name] = torch.nextafter(net.graph.tensors[name], torch.tensor(float("inf")))
    report = verify(model, TernaryNetwork(net.graph), x)
    assert 0 < report.max_abs_diff < 1e-4
    assert not report.identical


def test_sees_another_model(resnet: nn.Module) -> None:
    net = convert(resnet, X)
    with torch.no_grad():
        resnet.layers[0].bn1.bias.add_(1.0)
    assert verify(resnet, net, X).codes_different > 0


def test_needs_ternary_layers(resnet: nn.Module) -> None:
    with pytest.raises(
        ConversionError,
        match="ResNet holds no ternary or int8 layer, so there is nothing to compare",
    ):
        verify(ResNet().eval(), convert(resnet, X), X)


def test_needs_codes() -> None:
    x = image(4, 33)
    model = ready(Mlp(), x)
    net = convert(model, x)
    with pytest.raises(ConversionError, match="no code was compared"):
        verify(model, net, x[:0])


def test_needs_a_converted_network(resnet: nn.Module) -> None:
    with pytest.raises(
        ConversionError, match=r"expected what fatnn_rs.convert returns, got ResNet"
    ):
        verify(resnet, resnet, X)  # type: ignore[arg-type]


def test_needs_eval_mode(resnet: nn.Module) -> None:
    net = convert(resnet, X)
    with pytest.raises(ConversionError, match="training mode"):
        verify(resnet.train(), net, X)


def test_needs_tensors(resnet: nn.Module) -> None:
    with pytest.raises(InputError, match="expected a tensor"):
        verify(resnet, convert(resnet, X), [1, 2])


def test_refuses_networks_of_other_models(resnet: nn.Module) -> None:
    x = image(2, 3, 13, 11)
    with pytest.raises(ConversionError, match="not converted"):
        verify(resnet, convert(ready(Vgg(), x), x), x)


def test_leaves_no_hooks(resnet: nn.Module) -> None:
    net = convert(resnet, X)
    verify(resnet, net, X)
    with pytest.raises(InputError):
        verify(resnet, net, X.double())
    assert not any(module._forward_hooks for module in resnet.modules())


def test_every_module_is_in_eval_mode(resnet: nn.Module) -> None:
    net = convert(resnet, X)
    resnet.layers[1].bn1.train()
    with pytest.raises(ConversionError, match=r"module 'layers.1.bn1' is in training mode"):
        verify(resnet, net, X)


def test_layers_left_to_torch_are_not_identical() -> None:
    """A ternary layer that torch runs was not compared, whatever the outputs."""
    x = image(4, 33)
    model = ready(Mlp(), x)
    model.fc2.register_forward_hook(lambda module, args, output: None)
    report = verify(model, convert(model, x), x)
    assert report.not_compared == ("fc2",)
    assert report.codes_total > 0
    assert report.codes_different == report.max_abs_diff == 0
    assert not report.identical


def test_sees_layers_that_the_model_did_not_run() -> None:
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


def test_arguments_in_the_other_order() -> None:
    x = image(4, 33)
    model = ready(Mlp(), x)
    with pytest.raises(ConversionError, match=r"the order is verify\(model, net, inputs\)"):
        verify(convert(model, x), model, x)  # type: ignore[arg-type]
