"""``nn.MultiheadAttention`` with quantized projections.

torch's own never calls its projections: it hands their weights to a function. Here each is a call
of a layer, with a quantizer for its own input. The float parameters stay where they were, so the
float ``state_dict`` keys do too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs.nn.projections import PARTS
from fatnn_rs.nn.subclass import class_of_two

__all__ = ["QuantizedAttention", "attend", "attention_class"]


class QuantizedAttention(nn.Module):
    """What an ``nn.MultiheadAttention`` becomes, in place, when projections are quantized.

    It computes what torch's does in its general path: no nested tensors, no fused path. Projections
    that were left out stay float.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``."""
        me: Any = self
        if query.dim() == 2:
            batched = [x.unsqueeze(0) for x in (query, key, value)]
            padding = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        else:
            batched = (
                [query, key, value]
                if me.batch_first
                else [x.transpose(0, 1) for x in (query, key, value)]
            )
            padding = key_padding_mask
        mask = _mask(self, batched[0], batched[1], padding, attn_mask, is_causal, need_weights)
        causal = is_causal and mask is None
        q, k, v = batched
        y, weights = attend(self, q, k, v, mask, causal, need_weights)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if query.dim() == 2:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if me.batch_first else y.transpose(0, 1)), weights

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Load as torch does; the weights of a float attention too."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        floats = ("in_proj_weight", *(f"{part}_weight" for part in PARTS))
        if any(prefix + key in state_dict for key in floats):
            for part in PARTS:
                child: Any = self._modules.get(part)
                if child is not None:
                    child.fit_to_float(state_dict, f"{prefix}{part}.")


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention over [N, L, E], without branches on shapes, so that torch.fx can trace it.

    Returns
    -------
    tuple
        [N, L, E], and the weights of every head, [N, H, L, S], where they were asked for.
    """
    q, k, v = (
        _project(module, part, x) for part, x in zip(PARTS, (query, key, value), strict=True)
    )
    if module.bias_k is not None:
        k = torch.cat([k, module.bias_k.expand(k.shape[0], 1, -1)], 1)
        v = torch.cat([v, module.bias_v.expand(v.shape[0], 1, -1)], 1)
    if module.add_zero_attn:
        k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
    heads = (module.num_heads, module.embed_dim // module.num_heads)
    q, k, v = (torch.unflatten(x, -1, heads).transpose(1, 2) for x in (q, k, v))
    dropout = module.dropout if module.training else 0.0
    if need_weights:
        scores = torch.matmul(q * math.sqrt(1.0 / heads[1]), k.transpose(-2, -1))
        if mask is not None:
            scores = scores + mask
        weights = functional.softmax(scores, dim=-1)
        if dropout:
            weights = functional.dropout(weights, dropout)
        y = torch.matmul(weights, v)
    else:
        weights = None
        y = functional.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
    y = module.out_proj(y.transpose(1, 2).flatten(2))
    return y, weights


def _project(module: Any, part: str, x: Tensor) -> Tensor:
    layer = module._modules.get(part)
    if layer is not None:
        if layer._owner[0] is not module:  # a replica of torch's DataParallel
            layer._owner = (module,)
        y: Tensor = layer(x)
        return y
    size, index = module.embed_dim, PARTS.index(part)
    rows = slice(index * size, (index + 1) * size)
    packed = module.in_proj_weight
    weight = getattr(module, f"{part}_weight") if packed is None else packed[rows]
    bias = None if module.in_proj_bias is None else module.in_proj_bias[rows]
    return functional.linear(x, weight, bias)


def _mask(
    module: Any,
    query: Tensor,
    key: Tensor,
    padding: Tensor | None,
    mask: Tensor | None,
    is_causal: bool,
    need_weights: bool,
) -> Tensor | None:
    """Join both masks to one that is added to scores of [N, H, L, S]; None where nothing is masked.

    Raises
    ------
    RuntimeError
        As torch: ``is_causal`` without a mask.
    """
    if is_causal and mask is None:
        raise RuntimeError(
            "MultiheadAttention: is_causal needs attn_mask "
            "(nn.Transformer.generate_square_subsequent_mask makes one)"
        )
    if is_causal and padding is None and not need_weights:
        return None
    more = int(module.bias_k is not None) + int(module.add_zero_attn)
    joined = None
    if mask is not None:
        joined = _added(mask, query.dtype)
        if joined.dim() == 3:
            joined = torch.unflatten(joined, 0, (query.shape[0], module.num_heads))
        joined = functional.pad(joined, (0, more))
    if padding is not None:
        columns = functional.pad(_added(padding, query.dtype), (0, more))[:, None, None, :]
        joined = columns if joined is None else joined + columns
    return joined


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as what is added to scores: minus infinity where a bool mask says True."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
            mask, -torch.inf
        )
    return mask.to(dtype)


def attention_class(kind: type[nn.Module]) -> Any:
    """Return the class that an attention of class ``kind`` becomes."""
    return class_of_two(QuantizedAttention, kind, f"Quantized{kind.__name__}")
