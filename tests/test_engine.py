"""Segments: what the Rust engine takes over gives the bits that the same nodes give one by one."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fatnn_rs as fatnn
from fatnn_rs import _core
from fatnn_rs.convert import TernaryNetwork
from fatnn_rs.models.digits import DigitsNet


def trained(model: nn.Module, x: Tensor) -> nn.Module:
    """Prepare a model and give its BatchNorms statistics of their own."""
    torch.manual_seed(0)
    fatnn.prepare(model, example_inputs=x)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=5.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 1.0, 90.0)  # type: ignore[arg-type]
    return model.eval()


class Odd(nn.Module):
    """Every operation of a segment: pools, clamps, PReLU, groups, two residuals, a branch, a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.bn0, self.act0 = nn.BatchNorm2d(12), nn.PReLU(12)
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.a, self.bn_a = nn.Conv2d(12, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24)
        self.b, self.bn_b = nn.Conv2d(12, 24, 1, 2, bias=False), nn.BatchNorm2d(24)
        self.c, self.bn_c = nn.Conv2d(24, 24, 3, padding=2, dilation=2, groups=4, bias=False), nn.BatchNorm2d(24)
        self.d = nn.Linear(24 * 3 * 3, 10)
        self.e = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act0(self.bn0(self.stem(x))))
        x = nn.functional.hardtanh(self.bn_a(self.a(x)) + self.bn_b(self.b(x)), -3.0, 4.0)
        x = nn.functional.leaky_relu(self.bn_c(self.c(x)) + x, 0.1)
        out: Tensor = self.e(self.d(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 3), 1)))
        return out


@pytest.fixture(scope="module", params=[DigitsNet, Odd])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    x = torch.randn(3, 1, 8, 8) if request.param is DigitsNet else torch.randn(3, 3, 17, 15)
    return trained(request.param(), x), x


def one_by_one(net: TernaryNetwork, x: Tensor) -> Tensor:
    result: Tensor = net.run_observed((x,), None)
    return result


def test_segments_give_the_bits_of_single_nodes(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    net = fatnn.convert(model, x)
    assert net.segments
    assert sum(len(segment.nodes) for segment in net.segments) >= 8
    for batch in (x, x[:1], x[:0], x.repeat(3, 1, 1, 1), x.contiguous(memory_format=torch.channels_last)):
        expected = model(batch)
        assert torch.equal(net(batch), expected)
        assert torch.equal(one_by_one(net, batch), expected)
    report = fatnn.verify(model, net, x)
    assert report.codes_total > 0
    assert report.codes_different == 0


def test_the_report_names_what_the_engine_runs(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    report = fatnn.convert(model, x).report
    runs = {row.op: row.runs for row in report.rows}
    assert runs["conv2d"] == "torch"
    assert runs["batch_norm"] == "rust float -> float"
    everything = fatnn.convert(model, x, float_layers="rust").report
    assert all(row.runs.startswith("rust") for row in everything.rows)
    assert everything.macs_ternary == report.macs_ternary


def test_the_whole_network_in_one_call(case: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    model, x = case
    net = fatnn.convert(model, x, float_layers="rust")
    assert len(net.segments) == 1
    assert torch.allclose(net(x), model(x), rtol=1e-4, atol=1e-4)
    fatnn.save(net, tmp_path / "net.safetensors")
    assert torch.equal(fatnn.load(tmp_path / "net.safetensors", float_layers="rust")(x), net(x))
    # The same file without torch: NumPy in, NumPy out.
    alone = _core.Network.load(tmp_path / "net.safetensors")
    (logits,) = alone.run([x.numpy()], [False])
    assert np.allclose(logits, net(x).numpy(), rtol=1e-5, atol=1e-5)
    assert alone.inputs[0][1] == list(x.shape)
    assert alone.buffer_bytes > 0


def test_threads_share_a_network(case: tuple[nn.Module, Tensor]) -> None:
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


def test_results_do_not_depend_on_the_number_of_threads(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    net = fatnn.convert(model, x, float_layers="rust")
    batch = x.repeat(8, 1, 1, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = net(batch)
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            assert torch.equal(net(batch), single)
    finally:
        torch.set_num_threads(before)


def test_seconds_of_every_node_that_runs(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    net = fatnn.convert(model, x)
    seconds = net.node_seconds(x)
    ternary = {node.name for node in net.graph.nodes if node.op in ("conv_codes", "conv_float")}
    assert ternary <= set(seconds)
    assert all(value >= 0 for value in seconds.values())


def test_misuse(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    with pytest.raises(fatnn.ConfigError, match=r"float_layers must be one of 'torch', 'rust', got 'gpu'"):
        fatnn.convert(model, x, float_layers="gpu")
    net = fatnn.convert(model, x, float_layers="rust")
    bad = x.clone()
    bad[0, 0, 1, 1] = float("nan")
    with pytest.raises(fatnn.InputError, match="NaN"):
        net(bad)
    assert torch.equal(net(x), net(x))  # and the network still works


def test_what_the_engine_lacks_is_named() -> None:
    graph = (
        '{"nodes": [{"name": "x", "op": "input", "shape": [1, 2], "attrs": {"dtype": "float32"}},'
        ' {"name": "y", "op": "fft", "inputs": ["x"], "shape": [1, 2], "attrs": {}, "tensors": {}}],'
        ' "outputs": {"value": "y"}}'
    )
    with pytest.raises(fatnn.UnsupportedError, match=r'node "y": operation "fft".*PyTorch'):
        _core.Network(graph, {})
    with pytest.raises(fatnn.FormatError, match="not JSON"):
        _core.Network("{", {})
    with pytest.raises(fatnn.FormatError, match="no list of nodes"):
        _core.Network("{}", {})
