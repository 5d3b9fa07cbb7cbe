"""torch modules that read the weight of a child without calling it.

A quantized child would have no effect there. ``nn.TransformerEncoderLayer`` has a fused path for
inference that reads the weights of its linear layers. :func:`use_layers` switches this path off if
the layer holds quantized ones: it sets the attribute that torch's check reads, which is copied and
pickled with the module. ``nn.TransformerEncoder`` uses nested tensors only for this path.
``nn.MultiheadAttention`` never calls its ``out_proj``, which can therefore not be quantized.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from fatnn_rs.errors import ConfigError
from fatnn_rs.nn.base import QuantizedLayer

__all__ = ["check_readers", "reads_weight", "restore", "use_layers"]

#: A module, the name of an attribute, and its value before the change.
Change = tuple[nn.Module, str, Any]


def reads_weight(parent: nn.Module, name: str) -> bool:
    """Whether ``parent`` reads the weight of its child ``name`` and never calls the child."""
    return (
        isinstance(parent, nn.MultiheadAttention)
        and type(parent).forward is nn.MultiheadAttention.forward
        and name == "out_proj"
    )


def check_readers(model: nn.Module) -> None:
    """Check that parents call their quantized layers.

    Raises
    ------
    ConfigError
        If a parent reads a layer's weight and never calls the layer.
    """
    for path, parent in model.named_modules():
        for name, child in parent.named_children():
            if isinstance(child, QuantizedLayer) and reads_weight(parent, name):
                raise _never_called(f"{path}.{name}" if path else name, parent)


def use_layers(model: nn.Module) -> list[Change]:
    """Switch off fused paths that would skip a quantized layer.

    Returns
    -------
    list
        The changes, for :func:`restore`.
    """
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
        f"layer {name!r}: {type(parent).__name__} reads the weight of its out_proj and never calls "
        "it, so a quantized one would compute in float; leave that layer float"
    )


def _on_registration(parent: nn.Module, name: str, child: Any) -> None:
    """Check and adapt hand-written models: torch calls this when a module gets a child."""
    if not isinstance(child, QuantizedLayer):
        return
    if reads_weight(parent, name):
        raise _never_called(name, parent)
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0


register_module_module_registration_hook(_on_registration)
