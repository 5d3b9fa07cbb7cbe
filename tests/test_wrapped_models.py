"""Patched, hooked, wrapped and traced models, and torch's global modes."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fatnn_rs
from fatnn_rs import UnsupportedError
from fatnn_rs.convert import TernaryNetwork, convert, verify
from fatnn_rs.nn import QuantizedLayer, calibrate
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
    accelerate.state.AcceleratorState._reset_state()  # of other tests in this process
    prepared = (
        accelerate.Accelerator(cpu=True, mixed_precision="bf16")
        .prepare_model(copy.deepcopy(model))
        .eval()
    )
    net = convert(prepared, X)
    assert torch.equal(net(X), expected)


def _in_ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def _compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


#: Each returns a wrapper around a model, and shares its layers.
WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DistributedDataParallel": _in_ddp,
    "DataParallel": nn.DataParallel,
    "compile": lambda model: torch.compile(model, backend="eager"),
    "compile in place": _compiled_in_place,
    "compiled and parallel": lambda model: torch.compile(_in_ddp(model), backend="eager"),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("how", WRAPPERS)
def test_every_function_takes_a_wrapped_model(how: str) -> None:
    model = ready(Plain(), X)
    expected = model(X)
    wrapped = WRAPPERS[how](model).eval()
    net = convert(wrapped, X)
    assert torch.equal(net(X), expected)
    assert verify(wrapped, net, X).identical
    assert [row.name for row in fatnn_rs.summary(wrapped, X).rows] == ["a", "b"]
    calibrate(wrapped, X)
    layers = [m for m in wrapped.modules() if isinstance(m, QuantizedLayer)]
    assert sorted(layer.layer_name for layer in layers) == ["a", "b"]
    fatnn_rs.convert_submodule(wrapped, "a", X)
    assert isinstance(wrapped.get_submodule(_full_name(wrapped, "a")), TernaryNetwork)
    with torch.no_grad():
        assert torch.equal(wrapped(X), expected)


def _full_name(model: nn.Module, last: str) -> str:
    return next(name for name, _ in model.named_modules() if name.split(".")[-1] == last)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("how", WRAPPERS)
def test_a_wrapped_float_model_is_prepared_or_refused_in_words(how: str) -> None:
    wrapped = WRAPPERS[how](Plain()).eval()
    ternary = fatnn_rs.TernaryConfig(first="ternary", last="ternary")
    assert fatnn_rs.explain(wrapped, X, ternary).layers_ternary == 2
    assert len(fatnn_rs.summary(wrapped, X).rows) == 2
    if how in ("DataParallel", "compile in place"):
        fatnn_rs.prepare(wrapped, ternary, X)
        before = wrapped(X)
        assert torch.equal(convert(wrapped, X)(X), before)
        return
    with pytest.raises(fatnn_rs.ConfigError, match=r"the model is a.*prepare the model"):
        fatnn_rs.prepare(wrapped, ternary, X)


def test_a_layer_compiled_in_place_is_refused_by_name() -> None:
    model = Plain().eval()
    model.a.compile(backend="eager")
    with pytest.raises(fatnn_rs.ConfigError, match=r"layer 'a': .*compile it after prepare"):
        ready(model, X)


def test_models_fused_by_torch_are_plain_models() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(model.eval()[0], model[1])
    model = ready(nn.Sequential(fused, nn.ReLU(), model[3]), X)
    assert torch.equal(convert(model, X)(X), model(X))


class NoAutocast(TwoConvs):
    """Turns autocast off, also in a region in another one; torch.export makes calls of these."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Buffer(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            y = self.both(x) + self.offset
            with torch.autocast("cuda", enabled=False):
                y, z = y.relu(), y * 2.0
        return y + z if x.shape[1] == 4 else y


def test_regions_without_autocast_are_plain_code(tmp_path: Path) -> None:
    model = ready(NoAutocast(), X)
    net = convert(model, X)
    assert any("captured by torch.export" in note for note in net.graph.notes)
    fatnn_rs.save(net, tmp_path / "net")
    assert torch.equal(fatnn_rs.load(tmp_path / "net")(X), model(X))


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
