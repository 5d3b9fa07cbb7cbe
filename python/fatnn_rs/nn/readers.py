"""Readers: modules that multiply by a child's weight, ``functional.linear(x, self.qkv.weight)``.

Attention in torchvision's Swin and timm's BEiT is such a reader. ``prepare`` changes the reader's
class to a subclass of its own class. In the subclass's forward, the quantized layer computes the
product.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from fatnn_rs.nn.base import QuantizedLayer
from fatnn_rs.nn.products import Call, CatchProducts
from fatnn_rs.nn.subclass import class_of_two

__all__ = ["ReadsWeights", "expected_readers", "reader_class"]


class ReadsWeights:
    """Mixin that turns a module's products with the weights of some layers into layer calls."""

    # A tuple, so that torch does not register the layers as submodules a second time.
    _read: tuple[Any, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward, with the products quantized."""
        with CatchProducts(self._quantized_product):
            return super().forward(*args, **kwargs)  # type: ignore[misc]

    def _quantized_product(self, call: Call) -> Any:
        for layer in self._read:
            if _is_same(call.weight, layer._parameters.get("weight")):
                return _call_layer(layer, call)
        return None


def _call_layer(layer: Any, call: Call) -> Any:
    own = call.bias is not None and _is_same(call.bias, layer._parameters.get("bias"))
    if all(_is_equal(value, getattr(layer, name)) for name, value in call.geometry.items()):
        has_bias = layer._parameters.get("bias") is not None
        y = layer(call.x) if own or not has_bias else layer(call.x, add_bias=False)
    else:
        y, own = layer._run(call.product, call.x, call.dims, False), False
    return y if own or call.bias is None else y + call.bias.view(-1, *([1] * call.dims))


def _is_equal(given: Any, own: Any) -> bool:
    """Whether an argument such as a stride equals the layer's; a number is for all dimensions."""
    if isinstance(own, tuple) and isinstance(given, int):
        return all(value == given for value in own)
    return bool((tuple(given) if isinstance(given, list) else given) == own)


def _is_same(value: Any, parameter: Any) -> bool:
    """Whether a value is a parameter, or the proxy of it while torch.fx traces."""
    if not isinstance(value, fx.Proxy):
        return parameter is not None and value is parameter
    if value.node.op != "get_attr":
        return False
    *path, name = str(value.node.target).split(".")
    tracer: Any = value.tracer
    found = tracer.root
    for part in path:  # getattr would return a proxy
        found = found._modules.get(part)
        if found is None:
            return False
    return parameter is not None and found._parameters.get(name) is parameter


def reader_class(kind: type[nn.Module]) -> Any:
    """Return the subclass of ``kind`` that a reader of class ``kind`` changes to."""
    return class_of_two(ReadsWeights, kind, f"Rerouted{kind.__name__}")


def expected_readers(
    model: nn.Module, layers: Iterable[nn.Module]
) -> dict[nn.Module, list[nn.Module]]:
    """Find modules whose forward mentions a child and ``weight``.

    This is for models without an example to run. It also finds modules that only ask the weight
    for its dtype; they compute the same as before.
    """
    wanted = set(layers)
    found: dict[nn.Module, list[nn.Module]] = {}
    for module in model.modules():
        if isinstance(module, QuantizedLayer) or type(module).__module__.startswith("torch.nn."):
            continue
        names = _names(type(module), "forward", set())
        read = [
            child
            for name, child in module.named_children()
            if child in wanted and name in names and "weight" in names
        ]
        if read:
            found[module] = read
    return found


def _names(kind: type, method: str, seen: set[str]) -> set[str]:
    """Return the names in a method's code, and in methods that this code mentions."""
    seen.add(method)
    code = getattr(getattr(kind, method, None), "__code__", None)
    if code is None:
        return set()
    found = _names_of_code(code)
    for name in list(found):
        if name not in seen and isinstance(getattr(kind, name, None), types.FunctionType):
            found |= _names(kind, name, seen)
    return found


def _names_of_code(code: types.CodeType) -> set[str]:
    inner = (one for one in code.co_consts if isinstance(one, types.CodeType))
    return set(code.co_names).union(*map(_names_of_code, inner))
