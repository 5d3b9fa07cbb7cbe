"""ONNX Runtime, float32, its CPU provider with all graph optimisations."""

from __future__ import annotations

from pathlib import Path

from fatnn_rs.bench.export import Task
from fatnn_rs.bench.peers.base import Built, Peer

__all__ = ["PEER", "session"]


def session(task: Task, path: Path) -> Built:
    """Make an ONNX file ready to run on the task's inputs with its number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors only
    # Its workers spin while they wait for work inside a run, as they should, but not into the next
    # candidate's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    ready = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = task.feed([value.name for value in ready.get_inputs()])
    return Built({"": lambda: ready.run(None, feed)})


PEER = Peer(
    describe="onnxruntime CPU provider, float32",
    modules=("onnxruntime", "onnx", "onnxscript"),
    build=lambda task: session(task, task.onnx),
    tolerance=1e-3,
    file="onnx",
)
