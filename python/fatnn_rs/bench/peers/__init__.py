"""The runtimes that networks are compared with: one file each, and the table :data:`PEERS`."""

from __future__ import annotations

from fatnn_rs.bench.peers import (
    onnxruntime_float,
    onnxruntime_int8,
    openvino_float,
    openvino_int8,
    torch_bf16,
    torch_float,
)
from fatnn_rs.bench.peers.peer import INSTALL, BuiltPeer, Peer, arrays_of

__all__ = ["INSTALL", "PEERS", "BuiltPeer", "Peer", "arrays_of"]

#: Name in ``against`` → runtime.
PEERS: dict[str, Peer] = {
    "torch": torch_float.PEER,
    "torch-bf16": torch_bf16.PEER,
    "onnxruntime": onnxruntime_float.PEER,
    "onnxruntime-int8": onnxruntime_int8.PEER,
    "openvino": openvino_float.PEER,
    "openvino-int8": openvino_int8.PEER,
}
