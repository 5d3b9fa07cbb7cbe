"""fatnn-rs: ternary neural networks, trained in PyTorch and run in 2 bits.

Only the names in ``__all__`` are public. Names that need torch or the extension module are imported
at first use, so ``import fatnn_rs`` works without torch. Without torch, ``load`` is ``load_numpy``.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fatnn_rs.config import TernaryConfig
from fatnn_rs.errors import (
    ConfigError,
    ConversionError,
    FatnnError,
    FormatError,
    InputError,
    LimitError,
    PrepareWarning,
    UnsupportedError,
)

if TYPE_CHECKING:
    from fatnn_rs import nn, ops, quant, zoo
    from fatnn_rs._core import __version__, cpu_info, get_num_threads, set_num_threads
    from fatnn_rs.bench.measure import bench
    from fatnn_rs.convert.api import convert
    from fatnn_rs.convert.explain import explain
    from fatnn_rs.convert.file import load, save
    from fatnn_rs.convert.quantize_values import quantize_values
    from fatnn_rs.convert.submodule import convert_submodule
    from fatnn_rs.convert.summary import summary
    from fatnn_rs.convert.verify import verify
    from fatnn_rs.numpy_network import load_numpy
    from fatnn_rs.prepare import param_groups, prepare

__all__ = [
    "ConfigError",
    "ConversionError",
    "FatnnError",
    "FormatError",
    "InputError",
    "LimitError",
    "PrepareWarning",
    "TernaryConfig",
    "UnsupportedError",
    "__version__",
    "bench",
    "convert",
    "convert_submodule",
    "cpu_info",
    "explain",
    "get_num_threads",
    "load",
    "load_numpy",
    "nn",
    "ops",
    "param_groups",
    "prepare",
    "quant",
    "quantize_values",
    "save",
    "set_num_threads",
    "summary",
    "verify",
    "zoo",
]

# Public name → module to import it from at first use. None: the name is a module itself.
_LAZY = {
    "__version__": "fatnn_rs._core",
    "bench": "fatnn_rs.bench",
    "convert": "fatnn_rs.convert",
    "convert_submodule": "fatnn_rs.convert",
    "cpu_info": "fatnn_rs._core",
    "explain": "fatnn_rs.convert",
    "get_num_threads": "fatnn_rs._core",
    "load": "fatnn_rs.convert",
    "load_numpy": "fatnn_rs.numpy_network",
    "nn": None,
    "ops": None,
    "param_groups": "fatnn_rs.prepare",
    "prepare": "fatnn_rs.prepare",
    "quant": None,
    "quantize_values": "fatnn_rs.convert",
    "save": "fatnn_rs.convert",
    "set_num_threads": "fatnn_rs._core",
    "summary": "fatnn_rs.convert",
    "verify": "fatnn_rs.convert",
    "zoo": None,
}

# Replacements for names that need torch, used if torch is not installed.
_WITHOUT_TORCH = {"load": "fatnn_rs.numpy_network"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fatnn_rs' has no attribute {name!r}")
    source = _LAZY[name]
    try:
        module = importlib.import_module(source or f"fatnn_rs.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "torch":
            raise
        if name in _WITHOUT_TORCH:
            return getattr(importlib.import_module(_WITHOUT_TORCH[name]), name)
        raise ImportError(
            f"fatnn_rs.{name} needs torch, which is not installed: pip install torch"
        ) from error
    value = module if source is None else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Package module whose public functions are not hidden by submodules of the same name.

    Importing the submodule ``fatnn_rs.prepare`` would rebind ``fatnn_rs.prepare`` to the module.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _LAZY.get(name) is not None:
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
