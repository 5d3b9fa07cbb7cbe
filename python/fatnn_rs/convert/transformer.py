"""Forward functions of torch's encoder layers without masks, which torch.fx can trace.

Torch's own ``forward`` branches on shapes and devices to choose a fused path. Quantized layers take
no fused path (:mod:`fatnn_rs.nn.fused`). The remaining calls are here, in torch's order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fatnn_rs.nn.attention import QuantizedAttention, attend

__all__ = ["unmasked_forward", "unmasked_root"]

Forward = Callable[..., Any]


def unmasked_forward(module: nn.Module, forward: Forward) -> Forward:
    """Return a forward that takes the traceable path if a call has no mask."""
    unmasked: Forward
    if isinstance(module, QuantizedAttention):
        return _attention(module, forward)
    if type(module) is nn.TransformerEncoderLayer:
        unmasked = _layer
    elif type(module) is nn.TransformerEncoder:
        unmasked = _encoder
    else:
        return forward

    def run(src: Any, *args: Any, **kwargs: Any) -> Any:
        masked = any(
            value is not None and value is not False for value in (*args, *kwargs.values())
        )
        return forward(src, *args, **kwargs) if masked else unmasked(module, src)

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
            inputs = tuple(x.transpose(0, -2) for x in inputs)  # without a batch, no change
        y, weights = attend(module, *inputs, need_weights=need_weights)
        if weights is not None and average:
            weights = weights.mean(-3)
        return (y if module.batch_first else y.transpose(0, -2)), weights

    return run


class _UnmaskedLayer(nn.TransformerEncoderLayer):
    """An encoder layer that is itself the traced root."""

    def forward(
        self,
        src: Any,
        src_mask: Any = None,
        src_key_padding_mask: Any = None,
        is_causal: Any = False,
    ) -> Any:
        return _layer(self, src)


class _UnmaskedEncoder(nn.TransformerEncoder):
    """An encoder that is itself the traced root."""

    def forward(
        self, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: Any = None
    ) -> Any:
        return _encoder(self, src)


def unmasked_root(module: nn.Module, constants: Mapping[str, Any]) -> None:
    """Give a root module the traceable forward, if its constant arguments hold no mask."""
    if any(value is not None and value is not False for value in constants.values()):
        return
    for kind, unmasked in (
        (nn.TransformerEncoderLayer, _UnmaskedLayer),
        (nn.TransformerEncoder, _UnmaskedEncoder),
    ):
        if type(module) is kind and len(constants) == 3:
            module.__class__ = unmasked


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
