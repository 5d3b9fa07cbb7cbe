"""Transposed convolutions, ternary and int8, with the float ``state_dict`` keys unchanged.

torch stores a transposed convolution's weight as [in, out / groups, ...]. Quantizers fit steps per
output channel, so they read it as [out, in / groups, ...]. The product and its gradients are
torch's own. The zeros between pixels and the padding always have code 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs.nn import int8, layers
from fatnn_rs.nn.base import QuantizedLayer
from fatnn_rs.nn.int8 import INT8_QAT_MAPPING, Int8Layer
from fatnn_rs.nn.layers import TERNARY_QAT_MAPPING, TernaryLayer

__all__ = [
    "Int8ConvTranspose1d",
    "Int8ConvTranspose2d",
    "TernaryConvTranspose1d",
    "TernaryConvTranspose2d",
]


class _Transposed(QuantizedLayer):
    """Stores its weight as [in, out / groups, ...]; quantizers read [out, in / groups, ...]."""

    groups: int

    def _weight(self) -> Tensor:
        return _swap_in_out(self.weight, self.groups)

    def _as_stored(self, weight: Tensor) -> Tensor:
        return _swap_in_out(weight, self.groups)


def _swap_in_out(weight: Tensor, groups: int) -> Tensor:
    """Rearrange [groups · a, b, ...] to [groups · b, a, ...]. This is its own inverse."""
    parts = weight.reshape(groups, -1, *weight.shape[1:])
    return parts.transpose(1, 2).flatten(0, 1)


def _transpose(
    layer: Any, function: Callable[..., Tensor], x: Tensor, output_size: Any, dims: int
) -> Tensor:
    output_padding = layer._output_padding(
        x, output_size, layer.stride, layer.padding, layer.kernel_size, dims, layer.dilation
    )

    def product(x: Tensor, w: Tensor) -> Tensor:
        stored = layer._as_stored(w)
        return function(
            x,
            stored,
            None,
            layer.stride,
            layer.padding,
            output_padding,
            layer.groups,
            layer.dilation,
        )

    result: Tensor = layer._run(product, x, dims)
    return result


class TernaryConvTranspose1d(_Transposed, TernaryLayer, nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d`` with ternary weights and activations.

    Parameters
    ----------
    *args, **kwargs
        As ``torch.nn.ConvTranspose1d``.
    quantizer, act, act_quantizer, per_channel, act_range, scale
        As :class:`fatnn_rs.nn.TernaryConv1d`.
    """

    def __init__(
        self,
        *args: Any,
        quantizer: str = "fatnn",
        act: str = "ternary",
        act_quantizer: str | None = None,
        per_channel: bool = False,
        act_range: str = "auto",
        scale: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._add_quantizers(quantizer, act, act_quantizer, per_channel, act_range, scale)

    @classmethod
    def from_float(cls, module: nn.Module, **options: Any) -> TernaryConvTranspose1d:
        """Make a ternary layer that shares the parameters of a ``torch.nn.ConvTranspose1d``.

        ``options`` are the keyword arguments of this class.
        """
        return layers._qat_layer(cls, module, nn.ConvTranspose1d, **options)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map [N, C, L] or [C, L] to [N, out, L'] or [out, L']."""
        return _transpose(self, functional.conv_transpose1d, input, output_size, 1)


class TernaryConvTranspose2d(_Transposed, TernaryLayer, nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` with ternary weights and activations.

    Parameters
    ----------
    *args, **kwargs
        As ``torch.nn.ConvTranspose2d``.
    quantizer, act, act_quantizer, per_channel, act_range, scale
        As :class:`fatnn_rs.nn.TernaryConv2d`.
    """

    def __init__(
        self,
        *args: Any,
        quantizer: str = "fatnn",
        act: str = "ternary",
        act_quantizer: str | None = None,
        per_channel: bool = False,
        act_range: str = "auto",
        scale: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._add_quantizers(quantizer, act, act_quantizer, per_channel, act_range, scale)

    @classmethod
    def from_float(cls, module: nn.Module, **options: Any) -> TernaryConvTranspose2d:
        """Make a ternary layer that shares the parameters of a ``torch.nn.ConvTranspose2d``.

        ``options`` are the keyword arguments of this class.
        """
        return layers._qat_layer(cls, module, nn.ConvTranspose2d, **options)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map [N, C, H, W] or [C, H, W] to [N, out, H', W'] or [out, H', W']."""
        return _transpose(self, functional.conv_transpose2d, input, output_size, 2)


class Int8ConvTranspose1d(_Transposed, Int8Layer, nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d`` with 8-bit weights and activations.

    Parameters
    ----------
    *args, **kwargs
        As ``torch.nn.ConvTranspose1d``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add_quantizer()

    @classmethod
    def from_float(cls, module: nn.Module) -> Int8ConvTranspose1d:
        """Make an int8 layer that shares the parameters of a ``torch.nn.ConvTranspose1d``."""
        return int8._qat_layer(cls, module, nn.ConvTranspose1d)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map [N, C, L] or [C, L] to [N, out, L'] or [out, L']."""
        return _transpose(self, functional.conv_transpose1d, input, output_size, 1)


class Int8ConvTranspose2d(_Transposed, Int8Layer, nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` with 8-bit weights and activations.

    Parameters
    ----------
    *args, **kwargs
        As ``torch.nn.ConvTranspose2d``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add_quantizer()

    @classmethod
    def from_float(cls, module: nn.Module) -> Int8ConvTranspose2d:
        """Make an int8 layer that shares the parameters of a ``torch.nn.ConvTranspose2d``."""
        return int8._qat_layer(cls, module, nn.ConvTranspose2d)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map [N, C, H, W] or [C, H, W] to [N, out, H', W'] or [out, H', W']."""
        return _transpose(self, functional.conv_transpose2d, input, output_size, 2)


TERNARY_QAT_MAPPING |= {
    nn.ConvTranspose1d: TernaryConvTranspose1d,
    nn.ConvTranspose2d: TernaryConvTranspose2d,
}
INT8_QAT_MAPPING |= {
    nn.ConvTranspose1d: Int8ConvTranspose1d,
    nn.ConvTranspose2d: Int8ConvTranspose2d,
}
