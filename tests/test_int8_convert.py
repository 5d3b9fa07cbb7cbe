"""Networks with int8 layers: exact conversion, files, verify and reports."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fatnn_rs
from fatnn_rs import (
    ConversionError,
    FormatError,
    InputError,
    _core,
)
from fatnn_rs.convert import convert, summary, verify
from fatnn_rs.nn import Int8Conv2d, Int8Linear, calibrate
from nets import Mlp, ResNet, Vgg, exact, image, ops_of, ready

INT8_FIRST_AND_LAST = {"first": "int8", "last": "int8"}


def test_resnet_with_int8_first_and_last_layer_converts_exactly(tmp_path: Path) -> None:
    x = image(2, 3, 32, 32)
    model = ready(ResNet(), x, **INT8_FIRST_AND_LAST)
    for float_layers in ("torch", "rust"):
        net = convert(model, x, float_layers)
        assert ops_of(net)[:4] == ["conv2d_int8", "batch_norm", "relu", "max_pool2d"]
        assert ops_of(net)[-1] == "linear_int8"
        ran = {node.name for segment in net.segments for node in segment.nodes}
        assert {node.name for node in net.graph.nodes if node.op.endswith("_int8")} <= ran
        report = verify(model, net, image(3, 3, 40, 33))
        assert report.codes_different == 0
        assert not report.not_compared
    assert verify(model, convert(model, x), x).identical
    fatnn_rs.save(net, tmp_path / "net")
    loaded = fatnn_rs.load(tmp_path / "net")
    assert verify(model, loaded, x).identical
    assert str(loaded.report) == str(convert(model, x).report)
    numpy = fatnn_rs.load_numpy(tmp_path / "net")
    assert numpy(x.numpy()).tobytes() == net(x).numpy().tobytes()
    assert numpy.report.layers_int8 == 2


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "between", [(), (nn.ReLU(),), (nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))]
)
def test_modules_after_an_int8_layer_convert_exactly(
    between: tuple[nn.Module, ...], channels_last: bool
) -> None:
    x = image(2, 3, 17, 15)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 5, 2, 2), *copy.deepcopy(between), nn.Conv2d(6, 9, 3), nn.Conv2d(9, 4, 1)
    )
    exact(ready(model, x, **INT8_FIRST_AND_LAST), x, (x[:1], image(1, 3, 14, 30)))


@pytest.mark.parametrize("groups", [1, 3])
def test_int8_conv1d_converts_exactly(groups: int) -> None:
    x = image(2, 6, 30)
    model = nn.Sequential(
        nn.Conv1d(6, 9, 5, stride=2, padding=3, dilation=2, groups=groups), nn.BatchNorm1d(9),
        nn.ReLU(),
        nn.Conv1d(9, 6, 3), nn.ReLU(), nn.Conv1d(6, 4, 3, padding=1),
    )  # fmt: skip
    exact(ready(model, x, **INT8_FIRST_AND_LAST), x, (image(1, 6, 41),))


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_uneven_and_reflect_padding_convert_exactly(mode: str) -> None:
    x = image(2, 3, 8, 9)
    padding: Any = "same" if mode == "zeros" else 2
    model = nn.Sequential(
        nn.Conv2d(3, 4, 4, padding=padding, padding_mode=mode), nn.ReLU(), nn.Conv2d(4, 4, 3)
    )
    exact(ready(model, x, first="int8"), x)


def test_mlp_with_int8_first_and_last_layer_converts_and_saves_exactly(tmp_path: Path) -> None:
    x = image(16, 33)
    model = ready(Mlp(), x, **INT8_FIRST_AND_LAST)
    net = exact(model, x, (image(1, 33), image(5, 33, seed=3) * 30))
    assert ops_of(net)[-1] == "linear_int8"
    assert len(net.segments) == 1
    fatnn_rs.save(net, tmp_path / "first")
    fatnn_rs.save(fatnn_rs.load(tmp_path / "first"), tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert np.array_equal(
        fatnn_rs.load_numpy(tmp_path / "first")(x.numpy()), model(x).detach().numpy()
    )


def _put(key: str, value: Any) -> Any:
    return lambda node, arrays: node.__setitem__(key, value)


def _attr(key: str, value: Any) -> Any:
    return lambda node, arrays: node["attrs"].__setitem__(key, value)


def _array(role: str, change: Any) -> Any:
    def apply(node: Any, arrays: Any) -> None:
        arrays[node["tensors"][role]] = np.ascontiguousarray(change(arrays[node["tensors"][role]]))

    return apply


WRONG_NODES: dict[str, tuple[Any, str]] = {
    "no step": (
        lambda node, arrays: arrays.pop(node["tensors"].pop("inv_step")),
        '"inv_step" is missing',
    ),
    "no scale": (
        lambda node, arrays: arrays.pop(node["tensors"].pop("scale")),
        '"scale" is missing',
    ),
    "zero step": (
        _array("inv_step", lambda a: a * 0),
        "inv_step must be positive and finite, got 0",
    ),
    "NaN for a step": (
        _array("inv_step", lambda a: a * np.float32("nan")),
        "inv_step must be positive",
    ),
    "two steps": (
        _array("inv_step", lambda a: np.repeat(a, 2)),
        r"inv_step must have shape \(1,\)",
    ),
    "short scale": (_array("scale", lambda a: a[1:]), r"scale must have shape \(8,\), got \[7\]"),
    "float weight": (_array("weight", lambda a: a.astype(np.float32)), "must be int8, got float32"),
    "flat weight": (_array("weight", lambda a: a[0]), "must have 4 dimensions"),
    "-128": (_array("weight", lambda a: np.full_like(a, -128)), "-128"),
    "three strides": (_attr("stride", [1, 1, 1]), '"stride" must have 2 numbers'),
    "zero dilation": (
        _attr("dilation", [0, 1]),
        '"dilation" must be at least 1',
    ),
    "groups": (_attr("groups", 3), "groups do not fit"),
    "an attribute too many": (_attr("layout", "any"), "expected the attributes"),
    "other op": (_put("op", "conv3d_int8"), "unknown op"),
    "two inputs": (_put("inputs", ["x", "x"]), "reads 2 values"),
}


@pytest.mark.parametrize("name", WRONG_NODES)
def test_wrong_int8_nodes_in_a_file_are_refused(name: str, tmp_path: Path) -> None:
    x = image(2, 3, 32, 32)
    net = convert(ready(ResNet(), x, first="int8"), x)
    fatnn_rs.save(net, tmp_path / "net")
    text, arrays, dtypes = _core.load(tmp_path / "net")
    graph = json.loads(text)
    change, says = WRONG_NODES[name]
    node = next(node for node in graph["nodes"] if node["op"] == "conv2d_int8")
    change(node, arrays)
    _core.save(tmp_path / "net", json.dumps(graph), arrays, dtypes)
    with pytest.raises(FormatError, match=says):
        fatnn_rs.load(tmp_path / "net")


def test_network_of_int8_layers_only_converts_and_verifies() -> None:
    x = image(4, 5)
    model = ready(
        nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), x, **INT8_FIRST_AND_LAST
    )
    net = convert(model, x)
    report = verify(model, net, x)
    assert report.identical
    assert report.codes_total == 0
    with pytest.raises(ConversionError, match="no code was compared"):
        verify(model, net, x[:0])
    layer = Int8Conv2d(3, 4, 3)
    x = image(2, 3, 5, 5)
    calibrate(layer, x)
    assert torch.equal(convert(layer.eval(), x)(x), layer(x))


def test_verify_finds_a_changed_int8_layer() -> None:
    x = image(2, 3, 32, 32)
    model = ready(ResNet(), x, **INT8_FIRST_AND_LAST)
    net = convert(model, x)
    with torch.no_grad():
        model.fc.act_quant.step.mul_(1.01)
    assert verify(model, net, x).max_abs_diff > 0
    with torch.no_grad():
        model.stem[0].weight.mul_(-1)
    assert verify(model, net, x).codes_different > 0


def test_verify_names_an_int8_layer_with_a_hook_as_not_compared() -> None:
    x = image(4, 33)
    model = ready(Mlp(), x, **INT8_FIRST_AND_LAST)
    model.fc3.register_forward_hook(lambda module, args, output: output * 2)
    report = verify(model, convert(model, x), x)
    assert report.not_compared == ("fc3",)
    assert not report.identical


def test_nan_input_is_refused() -> None:
    x = image(4, 33)
    model = ready(Mlp(), x, **INT8_FIRST_AND_LAST)
    net = convert(model, x)
    bad = x.clone()
    bad[2, 3] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        net(bad)
    with pytest.raises(InputError, match="NaN"):
        net.run_observed((bad,), lambda node, result, values: None)
    with pytest.raises(InputError, match="NaN"):
        convert(model, bad)


def test_uninitialised_int8_layer_is_refused() -> None:
    with pytest.raises(ConversionError, match=r"layer '0'.*never initialised"):
        convert(nn.Sequential(Int8Linear(3, 4)).eval(), image(2, 3))


def test_infinite_inputs_and_every_batch_size_are_exact() -> None:
    x = image(3, 3, 32, 32)
    model = ready(ResNet(), x, **INT8_FIRST_AND_LAST)
    net = convert(model, x)
    x[0, 0, 0, 0], x[1, 1, 5, 5] = torch.inf, -1e30
    expected = model(x)
    for batch in (x, x[:1], x[:0], x[1:]):
        assert torch.equal(net(batch), model(batch))
    assert torch.equal(net(x), expected)


def test_int8_network_runs_inside_torch_compile() -> None:
    x = image(2, 3, 13, 11)
    net = convert(ready(Vgg(), x, **INT8_FIRST_AND_LAST), x)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), net(x))


def test_nodes_run_separately_give_the_bits_of_the_segment() -> None:
    x = image(2, 3, 32, 32)
    net = convert(ready(ResNet(), x, **INT8_FIRST_AND_LAST), x)
    assert torch.equal(net.run_observed((x,), None), net(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.run_observed((x,), None), net(x))


def test_report_and_summary_count_int8_layers() -> None:
    x = image(2, 3, 13, 11)
    plain = Vgg()
    model = ready(copy.deepcopy(plain), x, **INT8_FIRST_AND_LAST)
    net = convert(model, x)
    report = net.report
    assert report.layers_int8 == 2
    assert report.bytes_int8 == 10 * 27 + 5 * 20
    assert report.macs_int8 == 2 * (13 * 11 * 10 * 27 + 100)
    assert "2 int8 layers: " in str(report)
    assert '"macs_int8"' in report.to_json()
    tables = [summary(m, x) for m in (plain, model, net)]
    assert len({table.macs for table in tables}) == 1
    for table in tables[1:]:
        assert (
            [row.weight_bits for row in table.rows]
            == [row.act_bits for row in table.rows]
            == [8, 2, 2, 2, 8]
        )
        assert "of them int8" in str(table)
    assert tables[2].rows[0].kernel == f"rust {fatnn_rs.cpu_info()['int8_kernels'][0]}"
    assert tables[2].rows[0].bytes == 10 * 27 + 4 * (10 + 10 + 1)
    assert tables[1].rows[0].bytes == 10 * 27 + 4 * 10
