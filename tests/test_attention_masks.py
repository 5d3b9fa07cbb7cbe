"""Masks of nn.MultiheadAttention and of torch's transformer layers, with torch and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fatnn_rs as fatnn
from nets import exact, ops_of, ready

TOKENS = 5

#: Torch warns of masks of two types, and of layers that its fused path does not support.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Support for mismatched"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]


def causal() -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(TOKENS)


def hidden(*shape: int) -> Tensor:
    """Return a random mask that hides no whole row."""
    mask = torch.rand(shape) < 0.4
    mask[..., 0] = False
    return mask


class Attends(nn.Module):
    """Float attention after a ternary layer, with the mask as a buffer and one as an argument."""

    def __init__(self, mask: Tensor | None, batch_first: bool, **how: Any) -> None:
        super().__init__()
        self.inner, self.other = nn.Linear(8, 16), nn.Linear(8, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
        self.register_buffer("mask", mask)
        self.how = how

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        q, k = self.inner(x), self.other(x)
        y, _ = self.attention(
            q, k, k, attn_mask=self.mask, key_padding_mask=padding, need_weights=False, **self.how
        )
        return y


def without_torch(net: Any, path: Path, given: tuple[Tensor, ...]) -> np.ndarray[Any, Any]:
    fatnn.save(net, path)
    made: np.ndarray[Any, Any] = fatnn.load_numpy(path)(*(x.numpy() for x in given))
    return made


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "mask",
    [None, hidden(TOKENS, TOKENS), torch.randn(TOKENS, TOKENS), torch.randn(12, TOKENS, TOKENS)],
    ids=["none", "bool", "float", "heads"],
)
def test_float_attention_with_masks(
    mask: Tensor | None, padded: bool, batch_first: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Attends(mask, batch_first)

    def inputs() -> tuple[Tensor, ...]:
        x = torch.randn(3, TOKENS, 8) if batch_first else torch.randn(TOKENS, 3, 8)
        return (x, hidden(3, TOKENS)) if padded else (x,)

    ready(model, inputs(), skip=["attention"])
    net = exact(model, inputs(), (inputs(),))
    assert "multihead_attention" in ops_of(net)
    assert "torch" not in ops_of(net)
    given = inputs()
    made = without_torch(net, tmp_path / "net", given)
    np.testing.assert_allclose(made, model(*given).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_causal_hint_and_another_batch(tmp_path: Path) -> None:
    model = Attends(causal(), True, is_causal=True)
    x = torch.randn(2, TOKENS, 8)
    ready(model, x, skip=["attention"])
    net = exact(model, x, (torch.randn(4, TOKENS, 8),))
    given = (torch.randn(7, TOKENS, 8),)
    made = without_torch(net, tmp_path / "net", given)
    np.testing.assert_allclose(made, model(*given).detach().numpy(), rtol=1e-4, atol=1e-5)
    # The first token sees only itself.
    changed = given[0].clone()
    changed[:, 1:] += 1
    again = fatnn.load_numpy(tmp_path / "net")(changed.numpy())
    np.testing.assert_array_equal(made[:, 0], again[:, 0])
    assert not np.allclose(made[:, 1:], again[:, 1:])


class Coder(nn.Module):
    """An encoder or a decoder between linear layers."""

    def __init__(self, kind: str, norm_first: bool = False) -> None:
        super().__init__()
        how: dict[str, Any] = {"batch_first": True, "norm_first": norm_first}
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 3)
        self.kind = kind
        if kind == "encoder":
            layer = nn.TransformerEncoderLayer(16, 4, 32, **how)
            self.coder: Any = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        elif kind == "decoder":
            self.coder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, **how), 2)
        else:
            self.coder = nn.Transformer(16, 4, 1, 1, 32, **how)
        self.register_buffer("causal", causal())
        self.register_buffer("hidden", hidden(TOKENS, TOKENS))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        y = self.inner(x)
        if self.kind == "encoder":
            return self.outer(self.coder(y, self.causal, padding))
        masks = {"tgt_mask": self.causal, "memory_mask": self.hidden}
        if padding is not None:
            masks |= {"tgt_key_padding_mask": padding, "memory_key_padding_mask": padding}
        return self.outer(self.coder(y, y.relu(), **masks))


@pytest.mark.parametrize("skip", [[], ["re:.*attn.*"]], ids=["quantized", "float"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["encoder", "decoder", "transformer"])
def test_masked_transformer_layers(
    kind: str, padded: bool, skip: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Coder(kind, norm_first=padded)

    def inputs(batch: int) -> tuple[Tensor, ...]:
        x = torch.randn(batch, TOKENS, 8)
        return (x, hidden(batch, TOKENS)) if padded else (x,)

    ready(model, inputs(3), skip=skip)
    net = exact(model, inputs(3), (inputs(3), inputs(140)))
    assert "torch" not in ops_of(net)
    given = inputs(3)
    made = without_torch(net, tmp_path / "net", given)
    # The last layer quantizes: a sum that is off by a last place may be another code.
    wanted = model(*given).detach().numpy()
    assert np.isclose(made, wanted, rtol=1e-4, atol=1e-4).mean() > 0.95


def test_filled_like_keeps_sizes_free() -> None:
    class Fills(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(torch.cat([y[:, :4], torch.full_like(y[:, 4:], 0.5)], 1))

    x = torch.randn(2, 3, 6, 5)
    net = exact(ready(Fills(), x), x, (torch.randn(1, 3, 9, 4),))
    assert "torch" not in ops_of(net)
