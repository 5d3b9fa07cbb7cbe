"""Bad models and bad inputs raise exceptions that name what is wrong, where, and the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fatnn_rs import ConversionError, FatnnError, InputError, prepare
from fatnn_rs.convert import TernaryNetwork, convert, summary
from nets import Mlp, ResNet, TokenMlp, Vgg, chain_like, image, ready

X = image(2, 3, 32, 32)


@pytest.fixture
def resnet() -> nn.Module:
    return ready(ResNet(), X, first="float")


@pytest.fixture(scope="module")
def net() -> TernaryNetwork:
    return convert(ready(ResNet(), X, first="float"), X)


def test_model_without_quantized_layers_is_refused() -> None:
    with pytest.raises(
        ConversionError, match=r"ResNet holds no ternary or int8 layer.*prepare\(model\)"
    ):
        convert(ResNet().eval(), X)


def test_argument_that_is_no_module_is_refused() -> None:
    with pytest.raises(ConversionError, match=r"expected a torch.nn.Module, got dict"):
        convert({}, X)  # type: ignore[arg-type]


def test_model_in_training_mode_is_refused(resnet: nn.Module) -> None:
    with pytest.raises(ConversionError, match=r"ResNet is in training mode; call model.eval\(\)"):
        convert(resnet.train(), X)
    resnet.eval().layers[1].bn1.train()
    with pytest.raises(ConversionError, match=r"module 'layers.1.bn1' is in training mode"):
        convert(resnet, X)


def test_uninitialised_activation_steps_are_refused() -> None:
    model = prepare(ResNet()).eval()
    with pytest.raises(
        ConversionError,
        match=r"layer 'layers.0.conv1': its activation steps were never initialised",
    ):
        convert(model, X)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("module", "tensor"),
    [
        ("layers.1.bn1", "running_mean"),
        ("layers.1.bn1", "running_var"),
        ("layers.1.bn2", "weight"),
        ("layers.0.conv2", "weight"),
        ("stem.0", "weight"),
        ("layers.0.conv1.act_quant", "alpha1"),
        ("layers.0.conv1.weight_quant", "alpha_pos"),
    ],
)
def test_nan_or_infinity_in_parameters_is_refused(
    resnet: nn.Module, module: str, tensor: str, value: float
) -> None:
    with torch.no_grad():
        getattr(resnet.get_submodule(module), tensor).view(-1)[0] = value
    with pytest.raises(
        ConversionError, match=rf"module '{module}': {tensor} holds NaN or infinity"
    ):
        convert(resnet, X)


def test_double_precision_model_is_refused(resnet: nn.Module) -> None:
    with pytest.raises(
        ConversionError, match=r"is torch.float64; expected float32: call model.float\(\)"
    ):
        convert(resnet.double(), X.double())


@pytest.mark.parametrize(
    "inputs", [None, "x", np.zeros((1, 3, 8, 8), np.float32), (), [1, 2], {"x": "X"}]
)
def test_example_inputs_of_a_wrong_type_are_refused(resnet: nn.Module, inputs: Any) -> None:
    with pytest.raises(InputError, match="example_inputs: expected a tensor"):
        convert(resnet, inputs)
    if inputs is None:  # a summary of a model needs no example
        assert all(row.shape == () for row in summary(resnet).rows)
        return
    with pytest.raises(InputError, match="example_inputs: expected a tensor"):
        summary(resnet, inputs)


@pytest.mark.parametrize("inputs", [image(2, 4, 32, 32), image(2, 3), (X, X)])
def test_example_inputs_on_which_the_model_fails_are_refused(
    resnet: nn.Module, inputs: Any
) -> None:
    with pytest.raises(ConversionError, match="ResNet fails on the example inputs"):
        convert(resnet, inputs)


def test_summary_of_a_number_is_refused() -> None:
    with pytest.raises(InputError, match="got int"):
        summary(3, X)  # type: ignore[arg-type]


def with_nan(place: int) -> Tensor:
    x = X.clone()
    x.view(-1)[place] = float("nan")
    return x


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ((), r"takes 1 argument\(s\) \(x\), and 'x' is missing"),
        ((X, X), r"takes 1 argument\(s\) \(x\), got 2"),
        (
            (X.double(),),
            r"input 'x': expected torch.float32, got torch.float64; convert it with .float\(\)",
        ),
        ((X.half(),), "expected torch.float32, got torch.float16"),
        ((X.long(),), "expected torch.float32, got torch.int64"),
        ((X.to("meta"),), r"expected a tensor on the CPU, got one on meta; move it with .cpu\(\)"),
        ((X[0],), r"expected 4 dimensions \(as \[2, 3, 32, 32\]\), got shape \[3, 32, 32\]"),
        ((X[:, :2],), r"expected 3 channels \(dimension 1"),
        ((X.numpy(),), "expected a torch tensor, got ndarray; torch.from_numpy makes one"),
        ((with_nan(7),), "NaN"),
    ],
)
def test_wrong_inputs_of_a_network_are_refused(net: TernaryNetwork, inputs: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        net(*inputs)


def test_input_smaller_than_the_kernel_is_refused() -> None:
    x = image(2, 3, 12, 12)
    net = convert(ready(chain_like(kernel=5), x), x)
    with pytest.raises(InputError, match="smaller than the kernel"):
        net(image(1, 3, 2, 9))


def test_image_size_that_does_not_fit_the_linear_layer_is_refused() -> None:
    x = image(2, 3, 13, 11)
    net = convert(ready(Vgg(), x), x)
    with pytest.raises(
        InputError, match=r"layer 'classifier.1': map .*expected 2x2 pixels.*got 7x7"
    ):
        net(image(2, 3, 33, 31))


def test_wrong_feature_count_in_the_last_dimension_is_refused() -> None:
    x = image(2, 7, 12)
    net = convert(ready(TokenMlp(), x), x)
    with pytest.raises(InputError, match=r"expected 12 channels \(dimension 2"):
        net(image(2, 7, 11))


def test_nan_made_by_a_torch_layer_is_refused() -> None:
    """The next quantizer raises; it does not turn the NaN into a code."""

    class SquareRoot(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(x)

    x = image(3, 33).abs()
    model = ready(nn.Sequential(SquareRoot(), Mlp()), x)
    net = convert(model, x)
    assert torch.equal(net(x), model(x))
    with pytest.raises(InputError, match="NaN"):
        net(-x)


class BranchesOnValues(nn.Module):
    """Branches on values of tensors, which neither torch.fx nor torch.export can capture."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(5):
            if float(x.sum()) > 0:
                x = self.fc(x)
        return x


def test_model_that_branches_on_values_is_refused() -> None:
    x = -image(2, 4).abs()
    x[0, 0] = 30.0
    torch.manual_seed(1)  # with these weights the model calls its layer
    model = nn.Sequential(nn.Linear(4, 4), BranchesOnValues())
    model = ready(model, x)
    with pytest.raises(
        ConversionError, match=r"cannot be captured. torch.fx: .*torch.export: .*Move Python"
    ):
        convert(model, x)


FAILING_CALLS: list[Callable[[], object]] = [
    lambda: convert(nn.Linear(2, 2), X),
    lambda: convert(ResNet(), None),
]


@pytest.mark.parametrize("call", FAILING_CALLS)
def test_every_error_is_a_fatnn_error(call: Callable[[], object]) -> None:
    with pytest.raises(FatnnError):
        call()
