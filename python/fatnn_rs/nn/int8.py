"""Layers with 8-bit weights and activations, for the first and the last layer of a ternary network.

In these two layers, three levels cost the most accuracy and save the least time. Eight bits lose
almost no accuracy and still run on integers. The layers are subclasses of torch's own, with the
float ``state_dict`` keys unchanged. Training and eval mode run the same forward::

    codes = act_quant(x)                            # integer-valued float in [-127, 127]
    acc   = round(conv(codes, weight codes))        # in float64 if float32 may not be exact
    y     = acc * (weight step * activation step)   # one factor per output channel
    y     = y + bias                                # rounded separately

``acc`` is exact for a direct convolution, which PyTorch uses on CPUs. An algorithm that transforms
its operands (Winograd or FFT, perhaps on a GPU) may be off by one in training, because 8-bit sums
are larger than ternary ones.

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

#: Maximum number of products per sum: int32 cannot overflow. The Rust core has the same limit.
_MAX_PRODUCTS = 133_000

Layer = TypeVar("Layer", bound="Int8Layer")


class Int8Layer(QuantizedLayer):
    """Abstract base of the 8-bit layers.

    Attributes
    ----------
    act_quant : Int8Activation
        Quantizes the input.
    """

    act_quant: Int8Activation

    def _add_quantizer(self) -> None:
        """Add the quantizer to a complete torch layer."""
        check_weight(self)
        latent = self.latent_weight()
        count = latent[0].numel()
        if count > _MAX_PRODUCTS:
            raise ConfigError(
                f"{type(self).__name__}: {count} inputs per output are too many for int32 sums of "
                f"8-bit products (expected at most {_MAX_PRODUCTS}); leave the layer float"
            )
        self.layer_name = ""
        self.act_quant = Int8Activation().to(latent.device)
        self.act_quant.train(self.training)

    @torch.no_grad()
    def int8_weight(self) -> Tensor:
        """Return the weight codes of forward: int8 in [-127, 127], shape of ``weight``."""
        weight = widen(self.latent_weight())
        return self._as_stored(weight_codes(weight, weight_steps(weight)).to(torch.int8))

    @torch.no_grad()
    def output_scale(self) -> Tensor:
        """Return the factors that forward applies to the integer sums: [out], float32."""
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
        # Apple's GPUs have no float64.
        wide = latent[0].numel() * LEVELS**2 >= EXACT and codes.device.type != "mps"
        operand = weight_codes(wide_weight, steps)
        acc = exact_product(product, codes.double() if wide else codes, operand)
        scale = steps * self.act_quant.step_for(x)
        shape = (-1, *([1] * dims))
        # Scale before narrowing: the sum of five products can exceed float16's range.
        y = (acc.to(scale.dtype) * scale.view(shape)).to(latent.dtype)
        self._check_optimizer()
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
        """Make an int8 layer that shares the parameters of a ``torch.nn.Conv1d``."""
        return _qat_layer(cls, module, nn.Conv1d)

    def forward(self, input: Tensor, add_bias: bool = True) -> Tensor:
        """Map [N, C, L] or [C, L] to [N, out, L'] or [out, L']."""
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
        """Make an int8 layer that shares the parameters of a ``torch.nn.Conv2d``."""
        return _qat_layer(cls, module, nn.Conv2d)

    def forward(self, input: Tensor, add_bias: bool = True) -> Tensor:
        """Map [N, C, H, W] or [C, H, W] to [N, out, H', W'] or [out, H', W']."""
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
        """Make an int8 layer that shares the parameters of a ``torch.nn.Linear``."""
        return _qat_layer(cls, module, nn.Linear)

    def forward(self, input: Tensor, add_bias: bool = True) -> Tensor:
        """Map [..., in] to [..., out]."""
        return self._run(functional.linear, input, 0, add_bias)


#: torch layer → its int8 QAT layer. A subclass gets its own class (:mod:`.subclass`).
INT8_QAT_MAPPING: dict[type[nn.Module], Any] = {
    nn.Conv1d: Int8Conv1d,
    nn.Conv2d: Int8Conv2d,
    nn.Linear: Int8Linear,
}
