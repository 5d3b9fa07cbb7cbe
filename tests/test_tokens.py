"""Ids and masks: values of integers and booleans in the engine, and networks that read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fatnn_rs as fatnn
from fatnn_rs import _core
from fatnn_rs.convert.api import convert_float

IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 0, 0, 0], [7, 0, 0, 0, 0, 0]])
X = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0))
SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), -float("inf"), 0.5])


class Call(nn.Module):
    """A function as a model."""

    def __init__(self, function, **tensors):
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, *inputs: Tensor):
        return self.function(self, *inputs)


class One(Call):
    def forward(self, x: Tensor):
        return self.function(self, x)


class Two(Call):
    def forward(self, x: Tensor, y: Tensor):
        return self.function(self, x, y)


def whole(net) -> bool:
    """Whether the engine runs everything in one call."""
    return len(net.segments) == 1 and len(net._parts) == 1


#: Functions of ids and masks: name → function and inputs.
FUNCTIONS = {
    "embedding": (lambda m, x: functional.embedding(x, m.table), (IDS,)),
    "int32 ids": (lambda m, x: functional.embedding(x, m.table), (IDS.int(),)),
    "padding_idx": (lambda m, x: functional.embedding(x, m.table, padding_idx=0), (IDS,)),
    "eq": (lambda m, x: (x == 0).float(), (IDS,)),
    "ne": (lambda m, x: (x != 5).float(), (IDS,)),
    "lt": (lambda m, x: (x < 0.5).float(), (SPECIAL,)),
    "le": (lambda m, x: (x <= 0).float(), (SPECIAL,)),
    "gt": (lambda m, x: (x > 0).float(), (SPECIAL,)),
    "ge": (lambda m, x: (x >= -1).float(), (SPECIAL,)),
    "equal floats": (lambda m, x: (x == x).float(), (SPECIAL,)),
    "unequal floats": (lambda m, x: (x != x).float(), (SPECIAL,)),
    "a float and an integer": (lambda m, x, y: (x > y).float(), (X[..., 0], IDS)),
    "an integer and half": (lambda m, x: (x > 1.5).float(), (IDS,)),
    "and": (lambda m, x: ((x > 1) & (x < 6)).float(), (IDS,)),
    "or": (lambda m, x: ((x == 1) | (x == 0)).float(), (IDS,)),
    "xor": (lambda m, x: ((x > 1) ^ (x < 6)).float(), (IDS,)),
    "not": (lambda m, x: (~(x > 1)).float(), (IDS,)),
    "logical": (lambda m, x: torch.logical_and(x, torch.logical_not(x - 1)).float(), (IDS,)),
    "masks": (lambda m, x, y: torch.where(x, y, -y), (IDS > 2, X[..., 0])),
    "where a number": (lambda m, x: torch.where(x > 2, x, 7).float(), (IDS,)),
    "where of masks": (lambda m, x: torch.where(x > 2, x > 5, x == 0).float(), (IDS,)),
    "masked_fill": (
        lambda m, x, y: x.masked_fill((y == 0)[:, :, None], float("-inf")),
        (X, IDS),
    ),
    "masked_fill in place": (lambda m, x: (x * 2).masked_fill_(x > 0, -3.0), (X,)),
    "masked_fill of NaN": (lambda m, x: x.masked_fill(x > 0, float("nan")), (SPECIAL,)),
    "integers": (lambda m, x: (x * 3 - x + 2 - 5 * x).float(), (IDS,)),
    "integers wrap": (lambda m, x: (x * (2**62 + 1) + 2**62).float(), (IDS,)),
    "int32 wraps": (lambda m, x: (x * 2**30 + 2**30).float(), (IDS.int(),)),
    "to bool": (lambda m, x: x.bool().float(), (SPECIAL,)),
    "integers to bool": (lambda m, x: x.to(torch.bool).float(), (IDS,)),
    "large to float": (lambda m, x: (x + 2**40 + 1).float(), (IDS,)),
    "to int32": (lambda m, x: (x + 2**40).int().float(), (IDS,)),
    "cumsum": (lambda m, x: torch.cumsum(x, 1).float(), (IDS,)),
    "cumsum of a mask": (lambda m, x: ((x != 0).cumsum(1) * 2).float(), (IDS,)),
    "cumsum along the batch": (lambda m, x: x.cumsum(0).float(), (IDS,)),
    "int32 cumsum": (
        lambda m, x: (x * 2**29).cumsum(1, dtype=torch.int32).float(),
        (IDS.int(),),
    ),
    "moves": (
        lambda m, x: (
            torch.cat([x.transpose(0, 1)[1:5:2, None], x.t()[:2].unsqueeze(1)])
            .expand(-1, 2, -1)
            .flatten(1)
            .float()
        ),
        (IDS,),
    ),
    "moves of masks": (
        lambda m, x: (x > 2).view(3, 2, 3).permute(2, 0, 1).reshape(9, 2).float(),
        (IDS,),
    ),
    "mixed": (lambda m, x: (1.0 - x.float()) * -10000.0 + x, (IDS,)),
    "divided": (lambda m, x: x / 3, (IDS,)),
    "constant mask": (lambda m, x: x.masked_fill(m.mask, 0.0), (X,)),
}
TENSORS = {
    "table": torch.randn(10, 5, generator=torch.Generator().manual_seed(1)),
    "mask": torch.ones(6, 8, dtype=torch.bool).triu(2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_engine_has_torchs_bits(name, tmp_path):
    function, inputs = FUNCTIONS[name]
    model = (One if len(inputs) == 1 else Two)(function, **TENSORS).eval()
    net = convert_float(model, inputs)
    expected = model(*inputs)
    assert whole(net), net.report
    got = net(*inputs)
    assert got.dtype == torch.float32
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32)) or (
        got.isnan().equal(expected.isnan())
        and torch.equal(got.nan_to_num().view(torch.int32), expected.nan_to_num().view(torch.int32))
    )
    fatnn.save(net, tmp_path / "net.safetensors")
    arrays = [x.numpy() for x in inputs]
    again = fatnn.load_numpy(tmp_path / "net.safetensors")(*arrays)
    np.testing.assert_array_equal(again, got.numpy())
    loaded = fatnn.load(tmp_path / "net.safetensors")
    torch.testing.assert_close(loaded(*inputs), got, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("ids", [[0, 10], [-1, 0], [2**40, 0], [-(2**63), 0]])
def test_ids_out_of_range_are_an_error(ids):
    model = One(lambda m, x: functional.embedding(x, m.table), **TENSORS).eval()
    net = convert_float(model, torch.tensor([3, 4]))
    with pytest.raises(fatnn.InputError, match=r"ids from 0 to 9.*index out of range"):
        net(torch.tensor(ids))


def saved(tmp_path: Path) -> Path:
    model = Two(
        lambda m, x, y: functional.embedding(x, m.table).masked_fill(y[..., None], 0.0), **TENSORS
    ).eval()
    net = convert_float(model, (IDS, IDS == 0))
    fatnn.save(net, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_wrong_types_are_named(tmp_path):
    path = saved(tmp_path)
    net, arrays = fatnn.load_numpy(path), (IDS.numpy(), (IDS == 0).numpy())
    net(*arrays)
    with pytest.raises(fatnn.InputError, match="input 'x': expected int64, got float32"):
        net(arrays[0].astype(np.float32), arrays[1])
    with pytest.raises(fatnn.InputError, match="input 'x': expected int64, got int32"):
        net(arrays[0].astype(np.int32), arrays[1])
    with pytest.raises(fatnn.InputError, match="input 'y': expected bool, got int64"):
        net(arrays[0], arrays[0])
    core = _core.Network.load(path)
    assert core.input_types == ["int64", "bool"]
    with pytest.raises(fatnn.InputError, match="expected dtype bool, got uint8"):
        core.run([arrays[0], arrays[1].view(np.uint8)], [False, False])


def test_any_byte_but_zero_is_true(tmp_path):
    net = fatnn.load_numpy(saved(tmp_path))
    mask = np.where(IDS.numpy() == 0, 0xFE, 0).astype(np.uint8).view(bool)
    expected = net(IDS.numpy(), (IDS == 0).numpy())
    np.testing.assert_array_equal(net(IDS.numpy(), mask), expected)


def graph(nodes: list[dict], tensors: dict[str, np.ndarray]) -> _core.Network:
    described = {"nodes": nodes, "outputs": {"value": nodes[-1]["name"]}}
    return _core.Network(json.dumps(described), tensors)


IDS_INPUT = {"name": "x", "op": "input", "shape": [2], "dtype": "int64"}
MASK_INPUT = {"name": "m", "op": "input", "shape": [2], "dtype": "bool"}


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([IDS_INPUT, {"name": "y", "op": "relu", "inputs": ["x"], "shape": [2]}], "floats"),
        ([IDS_INPUT, {"name": "y", "op": "logical_not", "inputs": ["x"], "shape": [2]}], "bool"),
        (
            [IDS_INPUT, MASK_INPUT, {"name": "y", "op": "eq", "inputs": ["x", "m"], "shape": [2]}],
            "one type",
        ),
        ([IDS_INPUT, {"name": "y", "op": "div", "inputs": ["x", "x"], "shape": [2]}], "integers"),
        (
            [
                MASK_INPUT,
                {"name": "y", "op": "cumsum", "inputs": ["m"], "shape": [2], "attrs": {"dim": 0}},
            ],
            "int32 or int64",
        ),
        (
            [
                IDS_INPUT,
                {"name": "y", "op": "cast", "inputs": ["x"], "shape": [2], "attrs": {"to": "int8"}},
            ],
            "float32, int32, int64 or bool",
        ),
        (
            [
                IDS_INPUT,
                {"name": "y", "op": "add", "inputs": ["x", "x"], "shape": [2], "dtype": "float32"},
            ],
            "its dtype says",
        ),
    ],
)
def test_graphs_of_wrong_types_are_refused(nodes, why):
    with pytest.raises(fatnn.FormatError, match=why):
        graph(nodes, {})


def test_int64_output_is_refused():
    node = {"name": "y", "op": "add", "inputs": ["x", "x"], "shape": [2]}
    with pytest.raises(fatnn.UnsupportedError, match="output must be float32, got int64"):
        graph([IDS_INPUT, node], {})


def test_bool_tensors_are_saved(tmp_path):
    path = tmp_path / "net.safetensors"
    model = One(lambda m, x: x.masked_fill(m.mask, 0.0), **TENSORS).eval()
    fatnn.save(convert_float(model, X), path)
    _, tensors, _ = _core.load(path)
    (mask,) = (t for t in tensors.values() if t.dtype == bool)
    np.testing.assert_array_equal(mask, TENSORS["mask"].numpy())


def test_max_norm_is_refused_by_name():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 8, max_norm=1.0)
            self.linear = nn.Linear(8, 8)

        def forward(self, ids):
            return self.linear(self.table(ids))

    with pytest.raises(fatnn.ConversionError, match="max_norm"):
        convert_float(Net().eval(), IDS)


def test_int64_outputs_stay_in_torch():
    model = One(lambda m, x: (x + 1, x.float() * 2), **TENSORS).eval()
    net = convert_float(model, IDS)
    got, expected = net(IDS), model(IDS)
    assert got[0].dtype == torch.int64
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
