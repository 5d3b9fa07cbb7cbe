"""Files with one wrong place and a right checksum: an error, or a network that runs.

Every field of a graph is taken away and replaced, and every tensor, by everything that a hostile
file might hold there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fatnn_rs as fatnn
from fatnn_rs import _core
from fatnn_rs.errors import FormatError, InputError, UnsupportedError
from fatnn_rs.numpy_network import read_report
from nets import ready

#: What a loaded file may raise, and what a call of the network may.
LOAD, CALL = (FormatError, UnsupportedError, MemoryError), (InputError, MemoryError)

VALUES: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        5,
        0.5,
        1 << 31,
        -(1 << 63),
        (1 << 64) - 1,
        -1e308,
        1e308,
        "",
        "x",
        "NaN",
        "inf",
    ),
    *([], [1], [-1], [1 << 40], [0] * 65, [-(1 << 63), 1], ["x"], {}, {"a": 1}, [[]]),
]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.conv = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Sequential(
            nn.AvgPool2d(2), nn.PReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        x = self.stem(x)
        return {"y": self.head(nn.functional.pad(self.conv(x) + x, (0, 1, 0, 1))), "none": None}


@pytest.fixture(scope="module", params=["float", "int8"])
def parts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, dict[str, Any], Any]:
    x = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("mutations") / "net"
    fatnn.save(fatnn.convert(ready(Small(), x, first=request.param, last=request.param), x), path)
    text, arrays, dtypes = _core.load(path)
    return json.loads(text), arrays, dtypes


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything in a JSON value; of lists the first two items."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(len(value) if path == ("nodes",) else min(2, len(value))):
            yield from places(value[i], (*path, i))


def changed(graph: Any, path: tuple[Any, ...], value: Any, remove: bool = False) -> str:
    copy = json.loads(json.dumps(graph))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    if remove:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return json.dumps(copy)


def tried(path: Path, what: str) -> None:
    """Load a file in every way, print what it says, and run it."""
    try:
        report = read_report(path)
        assert str(report)
        json.loads(report.to_json())
    except LOAD:
        pass
    loaders = {"numpy": lambda: fatnn.load_numpy(path), "torch": lambda: fatnn.load(path)}
    for name, load in loaders.items():
        try:
            net = load()
            str(net.report), net.report.to_json(), repr(net)
        except LOAD:
            continue
        except BaseException as error:
            raise AssertionError(f"{name}: {what}: {type(error).__name__}: {error}") from error
        x = np.ones((1, 2, 8, 8), np.float32)
        try:
            net(x if name == "numpy" else torch.from_numpy(x))
        except CALL:
            continue
        except BaseException as error:
            raise AssertionError(f"{name} runs: {what}: {type(error).__name__}: {error}") from error


def test_every_field(parts: tuple[Any, dict[str, Any], Any], tmp_path: Path) -> None:
    graph, arrays, dtypes = parts
    path, count = tmp_path / "net", 0
    generator = np.random.default_rng(0)
    for place in places(graph):
        # All values for what nodes hold themselves and say in attributes; a sample elsewhere.
        values = (
            VALUES
            if len(place) <= 4
            else list(generator.choice(np.array(VALUES, dtype=object), 6, replace=False))
        )
        for value in [*values, "remove"]:
            text = changed(graph, place, value, remove=isinstance(value, str) and value == "remove")
            try:
                _core.save(path, text, arrays, dtypes)
            except InputError:
                continue
            tried(path, f"{place} = {value!r}")
            count += 1
    assert count > 1000


def test_every_tensor(parts: tuple[Any, dict[str, Any], Any], tmp_path: Path) -> None:
    graph, arrays, dtypes = parts
    path = tmp_path / "net"
    text = json.dumps(graph)
    for name, array in arrays.items():
        others = [
            array.astype(np.float32) if array.dtype != np.float32 else array.astype(np.int64),
            array.reshape(-1)[:-1],
            array.reshape(-1)[:0],
            array[None],
            array.reshape(-1),
            np.concatenate([array, array]),
            array.reshape((*array.shape, *([1] * (32 - array.ndim)))),
            np.zeros((0, 1 << 30), array.dtype),
            np.zeros((), array.dtype),
        ]
        if array.dtype == np.float32:
            others += [np.full_like(array, value) for value in (np.nan, np.inf, -1, 0)]
        for i, other in enumerate(others):
            kept = {
                key: dtype for key, dtype in dtypes.items() if key != name or other.dtype == np.int8
            }
            try:
                _core.save(
                    path,
                    text,
                    {**arrays, name: np.ascontiguousarray(other).reshape(other.shape)},
                    kept,
                )
            except InputError:
                continue
            tried(path, f"{name}, change {i}")
        rest = {key: value for key, value in arrays.items() if key != name}
        _core.save(path, text, rest, {key: dtype for key, dtype in dtypes.items() if key != name})
        tried(path, f"{name} is missing")


def test_ranks_beyond_what_arrays_have(
    parts: tuple[Any, dict[str, Any], Any], tmp_path: Path
) -> None:
    """Shapes that NumPy cannot make are put into the bytes, and the checksum mended."""
    import hashlib

    graph, arrays, dtypes = parts
    path = tmp_path / "net"
    _core.save(path, json.dumps(graph), arrays, dtypes)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    for shape in ([1] * 65, [0, 1 << 62], [1 << 32, 1 << 32], [1 << 63], [-1], [1.5], ["1"]):
        header = json.loads(content[8 : 8 + size])
        entry = json.loads(header["__metadata__"]["fatnn-rs"])
        for where in ("ternary", "float"):
            inner = json.loads(json.dumps(entry))
            outer = json.loads(json.dumps(header))
            if where == "ternary":
                next(iter(inner["tensors"].values()))["shape"] = shape
            else:
                name = next(key for key, value in outer.items() if value.get("dtype") == "F32")
                outer[name]["shape"] = shape
            digest = hashlib.sha256()

            def part(data: bytes, digest: Any = digest) -> None:
                digest.update(len(data).to_bytes(8, "little") + data)

            part(inner["graph"].encode())
            kinds = {"F32": "float32", "I32": "int32", "I64": "int64", "I8": "int8"}
            try:
                for name in sorted(key for key in outer if key != "__metadata__"):
                    tensor = outer[name]
                    packed = inner["tensors"].get(name, {"dtype": "", "shape": tensor["shape"]})
                    sizes = packed["shape"]
                    start, end = tensor["data_offsets"]
                    part(name.encode())
                    part((kinds.get(tensor["dtype"], packed["dtype"])).encode())
                    part(b"".join(int(d).to_bytes(8, "little") for d in sizes))
                    part(content[8 + size + start : 8 + size + end])
            except (OverflowError, ValueError):
                pass
            inner["sha256"] = digest.hexdigest()
            outer["__metadata__"]["fatnn-rs"] = json.dumps(inner)
            text = json.dumps(outer).encode()
            text += b" " * (-len(text) % 8)
            path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
            with pytest.raises((FormatError, UnsupportedError)):
                fatnn.load(path)
            with pytest.raises((FormatError, UnsupportedError)):
                fatnn.load_numpy(path)
            with pytest.raises(FormatError):
                read_report(path)


def test_many_nodes_load_in_time(tmp_path: Path) -> None:
    import time

    x = {
        "name": "x",
        "op": "input",
        "inputs": [],
        "tensors": {},
        "shape": [1, 2],
        "layer": "",
        "note": "",
    }
    x["attrs"], x["dtype"] = {"fixed": [], "channel_dim": 1}, "float32"  # type: ignore[assignment]
    names = ["x", *(f"n{i}" for i in range(20_000))]
    rest = {
        "op": "relu",
        "attrs": {},
        "tensors": {},
        "shape": [1, 2],
        "dtype": "float32",
        "layer": "",
        "note": "",
    }
    nodes = [x, *({"name": b, "inputs": [a], **rest} for a, b in pairwise(names))]
    text = json.dumps({"nodes": nodes, "outputs": {"value": names[-1]}, "notes": []})
    _core.save(tmp_path / "net", text, {})
    start = time.monotonic()
    net = fatnn.load_numpy(tmp_path / "net")
    assert net(np.ones((1, 2), np.float32)).tolist() == [[1.0, 1.0]]
    assert time.monotonic() - start < 10
