"""PyTorch, float32, eager: the faster of two memory formats."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fatnn_rs.bench.peers.peer import BuiltPeer, Peer

__all__ = ["PEER", "eager"]


def _call(model: torch.nn.Module, inputs: tuple[Any, ...]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return model(*inputs)

    return run


def eager(model: torch.nn.Module, inputs: tuple[Any, ...]) -> BuiltPeer:
    """Prepare a model to run eagerly; with image inputs, also in channels-last format."""
    variants = {"contiguous": _call(model, inputs)}
    if any(isinstance(value, Tensor) and value.dim() == 4 for value in inputs):
        # Convert the inputs beforehand, which favours torch: real inputs need it each time.
        last = tuple(
            value.contiguous(memory_format=torch.channels_last)
            if isinstance(value, Tensor) and value.dim() == 4
            else value
            for value in inputs
        )
        other: torch.nn.Module = copy.deepcopy(model)
        other = other.to(memory_format=torch.channels_last)
        variants["channels_last"] = _call(other, last)
    return BuiltPeer(variants)


PEER = Peer(
    describe="torch eager, float32, better of contiguous and channels_last",
    modules=("torch",),
    build=lambda task: eager(task.model, task.inputs),
    tolerance=1e-3,
)
