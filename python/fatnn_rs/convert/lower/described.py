"""Layers as a row of modules reads them, where that differs from the module's own attributes."""

from __future__ import annotations

from typing import Any

__all__ = ["Described", "without_bias"]


class Described:
    """A layer with other attributes than the module's: what its own forward calls torch with."""

    def __init__(self, layer: Any, **attributes: Any) -> None:
        self.__dict__.update(attributes)
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def without_bias(layer: Any) -> Any:
    """Return a layer that adds no bias."""
    return Described(layer, bias=None)
