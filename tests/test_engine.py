"""Segments: nodes that the Rust engine runs together give the same bits as nodes run separately."""

import copy
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fatnn_rs as fatnn
from fatnn_rs import _core
from fatnn_rs.convert import TernaryNetwork
from fatnn_rs.convert.engine import Segment
from fatnn_rs.models.cifar_resnet import resnet20
from fatnn_rs.models.digits import DigitsNet
from nets import exact, image, ready


def prepared(model: nn.Module, x: Tensor) -> nn.Module:
    """Prepare a model and give its BatchNorms random weights and statistics."""
    torch.manual_seed(0)
    fatnn.prepare(model, example_inputs=x)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=5.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 1.0, 90.0)  # type: ignore[arg-type]
    return model.eval()


class ManyOperations(nn.Module):
    """Pools, clamps, PReLU, groups, a residual addition, a branch and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.bn0, self.act0 = nn.BatchNorm2d(12), nn.PReLU(12)
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.a, self.bn_a = nn.Conv2d(12, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24)
        self.b, self.bn_b = nn.Conv2d(12, 24, 1, 2, bias=False), nn.BatchNorm2d(24)
        self.c, self.bn_c = (
            nn.Conv2d(24, 24, 3, padding=2, dilation=2, groups=4, bias=False),
            nn.BatchNorm2d(24),
        )
        self.d = nn.Linear(24 * 3 * 3, 10)
        self.e = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act0(self.bn0(self.stem(x))))
        x = nn.functional.hardtanh(self.bn_a(self.a(x)) + self.bn_b(self.b(x)), -3.0, 4.0)
        x = nn.functional.leaky_relu(self.bn_c(self.c(x)) + x, 0.1)
        out: Tensor = self.e(self.d(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 3), 1)))
        return out


@pytest.fixture(scope="module", params=[DigitsNet, ManyOperations])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    x = torch.randn(3, 1, 8, 8) if request.param is DigitsNet else torch.randn(3, 3, 17, 15)
    return prepared(request.param(), x), x


def run_nodes_separately(net: TernaryNetwork, x: Tensor) -> Tensor:
    result: Tensor = net.run_observed((x,), None)
    return result


def test_segments_give_the_same_bits_as_separate_nodes(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    net = fatnn.convert(model, x)
    assert net.segments
    assert sum(len(segment.nodes) for segment in net.segments) >= 8
    for batch in (
        x,
        x[:1],
        x[:0],
        x.repeat(3, 1, 1, 1),
        x.contiguous(memory_format=torch.channels_last),
    ):
        expected = model(batch)
        assert torch.equal(net(batch), expected)
        assert torch.equal(run_nodes_separately(net, batch), expected)
    report = fatnn.verify(model, net, x)
    assert report.codes_total > 0
    assert report.codes_different == 0


def test_report_says_what_torch_and_rust_run(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    report = fatnn.convert(model, x).report
    runs = {row.op: row.runs for row in report.rows}
    assert runs["conv2d"] == "torch"
    assert runs["batch_norm"] == "rust float -> float"
    everything = fatnn.convert(model, x, float_layers="rust").report
    assert all(row.runs.startswith("rust") for row in everything.rows)
    assert everything.macs_ternary == report.macs_ternary


def test_rust_float_layers_make_one_segment_that_also_runs_without_torch(
    case: tuple[nn.Module, Tensor], tmp_path: Path
) -> None:
    model, x = case
    net = fatnn.convert(model, x, float_layers="rust")
    assert len(net.segments) == 1
    assert torch.allclose(net(x), model(x), rtol=1e-4, atol=1e-4)
    fatnn.save(net, tmp_path / "net.safetensors")
    assert torch.equal(fatnn.load(tmp_path / "net.safetensors", float_layers="rust")(x), net(x))
    # The same file without torch: NumPy in, NumPy out.
    without_torch = _core.Network.load(tmp_path / "net.safetensors")
    (logits,) = without_torch.run([x.numpy()], [False])
    assert np.allclose(logits, net(x).numpy(), rtol=1e-5, atol=1e-5)
    assert without_torch.inputs[0][1] == list(x.shape)
    assert without_torch.buffer_bytes > 0


def test_python_threads_may_share_a_network(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    net = fatnn.convert(model, x, float_layers="rust")
    batches = [x, x[:1], torch.randn_like(x).repeat(4, 1, 1, 1), x[:2]]
    expected = [net(batch) for batch in batches]
    wrong: list[int] = []

    def work(first: int) -> None:
        for turn in range(20):
            at = (first + turn) % len(batches)
            if not torch.equal(net(batches[at]), expected[at]):
                wrong.append(at)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.usefixtures("restore_threads")
def test_thread_count_does_not_change_results(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    net = fatnn.convert(model, x, float_layers="rust")
    batch = x.repeat(8, 1, 1, 1)
    fatnn.set_num_threads(1)  # torch's count has no effect once any test has called this
    single = net(batch)
    for threads in (2, 3, 5):
        fatnn.set_num_threads(threads)
        assert torch.equal(net(batch), single)


def test_node_seconds_covers_every_ternary_node(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    net = fatnn.convert(model, x)
    seconds = net.node_seconds(x)
    ternary = {node.name for node in net.graph.nodes if node.op in ("conv_codes", "conv_float")}
    # A shortcut's convolution is fused into the addition that reads it.
    fused_shortcuts = {
        name for node in net.graph.nodes if node.op == "conv_float" for name in node.inputs[1:]
    }
    assert ternary - fused_shortcuts
    assert ternary - fused_shortcuts <= set(seconds)
    assert all(value >= 0 for value in seconds.values())


def test_wrong_float_layers_and_nan_are_refused_and_the_network_still_works(
    case: tuple[nn.Module, Tensor],
) -> None:
    model, x = case
    with pytest.raises(
        fatnn.ConfigError, match=r"float_layers must be one of 'torch', 'rust', got 'gpu'"
    ):
        fatnn.convert(model, x, float_layers="gpu")
    net = fatnn.convert(model, x, float_layers="rust")
    expected = net(x)
    bad = x.clone()
    bad[0, 0, 1, 1] = float("nan")
    with pytest.raises(fatnn.InputError, match="NaN"):
        net(bad)
    assert torch.equal(net(x), expected)


def test_unknown_operation_and_invalid_graph_are_refused() -> None:
    graph = (
        '{"nodes": [{"name": "x", "op": "input", "shape": [1, 2], "dtype": "float32"},'
        ' {"name": "y", "op": "fft", "inputs": ["x"], "shape": [1, 2], "attrs": {}, "tensors": {}'
        "}],"
        ' "outputs": {"value": "y"}}'
    )
    with pytest.raises(fatnn.UnsupportedError, match=r'node "y": operation "fft".*PyTorch'):
        _core.Network(graph, {})
    with pytest.raises(fatnn.FormatError, match="not JSON"):
        _core.Network("{", {})
    with pytest.raises(fatnn.FormatError, match="nodes must be a list"):
        _core.Network("{}", {})


class AddInManyShapes(nn.Module):
    """Additions whose operands may have equal shapes in the example and different ones later."""

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.bn_a = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.bn_b = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.c = nn.Conv2d(8, 4, 1)
        shapes = {"scalar": (1, 8, 1, 1), "batch": (2, 8, size, size), "both": (1, 8, size, size)}
        self.position = nn.Parameter(torch.randn(shapes.get(kind, (1, 8, size, size))))
        if kind == "gate":
            self.gate = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
            )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn_a(self.a(x)))
        y = self.bn_b(self.b(x))
        if self.kind == "keepdim":
            y = y + x.mean((2, 3), keepdim=True)
        elif self.kind == "gate":
            y = self.gate(x) + y
        elif self.kind == "pool":
            y = y + nn.functional.adaptive_avg_pool2d(x, 1)
        elif self.kind == "both":
            y = (y + self.position) + x
        else:
            y = y + self.position
        out: Tensor = self.c(torch.relu(y))
        return out


@pytest.mark.parametrize(
    ("kind", "size", "batch", "others"),
    [
        ("keepdim", 6, 2, [(1, 6), (3, 6), (2, 1)]),
        ("keepdim", 1, 2, [(2, 1), (3, 5)]),
        ("pool", 1, 1, [(2, 1), (3, 5)]),
        ("gate", 6, 2, [(1, 6), (3, 9)]),
        ("gate", 1, 1, [(2, 1), (3, 4)]),
        ("position", 6, 1, [(3, 6)]),
        ("position", 6, 2, [(1, 6), (3, 6)]),
        ("position", 1, 1, [(3, 1), (2, 4)]),
        ("batch", 6, 2, [(1, 6)]),
        ("scalar", 6, 1, [(1, 6), (3, 4)]),
        ("scalar", 6, 2, [(1, 6), (3, 4)]),
        ("both", 6, 1, [(1, 6), (3, 6)]),
    ],
)
@pytest.mark.parametrize("float_layers", ["torch", "rust"])
def test_addition_broadcasts_for_other_input_shapes_too(
    kind: str, size: int, batch: int, others: list[tuple[int, int]], float_layers: str
) -> None:
    x = torch.randn(batch, 3, size, size)
    torch.manual_seed(0)
    model = AddInManyShapes(kind, size)
    fatnn.prepare(model, fatnn.TernaryConfig(first="ternary", last="ternary"), example_inputs=x)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    net = fatnn.convert(model.eval(), x, float_layers=float_layers)
    assert any(node.op == "add" for node in net.graph.nodes)
    for images, side in [(batch, size), *others]:
        given = torch.randn(images, 3, side, side)
        expected = model(given)
        result = net(given)
        if float_layers == "torch":
            assert torch.equal(result, expected)
            assert torch.equal(run_nodes_separately(net, given), expected)
            assert fatnn.verify(model, net, given).identical
        else:
            assert result.shape == expected.shape


def test_residual_additions_run_in_segments(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    net = fatnn.convert(model, x)
    inside = {node.name for segment in net.segments for node in segment.nodes}
    adds = [
        n for n in net.graph.nodes if n.op == "add" or (n.op == "conv_float" and len(n.inputs) == 2)
    ]
    assert adds
    assert all(node.name in inside for node in adds)


class CumprodBetweenLayers(nn.Module):
    """A cumulative product, which the engine does not have, between ternary layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.a(x)))
        y = self.c(self.b(x))
        out: Tensor = torch.flatten(x.cumprod(1), 0, 1) + torch.flatten(y.mean((1, 2)), 0).sum()
        return out


@pytest.mark.parametrize("float_layers", ["torch", "rust"])
def test_unsupported_operation_ends_the_segment(float_layers: str) -> None:
    x = torch.randn(2, 3, 6, 6)
    model = CumprodBetweenLayers()
    fatnn.prepare(model, fatnn.TernaryConfig(first="ternary", last="ternary"), example_inputs=x)
    net = fatnn.convert(model.eval(), x, float_layers=float_layers)
    inside = {node.name for segment in net.segments for node in segment.nodes}
    assert {n.name for n in net.graph.nodes if n.op in ("conv_codes", "conv_float")} <= inside
    outside = {node.op for node in net.graph.nodes if node.name not in inside}
    assert {"torch"} | ({"mean", "sum"} if float_layers == "torch" else set()) <= outside
    assert not any("one by one" in note for note in net.report.notes)
    assert torch.equal(net(x[:1]), model(x[:1]))


def test_segment_that_fails_on_the_example_runs_as_separate_nodes(
    case: tuple[nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = case
    run = Segment.__call__

    def broken(self: Segment, *inputs: Tensor) -> list[Tensor]:
        run(self, *inputs)
        raise RuntimeError("it broke")

    monkeypatch.setattr(Segment, "__call__", broken)
    net = fatnn.convert(model, x)
    monkeypatch.undo()
    assert net.segments == []
    assert any("run one by one" in note and "it broke" in note for note in net.report.notes)
    for other in (net, copy.deepcopy(net)):
        assert torch.equal(other(x), model(x))

    monkeypatch.setattr(
        Segment, "__call__", lambda self, *inputs: [y[:, :1] for y in run(self, *inputs)]
    )
    net = fatnn.convert(model, x)
    monkeypatch.undo()
    assert any("the model's has" in note for note in net.report.notes)
    assert torch.equal(net(x), model(x))


def test_unfused_plan_is_built_once_and_only_on_demand(
    case: tuple[nn.Module, Tensor],
) -> None:
    model, x = case
    net = fatnn.convert(model, x)
    net(x)
    fatnn.verify(model, net, x)
    assert net._single is None
    plans: list[object] = []
    workers = [threading.Thread(target=lambda: plans.append(net._unfused_plan())) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(plans) == 8
    assert len(set(map(id, plans))) == 1
    assert torch.equal(run_nodes_separately(net, x), net(x))


def test_padded_shortcut_in_torch_takes_only_its_own_layers_out_of_segments() -> None:
    """Torch pads the shortcuts; only convolutions that exchange codes with them leave segments."""
    x = torch.randn(2, 3, 32, 32)
    model = prepared(resnet20(), x)
    net = fatnn.convert(model, x)
    inside = {node.name for segment in net.segments for node in segment.nodes}
    layers = [node.name for node in net.graph.nodes if node.op in ("conv_codes", "conv_float")]
    assert len(layers) == 18
    assert sum(name not in inside for name in layers) == 4
    for batch in (x, x[:1]):
        assert torch.equal(net(batch), model(batch))
        assert torch.equal(run_nodes_separately(net, batch), model(batch))


def test_addition_runs_in_the_engine_if_equal_sizes_cannot_be_proved() -> None:
    class Ceil(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, 2, 1)
            self.short = nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.short(nn.functional.max_pool2d(x, 2, ceil_mode=True))

    x = image(2, 3, 10, 10)
    net = exact(ready(Ceil(), x), x, (image(1, 3, 12, 8),))
    assert len(net.segments) == 1
    assert not [row.op for row in net.report.rows if row.runs == "torch"]


class SumBeforeQuantizer(nn.Module):
    """A sum that only a quantizer reads: the engine does not store its floats."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(6, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.b = nn.Conv2d(channels, 4, 3)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        residual = torch.log(torch.cat([x] * self.channels, 1)[:, : self.channels])
        return self.b(self.bn(self.a(x)) + residual)


@pytest.mark.parametrize("channels", [8, 24, 32, 70, 144])
@pytest.mark.parametrize("act", ["ternary", "uint2"])
def test_a_sum_that_only_a_quantizer_reads(channels: int, act: str) -> None:
    x = image(2, 6, 7, 9).abs() + 0.1
    model = ready(SumBeforeQuantizer(channels), x, first="ternary", last="ternary", act=act)
    exact(model, x, (x[:1] * 3, image(1, 6, 30, 5).abs() + 1e-3))
    net = fatnn.convert(model, x, float_layers="rust")
    bad = x.clone()
    bad[1, 3, 2, 5] = -1
    messages = []
    for as_run in (True, False):
        with pytest.raises(fatnn.InputError, match=r"'b'.*NaN") as caught:
            net.run_observed((bad,), None, as_run=as_run)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
