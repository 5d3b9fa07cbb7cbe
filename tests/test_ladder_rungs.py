"""The ladder's rungs and layer shapes agree with the tables that they refer to."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fatnn_rs
from fatnn_rs import InputError, UnsupportedError, _core
from fatnn_rs.bench import networks
from fatnn_rs.convert import TernaryNetwork
from fatnn_rs.convert.api import convert_float
from fatnn_rs.convert.levels import coded_levels
from ladder import RUNGS, SHAPES
from ladder.rungs import WEIGHTS
from nets import image
from quantizers.compare import ROWS


@pytest.mark.parametrize("name", list(RUNGS))
def test_rungs_agree_with_accuracies_configs_and_kernels(name: str) -> None:
    rung = RUNGS[name]
    assert not rung.accuracy or rung.accuracy in {"float", *ROWS}
    if rung.kind != "codes":
        assert rung.kernels() == []
        return
    assert set(rung.levels) <= set(coded_levels(rung.act))
    fatnn_rs.TernaryConfig(**dict(rung.config))  # type: ignore[arg-type]
    assert rung.passes is None or rung.passes <= (rung.executed or 0)
    weight = np.array(WEIGHTS[rung.weight], np.int8).reshape(-1, 1, 1, 1)
    for kernel in rung.kernels():
        info = _core.packed_info(_core.prepack(weight, 1, rung.act, kernel))
        assert info["name"] == kernel
        assert rung.family in kernel
    if rung.family == "popcount":
        assert rung.kernels()


def test_instruction_benchmark_uses_the_same_layer_shapes() -> None:
    source = Path(__file__).parents[1] / "benches" / "instructions.rs"
    rows = re.findall(r'\("([\w-]+)", \[(\d+), (\d+)\], (\d+), (\d+)\)', source.read_text())
    assert len(rows) >= 4
    for name, *numbers in rows:
        shape = SHAPES[name]
        assert [shape.channels, shape.out_channels, shape.size, shape.window] == [
            int(number) for number in numbers
        ]


def test_prepack_takes_a_kernel_by_name_and_refuses_others() -> None:
    weight = np.ones((4, 4, 1, 1), np.int8)
    with pytest.raises(
        InputError, match=r'kernel: expected one that this CPU has: .*generic-.*, got "nonsense"'
    ):
        _core.prepack(weight, 1, "half", "nonsense")
    with pytest.raises(
        InputError, match=r"kernel: expected one that runs uint2 .*, got generic-table-scalar"
    ):
        _core.prepack(3 * weight, 1, "uint2", "generic-table-scalar")
    for row in _core.kernels_for(weight, "half"):
        assert row.keys() == {"name", "family", "isa", "passes"}
        assert (
            _core.packed_info(_core.prepack(weight, 1, "half", row["name"]))["name"] == row["name"]
        )


def test_network_runs_on_the_given_kernel_family() -> None:
    built = networks.build_float("digits")
    config = fatnn_rs.TernaryConfig(act="uint2", weight="dorefa", first="int8", last="int8")
    net, codes = networks.convert_and_verify(built, config, "rust")
    assert codes > 0
    assert torch.equal(TernaryNetwork(net.graph, "rust", "popcount")(built.batch), net(built.batch))
    with pytest.raises(
        UnsupportedError, match=r"kernel family: expected one that runs .*, got table"
    ):
        TernaryNetwork(net.graph, "rust", "table")
    with pytest.raises(
        InputError,
        match=r'kernel family: expected "popcount", "matrix", "table" or "dot", got "tables"',
    ):
        TernaryNetwork(net.graph, "rust", "tables")


def test_float_model_runs_in_one_segment() -> None:
    model = networks.build_float("small-cnn").model
    x = image(2, 1, 28, 28)
    net = convert_float(model, x)
    assert len(net.segments) == 1
    assert torch.allclose(net(x), model(x), rtol=1e-4, atol=1e-5)
    assert {kernel for _, kernel, _ in net.segments[0].network.products} == {"gemm-f32"}
