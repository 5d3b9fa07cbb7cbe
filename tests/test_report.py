"""Reports: shares of MACs, gaps between segments, reasons, profiles; progress output."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fatnn_rs as fatnn
from fatnn_rs.convert import TernaryNetwork
from fatnn_rs.convert.flops import count_macs, torch_macs
from fatnn_rs.convert.graph import Node
from fatnn_rs.convert.profile import Timer
from fatnn_rs.operations import products_of
from fatnn_rs.report import RULES
from nets import ready

#: The models hold recurrent layers, of which `prepare` warns.
pytestmark = pytest.mark.filterwarnings("ignore:these layers stay float")


class Recurrent(nn.Module):
    """Linear layers around a GRU, which runs in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hidden = nn.Linear(6, 16), nn.Linear(16, 20)
        self.gru = nn.GRU(20, 12, num_layers=2, bidirectional=True, batch_first=True)
        self.last = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        made, _ = self.gru(self.hidden(self.first(x).relu()))
        result: Tensor = self.last(made)
        return result


def converted(model: nn.Module, inputs: Any, **options: Any) -> TernaryNetwork:
    return fatnn.convert(ready(model, inputs, first="float", last="float"), inputs, **options)


@pytest.fixture
def recurrent() -> tuple[TernaryNetwork, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, 7, 6)
    return converted(Recurrent(), x), x


def test_shares_of_macs_include_all_products_of_a_gru(
    recurrent: tuple[TernaryNetwork, Tensor],
) -> None:
    report = recurrent[0].report
    steps = 3 * 7
    # Three gates, two directions; the second layer reads both directions of the first one.
    gru = steps * 2 * 3 * 12 * ((20 + 12) + (24 + 12))
    ternary, floats = steps * 16 * 20, steps * (6 * 16 + 24 * 5) + gru
    assert (report.macs_ternary, report.macs_float) == (ternary, floats)
    assert report.macs_total == ternary + floats
    share = f"{ternary / (ternary + floats):.1%}"
    assert report.overview.startswith(f"{ternary + floats:,} MACs: {share} ternary, 0.0% int8, ")
    assert str(report).startswith(report.overview)


class Mixed(nn.Module):
    """Every kind of product that is not a convolution or linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.norm, self.lstm = nn.LayerNorm(16), nn.LSTM(16, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.bilinear = nn.Bilinear(16, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(self.first(x).relu()).relu()
        x = x + functional.scaled_dot_product_attention(x, x, x)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        x = torch.softmax(x @ x.transpose(1, 2), -1) @ x
        x = self.lstm(x)[0] + self.bilinear(x, x)
        result: Tensor = self.last(x)
        return result


@pytest.mark.parametrize("float_layers", ["torch", "rust"])
def test_products_of_every_kind_are_counted(float_layers: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    model = ready(Mixed(), x, first="float", last="float", skip=("attention",))
    report = fatnn.convert(model, x, float_layers=float_layers).report
    by_op: dict[str, int] = {}
    for row in report.rows:
        by_op[row.op] = by_op.get(row.op, 0) + row.macs
    rows, length, width = 2 * 5, 5, 16
    products = 2 * rows * length * width
    assert by_op["attention"] == by_op["matmul"] == products
    assert by_op["multihead_attention"] == 4 * rows * width * width + products
    assert by_op["torch: LSTM"] == rows * 4 * 16 * (16 + 16)
    assert by_op["torch: Bilinear"] == rows * (16 * 16 * 16 + 16 * 16)
    assert report.macs_ternary == rows * 16 * 16
    assert report.macs_total == sum(by_op.values())


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch uses another path for it
@pytest.mark.parametrize(
    "module",
    [
        nn.GRU(4, 6, 2, bidirectional=True),
        nn.LSTM(4, 6, 2, batch_first=True),
        nn.LSTM(4, 6, proj_size=3, bidirectional=True),
        nn.RNN(4, 6),
    ],
)
def test_recurrent_layers_are_counted_as_torch_counts_them(module: nn.Module) -> None:
    x = torch.randn(5, 3, 4)
    node = Node("x", "torch", call=module)
    assert torch_macs(node, module, [x]) == count_macs(lambda: module(x)) > 0


def test_torchs_fused_kernels_are_counted() -> None:
    q, width, hidden = torch.randn(2, 6, 16), 16, 32
    attention = 4 * 12 * width * width + 2 * 12 * 6 * width
    module = nn.MultiheadAttention(width, 4, batch_first=True).eval()
    assert count_macs(lambda: module(q, q, q, need_weights=False)) == attention
    layer = nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True).eval()
    assert count_macs(lambda: layer(q)) == attention + 2 * 12 * width * hidden
    assert count_macs(lambda: torch.ones(3, 4) @ torch.ones(4)) == 12
    assert count_macs(lambda: torch.ones(4) @ torch.ones(4)) == 4
    assert (
        count_macs(lambda: functional.linear(torch.ones(4), torch.ones(3, 4), torch.ones(3))) == 12
    )


class Cut(nn.Module):
    """Several segments with operations between them that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x).relu()
        for layer, norm in zip(self.layers[1:4], self.norms, strict=True):
            x = functional.gelu(norm(layer(x)))
        result: Tensor = self.layers[4](x.cumprod(1))
        return result


def test_what_cuts_a_network_is_counted_by_gap() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    model = ready(Cut(), x)
    report = fatnn.convert(model, x).report
    # Layers 0 and 1 run together; after each of the three norms a segment begins.
    assert report.segments == 4
    assert report.cuts == {"layer_norm": 3, "gelu": 3, "Tensor.cumprod": 1}
    assert (
        "4 segments run in the engine, cut by gelu (3), layer_norm (3), Tensor.cumprod (1)."
        in str(report)
    )
    whole = fatnn.convert(model, x, float_layers="rust").report
    assert (whole.segments, whole.cuts) == (2, {"Tensor.cumprod": 1})


def test_every_row_in_torch_has_a_reason() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.hidden, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.hooked = nn.ReLU()
            self.hooked.register_forward_hook(lambda module, args, output: output + 1)

        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            x = self.hooked(self.hidden(self.first(x)))
            x = (
                functional.softmax(x, -1).cumprod(1)
                + torch.mean(x, 1, dtype=torch.float32)[:, None]
            )
            taken = (index + 1).view(-1, 1)
            return self.last(x) + taken

    torch.manual_seed(0)
    given = (torch.randn(3, 8), torch.arange(3, dtype=torch.int16))
    report = converted(Model(), given).report
    in_torch = [row for row in report.rows if row.runs == "torch"]
    assert all(row.rule in RULES and row.reason for row in in_torch)
    assert all(not row.rule and not row.reason for row in report.rows if row.runs != "torch")
    rules = {row.op: row.rule for row in in_torch}
    assert rules["torch: Tensor.cumprod"] == "unknown"
    assert rules["torch: ReLU"] == "module"
    assert rules["torch: mean"] == "argument"
    assert rules["softmax"] == "transcendental"
    assert rules["linear"] == "sum-order"
    assert rules["torch: add"] == "dtype"
    assert "in torch: " in str(report)


#: What :meth:`Report.as_dict` documents.
KEYS = {
    *("rows", "not_fused", "notes", "outputs", "refused", "overview", "profile"),
    *("macs_total", "macs_ternary", "macs_int8", "macs_float", "layers_ternary", "layers_int8"),
    *("bytes_packed", "bytes_int8", "segments", "cuts", "missing"),
    *("saveable", "runs_without_torch", "unsaveable"),
}


def test_report_as_dict_has_the_documented_keys(recurrent: tuple[TernaryNetwork, Tensor]) -> None:
    report = recurrent[0].report
    made = report.as_dict()
    assert set(made) == KEYS
    assert made == json.loads(json.dumps(made)) == json.loads(report.to_json())
    assert made == recurrent[0].report.as_dict()
    documented = type(report).as_dict.__doc__
    assert documented is not None
    assert all(f"``{key}``" in documented for key in KEYS)
    assert set(made["rows"][0]) == {
        *("name", "op", "runs", "shape", "macs", "packed_bytes", "note", "rule", "reason")
    }
    assert made["missing"] == {"GRU": 1}
    assert not made["saveable"]
    assert not made["runs_without_torch"]
    assert made["segments"] == report.segments == len(recurrent[0].segments)


def test_error_of_save_names_the_missing_operations(
    recurrent: tuple[TernaryNetwork, Tensor], tmp_path: Path
) -> None:
    net = recurrent[0]
    with pytest.raises(fatnn.UnsupportedError) as caught:
        fatnn.save(net, tmp_path / "net")
    assert net.report.overview in str(caught.value)
    assert "lacks GRU (1)." in str(caught.value)


def test_file_that_needs_torch_names_the_operations(tmp_path: Path) -> None:
    class PadsChannels(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return functional.pad(super().forward(input), (0, 0, 0, 0, 1, 1), "circular")

    x = torch.rand(2, 2, 8, 8)
    model = PadsChannels(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    net = fatnn.convert(ready(model, x), x)
    report = net.report
    assert report.saveable
    assert not report.runs_without_torch
    assert report.missing == {"pad": 1}
    fatnn.save(net, tmp_path / "net")
    with pytest.raises(
        fatnn.UnsupportedError, match=r"can be saved, but not run without torch: .* pad \(1\)"
    ):
        fatnn.load_numpy(tmp_path / "net")


def test_reports_with_and_without_torch_count_alike(tmp_path: Path) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.hidden = nn.Linear(8, 16), nn.Linear(16, 16)
            self.attention = nn.MultiheadAttention(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.hidden(self.first(x).relu())
            x = self.attention(x, x, x, need_weights=False)[0]
            return functional.scaled_dot_product_attention(x, x, x) @ x.transpose(-1, -2)

    torch.manual_seed(0)
    x = torch.randn(3, 5, 8)
    net = fatnn.convert(ready(Attends(), x), x)
    fatnn.save(net, tmp_path / "net")
    alone = fatnn.load_numpy(tmp_path / "net").report
    assert alone.macs_total == net.report.macs_total
    assert [row.macs for row in alone.rows] == [row.macs for row in net.report.rows]
    assert alone.runs_without_torch
    assert net.report.runs_without_torch
    assert alone.as_dict().keys() == net.report.as_dict().keys()


class _Clock(Timer):
    """A timer that returns given times."""

    def __init__(self, here: dict[str, float], there: dict[str, float]) -> None:
        self.here, self.there, self.ran = here, there, 0

    def nodes(self, net: TernaryNetwork, inputs: tuple[Any, ...]) -> dict[str, float]:
        seconds = super().nodes(net, inputs)
        return {name: self.here.get(name, 0.001) for name in seconds}

    def call(self, name: str, function: Callable[[], Any]) -> float:
        function()
        self.ran += 1
        return self.there.get(name, 0.002)


def test_slow_layers_are_recognised_and_ranked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, stride=2, groups=2), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, dilation=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * 16, 4)),
    )
    x = torch.rand(2, 3, 8, 8)
    net = fatnn.convert(ready(model, x, first="int8"), x)
    assert net.report.profile is None
    layers = {n.layer: n.name for n in net.graph.nodes if products_of(n.op) in ("codes", "int8")}
    clock = _Clock(
        {layers["3"]: 0.006, layers["10"]: 0.003},
        {layers["3"]: 0.002, layers["10"]: 0.0025},
    )
    report = net.profile(x, rounds=3, timer=clock)
    assert clock.ran == 3 * 4
    profile = net.report.profile
    assert profile is not None
    assert report.profile is profile
    assert {row.layer for row in profile.layers} == {"0", "3", "6", "10"}
    assert [(row.layer, round(row.factor, 9)) for row in profile.slower] == [
        ("3", 3.0),
        ("10", 1.2),
    ]
    assert "slower than torch float32: 3 (3.00 times), 10 (1.20 times) (of 4; medians of 3" in str(
        report
    )
    assert report.as_dict()["profile"]["slower"] == ["3", "10"]
    assert profile.float_layers is None
    with pytest.raises(fatnn.InputError, match="example's shapes"):
        net.profile(x[:1])
    with pytest.raises(fatnn.ConfigError, match="rounds"):
        net.profile(x, rounds=0)


def test_profile_measures_times() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 8)
    model = nn.Sequential(
        nn.Conv1d(6, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.Flatten(), nn.Linear(32, 3)
    )
    profile = fatnn.convert(ready(model, x), x).profile(x, rounds=1).profile
    assert profile is not None
    assert len(profile.layers) == 3
    assert all(0 < row.seconds < 60 and 0 < row.torch_seconds < 60 for row in profile.layers)


def test_what_float_layers_in_rust_would_change() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    net = fatnn.convert(ready(Cut(), x), x)
    clock = _Clock({}, {"torch": 0.004, "rust": 0.001})
    profile = net.profile(x, rounds=2, float_layers=True, timer=clock).profile
    assert profile is not None
    assert profile.float_layers is not None
    found = profile.float_layers
    assert (found.seconds, found.rust_seconds) == (0.004, 0.001)
    assert found.codes == 5 * 16 * 8
    assert 0 <= found.codes_different <= found.codes
    rust = fatnn.convert(ready(Cut(), x), x, float_layers="rust")
    assert math.isfinite(found.max_abs_diff)
    assert "float_layers='rust' takes 0.25 times as long (1 instead of 4 ms)" in str(net.report)
    assert rust.report.profile is None
