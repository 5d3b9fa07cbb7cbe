"""torch modules that compute with a child's weight themselves, where a quantized child would be passed by.

``nn.TransformerEncoderLayer`` has a fused path for inference, which reads the weights of its linear
layers and calls none of them. It is switched off for a layer that holds quantized ones, by the
attribute that torch's own check reads; the attribute is copied and pickled with the module.
``nn.TransformerEncoder`` feeds nested tensors to that path only. ``nn.MultiheadAttention`` never
calls its ``out_proj``, so that one cannot be quantized.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from fatnn_rs.errors import ConfigError
from fatnn_rs.nn.base import QuantizedLayer

__all__ = ["check_readers", "reads_weight", "restore", "use_layers"]

#: A module, its attribute, and the value that was there before.
Change = tuple[nn.Module, str, Any]


def reads_weight(parent: nn.Module, name: str) -> bool:
    """Whether ``parent`` reads the weight of its child ``name`` and never calls the child."""
    return (
        isinstance(parent, nn.MultiheadAttention)
        and type(parent).forward is nn.MultiheadAttention.forward
        and name == "out_proj"
    )


def check_readers(model: nn.Module) -> None:
    """Refuse quantized layers whose parent never calls them.

    Raises
    ------
    ConfigError
        Names the layer.
    """
    for path, parent in model.named_modules():
        for name, child in parent.named_children():
            if isinstance(child, QuantizedLayer) and reads_weight(parent, name):
                raise _never_called(f"{path}.{name}" if path else name, parent)


def use_layers(model: nn.Module) -> list[Change]:
    """Switch the fused paths off wherever they would pass by a quantized layer; return what was changed."""
    changes: list[Change] = []
    for module in model.modules():
        kinds = (("activation_relu_or_gelu", 0, nn.TransformerEncoderLayer),)
        kinds += (("use_nested_tensor", False, nn.TransformerEncoder),)  # type: ignore[assignment]
        for attribute, off, kind in kinds:
            if (
                isinstance(module, kind)
                and getattr(module, attribute, off) != off
                and _holds_quantized(module)
            ):
                changes.append((module, attribute, getattr(module, attribute)))
                setattr(module, attribute, off)
    return changes


def restore(changes: list[Change]) -> None:
    """Undo :func:`use_layers`."""
    for module, attribute, value in changes:
        setattr(module, attribute, value)


def _holds_quantized(module: nn.Module) -> bool:
    return any(isinstance(child, QuantizedLayer) for child in module.modules())


def _never_called(name: str, parent: nn.Module) -> ConfigError:
    return ConfigError(
        f"layer {name!r}: {type(parent).__name__} reads the weight of its out_proj and never calls it, so a quantized "
        "one would compute in float; leave that layer float"
    )


def _on_registration(parent: nn.Module, name: str, child: Any) -> None:
    """Do the same where a model is written by hand: torch calls this when a module becomes another's child."""
    if not isinstance(child, QuantizedLayer):
        return
    if reads_weight(parent, name):
        raise _never_called(name, parent)
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0


register_module_module_registration_hook(_on_registration)
