"""ONNX Runtime, int8: static quantization (QDQ), uint8 activations, int8 weights per channel.

Its matrix kernels include AMX ones, which no environment variable switches off, and it does not say
which it uses. In samples of the program counter (version 1.32, ResNet-18 at 224 pixels, a processor
with both), 70 % were in AVX-512 VNNI kernels and 10 % in AMX kernels.
"""

from __future__ import annotations

from fatnn_rs.bench.peers.onnxruntime_float import session
from fatnn_rs.bench.peers.peer import Peer

__all__ = ["PEER"]

PEER = Peer(
    describe="onnxruntime CPU provider, int8: static QDQ, u8 activations, s8 weights per channel",
    modules=("onnxruntime", "onnx", "onnxscript"),
    build=lambda task: session(task, task.qdq),
    may_use_amx=True,
    file="qdq",
)
