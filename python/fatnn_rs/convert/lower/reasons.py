"""Reasons for calls that stay in torch, where a kind of call has one of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["reason"]

_THREE_AXES = "operations over three spatial axes run in torch"


def reason(name: str, arguments: Mapping[str, Any]) -> str:
    """Return the reason why a kind of call stays in torch, or an empty string.

    Parameters
    ----------
    name
        Name of the function or class, such as ``conv3d`` or ``Conv3d``.
    arguments
        The call's named arguments, or the module's attributes.
    """
    three_axes = "3d" in name.lower() or arguments.get("mode") == "trilinear"
    return _THREE_AXES if three_axes else ""
