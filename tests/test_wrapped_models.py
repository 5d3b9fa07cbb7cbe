"""Patched, hooked, wrapped and traced models, and torch's global modes."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fatnn_rs
from fatnn_rs import UnsupportedError
from fatnn_rs.convert import TernaryNetwork, convert, verify
from nets import ResNet, TwoConvs, image, ready

X = image(4, 4, 6, 6)


def test_replaced_forward_of_a_layer_is_honoured() -> None:
    model = ready(
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3)), X
    )
    old = model[1].forward
    model[1].forward = lambda t: old(t) * 0.5
    net = convert(model, X)
    assert torch.equal(net(X), model(X))
    assert any("forward was replaced on the instance" in row.note for row in net.report.rows)
    relu = model[2].forward
    model[2].forward = functools.partial(lambda f, t: f(t) + 1.0, relu)
    assert torch.equal(convert(model, X)(X), model(X))


def test_replaced_forward_of_a_container_is_honoured() -> None:
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 3), inner, nn.Conv2d(4, 4, 3)), X)
    old = inner.forward
    model[1].forward = lambda t: old(t) * 0.5
    assert torch.equal(convert(model, X)(X), model(X))


def test_replaced_run_and_conv_forward_are_honoured() -> None:
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), X)
    own = model[1]._run
    model[1]._run = lambda *args: own(*args) + 1.0
    assert torch.equal(convert(model, X)(X), model(X))

    class Louder(nn.Conv2d):
        def _conv_forward(self, *args: Any) -> Tensor:
            return super()._conv_forward(*args) * 2.0

    model = ready(nn.Sequential(Louder(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)), X)
    assert torch.equal(convert(model, X)(X), model(X))


def test_replaced_forward_of_the_model_is_honoured() -> None:
    model = ready(Plain(), X)
    old = model.forward
    model.forward = lambda x: old(x) * 0.5
    net = convert(model, X)
    assert torch.equal(net(X), model(X))


def test_forward_hook_of_the_model_is_honoured() -> None:
    model = ready(Plain(), X)
    handle = model.register_forward_hook(lambda module, args, output: output * 3.0)
    assert torch.equal(convert(model, X)(X), model(X))
    handle.remove()


def test_accelerate_hook_of_a_layer_is_honoured() -> None:
    hooks = pytest.importorskip("accelerate.hooks")

    class Doubles(hooks.ModelHook):
        def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
            return output * 2.0

    model = ready(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)), X)
    hooks.add_hook_to_module(model[1], Doubles())
    assert torch.equal(convert(model, X)(X), model(X))


def test_wrapped_models_convert_to_the_same_network() -> None:
    model = ready(Plain(), X)
    expected = model(X)
    averaged = torch.optim.swa_utils.AveragedModel(model).eval()
    for wrapped in (nn.DataParallel(model), averaged, torch.compile(model), copy.deepcopy(model)):
        assert torch.equal(convert(wrapped, X)(X), expected)
        assert verify(wrapped, convert(wrapped, X), X).identical
    accelerate = pytest.importorskip("accelerate")
    prepared = (
        accelerate.Accelerator(cpu=True, mixed_precision="bf16")
        .prepare_model(copy.deepcopy(model))
        .eval()
    )
    net = convert(prepared, X)
    assert torch.equal(net(X), expected)


class Plain(TwoConvs):
    def forward(self, x: Tensor) -> Tensor:
        return self.both(x)


@pytest.fixture(scope="module")
def net() -> TernaryNetwork:
    return convert(ready(Plain(), X, first="float"), X)


@pytest.mark.filterwarnings("ignore")  # torch warns that some tracers are deprecated
def test_tracing_a_converted_network_is_refused(net: TernaryNetwork) -> None:
    around = nn.Sequential(net).eval()
    calls: dict[str, Any] = {
        r"torch.jit.trace": lambda m: torch.jit.trace(m, X),
        r"torch.fx": lambda m: torch.fx.symbolic_trace(m),
        r"torch.func": lambda m: torch.vmap(m)(X[None]),
        r"torch.func ": lambda m: torch.func.jvp(m, (X,), (X,)),
        r"torch.export": lambda m: torch.export.export(m, (X,), strict=False),
        r"torch.jit.script": lambda m: torch.jit.script(m),
    }
    for who, call in calls.items():
        for module in (net, around):
            with pytest.raises(UnsupportedError, match=f"{who.strip()}.*cannot"):
                call(module)
    with pytest.raises(UnsupportedError, match=r"fatnn_rs.save"):
        torch.onnx.export(net, (X,), io.BytesIO(), dynamo=False)


def test_state_dict_is_refused_and_pickle_works(net: TernaryNetwork) -> None:
    for call in (net.state_dict, nn.Sequential(net).state_dict):
        with pytest.raises(UnsupportedError, match=r"no state dict.*fatnn_rs.save"):
            call()
    for call in (net.load_state_dict, nn.Sequential(net).load_state_dict):
        with pytest.raises(UnsupportedError, match=r"takes no state dict.*fatnn_rs.load"):
            call({})
    assert torch.equal(pickle.loads(pickle.dumps(net))(X), net(X))


def test_autocast_does_not_change_results(net: TernaryNetwork) -> None:
    model = ready(nn.Sequential(Plain(), Plain()), X, first="float", last="float")
    expected = model(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(convert(model, X)(X), expected)
    net = convert(model, X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(X), expected)


@pytest.mark.parametrize("kind", ["dtype", "device", "inference"])
def test_torch_defaults_and_inference_mode_do_not_change_results(kind: str, tmp_path: Path) -> None:
    model = ready(ResNet(), image(2, 3, 32, 32), first="float", last="int8")
    x = image(2, 3, 32, 32)
    expected = model(x)

    def convert_and_use() -> None:
        net = convert(model, x)
        assert torch.equal(net(x), expected)
        assert torch.equal(copy.deepcopy(net)(x), expected)
        assert verify(model, net, x).identical
        fatnn_rs.save(net, tmp_path / "net")
        assert torch.equal(fatnn_rs.load(tmp_path / "net")(x), expected)
        fatnn_rs.summary(net, x)

    if kind == "inference":
        with torch.inference_mode():
            convert_and_use()
        return
    try:
        if kind == "dtype":
            torch.set_default_dtype(torch.float64)
        else:
            torch.set_default_device("meta")
        convert_and_use()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
