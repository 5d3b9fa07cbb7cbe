"""Mistakes of people who are new to the library: each message names the way out."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import fatnn_rs
from fatnn_rs import ConfigError, InputError, TernaryConfig, convert, prepare

ALL = TernaryConfig(first="ternary", last="ternary")
X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.middle, self.last = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        y: Tensor = self.last(self.middle(self.features(image)).mean((2, 3)))
        return y


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("misuse") / "net"
    net = convert(prepare(Small(), ALL, X).eval(), X)
    fatnn_rs.save(net, path)
    sequence = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    sequence = prepare(sequence, ALL, torch.randn(4, 8)).eval()
    return net, fatnn_rs.load_numpy(path), convert(sequence, torch.randn(4, 8))


#: The input, and what torch's and NumPy's messages say; None: NumPy takes it.
INPUTS: list[tuple[Any, str, str | None]] = [
    (
        (X * 255).byte(),
        r"input 'image': expected torch.float32, got torch.uint8; .*\.float\(\).*divided by 255",
        r"input 'image': expected float32, got uint8; .*astype\('float32'\).*divided by 255",
    ),
    (
        X.permute(0, 2, 3, 1),
        r"input 'image': expected 3 channels .*got 16 .*channels seem to be last.*"
        r"x\.permute\(0, 3, 1, 2\)",
        r"input 'image': .*with 3 channels.*got \[4, 16, 16, 3\].*x\.transpose\(0, 3, 1, 2\)",
    ),
    (
        X[0],
        r"input 'image': expected 4 dimensions .*got shape \[3, 16, 16\]; add the batch.*x\[None\]",
        r"input 'image': expected 4 dimensions.*got \[3, 16, 16\]; add the batch.*x\[None\]",
    ),
    (
        X[0].permute(1, 2, 0),
        r"x\.permute\(2, 0, 1\)\[None\]",
        r"x\.transpose\(2, 0, 1\)\[None\]",
    ),
    (X[:, :1], "expected 3 channels.*got 1.*the model was made for", "the model was made for"),
    ([X[0], X[1]], "got list; give one tensor .torch.stack", "got list; convert.*numpy.asarray"),
]


@pytest.mark.parametrize("case", range(len(INPUTS)))
def test_wrong_images(nets: tuple[Any, Any, Any], case: int) -> None:
    net, without_torch, _ = nets
    x, message, other = INPUTS[case]
    with pytest.raises(InputError, match=message):
        net(x)
    with pytest.raises(InputError, match=other):
        without_torch(x.numpy() if isinstance(x, Tensor) else x)


def test_a_hint_repairs_the_call(nets: tuple[Any, Any, Any]) -> None:
    net, without_torch, _ = nets
    x = X.permute(0, 2, 3, 1)
    assert torch.equal(net(x.permute(0, 3, 1, 2)), net(X))
    image = np.ascontiguousarray(X[0].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(
        without_torch(image.transpose(2, 0, 1)[None]), without_torch(X[:1].numpy())
    )


def test_the_input_of_a_sequential_has_the_name_that_its_forward_has(
    nets: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    *_, net = nets
    with pytest.raises(InputError, match=r"input 'input': expected 8 channels"):
        net(torch.randn(4, 7))
    fatnn_rs.save(net, tmp_path / "net")
    without_torch = fatnn_rs.load_numpy(tmp_path / "net")
    assert [name for name, _ in without_torch.inputs] == ["input"]
    with pytest.raises(InputError, match=r"input 'input': expected 2 dimensions with 8 channels"):
        without_torch(np.zeros((4, 7), np.float32))


OTHERS: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (
        lambda net: prepare(Small(), X),  # type: ignore[arg-type]
        ConfigError,
        r"config must be a TernaryConfig, got Tensor; the order is prepare\(model, config",
    ),
    (
        lambda net: prepare(Small, ALL, X),  # type: ignore[type-var]
        ConfigError,
        "takes a torch.nn.Module, got Small; make an instance",
    ),
    (
        lambda net: convert(prepare(Small(), ALL, X).eval(), X.to("meta")),
        InputError,
        "example_inputs: expected tensors with values, got one on the meta device",
    ),
    (
        lambda net: fatnn_rs.save(net, "no/such/directory/net"),
        FileNotFoundError,
        r"the directory 'no/such/directory' does not exist; create it first",
    ),
]


@pytest.mark.parametrize("case", range(len(OTHERS)))
def test_wrong_calls(nets: tuple[Any, Any, Any], case: int) -> None:
    call, error, message = OTHERS[case]
    with pytest.raises(error, match=message):
        call(nets[0])


LAYERS: list[tuple[nn.Module, nn.Module, Tensor]] = [
    (nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), torch.randn(4, 8, 6, 6)),
    (nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), torch.randn(4, 8, 6, 6)),
    (nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), torch.randn(4, 8, 6, 6)),
    (nn.ConvTranspose2d(8, 6, 3), nn.BatchNorm2d(6), torch.randn(4, 8, 6, 6)),
    (nn.Linear(8, 8), nn.BatchNorm1d(8), torch.randn(4, 8)),
]


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("case", range(len(LAYERS)))
def test_batch_norm_is_not_fused_into_a_quantized_layer(case: int, trained: bool) -> None:
    layer, norm, x = copy.deepcopy(LAYERS[case])
    model = nn.Sequential(layer, norm, nn.ReLU())
    prepare(model, ALL, x)
    if trained:
        nn.init.uniform_(norm.weight)
        model.train()(x + 1)
    model.eval()
    expected = model(x)
    fuse: Any = functools.partial(
        fuse_conv_bn_eval, transpose=isinstance(layer, nn.ConvTranspose2d)
    )
    if isinstance(layer, nn.Linear):
        fuse = fuse_linear_bn_eval
    with pytest.raises(ConfigError, match=r"layer '0': its weight was replaced.*before prepare"):
        fuse(model[0], model[1])
    assert torch.equal(model(x), expected)


def test_other_weights_may_replace_those_of_a_quantized_layer() -> None:
    model = prepare(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), ALL, torch.randn(4, 8)).eval()
    model[0].weight = model[1].weight
    model[0].weight = nn.Parameter(torch.randn(8, 8))
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    copy.deepcopy(model).train()[0].weight = nn.Parameter(model[0].weight.detach() * 2)
