"""Count multiply-accumulates of torch nodes, by :mod:`torch.utils.flop_counter`.

This module adds the formulas that torch lacks: fused attention and LSTM kernels, bilinear layers
and products with vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fatnn_rs.convert.graph import Node

__all__ = ["count_macs", "torch_macs"]

_aten = torch.ops.aten
_Size = tuple[int, ...]


def _native_attention(
    query: _Size, key: _Size, value: _Size, width: int, *args: Any, **kwargs: Any
) -> int:
    rows, length = math.prod(query[:-1]), key[1]
    made: int = 2 * rows * length * width + 2 * (rows + math.prod(key[:-1])) * width * width
    return 2 * made


def _encoder_layer(source: _Size, width: int, heads: int, *args: Any, **kwargs: Any) -> int:
    # The feed-forward weights come after those of attention and both normalisations.
    hidden: int = next(s for s in args[10:] if isinstance(s, tuple) and len(s) == 2)[0]
    attention = _native_attention(source, source, source, width)
    return attention + 2 * 2 * math.prod(source[:-1]) * width * hidden


def _recurrent(input: _Size, of_input: _Size, of_hidden: _Size, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(input[:-1]) * (math.prod(of_input) + math.prod(of_hidden))


def _trilinear(one: _Size, weight: _Size, other: _Size, *args: Any, **kwargs: Any) -> int:
    outputs, _, features = weight[-3:]
    return 2 * math.prod(one[:-1]) * (math.prod(weight[-3:]) + outputs * features)


def _vector_product(place: int) -> Callable[..., int]:
    """Return the formula of a product with a vector: one product per element of the matrix."""
    return lambda *sizes, **kwargs: 2 * math.prod(sizes[place])


#: Operator → function from sizes to floating-point operations (two per multiply-accumulate).
_FORMULAS: dict[Any, Callable[..., int]] = {
    _aten._native_multi_head_attention: _native_attention,
    _aten._transformer_encoder_layer_fwd: _encoder_layer,
    _aten.mkldnn_rnn_layer: _recurrent,
    _aten._trilinear: _trilinear,
    _aten.mv: _vector_product(0),
    _aten.addmv: _vector_product(1),
    _aten.dot: _vector_product(0),
    _aten.vdot: _vector_product(0),
}


@torch.no_grad()
def count_macs(function: Callable[[], Any]) -> int:
    """Run a function and return its number of multiply-accumulates."""
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        function()
    return int(counter.get_total_flops()) // 2


def torch_macs(node: Node, run: Callable[..., Any], values: list[Any]) -> int:
    """Return the multiply-accumulates of a torch node; 0 if they cannot be counted.

    Parameters
    ----------
    node
        The node.
    run
        Computes it.
    values
        The values that it reads.
    """
    if isinstance(node.call, nn.RNNBase):
        return _recurrent_macs(node.call, values[0])
    try:
        return count_macs(lambda: run(*values))
    except Exception:  # any torch function may raise under a dispatch mode
        return 0


def _recurrent_macs(module: nn.RNNBase, x: Any) -> int:
    """Count by the sizes of the weights; the counter would see thousands of operations."""
    data = x if isinstance(x, Tensor) else x.data
    weights = sum(p.numel() for name, p in module.named_parameters() if name.startswith("weight"))
    return math.prod(data.shape[:-1]) * weights
