"""Convert a trained model to a network that runs on codes; verify, save and describe it.

A model passes through :mod:`.capture` (torch.fx, otherwise :mod:`.capture_export`),
:mod:`.lower`, :mod:`.passes` and :mod:`.network`. To support another module or function, add a row
to the tables of :mod:`.lower.modules` or :mod:`.lower.functions`. A new operation also needs a row
in :mod:`.torch_ops.floats`.
"""

from __future__ import annotations

from fatnn_rs.convert.api import convert
from fatnn_rs.convert.explain import explain
from fatnn_rs.convert.file import load, save
from fatnn_rs.convert.network import TernaryNetwork
from fatnn_rs.convert.quantize_values import quantize_values
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
    "explain",
    "load",
    "quantize_values",
    "save",
    "summary",
    "verify",
]
