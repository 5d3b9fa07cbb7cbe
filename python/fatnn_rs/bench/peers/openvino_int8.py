"""OpenVINO, int8, from the same quantized ONNX file (QDQ) as onnxruntime.

OpenVINO turns pairs of quantize and dequantize into int8 layers; the report names their kernels.
The remaining layers run in bfloat16 if the processor has it, else in float32. The variable
ONEDNN_MAX_CPU_ISA, set before the process starts, limits the instructions.
"""

from __future__ import annotations

from fatnn_rs.bench.peers.openvino_float import compiled
from fatnn_rs.bench.peers.peer import Peer

__all__ = ["PEER"]

PEER = Peer(
    describe="openvino CPU plugin, int8: the QDQ file of onnxruntime-int8",
    # onnxruntime writes the quantized file.
    modules=("openvino", "onnxruntime", "onnx", "onnxscript"),
    build=lambda task: compiled(task, task.qdq),
    may_use_amx=True,
    file="qdq",
)
