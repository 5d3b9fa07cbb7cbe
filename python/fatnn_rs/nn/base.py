"""What all quantization-aware layers have in common: they are torch's own layers, with quantizers added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs.errors import ConfigError
from fatnn_rs.quant.base import InputQuantizer, round_ste

__all__ = ["EXACT", "QuantizedLayer", "convolve", "exact_product", "twin"]

#: Integers up to this are exact in float32.
EXACT = 1 << 24

Layer = TypeVar("Layer", bound="QuantizedLayer")
Product = Callable[[Tensor, Tensor], Tensor]


class QuantizedLayer(nn.Module):
    """A convolution or linear layer whose forward quantizes its input and its weight; not a layer by itself.

    Attributes
    ----------
    act_quant : InputQuantizer
    layer_name : str
        Qualified name in the model, for messages; empty until ``prepare``, ``calibrate`` or ``convert`` sets it.
    """

    weight: Tensor
    bias: Tensor | None
    act_quant: InputQuantizer
    layer_name: str

    def set_name(self, name: str) -> None:
        """Name used in messages."""
        self.layer_name = name
        self.act_quant.layer_name = name

    def _run(self, product: Product, x: Tensor, dims: int) -> Tensor:
        """Quantize both operands, multiply them by ``product``, and bring the sums to the output's scale."""
        raise NotImplementedError


def twin(cls: type[Layer], module: nn.Module, expected: type[nn.Module]) -> Layer:
    """Make a ``cls`` that shares parameters, hooks and mode with ``module``, and has no quantizers yet."""
    if type(module) is not expected:
        raise ConfigError(
            f"{cls.__name__}.from_float takes exactly a torch.nn.{expected.__name__} (a subclass may compute something "
            f"else), got {type(module).__module__}.{type(module).__qualname__}"
        )
    layer = cls.__new__(cls)
    layer.__dict__.update(module.__dict__)
    for own in ("_parameters", "_buffers", "_modules"):
        layer.__dict__[own] = dict(module.__dict__[own])
    return layer


def convolve(layer: Any, function: Callable[..., Tensor], x: Tensor, dims: int) -> Tensor:
    """Forward pass of a convolution over ``dims`` dimensions; padding other than zeros comes before the quantizer."""
    padding: Any = layer.padding
    if layer.padding_mode != "zeros":
        x = functional.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = (0,) * dims

    def product(x: Tensor, w: Tensor) -> Tensor:
        return function(x, w, None, layer.stride, padding, layer.dilation, layer.groups)

    result: Tensor = layer._run(product, x, dims)
    return result


def exact_product(product: Product, codes: Tensor, weight: Tensor) -> Tensor:
    """Return exact sums of products of integer-valued operands; the dtype of ``codes`` must be able to hold them."""
    with torch.autocast(device_type=codes.device.type, enabled=False):
        return round_ste(product(codes, weight.to(codes.dtype)))
