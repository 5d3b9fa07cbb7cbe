"""ONNX Runtime, float32: its CPU provider with all graph optimisations."""

from __future__ import annotations

from pathlib import Path

from fatnn_rs.bench.export import BenchTask
from fatnn_rs.bench.peers.peer import BuiltPeer, Peer

__all__ = ["PEER", "session"]


def session(task: BenchTask, path: Path) -> BuiltPeer:
    """Load an ONNX file for a task's inputs and number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # Only errors.
    # Let workers spin inside a run, but not after it, when another runtime is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    ready = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = task.feed([value.name for value in ready.get_inputs()])
    return BuiltPeer({"": lambda: ready.run(None, feed)})


PEER = Peer(
    describe="onnxruntime CPU provider, float32",
    modules=("onnxruntime", "onnx", "onnxscript"),
    build=lambda task: session(task, task.onnx),
    tolerance=1e-3,
    file="onnx",
)
