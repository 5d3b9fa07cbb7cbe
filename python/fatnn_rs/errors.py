"""The exceptions of fatnn-rs: one root, one class per kind of cause.

Every message names the layer or the argument, what was expected, what was got, and the way out.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "ConversionError",
    "FatnnError",
    "FormatError",
    "InputError",
    "LimitError",
    "PrepareWarning",
    "UnsupportedError",
]


class FatnnError(Exception):
    """Root of every exception that fatnn-rs raises on purpose."""


class ConfigError(FatnnError, ValueError):
    """An option, a name pattern or the state of a model is wrong."""


class InputError(FatnnError, ValueError):
    """An array or tensor has the wrong shape or dtype, or holds NaN or infinity."""


class ConversionError(FatnnError):
    """A model cannot be converted, or a converted network does not match it."""


class FormatError(FatnnError, ValueError):
    """A file is truncated, damaged, of an unknown version, or no fatnn-rs file at all."""


class UnsupportedError(FatnnError):
    """The request is valid but this version or this machine does not offer it."""


class LimitError(UnsupportedError):
    """A file asks for more memory or work than ``load`` was told to allow."""


class PrepareWarning(UserWarning):
    """Layers of a prepared model compute in float although nobody asked for it."""
