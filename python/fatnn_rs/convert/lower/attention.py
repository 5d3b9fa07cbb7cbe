"""Scaled dot-product attention and ``nn.MultiheadAttention``.

Torch runs both unless float layers may run in Rust: their sums have a rounding of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs.convert.graph import Ref
from fatnn_rs.convert.lower import masks
from fatnn_rs.convert.lower.lowering import Lowering, Row
from fatnn_rs.convert.lower.products import layouts
from fatnn_rs.convert.lower.reductions import only_first_used

__all__ = ["FUNCTIONS", "MODULES"]


def attention(
    ctx: Lowering,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: Any = 0.0,
    is_causal: Any = False,
    scale: Any = None,
    enable_gqa: Any = False,
) -> Ref | None:
    """Attention: without a mask, with a mask tensor, or causal."""
    given = [query, key, value, *([] if attn_mask is None else [attn_mask])]
    before = len(ctx.graph.nodes)
    names = [name for name in map(ctx.value, given[:3]) if name is not None]
    mask = None if attn_mask is None else masks.additive_mask(ctx, attn_mask)
    names += [] if mask is None else [mask]
    made = _attention(ctx, given, names, dropout_p, is_causal, scale, enable_gqa)
    if made is None:
        del ctx.graph.nodes[before:]
    return made


def _attention(
    ctx: Lowering,
    given: list[Any],
    names: list[str],
    dropout_p: Any,
    is_causal: Any,
    scale: Any,
    enable_gqa: Any,
) -> Ref | None:
    attn_mask = given[3] if len(given) > 3 else None
    if (
        len(names) < len(given)
        or dropout_p != 0
        or enable_gqa is not False
        or not isinstance(is_causal, bool)
    ):
        return None
    if (is_causal and attn_mask is not None) or any(len(ctx.shape(v)) < 2 for v in given):
        return None
    if _has_gradient(ctx, attn_mask):
        return None
    attrs: dict[str, Any] = {"causal": is_causal, "layout": layouts(ctx, *given)}
    if scale is not None:
        if not isinstance(scale, (int, float)):
            return None
        attrs["scale"] = float(scale)
    return ctx.emit("attention", names, attrs)


def _has_gradient(ctx: Lowering, mask: Any) -> bool:
    """Whether a mask requires a gradient, for which torch takes another path in any mode.

    Constants of a network never do, so their bits could differ.
    """
    value = ctx.attribute(mask)
    return isinstance(value, Tensor) and value.requires_grad


def _multihead(
    ctx: Lowering,
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: Any = True,
    attn_mask: Any = None,
    average_attn_weights: Any = True,
    is_causal: Any = False,
) -> Any:
    names = [name for name in map(ctx.value, (query, key, value)) if name is not None]
    if len(names) < 3 or not isinstance(need_weights, bool) or not isinstance(is_causal, bool):
        return None
    if (
        len(ctx.shape(query)) != 3
        or not only_first_used(ctx)
        or module.bias_k is not None
        or module.add_zero_attn
    ):
        return None
    if module.in_proj_weight is None or type(module.out_proj).__mro__[1] is not nn.Linear:
        return None
    given = {"scores": attn_mask, "keys": key_padding_mask}
    given = {kind: mask for kind, mask in given.items() if mask is not None}
    before = len(ctx.graph.nodes)
    added = [masks.additive_mask(ctx, mask, hides=True) for mask in given.values()]
    if None in added or any(_has_gradient(ctx, mask) for mask in given.values()):
        del ctx.graph.nodes[before:]
        return None
    names += [name for name in added if name is not None]
    attrs = {
        "heads": module.num_heads,
        "batch_first": module.batch_first,
        "need_weights": need_weights,
        "layout": layouts(ctx, query, key, value, *given.values()),
        **({"masks": "|".join(given)} if given else {}),
        **({"causal": True} if is_causal else {}),
    }
    tensors = {
        "in_weight": module.in_proj_weight,
        "in_bias": module.in_proj_bias,
        "out_weight": module.out_proj.weight,
        "out_bias": module.out_proj.bias,
    }
    return (ctx.emit("multihead_attention", names, attrs, tensors, shape=ctx.shape(query)), None)


_aten = torch.ops.aten

#: Functions and operators → row.
FUNCTIONS: dict[Any, Row] = {
    functional.scaled_dot_product_attention: attention,
    _aten.scaled_dot_product_attention.default: attention,
}

#: Module classes → row.
MODULES: dict[type[nn.Module], Row] = {nn.MultiheadAttention: _multihead}
