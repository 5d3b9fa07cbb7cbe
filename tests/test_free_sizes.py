"""Networks at other sizes than the example's: the model's outputs, or one clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fatnn_rs as fatnn
from fatnn_rs import ConversionError, InputError
from fatnn_rs.numpy_network import load_numpy

Forward = Callable[[Any, Tensor], Tensor]

INT8_ENDS = fatnn.TernaryConfig(first="int8", last="int8")

SEQUENCE = (2, 6, 8)
IMAGE = (2, 3, 8, 8)
VIDEO = (2, 4, 3, 8, 8)


class Layers(nn.Module):
    """Layers that a given function uses."""

    def __init__(self, run: Forward, a: nn.Module, b: nn.Module, features: int = 16) -> None:
        super().__init__()
        self.a, self.b, self.head, self.run = a, b, nn.Linear(features, 4), run

    def hidden(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(self.a(x).relu())
        return result

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Rows(Layers):
    """16 features on the last dimension."""

    def __init__(self, run: Forward, features: int = 16) -> None:
        super().__init__(run, nn.Linear(8, 16), nn.Linear(16, 16), features)
        self.row = nn.Parameter(torch.randn(1, 1, 16))


class Maps(Layers):
    """Two convolutions."""

    def __init__(self, run: Forward) -> None:
        super().__init__(run, nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3))


def converted(model: nn.Module, shape: tuple[int, ...], config: fatnn.TernaryConfig) -> Any:
    torch.manual_seed(0)
    prepared = fatnn.prepare(model, config, torch.randn(shape)).eval()
    return prepared, fatnn.convert(prepared, torch.randn(shape))


def runs(model: nn.Module, net: Any, shape: tuple[int, ...]) -> bool:
    """Whether the network takes this shape; its outputs must then be close to the model's."""
    x = torch.randn(shape)
    try:
        got = net(x)
    except InputError:
        with pytest.raises(InputError, match="convert the model again with example inputs of that"):
            net(x)
        return False
    expected = model(x)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected)  # torch adds in another order at some sizes
    return True


def quotient(model: Any, x: Tensor) -> Tensor:
    hidden = model.hidden(x)
    result: Tensor = model.head(hidden.sum(1) / (hidden.flatten(0, 1).shape[0] // x.shape[0]))
    return result


def halves(model: Any, x: Tensor) -> Tensor:
    first, second = model.hidden(x).chunk(2, 1)
    result: Tensor = model.head((first - second).sum(1))
    return result


def expanded(model: Any, x: Tensor) -> Tensor:
    hidden = model.hidden(x)
    row = model.row.expand(hidden.shape[0], hidden.shape[1], 16)
    result: Tensor = model.head((hidden + row).sum(1))
    return result


@pytest.mark.parametrize("config", [fatnn.TernaryConfig(), INT8_ENDS], ids=["float", "int8"])
@pytest.mark.parametrize(
    ("run", "free"),
    [
        (lambda m, x: m.head(m.hidden(x).reshape(-1, 16).view(x.shape[0], -1, 16).sum(1)), False),
        (lambda m, x: m.head(m.hidden(x).reshape(-1, 16).view(*x.shape[:2], 16).sum(1)), False),
        (lambda m, x: m.head(m.hidden(x).reshape(-1, x.shape[1], 16).sum(1)), False),
        (lambda m, x: m.head(m.hidden(x).view(-1, 6, 16).sum(1)), False),
        (lambda m, x: m.head(m.hidden(x).split(3, 1)[1].sum(1)), False),
        (lambda m, x: m.head(sum(m.hidden(x).unbind(1))), False),
        (lambda m, x: m.head(m.hidden(x)[:, x.shape[1] // 2]), False),
        (quotient, False),
        (halves, False),
        (expanded, False),
        (lambda m, x: m.head(m.hidden(x).transpose(0, 1).unbind(0)[-1]), False),
        (lambda m, x: m.head(m.hidden(x).logcumsumexp(1).chunk(2, 1)[1].mean(1)), False),
        (lambda m, x: m.head(torch.cat(m.hidden(x).chunk(2, -1), -1).mean(1)), True),
        (lambda m, x: m.head(m.hidden(x).reshape(-1, 16).view_as(m.a(x)).sum(1)), True),
        (
            lambda m, x: m.head(m.hidden(x).flatten(0, 1).unflatten(0, (x.shape[0], -1)).sum(1)),
            True,
        ),
        (lambda m, x: m.head(m.hidden(x)[:, -1]), True),
    ],
)
def test_sequences(run: Forward, free: bool, config: fatnn.TernaryConfig) -> None:
    model, net = converted(Rows(run), SEQUENCE, config)
    assert all(runs(model, net, (batch, 6, 8)) for batch in (1, 2, 3))
    for length in (12, 9, 4):
        try:
            model(torch.randn(2, length, 8))
        except (RuntimeError, ValueError, IndexError):
            continue
        assert runs(model, net, (2, length, 8)) == free


def test_rows_that_a_view_splits_again() -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        result: Tensor = model.head(model.hidden(x).relu().reshape(-1, 16).reshape(x.shape[0], -1))
        return result

    for config in (fatnn.TernaryConfig(), INT8_ENDS):
        model, net = converted(Rows(run, 96), SEQUENCE, config)
        assert all(runs(model, net, (batch, 6, 8)) for batch in (1, 2, 3))
    model, net = converted(Rows(run), (2, 1, 8), INT8_ENDS)
    assert runs(model, net, (3, 1, 8))
    with pytest.raises(InputError, match="captured for one shape only"):
        net(torch.randn(2, 4, 8))


def sequence_first(model: Any, x: Tensor) -> Tensor:
    hidden = model.hidden(x).transpose(0, 1)
    length, batch, _ = hidden.shape
    heads = hidden.reshape(length, batch * 4, 4).transpose(0, 1)
    mixed = (heads @ heads.transpose(1, 2)).softmax(-1) @ heads
    result: Tensor = model.head(mixed.transpose(0, 1).reshape(length, batch, 16).mean(0))
    return result


def merged_batch(model: Any, x: Tensor) -> Tensor:
    hidden = model.hidden(x).transpose(0, 1)
    mixed = hidden.reshape(x.size(1), x.size(0) * 4, 4).softmax(0).reshape(-1, 16)
    result: Tensor = model.head(mixed)
    return result


def appended_rows(model: Any, x: Tensor) -> Tensor:
    hidden = model.hidden(x).permute(1, 0, 2)
    rows = model.row.expand(2, x.shape[0], 16)
    result: Tensor = model.head(torch.cat([hidden, rows], 0).mean(0))
    return result


@pytest.mark.parametrize("run", [sequence_first, merged_batch, appended_rows])
def test_batch_used_for_another_dimension_is_fixed(run: Forward) -> None:
    model, net = converted(Rows(run), (6, 4, 8), INT8_ENDS)
    assert runs(model, net, (6, 4, 8))
    assert not any(runs(model, net, (batch, 4, 8)) for batch in (1, 2, 3, 9, 12))


def test_channels_may_be_cut_after_a_call_that_stays_in_torch() -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        first, second = torch.logcumsumexp(model.hidden(x), 1).chunk(2, 1)
        result: Tensor = model.head(torch.cat([first, second.sigmoid()], 1).mean((2, 3)))
        return result

    model, net = converted(Maps(run), IMAGE, INT8_ENDS)
    assert all(runs(model, net, shape) for shape in ((1, 3, 8, 8), (2, 3, 16, 12)))


def video(model: Any, x: Tensor) -> Tensor:
    batch, frames = x.shape[:2]
    maps = model.hidden(x.flatten(0, 1)).mean((2, 3))
    result: Tensor = model.head(maps.view(batch, frames, -1).amax(1))
    return result


def pixels(model: Any, x: Tensor) -> Tensor:
    rows = model.hidden(x).permute(0, 2, 3, 1).reshape(-1, 16)
    result: Tensor = model.head(rows).view(x.shape[0], -1, 4).mean(1)
    return result


@pytest.mark.parametrize("config", [fatnn.TernaryConfig(), INT8_ENDS], ids=["float", "int8"])
@pytest.mark.parametrize(
    ("run", "shape", "others"),
    [
        (video, VIDEO, [(2, 8, 3, 8, 8), (2, 5, 3, 8, 8), (2, 4, 3, 12, 12)]),
        (pixels, IMAGE, [(1, 3, 16, 16), (2, 3, 8, 12)]),
    ],
)
def test_batch_merged_with_another_dimension(
    run: Forward, shape: tuple[int, ...], others: list[tuple[int, ...]], config: Any
) -> None:
    model, net = converted(Maps(run), shape, config)
    assert all(runs(model, net, (batch, *shape[1:])) for batch in (1, 2, 3))
    assert not any(runs(model, net, other) for other in others)


class ChannelsLast(nn.Module):
    """A ConvNeXt block: some layers see [N, H, W, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.a, self.b, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.b(functional.gelu(self.a(self.norm(x.permute(0, 2, 3, 1)))))
        result: Tensor = self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))
        return result


class Waves(nn.Module):
    """Convolutions over [N, T] without a channel dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv1d(1, 8, 5, 2), nn.Conv1d(8, 16, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.b(self.a(x[:, None]).relu()).mean(2))
        return result


class InPlace(nn.Module):
    """ReLUs in place before a reshape that is a view or a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 16, 3, padding=1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.a(x))
        x += self.b(x)
        result: Tensor = self.head(torch.flatten(self.relu(x), 2).mean(-1))
        return result


@pytest.mark.parametrize("config", [fatnn.TernaryConfig(), INT8_ENDS], ids=["float", "int8"])
@pytest.mark.parametrize(
    ("model", "shape", "others"),
    [
        (ChannelsLast, (2, 3, 32, 32), [(2, 3, 32, 64), (2, 3, 64, 32), (1, 3, 48, 48)]),
        (Waves, (2, 100), [(2, 120), (3, 77)]),
        (InPlace, (2, 3, 9, 9), [(1, 3, 9, 9), (2, 3, 12, 10)]),
    ],
)
def test_sizes_that_stay_free(
    model: Any, shape: tuple[int, ...], others: list[tuple[int, ...]], config: Any, tmp_path: Path
) -> None:
    prepared, net = converted(model(), shape, config)
    fatnn.save(net, tmp_path / "net")
    numpy_net = load_numpy(tmp_path / "net")
    for other in others:
        assert runs(prepared, net, other)
        assert runs(prepared, fatnn.load(tmp_path / "net"), other)
        x = torch.randn(other)
        torch.testing.assert_close(torch.as_tensor(numpy_net(x.numpy())), prepared(x))


def test_write_after_a_reshape_still_fixes_sizes() -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        hidden = model.hidden(x)
        rows = hidden.flatten(1)
        hidden.relu_()
        result: Tensor = model.head(rows[:, :16])
        return result

    model, net = converted(Maps(run), IMAGE, INT8_ENDS)
    assert runs(model, net, IMAGE)
    assert not runs(model, net, (2, 3, 10, 10))


def test_conversion_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        result: Tensor = model.head(model.hidden(x).mean(1).tril())
        return result

    model, net = converted(Rows(run), SEQUENCE, INT8_ENDS)
    assert runs(model, net, SEQUENCE)
    assert capfd.readouterr() == ("", "")


def test_functions_that_fail_in_the_network_are_named() -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        result: Tensor = model.head(
            torch.vmap(lambda z: z.relu() * 2)(model.hidden(x)).mean((2, 3))
        )
        return result

    with pytest.raises(ConversionError, match="ran in the model, but fails in the converted"):
        converted(Maps(run), IMAGE, INT8_ENDS)


def test_example_inputs_may_be_expanded() -> None:
    x = torch.randn(1, 6, 8).expand(2, 6, 8)
    model = fatnn.prepare(Rows(lambda m, x: m.head(m.hidden(x).sum(1))), INT8_ENDS, x).eval()
    net = fatnn.convert(model, x)
    assert torch.equal(net(x), model(x))


def test_verify_compares_in_float32_under_autocast() -> None:
    model, net = converted(Rows(lambda m, x: m.head(m.hidden(x).sum(1))), SEQUENCE, INT8_ENDS)
    with torch.autocast("cpu", torch.bfloat16):
        assert fatnn.verify(model, net, torch.randn(64, 6, 8)).identical
