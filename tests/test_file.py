"""The file format: round trips, and files that are damaged or wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fatnn_rs import ConversionError, FormatError, InputError, UnsupportedError, _core
from fatnn_rs.convert import TernaryNetwork, convert, load, save, verify
from nets import MODELS, Mlp, ResNet, image, ready


@pytest.fixture(scope="module")
def net() -> TernaryNetwork:
    x = image(2, 3, 32, 32)
    return convert(ready(ResNet(), x, first="float", last="float"), x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", sorted(set(MODELS) - {"two inputs"}))
def test_saved_network_loads_and_saves_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    make, inputs, _ = MODELS[name]
    model = ready(make(), inputs)
    made = convert(model, inputs)
    first, second = tmp_path / "first", tmp_path / "second"
    save(made, first)
    loaded = load(first)
    save(loaded, second)
    assert first.read_bytes() == second.read_bytes()
    assert verify(model, loaded, inputs).identical
    assert str(loaded.report) == str(made.report)


def test_converting_a_model_twice_saves_the_same_bytes(tmp_path: Path) -> None:
    x = image(4, 33)
    model = ready(Mlp(), x)
    for name in ("first", "second"):
        save(convert(model, x), tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_loaded_network_keeps_the_output_structure(tmp_path: Path) -> None:
    class Structured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            y = self.fc(x)
            return {"a": (y, [x, y]), "b": {"c": None, "d": 3}}

    x = image(2, 4)
    model = ready(Structured(), x)
    save(convert(model, x), tmp_path / "net")
    result, expected = load(str(tmp_path / "net"))(x), model(x)
    assert torch.equal(result["a"][0], expected["a"][0])
    assert isinstance(result["a"], tuple)
    assert isinstance(result["a"][1], list)
    assert result["b"] == {"c": None, "d": 3}


def test_file_packs_five_ternary_weights_into_a_byte(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(1000, 500, bias=False), nn.BatchNorm1d(500))
    x = image(4, 1000)
    save(convert(ready(model, x), x), tmp_path / "net")
    size = (tmp_path / "net").stat().st_size
    assert 100_000 <= size <= 100_000 + 500 * 8 + 3000


def test_file_holds_plain_tensors_and_no_kernel_layout(net: TernaryNetwork, tmp_path: Path) -> None:
    save(net, tmp_path / "net")
    _, arrays, dtypes = _core.load(str(tmp_path / "net"))
    assert dtypes == net.graph.dtypes
    assert set(arrays) == set(net.graph.tensors)
    assert {str(array.dtype) for array in arrays.values()} <= {"float32", "int32", "int8"}
    for name, array in arrays.items():
        assert np.array_equal(array, net.graph.tensors[name].numpy())


@pytest.fixture(scope="module")
def written(net: TernaryNetwork, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("file") / "net"
    save(net, path)
    return path.read_bytes()


def assert_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(FormatError):
        load(path)


def test_truncated_file_is_refused(written: bytes, tmp_path: Path) -> None:
    for size in (0, 1, 7, 8, 9, 100, len(written) // 2, len(written) - 1):
        assert_refused(written[:size], tmp_path)
    assert_refused(written + b"\0", tmp_path)


def test_file_with_a_flipped_bit_is_refused(written: bytes, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    offsets = sorted(
        {*range(12), *generator.integers(0, len(written), 200).tolist(), len(written) - 1}
    )
    for offset in offsets:
        content = bytearray(written)
        content[offset] ^= 1 << int(generator.integers(0, 8))
        assert_refused(bytes(content), tmp_path)


def test_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    assert_refused(b"PK\x03\x04" + bytes(1000), tmp_path)
    assert_refused(b"\x80\x04\x95" + bytes(1000), tmp_path)
    assert_refused(bytes(range(256)) * 8, tmp_path)


def test_safetensors_file_of_another_program_is_refused(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"weight": np.zeros((3, 3), np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(FormatError):
        load(tmp_path / "other.safetensors")


def test_file_of_a_later_version_is_refused_as_such(written: bytes, tmp_path: Path) -> None:
    header_size = int.from_bytes(written[:8], "little")
    header = json.loads(written[8 : 8 + header_size])
    metadata = header["__metadata__"]
    inner = json.loads(metadata["fatnn-rs"])
    assert inner["version"] == _core.FORMAT_VERSION
    inner["version"] += 1
    metadata["fatnn-rs"] = json.dumps(inner)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "later"
    path.write_bytes(len(text).to_bytes(8, "little") + text + written[8 + header_size :])
    with pytest.raises(
        FormatError,
        match=r"expected version 2 .*\(or 1\), got 3; .*convert and save the model again",
    ):
        load(path)


def edited(net: TernaryNetwork, tmp_path: Path, change: Any) -> Path:
    """Save a changed graph with a valid checksum; return the file."""
    path = tmp_path / "edited"
    save(net, path)
    text, arrays, dtypes = _core.load(str(path))
    graph = json.loads(text)
    result = change(graph, arrays)
    dtypes = {name: dtype for name, dtype in dtypes.items() if arrays[name].dtype == np.int8}
    text = result if isinstance(result, str) and result in ("{", "[]") else json.dumps(graph)
    _core.save(str(path), text, arrays, dtypes)
    return path


def node(graph: dict[str, Any], op: str) -> dict[str, Any]:
    return next(n for n in graph["nodes"] if n["op"] == op)


def _put(op: str, key: str, value: Any) -> Any:
    return lambda graph, arrays: node(graph, op).__setitem__(key, value)


def _attr(op: str, key: str, value: Any) -> Any:
    return lambda graph, arrays: node(graph, op)["attrs"].__setitem__(key, value)


def _array(op: str, role: str, change: Any) -> Any:
    def apply(graph: Any, arrays: Any) -> None:
        name = node(graph, op)["tensors"][role]
        arrays[name] = np.ascontiguousarray(change(arrays[name]))

    return apply


def _dtype(op: str, **change: Any) -> Any:
    return lambda graph, arrays: node(graph, op)["dtype"].update(change)


WRONG_GRAPHS: dict[str, tuple[Any, str]] = {
    "not JSON": (lambda graph, arrays: "{", "not JSON"),
    "a list": (lambda graph, arrays: "[]", "the graph is no object"),
    "unknown op": (_put("conv_codes", "op", "exec"), 'unknown op "exec"'),
    "torch op": (_put("relu", "op", "torch"), 'unknown op "torch"'),
    "the engine's own op": (_put("relu", "op", "affine"), 'unknown op "affine"'),
    "no nodes": (lambda graph, arrays: graph.__setitem__("nodes", []), "not empty"),
    "unknown key": (lambda graph, arrays: graph.update(extra=1), "must hold nodes, outputs, notes"),
    "unknown output": (
        lambda graph, arrays: graph.__setitem__("outputs", {"value": "nowhere"}),
        "no node is named",
    ),
    "codes as output": (
        lambda graph, arrays: graph.__setitem__(
            "outputs", {"value": node(graph, "quantize")["name"]}
        ),
        "got the codes of",
    ),
    "reads the future": (
        lambda graph, arrays: node(graph, "quantize").__setitem__(
            "inputs", [graph["nodes"][-1]["name"]]
        ),
        "which no node before it makes",
    ),
    "reads floats for codes": (
        _put("conv_codes", "inputs", ["x"]),
        "input 0: expected codes, got floats",
    ),
    "reads nothing": (_put("relu", "inputs", []), "reads 0 values"),
    "same name": (
        lambda graph, arrays: graph["nodes"].append(dict(graph["nodes"][-1])),
        "not unique",
    ),
    "missing tensor": (
        lambda graph, arrays: node(graph, "conv_codes")["tensors"].__setitem__("weight", "nothing"),
        'tensor "nothing" is missing',
    ),
    "missing role": (
        lambda graph, arrays: node(graph, "conv_codes")["tensors"].pop("thresholds"),
        "is missing",
    ),
    "unread tensor": (
        lambda graph, arrays: arrays.__setitem__("extra", np.zeros(1, np.float32)),
        "no node uses the tensors",
    ),
    "wrong dtype": (
        _array("conv_codes", "thresholds", lambda a: a.astype(np.float32)),
        "must be int32, got float32",
    ),
    "wrong shape": (_array("conv_codes", "thresholds", lambda a: a[:, :-1]), "must have shape"),
    "wrong rank": (_array("conv_codes", "weight", lambda a: a[0]), "must have 4 dimensions"),
    "falling thresholds": (
        _array("conv_codes", "thresholds", lambda a: a[::-1].copy()),
        "must not fall",
    ),
    "falling steps": (_array("quantize", "steps", lambda a: a[::-1]), "must not fall"),
    "no steps": (_array("quantize", "steps", lambda a: a * np.float32("nan")), "must not fall"),
    "wrong kernel": (_attr("conv_codes", "kernel", [1, 1]), "disagree"),
    "wrong groups": (_attr("conv_codes", "groups", 3), "groups do not fit"),
    "zero groups": (_attr("quantize", "groups", 0), '"groups" must be at least 1'),
    "wrong channels": (_attr("quantize", "channels", 7), r"makes ternary codes of \(7, 1\)"),
    "unknown activations": (_attr("conv_codes", "act", "uint4"), 'unknown activations "uint4"'),
    "activations of another kind": (
        _attr("conv_codes", "act", "uint2"),
        r"reads ternary codes of .* wants two-bit codes of",
    ),
    "binary steps that are reached": (
        _attr("quantize", "act", "binary"),
        "steps of binary codes must end with infinity",
    ),
    "binary codes from ternary ones": (
        _attr("conv_float", "act", "binary"),
        r"reads ternary codes of .* \(channels, groups\), wants binary codes",
    ),
    "too few steps": (_attr("quantize", "act", "uint2"), r"steps must have shape \(3,\)"),
    "one more row of thresholds": (
        _array("conv_codes", "thresholds", lambda a: np.concatenate([a, a[1:]])),
        "makes two-bit codes of .* but its dtype says ternary codes of",
    ),
    "four rows of thresholds": (
        _array("conv_codes", "thresholds", lambda a: np.concatenate([a, a])),
        r"must have shape \(2, .*\) or \(3, ",
    ),
    "zero stride": (_attr("conv_codes", "stride", [0, 1]), '"stride" must be at least 1'),
    "huge padding": (_attr("conv_codes", "padding", [1 << 40, 0]), '"padding" must be list'),
    "float stride": (_attr("conv_codes", "stride", [1.5, 1]), '"stride" must be list'),
    "bool for int": (_attr("conv_codes", "out_groups", True), '"out_groups" must be int'),
    "text for number": (_attr("batch_norm", "eps", "1"), '"eps" must be float'),
    "unknown attribute": (_attr("relu", "slope", 1), "expected the attributes"),
    "unknown field": (_put("relu", "code", "import os"), "unknown fields"),
    "unknown layout": (_attr("conv2d", "layout", "diagonal"), "unknown layout"),
    "unknown layout of an input": (_attr("input", "layout", "diagonal"), "unknown layout"),
    "an order with a dimension twice": (
        _attr("input", "layout", "order:0,2,2,1"),
        "unknown layout",
    ),
    "unknown dtype": (_put("input", "dtype", "load"), 'unknown dtype "load"'),
    "dtype as an attribute": (_attr("input", "dtype", "float32"), "expected the attributes"),
    "codes as an input": (
        _put("input", "dtype", {"codes": "ternary", "channels": 3, "groups": 1}),
        "an input cannot be ternary codes",
    ),
    "an input of integers": (
        _put("input", "dtype", "int64"),
        "expected floats, got int64",
    ),
    "no dtype": (lambda graph, arrays: node(graph, "relu").pop("dtype"), '"dtype" must be there'),
    "another dtype": (_put("relu", "dtype", "int8"), "makes floats, but its dtype says int8"),
    "floats for codes": (
        _put("quantize", "dtype", "float32"),
        "makes ternary codes .* but its dtype says floats",
    ),
    "codes of another kind": (
        _dtype("conv_codes", codes="two-bit"),
        "makes ternary codes .* says two-bit codes",
    ),
    "codes of no kind": (_dtype("conv_codes", codes="four"), 'unknown codes "four"'),
    "codes of other channels": (_dtype("quantize", channels=9), r"says ternary codes of \(9, 1\)"),
    "codes of other groups": (_dtype("conv_codes", groups=2), "says ternary codes of .*2"),
    "dtype with more in it": (_dtype("quantize", extra=1), '"dtype" must be a name, or an object'),
    "half_range of version 1": (_attr("conv_codes", "half_range", True), "expected the attributes"),
    "no act": (
        lambda graph, arrays: node(graph, "conv_codes")["attrs"].pop("act"),
        "expected the attributes",
    ),
    "weights that are no codes": (
        _array("conv_codes", "weight", lambda a: a.astype(np.float32)),
        "must be binary, ternary or two-bit, got float32",
    ),
    "negative shape": (_put("relu", "shape", [-1]), '"shape" must be'),
}


@pytest.mark.parametrize("name", WRONG_GRAPHS)
def test_wrong_graph_with_a_valid_checksum_is_refused(
    name: str, net: TernaryNetwork, tmp_path: Path
) -> None:
    change, says = WRONG_GRAPHS[name]
    with pytest.raises(FormatError, match=says):
        load(edited(net, tmp_path, change))


@pytest.mark.parametrize(
    ("strides", "says"),
    [
        ([1, 2], "strides must be an object of lists of integers"),
        ({"{}": 1}, "strides must be an object of lists"),
        ({"{}": [-1, 1, 1, 1]}, "strides must be an object of lists"),
        ({"{}": [1 << 64, 1, 1, 1]}, "strides must be an object of lists"),
        ({"nowhere": [1]}, '"nowhere" has 1 strides, but no tensor of that name'),
        ({"{}": [1, 1]}, "has 2 strides, but 4 dimensions"),
        # Elements that share memory, different elements at one place, gaps that fill the memory.
        ({"{}": [1, 1, 1, 1]}, r"strides: \[1, 1, 1, 1\] do not fit"),
        ({"{}": [27, 9, 3, 0]}, r"strides: \[27, 9, 3, 0\] do not fit"),
        ({"{}": [1 << 60, 9, 3, 1]}, "do not fit .* of shape .*; get the file again"),
    ],
)
def test_wrong_strides_are_refused(
    strides: Any, says: str, net: TernaryNetwork, tmp_path: Path
) -> None:
    def change(graph: dict[str, Any], arrays: Any) -> None:
        weight = node(graph, "conv2d")["tensors"]["weight"]
        graph["strides"] = json.loads(json.dumps(strides).replace("{}", weight))

    with pytest.raises(FormatError, match=says):
        load(edited(net, tmp_path, change))


def test_tensor_values_must_fit_their_dtype(net: TernaryNetwork, tmp_path: Path) -> None:
    path = tmp_path / "net"
    save(net, path)
    text, arrays, dtypes = _core.load(path)
    name = next(iter(dtypes))
    for kind, bad, got in (("binary", 0, 0), ("ternary", 2, 2), ("two-bit", 2, 2)):
        array = np.ones(arrays[name].shape, np.int8)
        array.flat[7] = bad
        says = rf'tensor "{name}": values: expected {kind} weights, .* got {got} at element 7'
        with pytest.raises(InputError, match=says):
            _core.save(path, text, {**arrays, name: array}, {**dtypes, name: kind})
        with pytest.raises(
            FormatError, match=rf'tensor "{name}", its weight: values: expected {kind} .*element 7'
        ):
            _core.check_graph(text, {**arrays, name: array}, {**dtypes, name: kind})
    plain = {key: dtype for key, dtype in dtypes.items() if key != name}
    with pytest.raises(FormatError, match="must be binary, ternary or two-bit, got int8"):
        _core.check_graph(text, arrays, plain)
    for wrong, says in (
        (
            {name: "codes"},
            'expected float32, int32, int64, int8, bool, binary, ternary or two-bit, got "codes"',
        ),
        ({"nowhere": "ternary"}, 'expected names of tensors, got "nowhere"'),
        ({name: "int32"}, 'expected an array of int32 for dtype "int32", got int8'),
    ):
        with pytest.raises(InputError, match=says):
            _core.save(path, text, arrays, {**dtypes, **wrong})
    _core.save(
        path,
        text,
        arrays,
        {**dtypes, **{key: str(a.dtype) for key, a in arrays.items() if key not in dtypes}},
    )
    assert _core.load(path)[2] == dtypes


def test_ternary_weights_without_zeros_are_stored_as_binary(tmp_path: Path) -> None:
    x = image(2, 3, 8, 8)
    model = ready(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3)), x)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.where(torch.rand(layer.weight.shape) < 0.5, -1.0, 1.0))
        model[2].weight.view(-1)[::7] = 0.0
    net = convert(model, x)
    found = {
        node.layer: net.graph.dtype(node, "weight")
        for node in net.graph.nodes
        if "weight" in node.tensors
    }
    assert found == {"0": "binary", "2": "ternary"}
    assert [row.packed_bytes for row in net.report.rows if row.packed_bytes] == [
        -(-135 // 8),
        -(-180 // 5),
    ]
    save(net, tmp_path / "net")
    assert load(tmp_path / "net").graph.dtypes == net.graph.dtypes
    assert verify(model, load(tmp_path / "net"), x).identical


def test_every_memory_format_of_an_input_loads(net: TernaryNetwork, tmp_path: Path) -> None:
    for layout in ("any", "contiguous", "channels_last", "order:0,3,1,2"):
        path = edited(net, tmp_path, _attr("input", "layout", layout))
        assert load(path).graph.nodes[0].attrs["layout"] == layout


def test_save_refuses_modules_that_run_python(tmp_path: Path) -> None:
    x = image(2, 4)
    model = ready(nn.Sequential(nn.Linear(4, 5), nn.CELU(0.5), nn.Linear(5, 3)), x)
    with pytest.raises(UnsupportedError, match=r"1 \(CELU\) run Python code"):
        save(convert(model, x), tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_save_refuses_what_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="got Linear"):
        save(nn.Linear(2, 2), tmp_path / "net")  # type: ignore[arg-type]


def test_missing_files_and_directories_raise_os_errors(net: TernaryNetwork, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        save(net, tmp_path / "nowhere" / "net")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions and links")
def test_save_keeps_links_and_permissions_and_refuses_special_files(tmp_path: Path) -> None:
    x = image(2, 3, 8, 8)
    net = convert(ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), x), x)
    path, link = tmp_path / "net", tmp_path / "link"
    umask = os.umask(0o027)
    try:
        save(net, path)
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o604)
    link.symlink_to(path)
    path.write_bytes(b"")
    save(net, link)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o604
    assert torch.equal(load(path)(x), net(x))
    os.mkfifo(tmp_path / "pipe")
    for special in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match=r"regular file|directory"):
            save(net, special)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "net", "pipe"]
