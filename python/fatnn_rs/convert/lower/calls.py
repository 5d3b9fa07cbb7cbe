"""The function that a captured node calls, and copies of the model's modules to call instead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from fatnn_rs.nn import QuantizedLayer
from fatnn_rs.nn.base import weight_hooks

__all__ = ["Method", "attention_call", "clean_copy", "has_hooks", "target_name"]


class Method:
    """Calls a method of its first argument."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the method on ``x``."""
        return getattr(x, self.name)(*args, **kwargs)


def attention_call(layer: nn.Module) -> Callable[..., Any]:
    """Return a function that calls torch's attention with the arguments of its marker op."""

    def call(
        q: Any, k: Any, v: Any, padding: Any, mask: Any, weights: Any, causal: Any, _: Any
    ) -> Any:
        return layer(q, k, v, padding, weights, mask, is_causal=causal)

    return call


def target_name(node: fx.Node) -> str:
    """Return the name of what a node calls, for reports."""
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    return str(getattr(node.target, "__name__", node.target))


def clean_copy(module: nn.Module) -> nn.Module:
    """Copy a module in eval mode, without gradients."""
    for layer in module.modules():
        if isinstance(layer, QuantizedLayer):
            layer.latent_weight()  # a weight that a hook computed with a gradient cannot be copied
    copied = copy.deepcopy(module).eval()
    for parameter in copied.parameters():
        # requires_grad stays on: without it torch runs recurrent layers by another path.
        parameter.grad = None
    return copied


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks, other than those that compute a quantized layer's weight."""
    before = len(module._forward_pre_hooks)
    if isinstance(module, QuantizedLayer):
        before -= len(weight_hooks(module))
    return bool(module._forward_hooks or before)
