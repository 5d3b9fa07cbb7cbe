"""Branches, state and views whose behaviour one example input does not show."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fatnn_rs
from fatnn_rs import ConversionError, InputError
from fatnn_rs.convert import convert
from fatnn_rs.convert.structure import same_values
from nets import exact, image, ready

X = image(3, 8, 6, 6)

pytestmark = pytest.mark.filterwarnings("ignore")


class TwoLayers(nn.Module):
    """Two ternary layers; ``function(self, x)`` is the forward."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.table = {8: 3.0}
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def size_in_a_set(m: Any, x: Tensor) -> Tensor:
    y = m.c(x)
    return m.d(y * 2 if x.shape[2] in {8} else y)


def size_in_a_dict(m: Any, x: Tensor) -> Tensor:
    return m.d(m.c(x) * m.table.get(x.shape[2], 1.0))


def size_by_key_error(m: Any, x: Tensor) -> Tensor:
    try:
        factor = m.table[x.shape[2]]
    except KeyError:
        factor = 1.0
    return m.d(m.c(x) * factor)


def size_compared_as_int(m: Any, x: Tensor) -> Tensor:
    y = m.c(x)
    return m.d(y + 1 if isinstance(x.shape[2], int) and x.shape[2] > 6 else y)


def batch_in_a_set(m: Any, x: Tensor) -> Tensor:
    y = m.c(x)
    return m.d(y * 2 if x.shape[0] in {16} else y)


def batch_equals_500(m: Any, x: Tensor) -> Tensor:
    return m.d(m.c(x * 2 if x.shape[0] == 500 else x))


def write_to_contiguous_transpose(m: Any, x: Tensor) -> Tensor:
    h = m.c(x)
    y = h.transpose(2, 3).contiguous()
    y.add_(1)
    return m.d(h)


def write_to_reshape(m: Any, x: Tensor) -> Tensor:
    h = m.c(x)
    h.permute(0, 2, 3, 1).reshape(-1, 8).add_(1)
    return m.d(h)


@pytest.mark.parametrize(
    ("function", "other"),
    [
        (size_in_a_set, (3, 8, 8, 8)),
        (size_in_a_dict, (3, 8, 8, 8)),
        (size_by_key_error, (3, 8, 8, 8)),
        (size_compared_as_int, (3, 8, 8, 8)),
        (batch_in_a_set, (16, 8, 6, 6)),
        (batch_equals_500, (500, 8, 6, 6)),
        (write_to_contiguous_transpose, (3, 8, 6, 1)),
        (write_to_reshape, (3, 8, 1, 1)),
    ],
)
def test_other_sizes_are_refused_if_they_might_branch_otherwise(
    function: Callable[..., Any], other: tuple[int, ...]
) -> None:
    model = ready(TwoLayers(function), X)
    net = exact(model, X)
    x = image(*other)
    with pytest.raises(InputError, match=r"one shape only|batch"):
        net(x)


def test_branch_on_values_inside_try_is_refused() -> None:
    def swallowed(m: Any, x: Tensor) -> Tensor:
        with contextlib.suppress(Exception):
            if x.max() > 4:
                x = x / x.max()
        return m.d(m.c(x))

    model = ready(TwoLayers(swallowed), X)
    with pytest.raises(
        ConversionError, match=r"5 times the example inputs.*branch on values|cannot be captured"
    ):
        convert(model, X)


def test_branch_on_grad_mode_is_refused() -> None:
    def records(m: Any, x: Tensor) -> Tensor:
        return m.d(m.c(x * 2 if torch.is_grad_enabled() else x))

    with pytest.raises(ConversionError, match=r"when gradients are recorded"):
        convert(ready(TwoLayers(records), X), X)


def test_tensor_cached_by_the_first_call_is_refused() -> None:
    class Cache(TwoLayers):
        cache: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.cache is None:
                self.cache = x.mean()
            return self.d(self.c(x)) + self.cache

    model = ready(Cache(size_in_a_set), X)
    model.cache = None
    with pytest.raises(ConversionError, match=r"another result after an earlier call"):
        convert(model, X)
    assert model.cache is None


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.d(m.c(x)).max(1),
        lambda m, x: m.d(m.c(x)).split(3, 1),
        lambda m, x: m.d(m.c(x)).topk(2, 1),
        lambda m, x: (m.d(m.c(x)), x.shape, x.size()),
        lambda m, x: [torch.std_mean(m.d(m.c(x))), None, "text"],
        lambda m, x: nn.functional.max_pool2d(m.d(m.c(x)), 2, return_indices=True),
    ],
)
def test_functions_with_several_results_return_the_models_results(
    function: Callable[..., Any],
) -> None:
    model = ready(TwoLayers(function), X)
    net = convert(model, X)
    with torch.no_grad():
        assert same_values(net(X), model(X)) == ""
        assert type(net(X)) is type(model(X))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers_give_the_models_bits(kind: Any) -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.i, self.j, self.g = (
                nn.Linear(16, 16),
                nn.Linear(16, 16),
                kind(16, 8, batch_first=True),
            )

        def forward(self, x: Tensor) -> Any:
            return self.g(self.j(self.i(x)))

    x = image(3, 5, 16)
    model = ready(Sequence(), x)
    with torch.no_grad():
        assert same_values(convert(model, x)(x), model(x)) == ""


def test_transformer_encoder_layer_gives_the_models_bits() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.i, self.j = nn.Linear(16, 16), nn.Linear(16, 16)
            self.e = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.e(self.j(self.i(x)))

    x = image(3, 5, 16)
    model = ready(Encoder(), x, skip=("e.linear1", "e.linear2"))
    with torch.no_grad():
        assert torch.equal(convert(model, x)(x), model(x))


def test_sign_of_zero_is_kept() -> None:
    class Inverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.c, self.n = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return 1 / self.n(self.c(x))

    x = torch.rand(2, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    model = ready(Inverse(), x)
    with torch.no_grad():
        model.n.weight.copy_(torch.tensor([1.0, -1.0, 2.0, -2.0]))
        model.n.bias.zero_()
        model.n.running_mean.zero_()
    other = image(200, 4)
    assert torch.equal(convert(model, x)(other), model(other))


def test_parameters_returned_as_results_are_copies() -> None:
    class Returns(TwoLayers):
        def __init__(self) -> None:
            super().__init__(size_in_a_set)
            self.k = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Any:
            return self.d(self.c(x)), self.k, self.k[:2]

    model = ready(Returns(), X)
    net = convert(model, X)
    net(X)[1].zero_()
    net(X)[2].zero_()
    assert torch.equal(net(X)[1], torch.ones(4))


def test_write_into_an_argument_is_noted() -> None:
    def writes(m: Any, x: Tensor) -> Tensor:
        x.mul_(0.5)
        return m.d(m.c(x))

    net = exact(ready(TwoLayers(writes), X), X)
    assert any("writes into its argument 'x'" in note for note in net.graph.notes)


def test_prepare_works_in_inference_mode() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    with torch.inference_mode():
        fatnn_rs.prepare(model)
    assert not any(parameter.is_inference() for parameter in model.parameters())
    model(X).sum().backward()


def test_failed_calibrate_leaves_batch_norm_unchanged() -> None:
    norm = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    fatnn_rs.prepare(
        norm, fatnn_rs.TernaryConfig(first="ternary", last="ternary"), example_inputs=X
    )
    before = norm[1].running_mean.clone()
    bad = X.clone()
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"NaN or infinity"):
        fatnn_rs.nn.calibrate(norm, bad)
    assert torch.equal(norm[1].running_mean, before)


def test_nested_tensor_is_refused() -> None:
    net = convert(ready(TwoLayers(size_in_a_set), X), X)
    with pytest.raises(InputError, match=r"got a nested one"):
        net(torch.nested.nested_tensor([X[0], X[1]]))
