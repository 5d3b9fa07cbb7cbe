"""Functions that torch computes in whole vectors: memory formats change no bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fatnn_rs
from fatnn_rs.convert import torch_ops

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    name: getattr(torch.nn.functional, name, None) or getattr(torch, name)
    for name in torch_ops._EVERYWHERE
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(1, 96, 56, 56), (1, 16, 4, 4), (3, 7, 16, 16), (1, 256, 1, 1)])
def test_bits_are_the_same_in_both_memory_formats(name: str, shape: tuple[int, ...]) -> None:
    for scale in (0.1, 3.0, 100.0):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * scale
        last = x.contiguous(memory_format=torch.channels_last)
        assert torch_ops._whole_vectors(x) == torch_ops._whole_vectors(last) is True
        assert torch.equal(FUNCTIONS[name](x), FUNCTIONS[name](last))


@pytest.mark.parametrize("size", [16, 15])
@pytest.mark.parametrize("module", [nn.SiLU, nn.Sigmoid, nn.Tanh])
def test_networks_have_the_eager_models_bits(module: type[nn.Module], size: int) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), module(), nn.Conv2d(8, 8, 3, padding=1), module()]
    model = nn.Sequential(*layers, nn.Conv2d(8, 4, 3), nn.Flatten())
    x = torch.randn(2, 3, size, size)
    model = fatnn_rs.prepare(model, example_inputs=x).eval()
    net = fatnn_rs.convert(model, x)
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
    assert fatnn_rs.verify(model, net, x).codes_different == 0


def test_remainders_and_strided_tensors_are_not_whole_vectors() -> None:
    assert not torch_ops._whole_vectors(torch.zeros(1, 3, 5, 5))
    assert not torch_ops._whole_vectors(torch.zeros(16, 32)[:, ::2])
