"""OpenVINO, float32. Its CPU plugin is told to keep float32; by default it may use bfloat16."""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fatnn_rs.bench.export import BenchTask
from fatnn_rs.bench.peers.peer import BuiltPeer, Peer

__all__ = ["PEER", "compiled"]

_HEAVY = ("Convolution", "FullyConnected", "MatMul")


def compiled(task: BenchTask, path: Path, **properties: Any) -> BuiltPeer:
    """Compile an ONNX file for latency, with the task's threads, not pinned to processors.

    OpenVINO reads the file with its own ONNX reader. ``details`` names the kernels of convolutions
    and matrix products that the compiled network reports; this also shows whether it uses AMX.
    """
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": task.threads,
        "ENABLE_CPU_PINNING": False,
        **properties,
    }
    with _own_signal_stack():
        core = openvino.Core()
        network = core.compile_model(core.read_model(str(path)), "CPU", options)
        request = network.create_infer_request()
    feed = task.feed([port.get_any_name() for port in network.inputs])
    values = [feed[port.get_any_name()] for port in network.inputs]
    kernels = _kernels(network)
    return BuiltPeer(
        {"": lambda: request.infer(values, share_inputs=True, share_outputs=True)},
        details=", ".join(f"{count} x {name}" for name, count in kernels.most_common()),
        amx=any("amx" in name for name in kernels) if kernels else None,
    )


class _SignalStack(ctypes.Structure):
    """``stack_t`` of Linux, for ``sigaltstack``."""

    _fields_ = (("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Restore this thread's alternate signal stack at the end.

    OpenVINO (2026.4) installs its own and unmaps it together with the network, but leaves it
    installed. The next signal that Python handles would then end the process.
    """
    sigaltstack = (
        getattr(ctypes.CDLL(None), "sigaltstack", None) if sys.platform == "linux" else None
    )
    before = _SignalStack()
    if sigaltstack is None or sigaltstack(None, ctypes.byref(before)):
        yield
        return
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)


def _kernels(network: Any) -> Counter[str]:
    """Count the kernels of convolutions and matrix products in a compiled network."""
    found: Counter[str] = Counter()
    for node in network.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if (
            "layerType" in info
            and "primitiveType" in info
            and info["layerType"].astype(str) in _HEAVY
        ):
            found[info["primitiveType"].astype(str)] += 1
    return found


PEER = Peer(
    describe="openvino CPU plugin, float32",
    modules=("openvino", "onnx", "onnxscript"),
    build=lambda task: compiled(task, task.onnx, INFERENCE_PRECISION_HINT="f32"),
    tolerance=1e-3,
    file="onnx",
)
