"""PyTorch, float32, eager: in both memory formats, of which the faster counts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fatnn_rs.bench.export import Task
from fatnn_rs.bench.peers.base import Built, Peer

__all__ = ["PEER"]


def _call(model: torch.nn.Module, inputs: tuple[Any, ...]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return model(*inputs)

    return run


def _build(task: Task) -> Built:
    variants = {"contiguous": _call(task.model, task.inputs)}
    if any(isinstance(value, Tensor) and value.dim() == 4 for value in task.inputs):
        # The inputs are converted beforehand, in the peer's favour: a real input would have to be converted each time.
        inputs = tuple(
            value.contiguous(memory_format=torch.channels_last)
            if isinstance(value, Tensor) and value.dim() == 4
            else value
            for value in task.inputs
        )
        model: torch.nn.Module = copy.deepcopy(task.model)
        model = model.to(memory_format=torch.channels_last)
        variants["channels_last"] = _call(model, inputs)
    return Built(variants)


PEER = Peer(
    describe="torch eager, float32, better of contiguous and channels_last",
    modules=("torch",),
    build=_build,
    tolerance=1e-3,
)
