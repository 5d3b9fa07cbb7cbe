"""The benchmark: its report, the other runtimes, its errors. No test asserts a speed."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fatnn_rs
from command_line import call
from fatnn_rs import ConfigError, InputError, machine
from fatnn_rs.bench import PEERS, BenchReport, networks, timing
from fatnn_rs.bench.export import BenchTask
from fatnn_rs.bench.peers import INSTALL, BuiltPeer, Peer
from fatnn_rs.models.cifar_resnet import CifarResNet, Shortcut
from nets import image, ready

INPUTS = image(2, 3, 10, 9)


class Tiny(nn.Module):
    """Two ternary layers with a shortcut, between a float stem and a float classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        x = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)
        return self.fc(x.mean((2, 3)))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 5, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self.head(torch.relu(self.shared(x))), [self.shared(y)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: more threads do not speed up small layers, and wait on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model_and_net() -> tuple[nn.Module, Any]:
    """A float model, and the network converted from its ternary copy."""
    torch.manual_seed(0)
    model = Tiny().eval()
    ternary = fatnn_rs.prepare(copy.deepcopy(model), example_inputs=INPUTS).eval()
    return model, fatnn_rs.convert(ternary, INPUTS)


@pytest.fixture(scope="module")
def report(model_and_net: tuple[nn.Module, Any]) -> BenchReport:
    """A benchmark against every peer, installed or not."""
    model, net = model_and_net
    return fatnn_rs.bench(net, INPUTS, tuple(PEERS), float_model=model, rounds=3)


SIGNAL_SCRIPT = """
import signal, subprocess, sys, tempfile, torch
from pathlib import Path
from fatnn_rs.bench import PEERS
from fatnn_rs.bench.export import BenchTask
seen = []
signal.signal(signal.SIGCHLD, lambda number, frame: seen.append(number))
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)).eval()
with tempfile.TemporaryDirectory() as folder:
    built = PEERS[sys.argv[1]].build(BenchTask(model, (torch.zeros(1, 3, 8, 8),), 1, Path(folder)))
    del built
seen.clear()  # the quantizer starts processes too, and one may end late
subprocess.run([sys.executable, "-c", ""], check=True)
assert set(seen) == {signal.SIGCHLD}, seen
"""


#: Peers tested every time: torch itself, and the only peer that starts processes.
QUICK_PEERS = ("torch", "openvino-int8")


@pytest.mark.parametrize(
    "name", [n if n in QUICK_PEERS else pytest.param(n, marks=pytest.mark.long) for n in PEERS]
)
def test_signal_handlers_run_after_a_peer_was_built(name: str) -> None:
    if PEERS[name].missing():
        pytest.skip(f"{name} is not installed")
    arguments = [sys.executable, "-W", "ignore", "-X", "faulthandler", "-c", SIGNAL_SCRIPT, name]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])


@pytest.mark.parametrize("name", list(PEERS))
def test_every_peer_is_measured_or_reported_absent(report: BenchReport, name: str) -> None:
    row, peer = report.row(name), PEERS[name]
    if peer.missing():
        assert row.state == "absent"
        assert INSTALL in row.reason
        assert row.milliseconds is None
        return
    assert row.state == "measured", row.reason
    assert row.milliseconds is not None
    assert row.ratio is not None
    for spread in (row.milliseconds, row.ratio):
        assert 0 < spread.minimum <= spread.lower <= spread.median <= spread.upper
    assert row.variants is not None
    assert row.milliseconds.median == min(row.variants.values()) == row.variants[row.variant]
    # int8 rounds, so an exact output would mean that the peer did not run in int8.
    assert row.error is not None
    assert (1e-4 < row.error < 0.2) if peer.tolerance is None else row.error <= peer.tolerance


def test_torch_is_measured_in_both_memory_formats(report: BenchReport) -> None:
    assert set(report.row("torch").variants or ()) == {"contiguous", "channels_last"}


def test_layer_rows_cover_the_whole_network(
    report: BenchReport, model_and_net: tuple[nn.Module, Any]
) -> None:
    _, net = model_and_net
    rows = iter([(row.name, row.runs) for row in net.report.rows])
    # The rows come in order; elementwise functions fused into another node have no row.
    assert all((row.name, row.runs) in rows for row in report.layers)
    assert {row.name for row in net.report.rows if row.macs} <= {row.name for row in report.layers}
    assert sum(row.share for row in report.layers) == pytest.approx(1)
    assert all(row.milliseconds > 0 for row in report.layers)
    # Two images of 90 pixels: a stem of 3 channels, two layers of 8, and a classifier of 8 x 5.
    assert report.macs_ternary == 2 * 2 * 90 * 8 * 8 * 9
    assert report.macs == report.macs_ternary + 2 * 90 * 3 * 8 * 9 + 2 * 8 * 5
    assert sum(row.macs for row in report.layers) == report.macs
    assert {row.name: row.macs for row in report.layers if row.op == "conv_codes"} == {
        "conv1": 2 * 90 * 8 * 8 * 9
    }


def test_report_prints_and_serialises_every_row(report: BenchReport) -> None:
    plain = json.loads(report.to_json())
    assert plain == report.as_dict()
    assert [row["name"] for row in plain["rows"]] == ["fatnn", *PEERS]
    assert plain["shapes"] == [[2, 3, 10, 9]]
    assert plain["threads"] == 1
    assert plain["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    rows = {row["name"]: row for row in plain["rows"]}
    assert rows["fatnn"]["ratio"] is None
    assert plain["losses"] == [
        name for name, row in rows.items() if row["ratio"] and row["ratio"]["median"] < 1
    ]
    text = str(report)
    for part in (
        *PEERS,
        "where we lose",
        "conv2",
        report.machine.cpu,
        f"torch {torch.__version__.partition('+')[0]}",
    ):
        assert part in text


def test_report_warns_of_a_busy_machine(report: BenchReport) -> None:
    for load, busy in ((0.5, False), (99.0, True), (None, False)):
        record = dataclasses.replace(report.machine, load=load)
        assert ("busy: " in str(dataclasses.replace(report, machine=record))) == busy


def _peer(build: Any, **changes: Any) -> Peer:
    return dataclasses.replace(PEERS["torch"], build=build, **changes)


def test_absent_failing_and_wrong_peers_are_reported(
    model_and_net: tuple[nn.Module, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(task: BenchTask) -> BuiltPeer:
        raise RuntimeError("no such\nkernel")

    def answer(change: Any) -> Any:
        return lambda task: BuiltPeer({"": lambda: change(task.model(*task.inputs).detach())})

    new = {
        "away": _peer(explode, modules=("torch", "a_module_that_is_not_there")),
        "broken": _peer(explode),
        "wrong": _peer(answer(lambda y: y * 1.01)),
        "shape": _peer(answer(lambda y: y[:1])),
        "nan": _peer(answer(lambda y: y * math.nan), tolerance=None),
        "right": _peer(answer(lambda y: y * 1.0001)),
    }
    for name, peer in new.items():
        monkeypatch.setitem(PEERS, name, peer)
    model, net = model_and_net
    report = fatnn_rs.bench(net, INPUTS, tuple(new), float_model=model, rounds=3)
    states = {name: report.row(name).state for name in new}
    assert states == {
        "away": "absent", "broken": "failed", "wrong": "failed", "shape": "failed",
        "nan": "failed", "right": "measured"
    }  # fmt: skip
    assert report.row("away").reason == f"a_module_that_is_not_there not installed: {INSTALL}"
    assert report.row("broken").reason == "RuntimeError: no such kernel"
    assert "differs from the float model's" in report.row("wrong").reason
    assert report.failed == ("broken", "wrong", "shape", "nan")
    assert "broken: failed: RuntimeError: no such kernel" in str(report)


def test_without_float_model_only_the_network_is_timed(
    model_and_net: tuple[nn.Module, Any],
) -> None:
    report = fatnn_rs.bench(model_and_net[1], INPUTS, rounds=3)
    assert report.row("torch").state == "not measured"
    assert "float_model" in report.row("torch").reason
    assert report.row("fatnn").milliseconds is not None
    assert report.losses == ()
    assert "where we lose" not in str(report)


def test_thread_count_applies_to_every_runtime_and_is_restored(
    model_and_net: tuple[nn.Module, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def build(task: BenchTask) -> BuiltPeer:
        def call() -> Any:
            seen.append((task.threads, torch.get_num_threads(), fatnn_rs.get_num_threads()))
            return task.model(*task.inputs)

        return BuiltPeer({"": call})

    monkeypatch.setitem(PEERS, "witness", _peer(build))
    model, net = model_and_net
    before = torch.get_num_threads(), fatnn_rs.get_num_threads()
    for threads in (1, 2):
        seen.clear()
        report = fatnn_rs.bench(net, INPUTS, ("witness",), threads, float_model=model, rounds=3)
        assert report.threads == threads
        assert set(seen) == {(threads, threads, threads)}
        assert (torch.get_num_threads(), fatnn_rs.get_num_threads()) == before


def test_bench_leaves_model_and_inputs_unchanged(model_and_net: tuple[nn.Module, Any]) -> None:
    model, net = model_and_net
    state, x = copy.deepcopy(model.state_dict()), INPUTS.clone()
    model.train()
    fatnn_rs.bench(net, x, float_model=model, rounds=3)
    assert model.training
    model.eval()
    assert torch.equal(x, INPUTS)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_peers_run_models_with_several_inputs_and_outputs() -> None:
    inputs = (image(2, 4, 6, 6), image(2, 4, 5, 7))
    model = TwoInputs().eval()
    net = fatnn_rs.convert(ready(copy.deepcopy(model), inputs), inputs)
    report = fatnn_rs.bench(net, inputs, tuple(PEERS), float_model=model, rounds=3)
    assert report.shapes == ((2, 4, 6, 6), (2, 4, 5, 7))
    assert not report.failed, str(report)


def test_wrong_arguments_raise_clear_errors(model_and_net: tuple[nn.Module, Any]) -> None:
    model, net = model_and_net
    with pytest.raises(
        ConfigError,
        match=r"unknown peer 'tensorflow'.*torch, torch-bf16, onnxruntime, onnxruntime-int8, "
        r"openvino",
    ):
        fatnn_rs.bench(net, INPUTS, ("torch", "tensorflow"), float_model=model)
    with pytest.raises(ConfigError, match=r"write \('torch',\)"):
        fatnn_rs.bench(net, INPUTS, "torch", float_model=model)
    for threads in (0, -1, 1.0, True):
        with pytest.raises(ConfigError, match="threads must be a whole number of at least 1"):
            fatnn_rs.bench(net, INPUTS, threads=threads)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rounds must be a whole number of at least 3, got 2"):
        fatnn_rs.bench(net, INPUTS, rounds=2)
    with pytest.raises(InputError, match="expected a converted network, got Tiny"):
        fatnn_rs.bench(model, INPUTS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected 3 channels"):
        fatnn_rs.bench(net, image(1, 4, 10, 9), float_model=model)
    prepared = fatnn_rs.prepare(copy.deepcopy(model), example_inputs=INPUTS)
    with pytest.raises(
        ConfigError, match=r"float_model holds quantized layers.*conv1.*before fatnn_rs\.prepare"
    ):
        fatnn_rs.bench(net, INPUTS, float_model=prepared)
    with pytest.raises(ConfigError, match=r"returns shapes \[\[2, 3, 10, 9\]\].*\[\[2, 5\]\]"):
        fatnn_rs.bench(net, INPUTS, float_model=nn.Identity())


def test_order_rotates_and_ratios_are_taken_within_a_round() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = timing.interleaved(calls, rounds=4)
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 4)
    turns = [name for place, name in enumerate(order) if place == 0 or order[place - 1] != name]
    # A first pass finds how often to call each; then come the rounds: abc, bca, cab, abc.
    assert "".join(turns) == "abc" + "abc" + "bca" + "cab" + "abc"
    # The ratio stays the same if the machine is ten times slower for one round.
    assert timing.ratios([2, 20, 2], [1, 10, 1]) == [2, 2, 2]
    assert timing.Quartiles.of([3.0, 1.0, 2.0, 5.0, 4.0]) == timing.Quartiles(3.0, 1.0, 2.0, 4.0)


def test_exported_int8_onnx_file_quantizes_every_convolution(
    model_and_net: tuple[nn.Module, Any], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    if PEERS["onnxruntime-int8"].missing():
        pytest.skip("needs onnxruntime and onnxscript")
    task = BenchTask(model_and_net[0], (INPUTS,), 1, tmp_path)
    graph = onnx.load(str(task.qdq)).graph
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 3
    assert not any(node.op_type == "BatchNormalization" for node in graph.node)
    for node in convolutions:
        activation, weight = (makers[name] for name in node.input[:2])
        assert (activation.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert constants[activation.input[2]].dtype == np.uint8
        codes, scale = constants[weight.input[0]], constants[weight.input[1]]
        assert codes.dtype == np.int8
        assert scale.shape == (codes.shape[0],)
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


def test_machine_record_holds_environment_and_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    record = machine.Machine.current()
    assert record.environment["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE_VNNI"
    assert record.cpu
    assert record.kernels == tuple(fatnn_rs.cpu_info()["kernels"])
    named = dataclasses.replace(
        record, cpu="Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz", cpu_id="6-79-1"
    )
    assert named.slug == "intel-xeon-cpu-e5-2690-v4-6-79-1"


@pytest.mark.parametrize("name", ["digits", "cifar-resnet20"])
@pytest.mark.parametrize("ends", networks.END_TYPES)
def test_named_networks_build_and_convert(name: str, ends: str) -> None:
    made = networks.build_and_convert(name, ends=ends)
    assert made.net.report.layers_int8 == (2 if ends == "int8" else 0)
    assert all(not row.op.startswith("torch: ") for row in made.net.report.rows)
    x = made.images(2)
    assert x.shape[0] == 2
    assert made.net(x).shape == made.model(x).shape == (2, 10)
    assert torch.equal(made.images(2), x)


def test_cifar_resnet_has_the_papers_sizes_and_padded_shortcut() -> None:
    # Millions of parameters, from table 6 of the ResNet paper.
    for depth, count in ((20, 0.27), (32, 0.46), (44, 0.66)):
        assert round(sum(p.numel() for p in CifarResNet(depth).parameters()) / 1e6, 2) == count
    x = image(2, 3, 6, 8)
    y = Shortcut(2, 3)(x)
    assert torch.equal(y[:, 1:4], x[:, :, ::2, ::2])
    assert not y[:, :1].any()
    assert not y[:, 4:].any()
    with pytest.raises(ConfigError, match=r"6n \+ 2"):
        CifarResNet(18)
    with pytest.raises(ConfigError, match="unknown network 'alexnet'; the networks are: resnet18"):
        networks.build_and_convert("alexnet")


def _call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    return call(capsys, "bench", *arguments)


def test_bench_command_writes_reports(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PEERS, "away", _peer(None, modules=("a_module_that_is_not_there",)))
    options = ("--model", "digits", "--batch", "1,2", "--rounds", "3", "--against", "torch,away")
    file, folder = tmp_path / "new" / "figures.json", tmp_path / "results"
    code, out, _ = _call(capsys, *options, "--json", str(file), "--results", str(folder))
    assert code == 0
    assert "digits, batch 2: input 2x1x8x8, 1 thread" in out
    assert INSTALL in out
    reports = json.loads(file.read_text())
    assert [report["shapes"] for report in reports] == [[[1, 1, 8, 8]], [[2, 1, 8, 8]]]
    place = folder / machine.Machine.current().slug
    assert [path.suffix for path in place.iterdir()] == [".json"]
    assert json.loads(next(place.glob("*.json")).read_text()) == reports
    no_peers = (*options[:2], "--rounds", "3", "--against", "none")
    code, out, _ = _call(capsys, *no_peers, "--json", "-")
    assert code == 0
    assert [row["name"] for row in json.loads(out)[0]["rows"]] == ["fatnn"]
    types = ("--ends", "int8,float", "--values", "int8,float32")
    code, out, _ = _call(capsys, *no_peers, *types, "--json", "-")
    assert code == 0
    assert [report["network"] for report in json.loads(out)] == [
        "digits, int8 ends, int8 values, batch 1",
        "digits, int8 ends, batch 1",
        "digits, int8 values, batch 1",
        "digits, batch 1",
    ]


def test_bench_command_reports_errors_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(task: BenchTask) -> BuiltPeer:
        raise RuntimeError("no kernel")

    monkeypatch.setitem(PEERS, "broken", _peer(explode))
    code, out, err = _call(capsys, "--model", "digits", "--rounds", "3", "--against", "broken")
    assert code == 1
    assert "RuntimeError: no kernel" in out
    assert err.splitlines()[-1] == (
        "fatnn: installed runtimes that could not be measured: broken; the report says why"
    )
    for arguments, message in (
        (("--model", "nonsense"), "model: unknown name 'nonsense'; known are: resnet18"),
        (("--against", "nonsense"), "against: unknown name 'nonsense'; known are: torch"),
        (("--threads", "0"), "threads must be at least 1, got 0"),
        (("--batch", "one"), "--batch: expected whole numbers separated by commas, got 'one'"),
        (("--ends", "int4"), "ends: unknown name 'int4'; known are: float, int8, ternary"),
        (("--values", "half"), "values: unknown name 'half'; known are: float32, int8"),
        (("--batch", ","), "batch: expected at least one value"),
        (
            ("--size", "16"),
            "size: resnet18 halves its images five times and needs at least 32 pixels, got 16",
        ),
    ):
        code, out, err = _call(capsys, *arguments)
        assert code == 1, arguments
        assert out == ""
        assert err.splitlines()[-1].startswith(f"fatnn: {message}")
