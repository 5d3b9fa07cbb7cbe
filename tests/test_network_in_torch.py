"""A converted network in PyTorch: compiled, exported, copied, pickled, cast, hooked, threaded."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fatnn_rs import UnsupportedError, convert, prepare, save


class Net(nn.Module):
    """Ternary convolutions between float ones; returns a dictionary, a sum and its input."""

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.b = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        maps = self.b(self.a(self.stem(x)))
        logits = self.head(maps.mean((2, 3)))
        return {"logits": logits, "maps": [maps], "x": x} if self.whole else logits


def made(whole: bool = False) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    model = prepare(Net(whole), example_inputs=x).eval()
    return convert(model, x), x


def same(one: Any, other: Any) -> bool:
    left, right = (torch.utils._pytree.tree_leaves(value) for value in (one, other))
    return len(left) == len(right) and all(map(torch.equal, left, right))


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("dynamic", [False, None])
def test_compiled_networks_keep_their_bits(whole: bool, dynamic: bool | None) -> None:
    net, x = made(whole)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (2, 1, 5):
        images = x[:1].repeat(batch, 1, 1, 1) * batch
        assert same(compiled(images), net(images))
    assert same(compiled(x=x), net(x))


def test_network_inside_a_compiled_model_keeps_its_bits() -> None:
    net, x = made()

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x * 2).softmax(1)

    model = Around()
    assert same(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def test_a_compiled_network_refuses_wrong_inputs() -> None:
    net, x = made()
    compiled = torch.compile(net, backend="aot_eager")
    with pytest.raises(Exception, match="expected 3 channels"):
        compiled(x[:, :2].contiguous())


def test_network_operator_passes_opcheck() -> None:
    net, x = made(whole=True)
    torch.library.opcheck(torch.ops.fatnn_rs.network.default, (None, [x], net.key))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_hold_the_network(strict: bool, tmp_path: Path) -> None:
    net, x = made(whole=True)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {"args": ({0: batch},)}
    program = torch.export.export(net.exportable(), (x,), dynamic_shapes=shapes, strict=strict)
    assert same(program.module()(x), net(x))
    assert same(program.module()(x[:1]), net(x[:1]))
    torch.export.save(program, tmp_path / "net.pt2")
    torch.save((x, net(x)["logits"]), tmp_path / "values.pt")
    script = (
        "import sys, torch, fatnn_rs.convert\nx, logits = torch.load(sys.argv[2])\nprogram = "
        "torch.export.load(sys.argv[1])\nassert torch.equal(program.module()(x)['logits'], "
        "logits)\n"
    )
    arguments = [str(tmp_path / name) for name in ("net.pt2", "values.pt")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, *arguments], check=True)


def test_export_without_exportable_says_what_to_do() -> None:
    net, x = made()
    with pytest.raises(UnsupportedError, match=r"net\.exportable\(\)"):
        torch.export.export(net, (x,))


def copies(net: Any) -> list[Any]:
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    return [
        copy.copy(net),
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.load(buffer, weights_only=True),
    ]


@pytest.mark.parametrize("float_layers", ["torch", "rust"])
def test_copies_compute_the_same(float_layers: str) -> None:
    _, x = made()
    model = prepare(Net(whole=True), example_inputs=x).eval()
    net = convert(model, x, float_layers=float_layers)
    for other in copies(net):
        assert same(other(x), net(x))
        assert other.float_layers == float_layers
        assert other.graph.limits == net.graph.limits


def test_a_network_that_no_file_holds_is_pickled_with_its_functions() -> None:
    x = torch.randn(2, 3, 12, 12)

    class Sorted(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x).sort(1).values

    globals()["Sorted"] = Sorted
    net = convert(prepare(Sorted(), example_inputs=x).eval(), x)
    with pytest.raises(UnsupportedError):
        save(net, "never-written")
    assert same(pickle.loads(pickle.dumps(net))(x), net(x))
    assert same(copy.deepcopy(net)(x), net(x))
    with pytest.raises(UnsupportedError):
        net.exportable()


def test_copies_share_nothing() -> None:
    net, x = made()
    expected, other = net(x), copy.deepcopy(net)
    for tensor in other.graph.tensors.values():
        tensor.zero_()
    assert same(net(x), expected)


@pytest.mark.parametrize(
    "cast",
    [
        nn.Module.half,
        nn.Module.double,
        nn.Module.bfloat16,
        lambda net: net.to("meta"),
        lambda net: net.to(torch.float16),
        lambda net: nn.Sequential(net).half(),
    ],
)
def test_other_types_and_devices_are_refused(cast: Any) -> None:
    net, x = made()
    expected = net(x)
    with pytest.raises(UnsupportedError, match=r"float32 and int8 on the CPU"):
        cast(net)
    assert same(net(x), expected)


def test_casts_to_the_cpu_and_float32_change_nothing() -> None:
    net, x = made()
    expected = net(x)
    for same_net in (net.to("cpu"), net.float(), net.cpu(), net.to(x), net.requires_grad_(False)):
        assert same_net is net
    assert same(net(x), expected)


def test_network_works_under_autocast_inference_mode_hooks_and_threads() -> None:
    net, x = made()
    expected = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(net(x), expected)
    with torch.inference_mode():
        assert same(net(x), expected)
    seen: list[Any] = []
    before = net.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    after = net.register_forward_hook(lambda module, args, result: seen.append(result))
    doubled = net(x)
    before.remove()
    after.remove()
    assert same(seen, [doubled])
    assert same(doubled, net(x * 2))
    with ThreadPoolExecutor(4) as pool:
        assert all(same(result, expected) for result in pool.map(lambda _: net(x), range(40)))
