"""ONNX Runtime, int8: static quantization (QDQ), activations uint8, weights int8 per channel.

Its matrix kernels include AMX ones, which no environment variable switches off. It does not say
what it uses: samples of the program counter in version 1.32, ResNet-18 at 224 pixels, on a
processor with both, lay seven tenths in AVX-512 VNNI kernels and one tenth in AMX kernels.
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
    file="qdq",
)
