"""The core's checks of graphs and its report agree with the graphs that Python saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fatnn_rs as fatnn
from fatnn_rs import _core
from nets import MODELS, ready


@pytest.fixture(scope="module", params=["resnet", "token mlp", "one dimension", "two inputs"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, inputs, _ = MODELS[request.param]
    path = tmp_path_factory.mktemp("table") / "net"
    fatnn.save(fatnn.convert(ready(model(), inputs, first="int8"), inputs), path)
    return path


def test_saved_graphs_pass_the_checks_of_the_core(saved: Path) -> None:
    text, arrays, dtypes = _core.load(
        saved, check=True, max_bytes=_core.MAX_BYTES, max_macs=_core.MAX_MACS
    )
    _core.check_graph(text, arrays, dtypes)
    rows = _core.graph_report(text, arrays, dtypes)
    nodes = [node for node in json.loads(text)["nodes"] if node["op"] != "input"]
    assert [(row["node"], row["op"], list(row["shape"])) for row in rows] == [
        (node["name"], node["op"], node["shape"]) for node in nodes
    ]
    for row, node in zip(rows, nodes, strict=True):
        weight = arrays[node["tensors"]["weight"]].shape if "weight" in node["tensors"] else None
        assert row["macs"] == _core.macs(node["op"], node["shape"], weight)


def test_saving_what_was_loaded_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    _core.save(tmp_path / "again", *_core.load(saved))
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_errors_of_a_graph_name_the_layer(saved: Path) -> None:
    text, arrays, dtypes = _core.load(saved)
    graph: dict[str, Any] = json.loads(text)
    node = next(node for node in graph["nodes"] if node["layer"])
    node["shape"] = [*node["shape"], 7]
    with pytest.raises(fatnn.FormatError, match=node["layer"]):
        _core.check_graph(json.dumps(graph), arrays, dtypes)
    with pytest.raises(fatnn.LimitError, match="max_macs"):
        _core.check_graph(text, arrays, dtypes, max_macs=1)
    with pytest.raises(fatnn.FormatError, match="no node uses the tensors"):
        _core.check_graph(text, {**arrays, "extra": np.zeros(1, np.float32)}, dtypes)


def test_engine_refusal_names_the_unsupported_dimensions() -> None:
    mean = json.dumps({"dims": [2, 3], "keepdim": True})
    assert _core.engine_refusal("mean", mean, [[1, 2, 3, 4]]) is None
    refusal = _core.engine_refusal("mean", mean, [[1, 2, 3]])
    assert "dimensions [2, 3] of a value with 3" in (refusal or "")
    assert _core.engine_refusal("relu", "{}", [[1, 2, 3, 4, 5]]) is None
    assert _core.engine_refusal("relu", "{}", [[1] * 9]) is not None
    assert _core.engine_refusal("cat", '{"dim": 1}', [[1, 2], [1]]) is not None
    with pytest.raises(fatnn.FormatError, match="unknown op"):
        _core.engine_refusal("fold", "{}", [[1, 2]])
