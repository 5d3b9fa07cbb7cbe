"""Functions and modules that become compositions of others: torch's bits, nothing left in torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fatnn_rs as fatnn
from nets import exact, ops_of, ready


class After(nn.Module):
    """What is tried, after two ternary layers."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.call = call
        self.register_buffer("places", torch.tensor([3, 4, 5, 1, 7, 7]))
        self.w = nn.Parameter(torch.rand(8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Any:
        y = self.b(self.a(x).relu())
        return self.call(y) if isinstance(self.call, nn.Module) else self.call(self, y)


#: The call; whether all sizes stay free.
CASES: dict[str, tuple[Any, bool]] = {
    "maximum": (lambda m, y: torch.maximum(y, m.w), True),
    "min of two": (lambda m, y: y.min(y.abs() * 0.5), True),
    "max of all": (lambda m, y: torch.cat([y, y * 0 + y[:1].max()], 1), False),
    "aminmax": (lambda m, y: torch.cat(list(torch.aminmax(y, dim=1, keepdim=True)), 1), False),
    "clamp by tensors": (lambda m, y: torch.clamp(y, min=-m.w, max=m.w), True),
    "isnan": (lambda m, y: torch.where(torch.isnan(y), 1.0, y), True),
    "isinf": (lambda m, y: torch.isinf(y / y.relu()).float(), True),
    "isfinite": (lambda m, y: torch.isfinite(y / y.relu()).float(), True),
    "nan_to_num": (lambda m, y: torch.nan_to_num(y / y.relu(), 0.5, 9.0, -7.0), True),
    "repeat": (lambda m, y: y.repeat(1, 2, 1, 3), True),
    "tile": (lambda m, y: torch.tile(y, (2, 2)), True),
    "repeat_interleave": (lambda m, y: y.repeat_interleave(3, dim=1), True),
    "expand_as": (lambda m, y: y[:, :1].expand_as(y), True),
    "hstack": (lambda m, y: torch.hstack([y, y.abs()]), True),
    "tensor_split": (lambda m, y: y.tensor_split(3, 1)[2], False),
    "movedim": (lambda m, y: torch.movedim(y, (1, 2), (-1, 1)), True),
    "squeeze": (lambda m, y: y.amax((2, 3), keepdim=True).squeeze((2, 3)), True),
    "unflatten": (lambda m, y: y.unflatten(1, (4, -1)), False),
    "nn.Unflatten": (nn.Unflatten(1, (2, 4)), False),
    "channel_shuffle": (nn.ChannelShuffle(4), False),
    "diff": (lambda m, y: y.diff(dim=2), True),
    "one_hot": (lambda m, y: functional.one_hot((y > 0).long(), 3).float(), True),
    "tril": (lambda m, y: y.tril(1), False),
    "triu": (lambda m, y: torch.triu(y), False),
    "any": (lambda m, y: (y > 1).any(1).float(), True),
    "all": (lambda m, y: (y > 0).all(1, keepdim=True).float(), True),
    "count": (lambda m, y: (y > 0).sum(1).float(), True),
    "cube": (lambda m, y: y**3, True),
    "unfold": (nn.Unfold((3, 2), 2, (1, 2), (2, 1)), True),
    "fold": (
        lambda m, y: functional.fold(
            functional.unfold(y, 3, padding=1, stride=2), (6, 8), 3, 1, 1, 2
        ),
        False,
    ),
    "nn.Fold": (
        lambda m, y: nn.Fold((5, 7), (2, 3), (1, 2), (0, 1))(
            y.flatten(2).repeat(1, 6, 1)[..., :20]
        ),
        False,
    ),
    "pad of the tokens": (lambda m, y: functional.pad(y, (0, 0, 2, 1, 0, 0, 0, 0)), True),
    "windows": (lambda m, y: y.unfold(3, 3, 2), True),
    "tanhshrink": (nn.Tanhshrink(), True),
    "softsign": (functional.softsign, True),
    "threshold": (nn.Threshold(0.2, -1.0), True),
    "hardshrink": (nn.Hardshrink(0.4), True),
    "softshrink": (nn.Softshrink(0.4), True),
    "celu": (nn.CELU(), True),
    "rrelu": (nn.RReLU(), True),
    "pad with -inf": (
        lambda m, y: functional.max_pool2d(functional.pad(y, (0, 1, 0, 1), value=-math.inf), 3, 2),
        True,
    ),
    "pad with -inf that cuts": (
        lambda m, y: functional.pad(y, (-1, 1, 1, 0), value=-math.inf).relu(),
        True,
    ),
    "pad with NaN": (lambda m, y: functional.pad(y, (1, 1), value=math.nan).nan_to_num(7), True),
    "pad that cuts": (lambda m, y: functional.pad(y, (-1, -2, 3, -1), value=0.5), True),
    "crop": (lambda m, y: functional.pad(y, (-1, 0, 0, -1)), True),
    "index_select": (lambda m, y: y.index_select(1, m.places), True),
    "indices": (lambda m, y: y[:, m.places], True),
    "list of indices": (lambda m, y: y[:, :, [2, 3, 1]], True),
    "indices of the batch": (lambda m, y: y[m.places * 0].flatten(0, 1)[None], True),
    "many indices": (lambda m, y: y[:, [7, 3, 5, 1] * 30], True),
    "negative indices": (lambda m, y: y[:, [-1, 2, -3]], False),
    "a table of indices": (lambda m, y: y[:, :, m.places.view(2, 3) - 2], False),
    "a table of rows": (lambda m, y: y[0].flatten(1)[m.places.view(3, 2)][None], False),
    "computed indices": (
        lambda m, y: y.index_select(2, (y[0, 0, :, 0] > 0).long().cumsum(0) * 0 + 1),
        True,
    ),
    "flip": (lambda m, y: torch.flip(y, (1, -1)) + y.flip(2).flip([1]), True),
    "flip of a mask": (lambda m, y: (y > 0).flip(-1).float(), True),
    "fliplr": (lambda m, y: torch.fliplr(y) + y.flipud(), True),
    "rot90": (lambda m, y: torch.rot90(y, 1, (2, 3)) + y.rot90(-1, (2, 3)), True),
    "rot180": (lambda m, y: torch.rot90(y, 2, (2, 3)) + y.rot90(4, (2, 3)), True),
    "pad": (nn.ZeroPad2d((1, 0, 2, 1)), True),
    "reflection pad": (nn.ReflectionPad2d((1, 0, 2, 1)), True),
    "constant pad": (nn.ConstantPad2d(1, 0.25), True),
    "cumsum": (lambda m, y: y.cumsum(1) + y.cumsum(-1), True),
    "cumsum of a mask": (lambda m, y: (y > 0).cumsum(2, dtype=torch.float32), True),
    "prelu": (lambda m, y: functional.prelu(y, m.w[:, 0, 0]), True),
    "view_as": (lambda m, y: y.flatten(1).view_as(y), False),
    "reshape_as": (lambda m, y: (y * 2).flatten(2).reshape_as(y), False),
    "type_as": (lambda m, y: (y > 0).type_as(y), True),
    "new_full": (lambda m, y: y + y.new_full((8, 1, 1), 0.5), True),
    "new_ones": (lambda m, y: y * y.new_ones((8, 1, 1)) * 3, True),
    "a shape": (lambda m, y: y.flatten(1).reshape(y.shape), False),
    "part of a shape": (
        lambda m, y: y.reshape(y.shape[:1] + (4, 2) + y.shape[2:]),  # noqa: RUF005
        False,
    ),
    "repeat for the batch": (lambda m, y: y + m.w[None].repeat(y.shape[0], 1, 1, 1), True),
    "shape of another": (lambda m, y: y.flatten(2).view(*y.size()[:2], -1, 4), False),
    "expand to a shape": (lambda m, y: y[:, :1].expand(y.shape), False),
    "x.shape": (lambda m, y: y.view(y.shape[0], 2, y.shape[1] // 2, *y.shape[2:]), False),
    "add alpha": (lambda m, y: torch.sub(y, y.relu(), alpha=2), True),
}


@pytest.mark.parametrize("name", CASES)
def test_compositions_have_torchs_bits_and_run_in_the_engine(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    call, free = CASES[name]
    if call is functional.softsign:
        call = nn.Softsign()
    model = ready(After(call), x := torch.randn(2, 3, 6, 8))
    others = [torch.randn(1, 3, 6, 8), torch.randn(3, 3, 6, 8)]
    others += [torch.randn(2, 3, 9, 7)] if free else []
    net = exact(model, x, tuple(others))
    assert "torch" not in ops_of(net)
    fatnn.save(net, tmp_path / "net")
    made = torch.from_numpy(fatnn.load_numpy(tmp_path / "net")(x.numpy()))
    torch.testing.assert_close(made, model(x).detach(), equal_nan=True)


@pytest.mark.parametrize(
    "function",
    [
        nn.LocalResponseNorm(5),
        nn.LocalResponseNorm(2, 0.1, 0.5, 2.0),
        nn.GLU(1),
        nn.Softmin(1),
        nn.Softmax2d(),
        lambda m, y: torch.logsumexp(y, (1, 2)),
    ],
)
def test_compositions_of_approximated_functions(function: Any, tmp_path: Any) -> None:
    x = torch.randn(2, 3, 6, 8)
    model = ready(After(function), x)
    net = exact(model, x, (torch.randn(3, 3, 7, 5),))
    assert "torch" not in ops_of(net)
    fatnn.save(net, tmp_path / "net")
    made = torch.from_numpy(fatnn.load_numpy(tmp_path / "net")(x.numpy()))
    assert math.isfinite(float(made.sum()))
    torch.testing.assert_close(made, model(x).detach())


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (nn.MaxPool3d(1), "operations over three spatial axes run in torch"),
        (
            lambda m, y: functional.avg_pool3d(y[:, None], 1)[:, 0],
            "operations over three spatial axes run in torch",
        ),
        (
            lambda m, y: functional.interpolate(y[:, None], scale_factor=1, mode="trilinear")[:, 0],
            "operations over three spatial axes run in torch",
        ),
    ],
)
def test_reports_say_why_a_kind_of_call_stays_in_torch(call: Any, reason: str) -> None:
    x = torch.randn(2, 3, 6, 8)
    net = exact(ready(After(call), x), x)
    assert [row.reason for row in net.report.rows].count(reason) == 1, net.report.rows
