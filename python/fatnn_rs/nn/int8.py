"""Layers with 8-bit weights and activations, for the first and the last layer of a ternary network.

The first layer reads pixels, the last makes the logits: there, three levels cost the most accuracy
and save the least time. Eight bits lose next to nothing, and run on integers all the same.
Subclasses of torch's own layers, with the float ``state_dict`` keys unchanged; one forward, the
same in training and in eval mode::

    codes = act_quant(x)                            # integer-valued float in [-127, 127]
    acc   = round(conv(codes, weight codes))        # float64 where sums may not fit float32
    y     = acc * (weight step * activation step)   # one factor per output channel
    y     = y + bias                                # a rounding of its own

``acc`` is exact wherever the convolution multiplies and adds, as PyTorch's does on CPUs. One that
transforms its operands (Winograd, FFT, on a GPU perhaps) may be off by one in training: 8-bit sums
leave less room for it than ternary ones.

Quantizers and their gradients are in :mod:`fatnn_rs.quant.int8`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs.errors import ConfigError
from fatnn_rs.nn.base import (
    EXACT,
    Product,
    QuantizedLayer,
    check_weight,
    convolve,
    exact_product,
    qat_layer,
)
from fatnn_rs.quant.base import widen
from fatnn_rs.quant.int8 import LEVELS, Int8Activation, weight_codes, weight_steps

__all__ = ["INT8_QAT_MAPPING", "Int8Conv1d", "Int8Conv2d", "Int8Layer", "Int8Linear"]

#: Products in a sum of which int32 holds whatever comes; what the Rust core takes.
_MOST = 133_000

Layer = TypeVar("Layer", bound="Int8Layer")


class Int8Layer(QuantizedLayer):
    """What the 8-bit layers have in common; not a layer by itself.

    Attributes
    ----------
    act_quant : Int8Activation
    """

    act_quant: Int8Activation

    def _add_quantizer(self) -> None:
        """Give a complete torch layer its quantizer."""
        check_weight(self)
        latent = self.latent_weight()
        count = latent[0].numel()
        if count > _MOST:
            raise ConfigError(
                f"{type(self).__name__}: {count} inputs per output are too many for int32 sums of 8-bit products (up "
                f"to {_MOST} are fine); leave the layer float"
            )
        self.layer_name = ""
        self.act_quant = Int8Activation().to(latent.device)
        self.act_quant.train(self.training)

    @torch.no_grad()
    def int8_weight(self) -> Tensor:
        """Return the weight codes that forward uses: int8 in [-127, 127], the shape of ``weight``."""
        weight = widen(self.latent_weight())
        return self._as_stored(weight_codes(weight, weight_steps(weight)).to(torch.int8))

    @torch.no_grad()
    def output_scale(self) -> Tensor:
        """Return what forward multiplies the integer sums by: one float32 per output channel."""
        return weight_steps(widen(self.latent_weight())) * self.act_quant.positive_step()

    def _run(
        self,
        product: Product,
        x: Tensor,
        dims: int,
        add_bias: bool = True,
        weight: Tensor | None = None,
    ) -> Tensor:
        codes = self.act_quant(x)
        latent = self._weight() if weight is None else weight
        wide_weight = widen(latent)
        steps = weight_steps(wide_weight)
        # Every device but Apple's has float64.
        wide = latent[0].numel() * LEVELS**2 >= EXACT and codes.device.type != "mps"
        operand = weight_codes(wide_weight, steps)
        acc = exact_product(product, codes.double() if wide else codes, operand)
        scale = steps * self.act_quant.step_for(x)
        shape = (-1, *([1] * dims))
        # Scaled before it is narrowed: float16 ends below the sum of five products.
        y = (acc.to(scale.dtype) * scale.view(shape)).to(latent.dtype)
        self._look_at_steps()
        return y + self.bias.view(shape) if add_bias and self.bias is not None else y


def _qat_layer(cls: type[Layer], module: nn.Module, expected: type[nn.Module]) -> Layer:
    layer = qat_layer(cls, module, expected)
    layer._add_quantizer()
    return layer


class Int8Conv1d(Int8Layer, nn.Conv1d):
    """``torch.nn.Conv1d`` with 8-bit weights and activations.

    Parameters
    ----------
    *args, **kwargs
        As ``torch.nn.Conv1d``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add_quantizer()

    @classmethod
    def from_float(cls, module: nn.Module) -> Int8Conv1d:
        """Make the quantized layer of a ``torch.nn.Conv1d``, with the same parameters."""
        return _qat_layer(cls, module, nn.Conv1d)

    def forward(self, input: Tensor, add_bias: bool = True) -> Tensor:
        """[N, C, L] or [C, L] → [N, out, L'] or [out, L']."""
        return convolve(self, functional.conv1d, input, 1, add_bias)


class Int8Conv2d(Int8Layer, nn.Conv2d):
    """``torch.nn.Conv2d`` with 8-bit weights and activations.

    Parameters
    ----------
    *args, **kwargs
        As ``torch.nn.Conv2d``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add_quantizer()

    @classmethod
    def from_float(cls, module: nn.Module) -> Int8Conv2d:
        """Make the quantized layer of a ``torch.nn.Conv2d``, with the same parameters."""
        return _qat_layer(cls, module, nn.Conv2d)

    def forward(self, input: Tensor, add_bias: bool = True) -> Tensor:
        """[N, C, H, W] or [C, H, W] → [N, out, H', W'] or [out, H', W']."""
        return convolve(self, functional.conv2d, input, 2, add_bias)


class Int8Linear(Int8Layer, nn.Linear):  # type: ignore[misc]
    """``torch.nn.Linear`` with 8-bit weights and activations.

    Parameters
    ----------
    *args, **kwargs
        As ``torch.nn.Linear``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add_quantizer()

    @classmethod
    def from_float(cls, module: nn.Module) -> Int8Linear:
        """Make the quantized layer of a ``torch.nn.Linear``, with the same parameters."""
        return _qat_layer(cls, module, nn.Linear)

    def forward(self, input: Tensor, add_bias: bool = True) -> Tensor:
        """[..., in] → [..., out]."""
        return self._run(functional.linear, input, 0, add_bias)


#: torch layer → its int8 QAT layer. Exact types only: a subclass may compute something else.
INT8_QAT_MAPPING: dict[type[nn.Module], Any] = {
    nn.Conv1d: Int8Conv1d,
    nn.Conv2d: Int8Conv2d,
    nn.Linear: Int8Linear,
}
