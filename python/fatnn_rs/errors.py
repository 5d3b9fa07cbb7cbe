"""The exceptions of fatnn-rs: one root, and one class per kind of cause.

Every message names the layer or argument, what was expected, what was given, and how to proceed.
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
    """A model cannot be converted, or its converted network computes something else."""


class FormatError(FatnnError, ValueError):
    """A file is truncated, damaged, of an unknown version, or not a fatnn-rs file."""


class UnsupportedError(FatnnError):
    """The request is valid, but this version or this machine cannot fulfil it."""


class LimitError(UnsupportedError):
    """A network needs more memory or work than ``load`` was told to allow."""


class PrepareWarning(UserWarning):
    """Layers of a prepared model stay float although the configuration did not ask for it."""
