"""What a captured node calls, and copies of the model's modules to call in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from fatnn_rs.nn import TernaryLayer

__all__ = ["Method", "attention_call", "clean_copy", "has_hooks", "target_name"]


class Method:
    """Calls a method of its first argument."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return getattr(x, self.name)(*args, **kwargs)


def attention_call(layer: nn.Module) -> Callable[..., Any]:
    """Call torch's attention with the arguments of its marker."""

    def call(
        q: Any, k: Any, v: Any, padding: Any, mask: Any, weights: Any, causal: Any, _: Any
    ) -> Any:
        return layer(q, k, v, padding, weights, mask, is_causal=causal)

    return call


def target_name(node: fx.Node) -> str:
    """Name what a node calls, for reports."""
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    return str(getattr(node.target, "__name__", node.target))


def clean_copy(module: nn.Module) -> nn.Module:
    """Copy a module, without gradients and weights that it holds for a while."""
    copied = copy.deepcopy(module).eval()
    for parameter in copied.parameters():
        parameter.grad = (
            None  # it still requires one, for torch runs its recurrent layers otherwise without
        )
    for layer in copied.modules():
        if isinstance(layer, TernaryLayer):
            layer._held = None
    return copied


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody else's code runs with a module's."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
