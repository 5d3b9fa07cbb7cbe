"""Quantization-aware layers, for people who write models by hand; :func:`fatnn_rs.prepare` swaps them in otherwise."""

from __future__ import annotations

from fatnn_rs.nn.calibrate import calibrate
from fatnn_rs.nn.layers import TERNARY_TWINS, TernaryConv1d, TernaryConv2d, TernaryLayer, TernaryLinear

__all__ = ["TERNARY_TWINS", "TernaryConv1d", "TernaryConv2d", "TernaryLayer", "TernaryLinear", "calibrate"]
