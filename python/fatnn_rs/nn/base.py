"""What all quantization-aware layers have in common: they are torch's own layers, with quantizers added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs.errors import ConfigError
from fatnn_rs.quant.base import InputQuantizer, round_ste
from fatnn_rs.replica import patched_methods
from fatnn_rs.threads import one_thread

__all__ = [
    "EXACT",
    "QuantizedLayer",
    "check_weight",
    "convolve",
    "exact_product",
    "qat_layer",
    "replaced_methods",
    "why_replaced",
]

#: Integers up to this are exact in float32.
EXACT = 1 << 24

#: Attributes that quantized layers have and float layers do not.
_ADDED = ("act_quant", "weight_quant", "scale")

Layer = TypeVar("Layer", bound="QuantizedLayer")
Product = Callable[[Tensor, Tensor], Tensor]


class QuantizedLayer(nn.Module):
    """A convolution or linear layer whose forward quantizes its input and its weight; not a layer by itself.

    Attributes
    ----------
    act_quant : InputQuantizer
    layer_name : str
        Qualified name in the model, for messages; empty until ``prepare``, ``calibrate`` or
        ``convert`` sets it.
    """

    weight: Tensor
    bias: Tensor | None
    act_quant: InputQuantizer
    layer_name: str

    def _by_output(self, weight: Tensor) -> Tensor:
        """Return a tensor of the weight's shape with output channels first, as quantizers see it."""
        return weight

    def _as_stored(self, weight: Tensor) -> Tensor:
        """Reverse :meth:`_by_output`."""
        return weight

    def set_name(self, name: str) -> None:
        """Name used in messages."""
        self.layer_name = name
        self.act_quant.layer_name = name

    def _run(self, product: Product, x: Tensor, dims: int) -> Tensor:
        """Quantize both operands, multiply them by ``product``, and bring the sums to the output's scale."""
        raise NotImplementedError

    def _refit(self) -> None:
        """Fit to the present weights what depends on them; the next data initialise the activation steps."""
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
        """Load as torch does; the weights of a float layer too, which have no keys for quantizers."""
        added = [key for key in self.state_dict(keep_vars=True) if key.partition(".")[0] in _ADDED]
        own = [key for key in self.state_dict(keep_vars=True) if key not in added]
        wanted = ["weight"] if "weight" in own else own
        from_float = any(prefix + key in state_dict for key in wanted) and not any(
            prefix + key in state_dict for key in added
        )
        rest = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if not from_float:
            super()._load_from_state_dict(state_dict, prefix, *rest)
            return
        # Children load after their parent, from the same dictionary: they find their refitted state
        # there.
        state_dict.update({prefix + key: value for key, value in self._state(added).items()})
        errors = len(error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if len(error_msgs) == errors and not self.weight.is_meta:
            self._materialize()
            with torch.no_grad(), one_thread():
                self._recompute_weight()
                self._refit()
        state_dict.update({prefix + key: value for key, value in self._state(added).items()})

    def _recompute_weight(self) -> None:
        """Bring a weight that hooks of torch.nn.utils compute (weight_norm, prune) up to date."""
        if "weight" not in self._parameters:
            for hook in self._forward_pre_hooks.values():
                if type(hook).__module__.startswith("torch.nn.utils."):
                    hook(self, ())

    def _materialize(self) -> None:
        """Give quantizers memory where the layer just left the meta device (``assign=True``)."""
        for child in self.children():
            if any(tensor.is_meta for tensor in (*child.parameters(), *child.buffers())):
                child.to_empty(device=self.weight.device)
        for name, parameter in self._parameters.items():
            if name in _ADDED and parameter is not None and parameter.is_meta:
                self._parameters[name] = nn.Parameter(
                    torch.empty_like(parameter, device=self.weight.device)
                )

    def _state(self, keys: list[str]) -> dict[str, Tensor]:
        present = self.state_dict()
        return {key: present[key].clone() for key in keys}


def qat_layer(cls: type[Layer], module: nn.Module, expected: type[nn.Module]) -> Layer:
    """Make a ``cls`` that shares parameters, hooks and mode with ``module``, and has no quantizers yet."""
    if type(module) is not expected:
        raise ConfigError(
            f"{cls.__name__}.from_float takes exactly a torch.nn.{expected.__name__} (a subclass may compute something "
            f"else), got {type(module).__module__}.{type(module).__qualname__}"
        )
    if changed := replaced_methods(module):
        raise ConfigError(f"{cls.__name__}.from_float: {why_replaced(changed)}")
    layer = cls.__new__(cls)
    layer.__dict__.update(module.__dict__)
    for own in ("_parameters", "_buffers", "_modules"):
        layer.__dict__[own] = dict(module.__dict__[own])
    return layer


def check_weight(layer: Any) -> None:
    """Refuse layers whose weights quantizers cannot be fitted to.

    Raises
    ------
    ConfigError
        No weights at all, or on the meta device, which holds no values.
    """
    weight = layer.weight
    if weight.is_meta:
        raise ConfigError(
            f"{type(layer).__name__}: its weight is on the meta device, which holds no values to fit quantizers to; "
            "give the model values first (to_empty(device=...), then load_state_dict)"
        )
    if not weight.numel():
        raise ConfigError(
            f"{type(layer).__name__}: its weight of shape {tuple(weight.shape)} is empty, so there is nothing to "
            "quantize; leave the layer float"
        )


def replaced_methods(module: nn.Module) -> list[str]:
    """Names of the methods that this one module replaces: a quantized layer would run what they were bound to, the float layer.

    accelerate's hooks replace ``forward`` so, ``nn.Module.compile`` the call, and patches by hand
    anything.
    """
    names = patched_methods(module)
    if module.__dict__.get("_compiled_call_impl") is not None:
        names.append("_compiled_call_impl")
    return names


def why_replaced(names: list[str]) -> str:
    """Why a module with such methods is not quantized, and the way out."""
    ways = []
    if "_compiled_call_impl" in names:
        ways.append("compile it after prepare")
        names = [name for name in names if name != "_compiled_call_impl"] or [
            "its call (nn.Module.compile)"
        ]
    if "forward" in names:
        ways.append(
            "remove accelerate's hooks first (accelerate.hooks.remove_hook_from_module(model, recurse=True))"
        )
    ways.append(
        "undo the change (del layer.forward, say), use a forward hook, or leave the layer float with skip"
    )
    what = (
        f"{', '.join(names)} was replaced on the instance, which a quantized layer would not follow"
    )
    return f"{what}; {', or '.join(ways)}"


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
