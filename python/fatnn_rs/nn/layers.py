"""Ternary layers: subclasses of torch's own, with the float ``state_dict`` keys unchanged.

Training and eval mode run the same forward::

    codes = act_quant(x)                      # integer-valued float, such as {0, 1, 2}
    acc   = round(conv(codes, weight_quant(weight)))
    y     = acc [* scale] [+ bias]            # two separate float operations

``acc`` is an exact integer. The operands are small integers and their sums stay far below 2**24, so
a direct convolution is exact in float32. Algorithms that transform their operands first (Winograd,
FFT) have an error below one half, which ``round`` removes. Autocast is off for this product because
bfloat16 sums would not be exact.

``scale`` is a learned factor per output channel. It is not needed if a BatchNorm follows.

Some weights cannot be written as integer codes (``refused``, in :mod:`fatnn_rs.quant.ttq`). They
are multiplied as floats, without the ``round``.
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

from fatnn_rs.contained import named_modules
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
from fatnn_rs.nn.mixed import FastProduct
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


class _Held:
    """Weight codes that a layer and its copies use until the context of ``held_weights`` ends.

    Copies of a layer share it, so none keeps the codes; a pickled layer has none.
    """

    def __init__(self, codes: Tensor, dtype: torch.dtype) -> None:
        self.codes: Tensor | None = codes
        self.dtype = dtype

    def __deepcopy__(self, memo: dict[int, Any]) -> _Held:
        return self

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


class TernaryLayer(QuantizedLayer):
    """Abstract base of the ternary layers.

    Attributes
    ----------
    weight_quant : WeightQuantizer
        Quantizes the weight.
    act_quant : ActivationQuantizer
        Quantizes the input.
    scale : Parameter or None
        Learned factor per output channel: [out], float32.
    """

    weight_quant: WeightQuantizer
    act_quant: ActivationQuantizer
    scale: nn.Parameter | None
    _held: _Held | None = None
    #: Name of the learned scale; ``ternary_scale`` if the float class has its own ``scale``.
    _scale_key = "scale"

    @property
    def learned_scale(self) -> nn.Parameter | None:
        """The learned factor per output channel, [out], under either of its names."""
        return self._parameters[self._scale_key]

    def code_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters on which the codes of the weights depend.

        These are all but the bias, the scale and the activation quantizer's: a weight may be
        computed from several, as by ``torch.nn.utils.parametrizations``.
        """
        for name, parameter in self.named_parameters():
            first, *rest = name.split(".")
            owner = rest[0] if first == "parametrizations" else first
            if owner not in ("bias", self._scale_key, "act_quant"):
                yield parameter

    def _add_quantizers(
        self,
        quantizer: str,
        act: str,
        act_quantizer: str | None,
        per_channel: bool,
        act_range: str,
        scale: bool,
    ) -> None:
        """Add quantizers, initialised from the weights, to a complete torch layer."""
        for name in (quantizer, quantizer if act_quantizer is None else act_quantizer):
            if name not in QUANTIZERS:
                raise ConfigError(
                    f"quantizer must be one of {', '.join(map(repr, QUANTIZERS))}, got {name!r}"
                )
        kinds = QuantizerFamily._fields[1:]
        if act not in kinds:
            raise ConfigError(f"act must be one of {', '.join(map(repr, kinds))}, got {act!r}")
        check_weight(self)
        weight, made = self.latent_weight().detach(), QUANTIZERS[quantizer].weight
        activation = activation_quantizer(
            quantizer if act_quantizer is None else act_quantizer, act
        )
        max_product = made.levels[-1] * activation.half_levels[-1]
        if max_product * weight[0].numel() >= EXACT:
            raise ConfigError(
                f"{type(self).__name__}: {weight[0].numel()} inputs per output are too many for "
                f"exact float32 sums (expected fewer than {EXACT // max_product}); leave the layer "
                "float"
            )
        self.layer_name = ""
        self.weight_quant = made(weight.shape[0], per_channel).to(weight.device)
        self.act_quant = activation(act_range).to(weight.device)
        self.act_quant.train(self.training)
        self.weight_quant.train(self.training)
        self.weight_quant.initialize(weight)
        if hasattr(self, "scale"):
            self._scale_key = "ternary_scale"
        fitted = nn.Parameter(self._fitted_scale(weight)) if scale else None
        self.register_parameter(self._scale_key, fitted)

    def _add_options(self, options: dict[str, Any]) -> None:
        """Add quantizers with the options of ``from_float``."""
        defaults: dict[str, Any] = {
            "quantizer": "fatnn",
            "act": "ternary",
            "act_quantizer": None,
            "per_channel": False,
            "act_range": "auto",
            "scale": True,
        }
        if unknown := sorted(set(options) - set(defaults)):
            raise ConfigError(
                f"{type(self).__name__}.from_float: unknown options {unknown}; options are "
                f"{', '.join(defaults)}"
            )
        self._add_quantizers(**(defaults | options))

    @torch.no_grad()
    def _fitted_scale(self, latent: Tensor) -> Tensor:
        """Return, per output channel, the least-squares factor from codes to float weights."""
        weight = latent.float().flatten(1)
        codes = self.weight_quant(latent).float().flatten(1)
        count = codes.square().sum(1)
        fitted = (weight * codes).sum(1) / count.clamp(min=1)
        return torch.where(
            (count > 0) & (fitted > 0), fitted, weight.abs().mean(1).clamp(min=1e-12)
        )

    def ternary_weight(self) -> Tensor:
        """Return the weight codes that forward uses.

        Returns
        -------
        Tensor
            int8, the shape of ``weight``; every value is one of the quantizer's ``levels``.
        """
        held = None if self._held is None else self._held.codes
        codes = self.weight_quant.codes(self.latent_weight()) if held is None else held
        return self._as_stored(codes.to(torch.int8))

    @torch.no_grad()
    def _refit(self) -> None:
        super()._refit()
        weight = self.latent_weight().detach()
        self.weight_quant.initialize(weight)
        if self.learned_scale is not None:
            self.learned_scale.copy_(self._fitted_scale(weight))

    @_disable_dynamo
    def _scale_at_start(self) -> Tensor:
        """Return the scale in the call that initialises the activation steps.

        If the steps were initialised, the scale is first multiplied by them, in place.
        """
        scale = self.learned_scale
        assert scale is not None
        if not self.act_quant.initialized:
            return scale.clone()  # autograd saves this tensor, and a later call changes the scale
        with torch.no_grad():
            scale.mul_(self.act_quant.step)
        return scale

    def _run(
        self,
        product: Product,
        x: Tensor,
        dims: int,
        add_bias: bool = True,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Return ``acc * scale + bias``; ``acc`` holds exact integers in the weight's dtype."""
        started = self.act_quant.initialized
        codes = self.act_quant(x)
        if self._held is not None and self._held.codes is not None:
            weight_codes, dtype = self._held.codes, self._held.dtype
        else:
            latent = self._weight() if weight is None else weight
            weight_codes, dtype = self.weight_quant(latent), latent.dtype
        factor: Tensor | None = self.learned_scale
        if factor is not None and not started:
            factor = self._scale_at_start()
        shape = (-1, *([1] * dims))
        if isinstance(product, FastProduct) and dtype == codes.dtype:
            with torch.autocast(device_type=codes.device.type, enabled=False):
                acc = product(codes, weight_codes, factor)
        else:
            exact = product if self.weight_quant.refused else partial(exact_product, product)
            acc = exact(codes, weight_codes).to(dtype)
            if factor is not None:
                acc = acc * factor.to(acc.dtype).view(shape)
        if add_bias and self.bias is not None:
            acc = acc + self.bias.view(shape)
        self._check_optimizer()
        return acc


@contextmanager
def held_weights(model: nn.Module) -> Iterator[None]:
    """Quantize the weights of all ternary layers once, and use these codes inside the context.

    This saves time if a model runs several times with the same weights. The codes carry no
    gradient.
    """
    layers = [module for _, module in named_modules(model) if isinstance(module, TernaryLayer)]
    held: list[_Held] = []
    try:
        with one_thread():
            for layer in layers:
                latent = layer.latent_weight().detach()
                held.append(_Held(layer.weight_quant(latent).detach(), latent.dtype))
                layer._held = held[-1]
        yield
    finally:
        for layer in layers:
            layer._held = None
        for one in held:
            one.codes = None


def _qat_layer(
    cls: type[Layer], module: nn.Module, expected: type[nn.Module], **options: Any
) -> Layer:
    """Make a ternary ``cls`` that shares parameters, hooks and mode with ``module``."""
    layer = qat_layer(cls, module, expected)
    layer._add_options(options)
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
        The row that quantizes the activations; if None, the same as ``quantizer``.
    per_channel : bool
        Use weight steps per output channel instead of per layer.
    act_range : str
        ``"half"``: codes for inputs that are never negative; ``"full"``: signed codes; ``"auto"``:
        chosen from the first batch.
    scale : bool
        Learn a factor per output channel. Pass False if a BatchNorm follows directly.
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
        """Make a ternary layer that shares the parameters of a ``torch.nn.Conv1d``.

        ``options`` are the keyword arguments of this class.
        """
        return _qat_layer(cls, module, nn.Conv1d, **options)

    def forward(self, input: Tensor, add_bias: bool = True) -> Tensor:
        """Map [N, C, L] or [C, L] to [N, out, L'] or [out, L']."""
        return convolve(self, functional.conv1d, input, 1, add_bias)


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
        The row that quantizes the activations; if None, the same as ``quantizer``.
    per_channel : bool
        Use weight steps per output channel instead of per layer.
    act_range : str
        ``"half"``: codes for inputs that are never negative; ``"full"``: signed codes; ``"auto"``:
        chosen from the first batch.
    scale : bool
        Learn a factor per output channel. Pass False if a BatchNorm follows directly.
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
        """Make a ternary layer that shares the parameters of a ``torch.nn.Conv2d``.

        ``options`` are the keyword arguments of this class.
        """
        return _qat_layer(cls, module, nn.Conv2d, **options)

    def forward(self, input: Tensor, add_bias: bool = True) -> Tensor:
        """Map [N, C, H, W] or [C, H, W] to [N, out, H', W'] or [out, H', W']."""
        return convolve(self, functional.conv2d, input, 2, add_bias)


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
        The row that quantizes the activations; if None, the same as ``quantizer``.
    per_channel : bool
        Use weight steps per output feature instead of per layer.
    act_range : str
        ``"half"``: codes for inputs that are never negative; ``"full"``: signed codes; ``"auto"``:
        chosen from the first batch.
    scale : bool
        Learn a factor per output feature. Pass False if a BatchNorm follows directly.
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
        """Make a ternary layer that shares the parameters of a ``torch.nn.Linear``.

        ``options`` are the keyword arguments of this class.
        """
        return _qat_layer(cls, module, nn.Linear, **options)

    def forward(self, input: Tensor, add_bias: bool = True) -> Tensor:
        """Map [..., in] to [..., out]."""
        return self._run(functional.linear, input, 0, add_bias)


#: torch layer → its ternary QAT layer. A subclass gets its own class (:mod:`.subclass`).
TERNARY_QAT_MAPPING: dict[type[nn.Module], Any] = {
    nn.Conv1d: TernaryConv1d,
    nn.Conv2d: TernaryConv2d,
    nn.Linear: TernaryLinear,
}
