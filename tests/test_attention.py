"""nn.MultiheadAttention with quantized projections: same results and keys as torch's."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fatnn_rs import TernaryConfig, convert, prepare, verify
from fatnn_rs.convert.structure import same_values
from fatnn_rs.convert.transformer import unmasked_forward
from fatnn_rs.nn.attention import attention_class
from whole_models import BOTH, names, whole


class Attends(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 16)
        self.attention = nn.MultiheadAttention(16, 4, **options)
        self.outer = nn.Linear(16, 3)
        self.options: dict[str, Any] = {}
        self.keys = nn.Linear(8, options["kdim"]) if "kdim" in options else None

    def forward(self, x: Tensor) -> Tensor:
        q = self.inner(x)
        keys = q if self.keys is None else self.keys(x)
        y, weights = self.attention(q, keys, keys, **self.options)
        y = self.outer(y)
        return y if weights is None else y + weights.sum()


@pytest.mark.parametrize("config", BOTH[:2])
@pytest.mark.parametrize(
    "options",
    [
        {"batch_first": True},
        {"batch_first": False, "bias": False},
        {"batch_first": True, "kdim": 12, "vdim": 12},
        {"batch_first": True, "add_bias_kv": True, "add_zero_attn": True},
    ],
)
@pytest.mark.parametrize("need_weights", [False, True])
def test_all_four_projections_of_attention_are_quantized(
    options: dict[str, Any], need_weights: bool, config: TernaryConfig
) -> None:
    torch.manual_seed(0)
    model = Attends(**options)
    model.options = {"need_weights": need_weights}
    whole(model, torch.randn(2, 5, 8), config)
    layers = {name for name in names(model) if name.startswith("attention.")}
    assert layers == {f"attention.{one}" for one in ("q_proj", "k_proj", "v_proj", "out_proj")}
    assert torch.equal(
        pickle.loads(pickle.dumps(model))(torch.ones(2, 5, 8)), model(torch.ones(2, 5, 8))
    )


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("mask", ["none", "bool", "float", "heads", "padding", "both", "causal"])
@pytest.mark.parametrize("more", [{}, {"add_bias_kv": True, "add_zero_attn": True}])
def test_attention_with_float_projections_equals_torch(
    batch_first: bool, need_weights: bool, average: bool, mask: str, more: dict[str, bool]
) -> None:
    """With float projections, the class that quantized ones get is torch's own attention."""
    torch.manual_seed(0)
    wanted = nn.MultiheadAttention(16, 4, batch_first=batch_first, **more)  # type: ignore[arg-type]
    given = copy.deepcopy(wanted)
    given.__class__ = attention_class(nn.MultiheadAttention)
    x, y = torch.randn(3, 5, 16), torch.randn(3, 6, 16)
    if not batch_first:
        x, y = x.transpose(0, 1), y.transpose(0, 1)
    options: dict[str, Any] = {"need_weights": need_weights, "average_attn_weights": average}
    hidden = torch.rand(5, 6) < 0.3
    hidden[:, 0] = False
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[1, 4:] = True
    options |= {
        "none": {},
        "bool": {"attn_mask": hidden},
        "float": {"attn_mask": torch.randn(5, 6)},
        "heads": {"attn_mask": torch.randn(12, 5, 6)},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": hidden, "key_padding_mask": padding},
        "causal": {"attn_mask": torch.ones(5, 6, dtype=torch.bool).triu(1), "is_causal": True},
    }[mask]
    if mask == "causal" and more:
        return  # torch's fused kernel then masks other columns than its general path
    for one, other in zip(given(x, y, y, **options), wanted(x, y, y, **options), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
    if mask in ("none", "bool"):
        one, other = given(x[0], y[0], y[0]), wanted(x[0], y[0], y[0])
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(1, 16), (5, 16), (2, 5, 16)])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("more", [{}, {"add_bias_kv": True, "add_zero_attn": True}])
def test_the_traceable_attention_equals_the_eager_one(
    shape: tuple[int, ...], batch_first: bool, need_weights: bool, more: dict[str, bool]
) -> None:
    """Conversion compares only outputs, which may be constant whatever the attention computes."""
    torch.manual_seed(0)
    quantized = nn.MultiheadAttention(16, 4, batch_first=batch_first, **more)
    x = torch.randn(shape)
    prepare(quantized, TernaryConfig(first="ternary", last="ternary"))
    quantized.train()(x, x, x)  # initialises the steps
    quantized.eval()
    expected = quantized(x, x, x, need_weights=need_weights)
    traced = unmasked_forward(quantized, quantized.forward)(x, x, x, need_weights=need_weights)
    assert same_values(expected, traced) == ""


def test_an_attention_on_one_token_without_a_batch_is_converted() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(33, 1, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y, weights = self.attention(x, x, x)
            return y * 0.0, weights  # of one token, always 1

    torch.manual_seed(0)
    model, x = Net(), torch.randn(1, 33)
    prepare(model, TernaryConfig(first="ternary", last="ternary"), example_inputs=x)
    net = convert(model.eval(), x)
    assert verify(model, net, x).codes_different == 0
