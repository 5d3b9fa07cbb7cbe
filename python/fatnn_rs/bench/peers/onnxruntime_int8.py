"""ONNX Runtime, int8: static quantization (QDQ), activations uint8, weights int8 per channel.

Its matrix kernels include AMX ones, which no environment variable switches off.
"""

from __future__ import annotations

from fatnn_rs.bench.peers.base import Peer
from fatnn_rs.bench.peers.onnxruntime_float import session

__all__ = ["PEER"]

PEER = Peer(
    describe="onnxruntime CPU provider, int8: static QDQ, u8 activations, s8 weights per channel",
    modules=("onnxruntime", "onnx", "onnxscript"),
    build=lambda task: session(task, task.qdq),
    may_use_amx=True,
)
