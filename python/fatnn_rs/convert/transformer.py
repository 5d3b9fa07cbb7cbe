"""What torch's encoder layers compute without masks, free of the branches that torch.fx cannot trace.

Their ``forward`` asks shapes and devices for whether a fused path may be taken. With quantized
layers inside none is (:mod:`fatnn_rs.nn.fused`), and what remains is here, call by call in torch's
order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fatnn_rs.nn.attention import QuantizedAttention, attend

__all__ = ["plain_forward"]

Forward = Callable[..., Any]


def plain_forward(module: nn.Module, forward: Forward) -> Forward:
    """Return a module's forward, or what it is without masks."""
    plain: Forward
    if isinstance(module, QuantizedAttention):
        return _attention(module, forward)
    if type(module) is nn.TransformerEncoderLayer:
        plain = _layer
    elif type(module) is nn.TransformerEncoder:
        plain = _encoder
    else:
        return forward

    def run(src: Any, *args: Any, **kwargs: Any) -> Any:
        masked = any(
            value is not None and value is not False for value in (*args, *kwargs.values())
        )
        return forward(src, *args, **kwargs) if masked else plain(module, src)

    return run


def _attention(module: Any, forward: Forward) -> Forward:
    def run(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        names = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights")
        given = dict(zip(names, args, strict=False)) | kwargs
        need_weights = given.pop("need_weights", True)
        average = given.pop("average_attn_weights", True)
        if any(option is not None and option is not False for option in given.values()):
            return forward(query, key, value, *args, **kwargs)
        inputs = (query, key, value)
        if not module.batch_first:
            inputs = tuple(x.transpose(0, 1) for x in inputs)
        y, weights = attend(module, *inputs, need_weights=need_weights)
        if weights is not None and average:
            weights = weights.mean(1)
        return (y if module.batch_first else y.transpose(0, 1)), weights

    return run


def _layer(layer: Any, x: Any) -> Any:
    if layer.norm_first:
        x = x + layer._sa_block(layer.norm1(x), None, None)
        return x + layer._ff_block(layer.norm2(x))
    x = layer.norm1(x + layer._sa_block(x, None, None))
    return layer.norm2(x + layer._ff_block(x))


def _encoder(encoder: Any, x: Any) -> Any:
    for layer in encoder.layers:
        x = layer(x)
    return x if encoder.norm is None else encoder.norm(x)
