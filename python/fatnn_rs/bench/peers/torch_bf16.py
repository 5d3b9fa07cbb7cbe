"""PyTorch, bfloat16, eager: weights and inputs converted beforehand, the faster of both memory formats.

Processors without instructions for bfloat16 compute it in float32, and lose time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fatnn_rs.bench.export import Task
from fatnn_rs.bench.peers.base import Built, Peer
from fatnn_rs.bench.peers.torch_float import eager

__all__ = ["PEER"]


def _build(task: Task) -> Built:
    model: torch.nn.Module = copy.deepcopy(task.model)
    inputs = tuple(
        value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in task.inputs
    )
    built = eager(model.bfloat16(), inputs)
    return Built({name: _widened(call) for name, call in built.variants.items()})


def _widened(call: Callable[[], Any]) -> Callable[[], Any]:
    """Give the same results as float32, which NumPy has."""

    def run() -> Any:
        return torch.utils._pytree.tree_map_only(Tensor, Tensor.float, call())

    return run


PEER = Peer(
    describe="torch eager, bfloat16, better of contiguous and channels_last",
    modules=("torch",),
    build=_build,
    may_use_amx=True,
    instructions=("avx512_bf16", "amx_bf16", "bf16"),
)
