"""Float layers after values whose memory is strided: torch gets the model's strides and path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fatnn_rs
from fatnn_rs import TernaryConfig, convert, prepare, verify
from fatnn_rs.convert.memory_format import with_strides
from fatnn_rs.report import RULES

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)


def check(model: nn.Module, x: Tensor, path: Path) -> Any:
    """Quantize only layer ``q``; compare at two batch sizes, also after saving and loading."""
    floats = [n for n, m in model.named_modules() if isinstance(m, _LAYERS) and n != "q"]
    prepare(model, TernaryConfig(first="ternary", last="ternary", skip=tuple(floats)), x)
    model.eval()
    net = convert(model, x)
    nets = [net]
    if net.report.saveable:
        fatnn_rs.save(net, path / "net")
        nets.append(fatnn_rs.load(path / "net"))
    with torch.no_grad():
        for one in nets:
            assert verify(model, one, x).identical
            more = torch.cat([x, x[:1] * 2])
            assert torch.equal(one(more), model(more))
    return net


class Between(nn.Module):
    """A ternary layer, a view of its result, a float layer."""

    def __init__(self, layer: nn.Module, view: Callable[[Tensor], Any], after: nn.Module) -> None:
        super().__init__()
        self.q, self.view, self.after = layer, view, after

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.after(self.view(self.q(x)))
        return result


class Product(nn.Module):
    """``x @ weight``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24, size))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transpose": lambda x: x.transpose(0, -2),
    "torch transpose": lambda x: x.cumsum(1).transpose(0, -2),
    "expand": lambda x: x.cumsum(1)[:, :1].expand(-1, 4, *x.shape[2:]),
    "every second": lambda x: x[..., ::2, :],
    "part": lambda x: torch.cat([x, x], -1).cumsum(1)[..., :24],
    "windows": lambda x: x.cumsum(1).unfold(-2, 3, 2)[..., 0],
}


@pytest.mark.parametrize("shape", [(5, 11, 24), (3, 4, 11, 24)])
@pytest.mark.parametrize("view", list(VIEWS))
@pytest.mark.parametrize("kind", ["linear", "no bias", "frozen", "product"])
def test_linear_after_a_strided_value(
    kind: str, view: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    for size in (1, 9):
        after = {
            "linear": lambda size=size: nn.Linear(24, size),
            "no bias": lambda size=size: nn.Linear(24, size, bias=False),
            "frozen": lambda size=size: frozen(nn.Linear(24, size)),
            "product": lambda size=size: Product(size),
        }[kind]()
        x = torch.randn(shape)
        if "transpose" in view:  # which moves the batch
            x = torch.randn(shape[-2], *shape[1:])
        check(Between(nn.Linear(24, 24), VIEWS[view], after), x, tmp_path)


@pytest.mark.filterwarnings("ignore::fatnn_rs.PrepareWarning")
@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("trained", [True, False])
def test_linear_after_a_recurrent_layer(
    kind: Any, size: int, trained: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.rnn = nn.Linear(24, 24), kind(24, 20, batch_first=True)
            self.after = nn.Linear(20, size).requires_grad_(trained)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.after(self.rnn(self.q(x))[0])
            return result

    check(Model(), torch.randn(5, 11, 24), tmp_path)


MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "same": lambda x: x.cumsum(1),
    "transpose": lambda x: x.cumsum(1).transpose(2, 3),
    "part": lambda x: x[:, :, ::2, 1:],
    "channels": lambda x: torch.cat([x, x], 1)[:, :6],
    "expand": lambda x: x.cumsum(2)[:, :1].expand(-1, 6, -1, -1),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("view", list(MAPS))
def test_maps_after_a_strided_value(view: str, last: bool, tmp_path: Path) -> None:
    layers = {
        "conv": lambda: nn.Conv2d(6, 5, 3),
        "transposed": lambda: nn.ConvTranspose2d(6, 5, 3, 2),
        "norm": lambda: nn.GroupNorm(2, 6),
        "pool": lambda: nn.AdaptiveAvgPool2d(2),
        "function": lambda: nn.Sequential(nn.BatchNorm2d(6), nn.GELU(), nn.AvgPool2d(3)),
    }
    layout = torch.channels_last if last else torch.contiguous_format
    for made in layers.values():
        torch.manual_seed(0)
        model = Between(nn.Conv2d(6, 6, 3, padding=1), MAPS[view], made()).to(memory_format=layout)
        check(model, torch.randn(4, 6, 9, 8).to(memory_format=layout), tmp_path)


class Gated(nn.Module):
    """Half of the channels gates the other half; the function reads strided views."""

    def __init__(self, function: Callable[[Tensor], Tensor], dims: int) -> None:
        super().__init__()
        conv = nn.Conv1d if dims == 1 else nn.Conv2d
        self.function, self.q, self.after = function, conv(6, 14, 3, padding=1), conv(7, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.q(x).chunk(2, 1)
        y = a * self.function(b)
        result: Tensor = self.after(self.function(y[..., 1:])[..., :-1].contiguous())
        return result


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize(
    "function",
    [torch.sigmoid, torch.tanh, functional.gelu, functional.silu, torch.exp, torch.sin],
)
def test_functions_of_strided_views_have_the_models_bits(
    function: Callable[[Tensor], Tensor], dims: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6, 37) if dims == 1 else torch.randn(3, 6, 7, 9)
    net = check(Gated(function, dims), x, tmp_path)
    assert any(row.reason == RULES["strides"] for row in net.report.rows)


def test_slices_between_ternary_layers_stay_in_the_engine(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(6, 12, 3, padding=1), nn.Conv2d(6, 4, 3))

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.r = model

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.q(x).chunk(2, 1)
            result: Tensor = self.r(a + b.relu())
            return result

    x, halves = torch.randn(4, 6, 9, 8), Halves()
    prepare(halves, TernaryConfig(first="ternary", last="ternary"), x)
    net = convert(halves.eval(), x)
    assert len(net.segments) == 1
    assert not any(row.reason for row in net.report.rows)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_file_keeps_what_the_memory_format_of_weights_decides(
    channels: int, memory_format: torch.memory_format, tmp_path: Path
) -> None:
    """torch adds in another order in channels-last memory; a file's tensors are row-major."""
    torch.manual_seed(0)
    first = nn.Conv2d(channels, 16, 5, stride=2, padding=2)
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    x = torch.randn(50, channels, 28, 28)
    prepare(model, example_inputs=x)
    model.eval().to(memory_format=memory_format)
    net = convert(model, x[:2])
    fatnn_rs.save(net, tmp_path / "net.safetensors")
    seen: list[torch.Tensor] = []
    for one in (net, fatnn_rs.load(tmp_path / "net.safetensors")):
        one.run_observed(
            (x,), lambda node, value, read: seen.append(value) if node.op == "conv2d" else None
        )
    expected = first(x)
    assert len(seen) >= 2
    assert all(torch.equal(value, expected) for value in seen if value.shape == expected.shape)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(70, 33), (70,)),
    "linear, one output": (lambda: nn.Linear(33, 1), (33,)),
    "conv1d": (lambda: nn.Conv1d(70, 33, 3), (70, 9)),
    "conv1d, depthwise": (lambda: nn.Conv1d(16, 16, 3, groups=16), (16, 9)),
    "conv2d": (lambda: nn.Conv2d(20, 33, 3), (20, 9, 9)),
    "conv2d, 1x1": (lambda: nn.Conv2d(20, 33, 1), (20, 9, 9)),
    "conv2d, 3x1": (lambda: nn.Conv2d(64, 1, (3, 1)), (64, 9, 9)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(20, 33, 3), (20, 9)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(20, 33, 3), (20, 9, 9)),
    "conv_transpose2d, 1x3": (lambda: nn.ConvTranspose2d(20, 8, (1, 3)), (20, 9, 9)),
}


def _moved(x: Tensor, order: tuple[int, ...]) -> Tensor:
    order = (*(dim for dim in order if dim < x.dim()), *range(3, x.dim()))
    back = [order.index(dim) for dim in range(len(order))]
    return x.permute(order).contiguous().permute(back)


#: Places of a weight in memory.
PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    **{str(order): partial(_moved, order=order) for order in permutations(range(3))},
    "slice": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "one row": lambda x: x[:1].expand_as(x),
    "one column": lambda x: x[:, :1].expand_as(x),
}


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_file_keeps_the_strides_of_weights(
    kind: str, place: str, batch: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(batch, *shape)
    layer.weight = nn.Parameter(PLACES[place](layer.weight.detach()))  # type: ignore[arg-type]
    expected = layer(x)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(expected[0].numel(), 4))
    prepare(model, TernaryConfig(last="ternary", skip=("0",)), x)
    net = convert(model.eval(), x)
    fatnn_rs.save(net, tmp_path / "net")
    loaded = fatnn_rs.load(tmp_path / "net")
    seen: list[torch.Tensor] = []
    for one in (net, loaded):
        one.run_observed((x,), lambda node, value, read: seen.append(value))
    seen = [value for value in seen if value.shape == expected.shape and value.dtype == x.dtype]
    assert len(seen) >= 2
    assert all(torch.equal(value, expected) for value in seen)
    fatnn_rs.save(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "net").read_bytes()


def test_weights_that_overlap_or_spread_are_kept_row_major() -> None:
    memory = torch.randn(1000)
    for strides in ((1, 1), (600, 1)):
        assert with_strides(memory[:8].view(2, 4), strides) is None
    assert with_strides(memory[:8].view(2, 4), (0, 1)) is None
    made = with_strides(memory[:4].expand(2, 4), (0, 1))
    assert made is not None
    assert made.stride() == (0, 1)
    assert torch.equal(made, memory[:4].expand(2, 4))
    empty = with_strides(torch.empty(0, 4), (1, 1))
    assert empty is not None
    assert empty.stride() == (4, 1)


class Einsum(nn.Module):
    """A float layer, einsum with a parameter, and the layer ``q``."""

    def __init__(self, equation: str, weight: tuple[int, ...], features: int) -> None:
        super().__init__()
        self.equation = equation
        self.first, self.q = nn.Linear(70, weight[-2]), nn.Linear(features, 4)
        self.weight = nn.Parameter(torch.randn(weight))

    def product(self, x: Tensor) -> Tensor:
        return torch.einsum(self.equation, functional.relu(self.first(x)), self.weight)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.q(self.product(x))
        return result


@pytest.mark.parametrize("example", [1, 2, 8])
@pytest.mark.parametrize(
    ("equation", "weight", "shape"),
    [
        ("bi,io->bo", (8, 5), ()),
        ("bti,io->bto", (33, 7), (3,)),
        ("bti,tio->bto", (3, 33, 7), (3,)),
        ("btij,ijo->bto", (6, 7, 20), (3, 6)),
    ],
)
def test_einsum_adds_in_its_own_order_at_any_batch_size(
    equation: str, weight: tuple[int, ...], shape: tuple[int, ...], example: int
) -> None:
    torch.manual_seed(0)
    model, x = Einsum(equation, weight, weight[-1]), torch.randn(example, *shape, 70)
    prepare(model, TernaryConfig(last="ternary", skip=("first",)), x)
    net = convert(model.eval(), x)
    assert not any(node.op == "torch" for node in net.graph.nodes)
    for batch in (1, 2, 3, 8, 64):
        x, seen = torch.randn(batch, *shape, 70), {}
        net.run_observed((x,), lambda node, value, read, seen=seen: seen.update({node.op: value}))
        expected = model.product(x)
        if "t" in equation[equation.index(",") : equation.index("->")]:
            seen["matmul"] = seen["matmul"].transpose(0, 1)
        assert torch.equal(seen["matmul"].reshape(expected.shape), expected), batch
        assert torch.equal(net(x), model(x))


@pytest.mark.parametrize(
    ("equation", "weight", "shape"),
    [
        ("bi,oi->ob", (33, 8), ()),
        ("oi,bi->bo", (33, 8), ()),
        ("bni,oi->obn", (7, 33), (9,)),
        ("bni,oi->bon", (7, 33), (9,)),
        ("bhij,oij->ohb", (5, 4, 24), (3, 4)),
    ],
)
def test_einsum_swaps_its_operands_as_torch_does(
    equation: str, weight: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    product = EinsumOf(equation, torch.randn(weight), weight_first=equation.startswith("o"))
    model = nn.Sequential(nn.Linear(70, 70), nn.ReLU(), nn.Linear(70, weight[-1]), product)
    x = torch.randn(4, *shape, 70)
    prepare(model, TernaryConfig(last="ternary", skip=("0",)), x)
    net = convert(model.eval(), x)
    assert not any(node.op in ("torch", "einsum") for node in net.graph.nodes)
    for batch in (2, 3, 8, 32, 64):
        x = torch.randn(batch, *shape, 70)
        assert torch.equal(net(x), model(x)), batch


class EinsumOf(nn.Module):
    """``einsum`` of its input and a constant."""

    def __init__(self, equation: str, table: Tensor, weight_first: bool) -> None:
        super().__init__()
        self.equation, self.weight_first = equation, weight_first
        self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Tensor:
        pair = (self.table, x) if self.weight_first else (x, self.table)
        result: Tensor = torch.einsum(self.equation, *pair)
        return result
