"""Stored files of every version of the format still load and give the stored outputs.

``python tests/test_golden.py``, with ``python`` and ``tests`` on ``PYTHONPATH``, writes the files
of the current version. Run it only when the version changes. The outputs are the same for every
version.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

import fatnn_rs
from fatnn_rs import FormatError, UnsupportedError, _core
from fatnn_rs.convert import TernaryNetwork, load, save
from fatnn_rs.numpy_network import read_report
from nets import MODELS, ready

GOLDEN = Path(__file__).parent / "golden"

#: Options of prepare for networks whose outputs do not depend on the order of float sums.
NETWORKS: dict[str, dict[str, Any]] = {
    "vgg": {"first": "int8", "last": "int8"},
    "one dimension": {"act": "uint2", "weight": "dorefa", "depthwise": "ternary"},
    "mobile": {"act": "binary", "weight": "binary", "first": "int8", "depthwise": "ternary"},
    "token mlp": {"first": "int8"},
    "two inputs": {},
}

#: Dtypes of the weights, if not ternary.
DTYPES = {"one dimension": "two-bit", "mobile": "binary"}


def path_of(name: str, version: int) -> Path:
    return GOLDEN / f"{name.replace(' ', '-')}-v{version}.safetensors"


def tensors_of(result: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]


def write_files() -> None:
    warnings.simplefilter("ignore")
    for name, options in NETWORKS.items():
        make, inputs, _ = MODELS[name]
        torch.manual_seed(3)
        net = fatnn_rs.convert(ready(make(), inputs, **options), inputs)
        save(net, path_of(name, _core.FORMAT_VERSION))
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        arrays = {f"input{i}": x.numpy() for i, x in enumerate(given)}
        arrays |= {f"output{i}": x.numpy() for i, x in enumerate(tensors_of(net(*given)))}
        np.savez_compressed(GOLDEN / f"{name.replace(' ', '-')}.npz", **arrays)


def arrays_of(name: str) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs."""
    with np.load(GOLDEN / f"{name.replace(' ', '-')}.npz") as arrays:
        return tuple(
            [arrays[key] for key in arrays if key.startswith(side)] for side in ("input", "output")
        )


def assert_close(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        # PyTorch's own functions may differ in the last bits from one CPU to another.
        np.testing.assert_allclose(np.asarray(one), two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("version", range(1, _core.FORMAT_VERSION + 1))
@pytest.mark.parametrize("name", NETWORKS)
def test_files_of_every_version_give_the_stored_outputs(
    name: str, version: int, tmp_path: Path
) -> None:
    path, (inputs, outputs) = path_of(name, version), arrays_of(name)
    tensors = [torch.from_numpy(x) for x in inputs]
    net = load(path)
    assert isinstance(net, TernaryNetwork)
    assert_close(tensors_of(net(*tensors)), outputs)
    assert_close(tensors_of(load(path, float_layers="rust")(*tensors)), outputs)
    assert set(net.graph.dtypes.values()) == {DTYPES.get(name, "ternary")}
    try:
        numpy_net = fatnn_rs.load_numpy(path)
    except UnsupportedError:
        assert name == "token mlp"
    else:
        found = [x for x in pytree.tree_leaves(numpy_net(*inputs)) if isinstance(x, np.ndarray)]
        assert_close(found, outputs)
    assert str(read_report(path))
    # Saving writes the current version, and keeps the network.
    save(net, tmp_path / "again")
    again = load(tmp_path / "again")
    assert_close(tensors_of(again(*tensors)), outputs)
    assert again.graph.dtypes == net.graph.dtypes
    assert [(node.op, node.dtype, node.attrs) for node in again.graph.nodes] == [
        (node.op, node.dtype, node.attrs) for node in net.graph.nodes
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_files_of_versions_1_and_2_load_to_the_same_graph(name: str) -> None:
    old, new = (load(path_of(name, version)).graph for version in (1, 2))
    assert old.dtypes == new.dtypes
    for one, two in zip(old.nodes, new.nodes, strict=True):
        assert (one.name, one.op, one.attrs, one.tensors) == (
            two.name,
            two.op,
            two.attrs,
            two.tensors,
        )
        assert one.dtype == two.dtype
    for key, tensor in old.tensors.items():
        assert torch.equal(tensor, new.tensors[key])


def test_damaged_file_of_version_1_is_refused(tmp_path: Path) -> None:
    content = path_of("vgg", 1).read_bytes()
    for at in range(8, len(content), 97):
        damaged = bytearray(content)
        damaged[at] ^= 1
        (tmp_path / "net").write_bytes(damaged)
        with pytest.raises(FormatError):
            load(tmp_path / "net")


if __name__ == "__main__":
    write_files()
