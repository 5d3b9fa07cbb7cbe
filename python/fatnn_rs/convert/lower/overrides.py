"""Views of a layer with some attributes replaced, for rows that read the attributes."""

from __future__ import annotations

from typing import Any

__all__ = ["WithAttributes", "without_bias"]


class WithAttributes:
    """A layer with some attributes replaced, such as those that its own forward passes to torch."""

    def __init__(self, layer: Any, **attributes: Any) -> None:
        self.__dict__.update(attributes)
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def without_bias(layer: Any) -> Any:
    """Return a view of a layer that has no bias."""
    return WithAttributes(layer, bias=None)
