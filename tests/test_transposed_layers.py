"""Quantized transposed convolutions: the layers themselves, and what of them is converted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fatnn_rs as fatnn
from fatnn_rs.nn import Int8ConvTranspose2d, TernaryConvTranspose1d, TernaryConvTranspose2d
from nets import exact, ops_of, ready


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("per_channel", [False, True])
def test_ternary_transposed_layer_equals_torchs_layer_on_codes(
    groups: int, per_channel: bool
) -> None:
    torch.manual_seed(0)
    layer = TernaryConvTranspose2d(
        8, 6, 3, 2, 1, 1, groups=groups, per_channel=per_channel, bias=True
    )
    x = torch.randn(2, 8, 5, 4, requires_grad=True)
    layer(x.detach())
    y = layer(x)
    codes, weight = layer.act_quant(x), layer.ternary_weight().float()
    assert weight.shape == layer.weight.shape
    wanted = functional.conv_transpose2d(codes, weight, None, 2, 1, 1, groups)
    wanted = wanted * layer.scale.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
    assert torch.equal(y, wanted)
    y.square().sum().backward()
    for value in (x, layer.weight, layer.scale, layer.bias):
        assert value.grad is not None
        assert float(value.grad.abs().sum()) > 0
    assert layer.scale.shape == (6,)
    if per_channel:
        assert max(p.numel() for p in layer.weight_quant.parameters()) == 6


def test_state_dicts_of_float_layers_load_and_output_sizes_are_taken() -> None:
    plain = nn.ConvTranspose1d(4, 6, 3, 2)
    layer = TernaryConvTranspose1d.from_float(plain)
    assert set(plain.state_dict()) <= set(layer.state_dict())
    other = TernaryConvTranspose1d(4, 6, 3, 2)
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other.ternary_weight(), layer.ternary_weight())
    x = torch.randn(1, 4, 5)
    assert layer(x, [12]).shape == plain(x, [12]).shape == (1, 6, 12)
    int8 = Int8ConvTranspose2d.from_float(nn.ConvTranspose2d(4, 6, 2, 2))
    assert int8.output_scale().shape == (6,)
    steps = int8.latent_weight().detach().abs().flatten(1).amax(1) / 127
    assert torch.equal(
        int8.int8_weight().abs().amax((0, 2, 3)), torch.full((6,), 127).to(torch.int8)
    )
    assert torch.allclose(int8.output_scale(), steps * int8.act_quant.positive_step())


def test_two_bit_weights_without_all_taps_stay_in_torch_and_say_why() -> None:
    def net(kernel: int) -> Any:
        x = torch.randn(1, 3, 6, 5)
        layer = nn.ConvTranspose2d(16, 8, kernel, 2)
        model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), layer, nn.Conv2d(8, 4, 1))
        return fatnn.convert(ready(model, x, weight="dorefa"), x)

    assert "torch" not in ops_of(net(2))
    left = next(row for row in net(3).report.rows if row.op.startswith("torch"))
    assert "two-bit" in left.note


def test_output_size_is_fixed_to_the_examples() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu(), output_size=x.shape[-2:])

    x = torch.randn(1, 3, 8, 7)
    net = exact(ready(Sized(), x), x)
    assert "torch" not in ops_of(net)
    with pytest.raises(fatnn.InputError, match="one shape only"):
        net(torch.randn(1, 3, 9, 7))
