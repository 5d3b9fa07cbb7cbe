"""Numbers computed from sizes of dimension 0 that the batch scales, such as windows per image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fatnn_rs as fatnn
from nets import exact, ops_of, ready


class Windows(nn.Module):
    """Splits a map into windows, and computes with the number of windows."""

    def __init__(self, call: Callable[[Tensor, Tensor], Tensor], branches: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 4)
        self.call, self.branches = call, branches

    def forward(self, x: Tensor) -> Tensor:
        if self.branches and x.shape[0] > 100:  # torch.fx cannot trace it
            x = x[:100]
        y = self.b(self.a(x).relu())
        batch, channels, height, width = y.shape
        parts = y.view(batch, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1)
        windows = parts.reshape(-1, 16, channels)
        result: Tensor = self.last(self.call(windows, y))
        return result


def _repeated(windows: Tensor, y: Tensor) -> Tensor:
    pooled = y.amax((2, 3))
    return windows + pooled.repeat_interleave(windows.shape[0] // pooled.shape[0], 0)[:, None]


def _as_another(windows: Tensor, y: Tensor) -> Tensor:
    heads = windows.transpose(1, 2)
    split = windows.reshape(windows.shape[0] // 2, 2, 16, 8).permute(1, 0, 3, 2)
    return split.reshape(heads.shape[0], heads.shape[1], -1).transpose(1, 2)


def _shifted(windows: Tensor, y: Tensor) -> Tensor:
    mask = torch.zeros((y.shape[0], y.shape[2], y.shape[3]), dtype=torch.bool)
    rows = (~mask).cumsum(1, dtype=torch.float32)
    return (y * rows[:, None]).flatten(2).transpose(1, 2)


CALLS = {"a factor": _repeated, "a view": _as_another, "a mask": _shifted}


@pytest.mark.parametrize("branches", [False, True], ids=["fx", "export"])
@pytest.mark.parametrize("call", CALLS)
def test_sizes_that_the_batch_scales(call: str, branches: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = ready(Windows(CALLS[call], branches), x)
    net = exact(model, x, (torch.randn(1, 3, 8, 8), torch.randn(5, 3, 8, 8)))
    assert "torch" not in ops_of(net)
    fatnn.save(net, tmp_path / "net")
    loaded = fatnn.load(tmp_path / "net")
    other = torch.randn(3, 3, 8, 8)
    assert torch.equal(loaded(other), model(other))
    with pytest.raises(fatnn.InputError, match=r"one shape only, expected \[any, 3, 8, 8\]"):
        net(torch.randn(2, 3, 12, 12))


class Flattened(nn.Module):
    """Gives each batch another number of repeats: it needs the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        rows = h.flatten(0, 1)
        result: Tensor = self.b(h.amax(1).repeat_interleave(rows.shape[0] // 6, 0))
        return result


def test_number_that_differs_between_batches_is_not_folded() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4)
    model = ready(Flattened(), x)
    net = exact(model, x, (torch.randn(3, 6, 4), torch.randn(4, 6, 4)))
    assert "repeat_interleave" in str(net.report)


class ByExport(nn.Module):
    """Has the operators that torch.export makes of functions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.register_buffer("places", torch.tensor([1, 0, 3, 3]))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 100:  # torch.fx cannot trace it
            x = x[:100]
        y = self.b(self.a(x).relu())
        y = nn.functional.fold(nn.functional.unfold(y, 3, padding=1), y.shape[2:], 3, padding=1)
        y = nn.functional.adaptive_max_pool2d(y, (6, 4))[:, :, self.places]
        return y.expand(x.shape[0], -1, -1, -1).flip(3)


def test_operators_of_export_run_in_the_engine(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = ready(ByExport(), x)
    net = exact(model, x, (torch.randn(3, 3, 8, 8),))
    assert "torch" not in ops_of(net), net.report
    fatnn.save(net, tmp_path / "net")


@pytest.mark.parametrize("shift", [1, -1, 0, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_roll_of_the_batch(shift: int, batch: int) -> None:
    torch.manual_seed(0)

    class Rolled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.roll(super().forward(x), (shift, 1), (0, 1))
            return y

    x = torch.randn(batch, 4, 6)
    model = ready(Rolled(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), x)
    net = exact(model, x, (torch.randn(5, 4, 6), torch.randn(2, 4, 6), torch.randn(1, 4, 6)))
    assert ("torch" in ops_of(net)) == (abs(shift) > 1)
