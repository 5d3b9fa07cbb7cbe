"""OpenVINO, int8, from the same quantized ONNX file (QDQ) as onnxruntime's.

OpenVINO's low-precision passes turn its quantize/dequantize pairs into int8 layers; the report
names the kernels that came of it. What stays float runs in the plugin's own choice of precision
(bfloat16 where the processor has it). ONEDNN_MAX_CPU_ISA, set before the process starts, caps the
instructions.
"""

from __future__ import annotations

from fatnn_rs.bench.peers.base import Peer
from fatnn_rs.bench.peers.openvino_float import compiled

__all__ = ["PEER"]

PEER = Peer(
    describe="openvino CPU plugin, int8: the QDQ file of onnxruntime-int8",
    modules=(
        "openvino",
        "onnxruntime",
        "onnx",
        "onnxscript",
    ),  # onnxruntime writes the quantized file
    build=lambda task: compiled(task, task.qdq),
    may_use_amx=True,
    file="qdq",
)
