"""Quantization-aware layers.

Use them directly in models that you write by hand. For other models, :func:`fatnn_rs.prepare`
swaps them in.
"""

from __future__ import annotations

from fatnn_rs.nn import fused  # noqa: F401 (registers a hook that hand-written models need)
from fatnn_rs.nn.base import QuantizedLayer
from fatnn_rs.nn.calibrate import calibrate
from fatnn_rs.nn.int8 import INT8_QAT_MAPPING, Int8Conv1d, Int8Conv2d, Int8Layer, Int8Linear
from fatnn_rs.nn.layers import (
    TERNARY_QAT_MAPPING,
    TernaryConv1d,
    TernaryConv2d,
    TernaryLayer,
    TernaryLinear,
)
from fatnn_rs.nn.transposed import (
    Int8ConvTranspose1d,
    Int8ConvTranspose2d,
    TernaryConvTranspose1d,
    TernaryConvTranspose2d,
)

__all__ = [
    "INT8_QAT_MAPPING",
    "TERNARY_QAT_MAPPING",
    "Int8Conv1d",
    "Int8Conv2d",
    "Int8ConvTranspose1d",
    "Int8ConvTranspose2d",
    "Int8Layer",
    "Int8Linear",
    "QuantizedLayer",
    "TernaryConv1d",
    "TernaryConv2d",
    "TernaryConvTranspose1d",
    "TernaryConvTranspose2d",
    "TernaryLayer",
    "TernaryLinear",
    "calibrate",
]
