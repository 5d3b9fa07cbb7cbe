"""PyTorch, bfloat16, eager: converted weights and inputs, the faster of two memory formats.

Processors without bfloat16 instructions compute in float32, which is slower.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fatnn_rs.bench.export import BenchTask
from fatnn_rs.bench.peers.peer import BuiltPeer, Peer
from fatnn_rs.bench.peers.torch_float import eager

__all__ = ["PEER"]


def _build(task: BenchTask) -> BuiltPeer:
    model: torch.nn.Module = copy.deepcopy(task.model)
    inputs = tuple(
        value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in task.inputs
    )
    built = eager(model.bfloat16(), inputs)
    return BuiltPeer({name: _widened(call) for name, call in built.variants.items()})


def _widened(call: Callable[[], Any]) -> Callable[[], Any]:
    """Convert a call's results to float32, because NumPy has no bfloat16."""

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
