"""Quantization-aware layers: subclasses of torch's own, with the float ``state_dict`` keys unchanged.

One forward, the same in training and in eval mode::

    codes = act_quant(x)                      # integer-valued float: {0, 1, 2} or {-1, 0, +1}, say
    acc   = round(conv(codes, weight_quant(weight)))
    y     = acc [* scale] [+ bias]            # two separate float operations

``acc`` is an exact integer. The operands are small integers and their sums stay far below 2**24, so
a convolution that multiplies and adds is exact in float32; algorithms that transform their operands
first (Winograd, FFT) are off by less than a half, and the ``round`` takes that away. Autocast is
switched off around it: bfloat16 sums would not be exact.

``scale`` is a learned factor per output channel for places where no BatchNorm follows to absorb it.

Weights of a family that no integer code expresses (``refused``, in :mod:`fatnn_rs.quant.ttq`) are
multiplied as floats, without the ``round``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
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
from fatnn_rs.quant import (
    QUANTIZERS,
    ActivationQuantizer,
    QuantizerFamily,
    WeightQuantizer,
    activation_quantizer,
)
from fatnn_rs.threads import one_thread

__all__ = [
    "TERNARY_QAT_MAPPING",
    "TernaryConv1d",
    "TernaryConv2d",
    "TernaryLayer",
    "TernaryLinear",
    "held_weights",
]

Layer = TypeVar("Layer", bound="TernaryLayer")


class TernaryLayer(QuantizedLayer):
    """What the ternary layers have in common; not a layer by itself.

    Attributes
    ----------
    weight_quant : WeightQuantizer
    act_quant : ActivationQuantizer
    scale : Parameter or None
        Shape [out], float32.
    """

    weight_quant: WeightQuantizer
    act_quant: ActivationQuantizer
    scale: nn.Parameter | None
    _held: Tensor | None = None

    def _add_quantizers(
        self,
        quantizer: str,
        act: str,
        act_quantizer: str | None,
        per_channel: bool,
        act_range: str,
        scale: bool,
    ) -> None:
        """Give a complete torch layer its quantizers, initialised from its weights."""
        for name in (quantizer, quantizer if act_quantizer is None else act_quantizer):
            if name not in QUANTIZERS:
                raise ConfigError(
                    f"quantizer must be one of {', '.join(map(repr, QUANTIZERS))}, got {name!r}"
                )
        kinds = QuantizerFamily._fields[1:]
        if act not in kinds:
            raise ConfigError(f"act must be one of {', '.join(map(repr, kinds))}, got {act!r}")
        check_weight(self)
        weight, made = self._by_output(self.weight), QUANTIZERS[quantizer].weight
        activation = activation_quantizer(
            quantizer if act_quantizer is None else act_quantizer, act
        )
        most = made.levels[-1] * activation.half_levels[-1]
        if most * weight[0].numel() >= EXACT:
            raise ConfigError(
                f"{type(self).__name__}: {weight[0].numel()} inputs per output are too many for exact float32 sums "
                f"(fewer than {EXACT // most} are fine)"
            )
        self.layer_name = ""
        self.weight_quant = made(weight.shape[0], per_channel).to(weight.device)
        self.act_quant = activation(act_range).to(weight.device)
        self.act_quant.train(self.training)
        self.weight_quant.train(self.training)
        self.weight_quant.initialize(weight.detach())
        self.scale = nn.Parameter(self._fitted_scale()) if scale else None

    @torch.no_grad()
    def _fitted_scale(self) -> Tensor:
        """Per output channel, the factor that fits codes to latent weights best in the mean square."""
        weight = self._by_output(self.weight.detach()).float().flatten(1)
        codes = self.weight_quant(self._by_output(self.weight)).float().flatten(1)
        count = codes.square().sum(1)
        fitted = (weight * codes).sum(1) / count.clamp(min=1)
        return torch.where(
            (count > 0) & (fitted > 0), fitted, weight.abs().mean(1).clamp(min=1e-12)
        )

    def ternary_weight(self) -> Tensor:
        """Return the weight codes that forward uses: int8 out of the quantizer's ``levels``, shape of ``weight``."""
        if self._held is not None:
            return self._as_stored(self._held.to(torch.int8))
        return self._as_stored(self.weight_quant.codes(self._by_output(self.weight)))

    @torch.no_grad()
    def _refit(self) -> None:
        super()._refit()
        self.weight_quant.initialize(self._by_output(self.weight.detach()))
        if self.scale is not None:
            self.scale.copy_(self._fitted_scale())

    @_disable_dynamo
    def _scale_at_start(self) -> Tensor:
        """Return ``scale`` where steps were not initialised before this call: with the input's step once they are."""
        assert self.scale is not None
        if not self.act_quant.initialized:
            return (
                self.scale.clone()
            )  # what autograd saves must outlive the change of scale to come
        with torch.no_grad():
            self.scale.mul_(self.act_quant.step)
        return self.scale

    def _weight_codes(self) -> Tensor:
        if self._held is not None:
            return self._held
        codes: Tensor = self.weight_quant(self._by_output(self.weight))
        return codes

    def _run(self, product: Product, x: Tensor, dims: int) -> Tensor:
        """``acc * scale + bias``, with exact integers in the dtype of ``weight`` for ``acc``."""
        started = self.act_quant.initialized
        codes, weight = self.act_quant(x), self._weight_codes()
        exact = product if self.weight_quant.refused else partial(exact_product, product)
        acc = exact(codes, weight).to(self.weight.dtype)
        shape = (-1, *([1] * dims))
        if self.scale is not None:
            scale = self.scale if started else self._scale_at_start()
            acc = acc * scale.to(acc.dtype).view(shape)
        if self.bias is not None:
            acc = acc + self.bias.view(shape)
        return acc


@contextmanager
def held_weights(model: nn.Module) -> Iterator[None]:
    """Quantize the weights of a model's ternary layers once, and use those codes until the context is left.

    For whoever runs a model several times whose weights do not change meanwhile. Codes carry no
    gradient.
    """
    layers = [module for module in model.modules() if isinstance(module, TernaryLayer)]
    try:
        with one_thread():
            for layer in layers:
                layer._held = layer._weight_codes().detach()
        yield
    finally:
        for layer in layers:
            layer._held = None


def _qat_layer(
    cls: type[Layer], module: nn.Module, expected: type[nn.Module], **options: Any
) -> Layer:
    """Make a ternary ``cls`` that shares parameters, hooks and mode with ``module``."""
    layer = qat_layer(cls, module, expected)
    layer._add_quantizers(
        options.pop("quantizer", "fatnn"),
        options.pop("act", "ternary"),
        options.pop("act_quantizer", None),
        options.pop("per_channel", False),
        options.pop("act_range", "auto"),
        options.pop("scale", True),
    )
    if options:
        raise ConfigError(f"{cls.__name__}.from_float: unknown options {sorted(options)}")
    return layer


class TernaryConv1d(TernaryLayer, nn.Conv1d):
    """``torch.nn.Conv1d`` with ternary weights and activations.

    Parameters
    ----------
    *args, **kwargs
        As ``torch.nn.Conv1d``.
    quantizer : str
        Row of :data:`fatnn_rs.quant.QUANTIZERS`.
    act : str
        Activations: ``"ternary"``, ``"uint2"`` or ``"binary"``.
    act_quantizer : str or None
        The row whose activations are taken; ``quantizer``'s own where None.
    per_channel : bool
        Weight steps per output channel instead of per layer.
    act_range : str
        ``"auto"``, ``"half"`` or ``"full"``.
    scale : bool
        Learn a factor per output channel. Give False where a BatchNorm follows directly.
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
    def from_float(cls, module: nn.Module, **options: Any) -> TernaryConv1d:
        """Make the quantized layer of a ``torch.nn.Conv1d``: same parameters, and the options of this class."""
        return _qat_layer(cls, module, nn.Conv1d, **options)

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, L] or [C, L] → [N, out, L'] or [out, L']."""
        return convolve(self, functional.conv1d, input, 1)


class TernaryConv2d(TernaryLayer, nn.Conv2d):
    """``torch.nn.Conv2d`` with ternary weights and activations.

    Parameters
    ----------
    *args, **kwargs
        As ``torch.nn.Conv2d``.
    quantizer : str
        Row of :data:`fatnn_rs.quant.QUANTIZERS`.
    act : str
        Activations: ``"ternary"``, ``"uint2"`` or ``"binary"``.
    act_quantizer : str or None
        The row whose activations are taken; ``quantizer``'s own where None.
    per_channel : bool
        Weight steps per output channel instead of per layer.
    act_range : str
        ``"auto"``, ``"half"`` or ``"full"``.
    scale : bool
        Learn a factor per output channel. Give False where a BatchNorm follows directly.
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
    def from_float(cls, module: nn.Module, **options: Any) -> TernaryConv2d:
        """Make the quantized layer of a ``torch.nn.Conv2d``: same parameters, and the options of this class."""
        return _qat_layer(cls, module, nn.Conv2d, **options)

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] or [C, H, W] → [N, out, H', W'] or [out, H', W']."""
        return convolve(self, functional.conv2d, input, 2)


class TernaryLinear(TernaryLayer, nn.Linear):  # type: ignore[misc]
    """``torch.nn.Linear`` with ternary weights and activations.

    Parameters
    ----------
    *args, **kwargs
        As ``torch.nn.Linear``.
    quantizer : str
        Row of :data:`fatnn_rs.quant.QUANTIZERS`.
    act : str
        Activations: ``"ternary"``, ``"uint2"`` or ``"binary"``.
    act_quantizer : str or None
        The row whose activations are taken; ``quantizer``'s own where None.
    per_channel : bool
        Weight steps per output feature instead of per layer.
    act_range : str
        ``"auto"``, ``"half"`` or ``"full"``.
    scale : bool
        Learn a factor per output feature. Give False where a BatchNorm follows directly.
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
    def from_float(cls, module: nn.Module, **options: Any) -> TernaryLinear:
        """Make the quantized layer of a ``torch.nn.Linear``: same parameters, and the options of this class."""
        return _qat_layer(cls, module, nn.Linear, **options)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        return self._run(functional.linear, input, 0)


#: torch layer → its ternary QAT layer. Exact types only: a subclass may compute something else.
TERNARY_QAT_MAPPING: dict[type[nn.Module], Any] = {
    nn.Conv1d: TernaryConv1d,
    nn.Conv2d: TernaryConv2d,
    nn.Linear: TernaryLinear,
}
