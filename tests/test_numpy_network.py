"""Saved networks run on NumPy arrays, with the same bits, in a process without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fatnn_rs as fatnn
from fatnn_rs import _core
from fatnn_rs.numpy_network import NumpyNetwork, read_report
from nets import MODELS, Functional, ResNet, TokenMlp, image, ready


class TwoInputsAndStructure(nn.Module):
    """Two inputs, and outputs in a structure with a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = (
            nn.Conv2d(4, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 5, 1),
        )

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        x, y = torch.relu(self.bn(self.conv(x))), torch.relu(self.bn(self.conv(y)))
        return {"z": self.head(x), "all": (y, [x], 3), "none": None}


def saved(model: nn.Module, inputs: Any, path: Path) -> Path:
    fatnn.save(fatnn.convert(ready(model, inputs), inputs), path)
    return path


def same_bits(found: Any, expected: Any) -> bool:
    """Whether structures are equal, and arrays have the bits of the expected tensors."""
    if isinstance(expected, Tensor):
        array: np.ndarray[Any, Any] = found
        contiguous = array.flags.c_contiguous and array.dtype == np.float32
        return (
            contiguous
            and array.shape == tuple(expected.shape)
            and array.tobytes() == expected.numpy().tobytes()
        )
    if isinstance(expected, dict):
        return expected.keys() == found.keys() and all(
            same_bits(found[key], expected[key]) for key in expected
        )
    if isinstance(expected, (list, tuple)):
        pairs = zip(found, expected, strict=True)
        return type(found) is type(expected) and all(same_bits(a, b) for a, b in pairs)
    return bool(found == expected) and type(found) is type(expected)


#: Networks of ``nets.MODELS`` whose every operation the engine has.
RUST_ONLY_MODELS = ("resnet", "preactivation", "vgg", "branching", "one dimension", "mlp", "mobile")


@pytest.mark.parametrize("name", RUST_ONLY_MODELS)
def test_numpy_network_gives_the_bits_of_the_torch_network(name: str, tmp_path: Path) -> None:
    model, x, others = MODELS[name]
    path = saved(model(), x, tmp_path / "net.safetensors")
    net, expected = fatnn.load_numpy(path), fatnn.load(path, float_layers="rust")
    for batch in (x, *others, x[:1], x[:0]):
        assert same_bits(net(batch.numpy()), expected(batch))
    last = x.repeat(2, *[1] * (x.dim() - 1)).transpose(1, -1).contiguous().transpose(1, -1)
    assert same_bits(net(last.numpy()), expected(last))  # the same values with other strides
    assert [shape for _, shape in net.inputs] == [tuple(x.shape)]
    assert str(net.report) == str(expected.report)


def test_output_structure_is_kept(tmp_path: Path) -> None:
    inputs = (image(2, 4, 6, 6), image(2, 4, 5, 7))
    path = saved(TwoInputsAndStructure(), inputs, tmp_path / "net.safetensors")
    net, expected = fatnn.load_numpy(path), fatnn.load(path, float_layers="rust")(*inputs)
    found = net(*(x.numpy() for x in inputs))
    assert sorted(found) == ["all", "none", "z"]
    assert same_bits(found, expected)
    assert [shape for _, shape in net.inputs] == [(2, 4, 6, 6), (2, 4, 5, 7)]
    assert "NumpyNetwork(x [2, 4, 6, 6], y [2, 4, 5, 7]; " in repr(net)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(
        ResNet(), image(2, 3, 32, 32), tmp_path_factory.mktemp("numpy") / "net.safetensors"
    )


@pytest.fixture(scope="module")
def torch_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with an operation on five dimensions, which only torch runs."""

    class Five(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.prelu = nn.PReLU(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.prelu(self.conv(x).unsqueeze(2)).flatten(1)

    return saved(
        Five(), image(2, 3, 12, 12), tmp_path_factory.mktemp("numpy") / "torch_only.safetensors"
    )


NAN = np.full((1, 3, 32, 32), np.nan, np.float32)
ZEROS = np.zeros((1, 3, 32, 32), np.float32)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ((), r"takes 1 argument\(s\) \(x\), and 'x' is missing"),
        ((ZEROS, ZEROS), "got 2"),
        (
            (ZEROS.astype(np.float64),),
            r"input 'x': expected float32, got float64; .*astype\('float32'\)",
        ),
        ((ZEROS.astype(">f4"),), "expected float32, got >f4"),
        ((ZEROS.tolist(),), r"expected a NumPy array, got list; .*numpy.asarray"),
        ((torch.zeros(1, 3, 32, 32),), "expected a NumPy array, got Tensor"),
        (
            (ZEROS[0],),
            r"expected 4 dimensions with 3 channels, as \[2, 3, 32, 32\], got \[3, 32, 32\]",
        ),
        ((np.float32(1.0)[None][0:0],), "expected 4 dimensions"),
        ((ZEROS[:, :2],), r"3 channels.*got \[1, 2, 32, 32\]"),
        ((NAN,), "NaN"),
    ],
)
def test_wrong_inputs_are_refused(resnet: Path, inputs: Any, says: str) -> None:
    with pytest.raises(fatnn.InputError, match=says):
        fatnn.load_numpy(resnet)(*inputs)


def test_network_captured_by_export_takes_one_shape_only(tmp_path: Path) -> None:
    model, x, _ = MODELS["branching"]
    net = fatnn.load_numpy(saved(model(), x, tmp_path / "net.safetensors"))
    with pytest.raises(
        fatnn.InputError, match=r"for one shape only: expected \[any, 3, 8, 8\], got \[2, 3, 9, 8\]"
    ):
        net(np.zeros((2, 3, 9, 8), np.float32))


class BroadcastAndMean(nn.Module):
    """A broadcast addition, and a mean over channels and rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (y + y.mean((2, 3), keepdim=True)).mean((1, 2))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Functional, image(2, 3, 12, 12)),
        (TokenMlp, image(2, 7, 12)),
        (BroadcastAndMean, image(2, 3, 6, 6)),
    ],
)
def test_functional_token_and_broadcast_networks_give_the_same_bits(
    model: type[nn.Module], x: Tensor, tmp_path: Path
) -> None:
    path = saved(model(), x, tmp_path / "net.safetensors")
    assert same_bits(fatnn.load_numpy(path)(x.numpy()), fatnn.load(path, float_layers="rust")(x))


def test_operation_that_needs_torch_is_refused_by_name(torch_only: Path) -> None:
    with pytest.raises(fatnn.UnsupportedError, match=r'node "prelu": operation "prelu".*PyTorch'):
        fatnn.load_numpy(torch_only)
    report = read_report(torch_only)
    assert report.layers_ternary
    assert 'operation "prelu"' in report.notes[-1]
    assert {row.runs for row in report.rows} >= {"torch", "rust codes -> float"}


def test_damaged_and_missing_files_are_refused(resnet: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(resnet.read_bytes()[:-5])
    with pytest.raises(fatnn.FormatError):
        fatnn.load_numpy(cut)
    with pytest.raises(IsADirectoryError, match="is a directory"):
        fatnn.load_numpy(tmp_path)
    with pytest.raises(FileNotFoundError):
        fatnn.load_numpy(tmp_path / "absent")
    text, arrays, dtypes = _core.load(resnet)
    graph = json.loads(text)
    for change in (
        "{",
        "[]",
        "{}",
        json.dumps({**graph, "nodes": [1]}),
        json.dumps({**graph, "notes": 3}),
    ):
        _core.save(tmp_path / "bad.safetensors", change, arrays, dtypes)
        with pytest.raises(fatnn.FormatError):
            fatnn.load_numpy(tmp_path / "bad.safetensors")


NO_TORCH_SCRIPT = """
import contextlib, io, sys
sys.modules["torch"] = None
import numpy as np
import fatnn_rs
from fatnn_rs import cli

net, torch_only, x, y, z = sys.argv[1:]
loaded = fatnn_rs.load(net)
assert isinstance(loaded, type(fatnn_rs.load_numpy(net))), loaded
np.save(y, loaded(np.load(x)))
try:
    fatnn_rs.load(net, float_layers="torch")
except fatnn_rs.UnsupportedError as error:
    assert "pip install torch" in str(error)
else:
    raise SystemExit("no error")
assert cli.main(["run", torch_only, x]) == 1
inspections = ["inspect", net], ["inspect", torch_only]
for arguments in (["run", net, x, "--out", z], *inspections, ["demo"], ["bench"]):
    try:
        code = cli.main(arguments)
    except SystemExit as leaving:
        code = leaving.code or 0
    print("exit", code)
assert not [name for name in sys.modules if name.startswith("torch.")]
"""


def test_library_and_command_line_run_without_torch(
    resnet: Path, torch_only: Path, tmp_path: Path
) -> None:
    x = image(3, 3, 32, 32, seed=4)
    np.save(tmp_path / "x.npy", x.numpy())
    arguments = [
        str(resnet),
        str(torch_only),
        *(str(tmp_path / name) for name in ("x.npy", "y.npy", "z.npy")),
    ]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH_SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = fatnn.load(resnet, float_layers="rust")(x)
    assert same_bits(np.load(tmp_path / "y.npy"), expected)
    assert same_bits(np.load(tmp_path / "z.npy"), expected)
    assert [line for line in done.stdout.splitlines() if line.startswith("exit")] == [
        *["exit 0"] * 3,
        *["exit 1"] * 2,
    ]
    assert 'fatnn: node "prelu": operation "prelu"' in done.stderr
    assert "rust codes -> codes" in done.stdout
    assert "note: needs torch to run" in done.stdout


def test_load_returns_a_torch_module_if_torch_is_installed(resnet: Path) -> None:
    assert isinstance(fatnn.load(resnet), nn.Module)
    assert isinstance(fatnn.load_numpy(resnet), NumpyNetwork)
