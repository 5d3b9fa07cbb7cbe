"""OpenVINO, float32: its CPU plugin, told to keep float32 (by default it computes in bfloat16 where that is faster)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from fatnn_rs.bench.export import Task
from fatnn_rs.bench.peers.base import Built, Peer

__all__ = ["PEER", "compiled"]

_HEAVY = ("Convolution", "FullyConnected", "MatMul")


def compiled(task: Task, path: Path, **properties: Any) -> Built:
    """Compile an ONNX file for latency, with the task's number of threads, without binding threads to processors.

    The file is read by OpenVINO's own ONNX reader. ``details`` names the kernels of the heavy layers as the compiled
    network reports them; that is also how AMX is known to be used or not.
    """
    import openvino

    core = openvino.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": task.threads,
        "ENABLE_CPU_PINNING": False,
        **properties,
    }
    network = core.compile_model(core.read_model(str(path)), "CPU", options)
    request = network.create_infer_request()
    feed = task.feed([port.get_any_name() for port in network.inputs])
    values = [feed[port.get_any_name()] for port in network.inputs]
    kernels = _kernels(network)
    return Built(
        {"": lambda: request.infer(values, share_inputs=True, share_outputs=True)},
        details=", ".join(f"{count} x {name}" for name, count in kernels.most_common()),
        amx=any("amx" in name for name in kernels) if kernels else None,
    )


def _kernels(network: Any) -> Counter[str]:
    """Count the kernels of convolutions and matrix products in the compiled network."""
    found: Counter[str] = Counter()
    for node in network.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if "layerType" in info and "primitiveType" in info and info["layerType"].astype(str) in _HEAVY:
            found[info["primitiveType"].astype(str)] += 1
    return found


PEER = Peer(
    describe="openvino CPU plugin, float32",
    modules=("openvino", "onnx", "onnxscript"),
    build=lambda task: compiled(task, task.onnx, INFERENCE_PRECISION_HINT="f32"),
    tolerance=1e-3,
)
