"""Conversion: from a trained model to a network that runs on codes, and what one does with it.

The way of a model: :mod:`.capture` (torch.fx, else :mod:`.capture_export`) → :mod:`.lower` with the
tables of :mod:`.lower.modules` and :mod:`.lower.functions` → :mod:`.passes` → :mod:`.network`. To
teach the conversion a module or a function: a row in one of the two tables, and, where it is a new
operation, a row in :mod:`.torch_ops.floats`.
"""

from __future__ import annotations

from fatnn_rs.convert.api import convert
from fatnn_rs.convert.file import load, save
from fatnn_rs.convert.network import TernaryNetwork
from fatnn_rs.convert.report import Report
from fatnn_rs.convert.submodule import convert_submodule
from fatnn_rs.convert.summary import Summary, summary
from fatnn_rs.convert.verify import VerifyReport, verify

__all__ = [
    "Report",
    "Summary",
    "TernaryNetwork",
    "VerifyReport",
    "convert",
    "convert_submodule",
    "load",
    "save",
    "summary",
    "verify",
]
