"""The base class of all quantization-aware layers: torch's own layers, with quantizers added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs.errors import ConfigError
from fatnn_rs.nn.mixed import fast_product
from fatnn_rs.nn.rescaled import RESCALED, is_rescaled
from fatnn_rs.nn.watch import StepsWatch
from fatnn_rs.quant.base import InputQuantizer, round_ste
from fatnn_rs.replica import patched_methods, slots
from fatnn_rs.threads import one_thread

__all__ = [
    "EXACT",
    "QuantizedLayer",
    "check_weight",
    "convolve",
    "exact_product",
    "qat_layer",
    "replaced_methods",
    "weight_hooks",
    "why_replaced",
]

#: Every integer up to this magnitude is exact in float32.
EXACT = 1 << 24

#: Attributes that quantized layers have in addition to those of float layers.
_ADDED = ("act_quant", "weight_quant", "scale", "ternary_scale")

Layer = TypeVar("Layer", bound="QuantizedLayer")
Product = Callable[[Tensor, Tensor], Tensor]


class QuantizedLayer(nn.Module):
    """Abstract base of convolutions and linear layers that quantize their input and weight.

    Attributes
    ----------
    act_quant : InputQuantizer
        Quantizes the input.
    layer_name : str
        Qualified name in the model, used in messages. It is empty until ``prepare``, ``calibrate``
        or ``convert`` sets it.
    """

    weight: Tensor
    bias: Tensor | None
    act_quant: InputQuantizer
    layer_name: str
    _watch: StepsWatch | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        old = self._parameters.get("weight") if name == "weight" else None
        replaced = isinstance(value, Tensor) and old is not value and not self.training
        if old is not None and replaced and is_rescaled(old, value):
            raise ConfigError(f"layer {self.layer_name!r}: {RESCALED}")
        super().__setattr__(name, value)

    def _as_stored(self, weight: Tensor) -> Tensor:
        """Convert weights or codes, [out, in / groups, ...], to the parameter's layout."""
        return weight

    def set_name(self, name: str) -> None:
        """Set the name used in messages."""
        self.layer_name = name
        self.act_quant.layer_name = name

    def latent_weight(self) -> Tensor:
        """Return the float weight that the quantizer reads: [out, in / groups, ...].

        If hooks, parametrizations or the layer's own forward compute the weight, this method
        computes it again in eval mode. In training mode, a spectral norm would change its buffers.
        """
        if type(self)._weight is QuantizedLayer._weight and "weight" in self._parameters:
            return self.weight
        modes = {module: module.training for module in self.modules()}
        try:
            for module in modes:
                module.training = False
            self._recompute_weight()
            return self._weight()
        finally:
            for module, mode in modes.items():
                module.training = mode

    def _float_parameter(self) -> Tensor | None:
        """Return the weight parameter, or a float parameter that the weight is computed from."""
        floats = (t for key, t in self.named_parameters() if key.partition(".")[0] not in _ADDED)
        return next(floats, None)

    def _check_optimizer(self) -> None:
        """Check, at the end of a forward, that the optimizer updates the quantizer's steps."""
        watch = self._watch
        if watch is None or not self.training or torch.compiler.is_compiling():
            return
        if not watch.done and torch.is_grad_enabled():
            watch.check(self, self._float_parameter())

    def _weight(self) -> Tensor:
        """Return the float weight for one forward. Call it once: it may change buffers."""
        return self.weight

    def _run(
        self,
        product: Product,
        x: Tensor,
        dims: int,
        add_bias: bool = True,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Quantize both operands, multiply them, and scale the sums.

        Parameters
        ----------
        product
            Multiplies input codes by weight codes, without a bias.
        x
            Float input of the layer.
        dims
            Number of spatial dimensions; 0 for a linear layer.
        add_bias
            Whether to add the layer's own bias.
        weight
            Float weight, [out, in / groups, ...], if the caller has computed it already.
        """
        raise NotImplementedError

    def _refit(self) -> None:
        """Fit the weight quantizer to the current weights, and reset the activation quantizer.

        The next batch initialises the activation steps.
        """
        self.act_quant.reset()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load as torch does. Also accept a float layer's state, which has no quantizer keys."""
        names = [name for name in _ADDED if name != "scale" or self._adds_scale()]
        added = [key for key in self.state_dict(keep_vars=True) if key.partition(".")[0] in names]
        own = [key for key in self.state_dict(keep_vars=True) if key not in added]
        wanted = [prefix + key for key in (["weight"] if "weight" in own else own)]
        from_float = any(key in state_dict for key in wanted) and not any(
            prefix + key in state_dict for key in added
        )
        rest = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if not from_float:
            super()._load_from_state_dict(state_dict, prefix, *rest)
            return
        # Children load after their parent from the same dictionary, so their refitted state must
        # be in it.
        state_dict.update({prefix + key: value for key, value in self._state(added).items()})
        errors = len(error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if len(error_msgs) == errors and self._has_values():
            self._load_parametrizations(state_dict, prefix)
            self._materialize()
            with torch.no_grad(), one_thread():
                self._refit()
        state_dict.update({prefix + key: value for key, value in self._state(added).items()})

    def _adds_scale(self) -> bool:
        """Whether ``scale`` is the learned scale and not an attribute of the float class."""
        return getattr(self, "_scale_key", "scale") == "scale"

    def _has_values(self) -> bool:
        weight = self._float_parameter()
        return weight is not None and not weight.is_meta

    def _load_parametrizations(self, state_dict: Any, prefix: str) -> None:
        """Load the parametrizations now: torch would load them only after the refit."""
        parts = self._modules.get("parametrizations")
        if parts is not None:
            start = f"{prefix}parametrizations."
            own = {k[len(start) :]: v for k, v in state_dict.items() if k.startswith(start)}
            parts.load_state_dict(own, strict=False)

    def _recompute_weight(self) -> None:
        """Update a weight that hooks of torch.nn.utils compute (weight_norm, prune)."""
        if "weight" not in self._parameters:
            for hook in weight_hooks(self):
                hook(self, ())

    def _materialize(self) -> None:
        """Allocate quantizers that are still on the meta device (loading with ``assign=True``)."""
        for child in self.children():
            if any(tensor.is_meta for tensor in (*child.parameters(), *child.buffers())):
                child.to_empty(device=self.weight.device)
        for name, parameter in self._parameters.items():
            if name in _ADDED and parameter is not None and parameter.is_meta:
                self._parameters[name] = nn.Parameter(
                    torch.empty_like(parameter, device=self.weight.device)
                )

    def fit_to_float(self, state_dict: Any, prefix: str) -> None:
        """If ``state_dict`` has no keys of this layer, refit it and add its state to the dict."""
        keys = list(self.state_dict(keep_vars=True))
        if self._has_values() and not any(prefix + key in state_dict for key in keys):
            self._materialize()
            with torch.no_grad(), one_thread():
                self._refit()
            state_dict.update({prefix + key: value for key, value in self._state(keys).items()})

    def _state(self, keys: list[str]) -> dict[str, Tensor]:
        present = self.state_dict()
        return {key: present[key].clone() for key in keys}


def weight_hooks(module: nn.Module) -> list[Any]:
    """Return the hooks of torch.nn.utils that compute the weight before every call."""
    hooks = module._forward_pre_hooks.values()
    return [hook for hook in hooks if type(hook).__module__.startswith("torch.nn.utils.")]


def qat_layer(cls: type[Layer], module: nn.Module, expected: type[nn.Module]) -> Layer:
    """Make a ``cls`` without quantizers that shares parameters, hooks and mode with ``module``.

    If ``module`` is parametrized or of a subclass of ``expected``, so is the result
    (:mod:`fatnn_rs.nn.subclass`).

    Raises
    ------
    ConfigError
        If ``module`` is not an ``expected``, has methods replaced on the instance, or has its own
        attribute ``act_quant`` or ``weight_quant``.
    """
    from fatnn_rs.nn.subclass import quantized_class

    if not isinstance(module, expected):
        raise ConfigError(
            f"{cls.__name__}.from_float takes a torch.nn.{expected.__name__}, got "
            f"{type(module).__module__}.{type(module).__qualname__}"
        )
    cls = quantized_class(cls, module, expected)
    if changed := replaced_methods(module):
        raise ConfigError(f"{cls.__name__}.from_float: {why_replaced(changed)}")
    layer = cls.__new__(cls)
    layer.__dict__.update(module.__dict__)
    for own in ("_parameters", "_buffers", "_modules"):
        layer.__dict__[own] = dict(module.__dict__[own])
    for slot in slots(type(module)):
        if hasattr(module, slot):
            setattr(layer, slot, getattr(module, slot))
    if taken := [name for name in ("act_quant", "weight_quant") if hasattr(module, name)]:
        raise ConfigError(
            f"{cls.__name__}.from_float: the layer has an attribute {taken[0]!r} of its own, which "
            "a quantized layer needs; rename it, or leave the layer float"
        )
    return layer


def check_weight(layer: Any) -> None:
    """Check that quantizers can be fitted to a layer's weight.

    Raises
    ------
    ConfigError
        If the weight is empty or on the meta device.
    """
    weight = layer.latent_weight()
    if weight.is_meta:
        raise ConfigError(
            f"{type(layer).__name__}: its weight is on the meta device, which holds no values to "
            "fit quantizers to; give the model values first (to_empty(device=...), then "
            "load_state_dict)"
        )
    if not weight.numel():
        raise ConfigError(
            f"{type(layer).__name__}: its weight of shape {tuple(weight.shape)} is empty, so there "
            "is nothing to quantize; leave the layer float"
        )


def replaced_methods(module: nn.Module) -> list[str]:
    """Return the names of methods that were replaced on this instance.

    A replaced method is bound to the float layer, so a quantized layer would still run the float
    one. accelerate's hooks replace ``forward``, and ``nn.Module.compile`` replaces the call.
    """
    names = patched_methods(module)
    if module.__dict__.get("_compiled_call_impl") is not None:
        names.append("_compiled_call_impl")
    return names


def why_replaced(names: list[str]) -> str:
    """Explain why a module with replaced methods cannot be quantized, and what to do."""
    ways = []
    if "_compiled_call_impl" in names:
        ways.append("compile it after prepare")
        names = [name for name in names if name != "_compiled_call_impl"] or [
            "its call (nn.Module.compile)"
        ]
    if "forward" in names:
        ways.append(
            "remove accelerate's hooks first "
            "(accelerate.hooks.remove_hook_from_module(model, recurse=True))"
        )
    ways.append(
        "undo the change (for example, del layer.forward), use a forward hook, or leave the layer "
        "float with skip"
    )
    what = (
        f"{', '.join(names)} was replaced on the instance, which a quantized layer would not follow"
    )
    return f"{what}; {', or '.join(ways)}"


def convolve(
    layer: Any, function: Callable[..., Tensor], x: Tensor, dims: int, add_bias: bool = True
) -> Tensor:
    """Run a convolution over ``dims`` dimensions.

    Padding other than zeros is added before the quantizer.
    """
    padding: Any = layer.padding
    if layer.padding_mode != "zeros":
        x = functional.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = (0,) * dims

    def product(x: Tensor, w: Tensor) -> Tensor:
        return function(x, w, None, layer.stride, padding, layer.dilation, layer.groups)

    fast = fast_product(layer, x, padding) if dims == 2 else None
    result: Tensor = layer._run(fast or product, x, dims, add_bias)
    return result


def exact_product(product: Product, codes: Tensor, weight: Tensor) -> Tensor:
    """Multiply integer-valued operands exactly, in the dtype of ``codes``.

    That dtype must represent every sum exactly.
    """
    with torch.autocast(device_type=codes.device.type, enabled=False):
        return round_ste(product(codes, weight.to(codes.dtype)))
