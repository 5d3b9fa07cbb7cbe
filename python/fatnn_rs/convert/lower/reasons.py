"""Reasons for calls that stay in torch, where a kind of call has one of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["reason"]

_THREE_AXES = "operations over three spatial axes run in torch"
_MODES = {
    "bicubic": "bicubic interpolation runs in torch",
    "trilinear": _THREE_AXES,
}


def reason(name: str, arguments: Mapping[str, Any]) -> str:
    """Return the reason why a kind of call stays in torch, or an empty string.

    Parameters
    ----------
    name
        Name of the function or class, such as ``conv3d`` or ``Conv3d``.
    arguments
        The call's named arguments, or the module's attributes.
    """
    if "3d" in name.lower():
        return _THREE_AXES
    if arguments.get("antialias") is True or name.endswith("_aa"):
        return "antialiased interpolation runs in torch"
    if "interpolate" in name or "Upsample" in name or "upsample" in name:
        return _MODES.get(str(arguments.get("mode")), "")
    return ""
