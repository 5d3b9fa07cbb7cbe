"""``nn.MultiheadAttention`` with quantized projections.

torch's attention never calls its projections: it passes their weights to a function. Here, each
projection is a layer with a quantizer for its input. The float parameters stay in the attention, so
the float ``state_dict`` keys do not change.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs.nn.projections import INPUT_PROJECTIONS
from fatnn_rs.nn.subclass import class_of_two

__all__ = ["QuantizedAttention", "attend", "attention_class"]


class QuantizedAttention(nn.Module):
    """Mixin for an ``nn.MultiheadAttention`` with quantized projections.

    It computes the same as torch's general path, without nested tensors and without the fused path.
    Projections without a quantized layer run in float.
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
        """Compute attention, with the arguments and results of ``nn.MultiheadAttention``."""
        attention: Any = self
        if query.dim() == 2:
            batched = [x.unsqueeze(0) for x in (query, key, value)]
            padding = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        else:
            batched = (
                [query, key, value]
                if attention.batch_first
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
        return (y if attention.batch_first else y.transpose(0, 1)), weights

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Load as torch does. Also accept a float attention's state, without quantizer keys."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        floats = ("in_proj_weight", *(f"{projection}_weight" for projection in INPUT_PROJECTIONS))
        if any(prefix + key in state_dict for key in floats):
            for projection in INPUT_PROJECTIONS:
                child: Any = self._modules.get(projection)
                if child is not None:
                    child.fit_to_float(state_dict, f"{prefix}{projection}.")


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention without branches on shapes, so that torch.fx can trace it.

    Without N, all shapes below lack it.

    Parameters
    ----------
    module
        The attention.
    query
        [N, L, E].
    key, value
        [N, S, E].
    mask
        Added to the scores, [N, H, L, S].
    causal
        Whether a position reads only positions up to its own.
    need_weights
        Whether to return the attention weights.

    Returns
    -------
    tuple
        The output, [N, L, E], and the weights of every head, [N, H, L, S], or None.
    """
    q, k, v = (
        _project(module, projection, x)
        for projection, x in zip(INPUT_PROJECTIONS, (query, key, value), strict=True)
    )
    if module.bias_k is not None:
        k = torch.cat([k, module.bias_k[0].expand_as(k[..., :1, :])], -2)
        v = torch.cat([v, module.bias_v[0].expand_as(v[..., :1, :])], -2)
    if module.add_zero_attn:
        k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
    heads = (module.num_heads, module.embed_dim // module.num_heads)
    q, k, v = (torch.unflatten(x, -1, heads).transpose(-3, -2) for x in (q, k, v))
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
    y = module.out_proj(y.transpose(-3, -2).flatten(-2))
    return y, weights


def _project(module: Any, projection: str, x: Tensor) -> Tensor:
    layer = module._modules.get(projection)
    if layer is not None:
        if layer._owner[0] is not module:  # a replica of torch's DataParallel
            layer._owner = (module,)
        y: Tensor = layer(x)
        return y
    size, index = module.embed_dim, INPUT_PROJECTIONS.index(projection)
    rows = slice(index * size, (index + 1) * size)
    packed = module.in_proj_weight
    weight = getattr(module, f"{projection}_weight") if packed is None else packed[rows]
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
    """Combine both masks into one that is added to the scores, [N, H, L, S]; None without masks.

    Raises
    ------
    RuntimeError
        If ``is_causal`` is given without a mask, as in torch.
    """
    if is_causal and mask is None:
        raise RuntimeError(
            "MultiheadAttention: is_causal needs attn_mask "
            "(nn.Transformer.generate_square_subsequent_mask makes one)"
        )
    if is_causal and padding is None and not need_weights:
        return None
    extra = int(module.bias_k is not None) + int(module.add_zero_attn)
    joined = None
    if mask is not None:
        joined = _additive(mask, query.dtype)
        if joined.dim() == 3:
            joined = torch.unflatten(joined, 0, (query.shape[0], module.num_heads))
        joined = functional.pad(joined, (0, extra))
    if padding is not None:
        columns = functional.pad(_additive(padding, query.dtype), (0, extra))[:, None, None, :]
        joined = columns if joined is None else joined + columns
    return joined


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add to the scores; True in a bool mask becomes minus infinity."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
            mask, -torch.inf
        )
    return mask.to(dtype)


def attention_class(kind: type[nn.Module]) -> Any:
    """Return the subclass of ``kind`` that a quantized attention of class ``kind`` changes to."""
    return class_of_two(QuantizedAttention, kind, f"Quantized{kind.__name__}")
