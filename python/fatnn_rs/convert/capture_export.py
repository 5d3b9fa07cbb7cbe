"""Capture by ``torch.export``, for models whose Python branches on shapes or values.

Export decomposes modules into aten operations, but the conversion needs whole layers. So a copy of
the model has a marker in the place of each known layer. A marker's forward calls one custom op,
``fatnn_rs::module_call(x, name)``: its fake kernel returns the layer's output shape, its real
kernel calls the layer.

The example decides branches on sizes. Only the batch size is dynamic, in the range in which every
branch is taken as in the example. The network refuses other batch sizes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules import transformer
from torch.utils import _pytree as pytree

from fatnn_rs.contained import register_contained
from fatnn_rs.convert.arguments import describe_arguments
from fatnn_rs.convert.capture import Captured, copies
from fatnn_rs.convert.capture_autocast import inline_autocast
from fatnn_rs.convert.export_batches import (
    BOUND,
    batch_is_dynamic,
    batch_range,
    describe_range,
    double_batch_of_one,
    smallest_batch,
)
from fatnn_rs.convert.int8_function import Int8Function
from fatnn_rs.convert.record import record
from fatnn_rs.convert.structure import filled
from fatnn_rs.nn import QuantizedLayer
from fatnn_rs.nn.exact_mean import ExactMean
from fatnn_rs.nn.projections import LinearLike
from fatnn_rs.nn.subclass import OwnForward
from fatnn_rs.ops.definitions import LIBRARY
from fatnn_rs.quant.values import Int8Value
from fatnn_rs.replica import replica

__all__ = ["by_export"]

#: Name → the layer that a marker replaces, during a capture.
_MARKED: dict[str, nn.Module] = {}

LIBRARY.define(
    "module_call(Tensor x, str name, bool add_bias=True) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _module_call(x: Tensor, name: str, add_bias: bool = True) -> Tensor:
    result = _MARKED[name](x) if add_bias else _MARKED[name](x, add_bias=False)
    assert isinstance(result, Tensor)
    return result.clone() if result is x else result


LIBRARY.impl("module_call", _module_call, "CompositeExplicitAutograd")
LIBRARY.impl("module_call", torch.library.fallthrough_kernel, "Autograd")


def _conv_shape(function: Callable[..., Tensor]) -> Callable[[Any, Tensor], Tensor]:
    def fake(layer: Any, x: Tensor) -> Tensor:
        padding = layer.padding
        if layer.padding_mode != "zeros":
            x = functional.pad(x, layer._reversed_padding_repeated_twice)
            padding = 0
        weight = x.new_empty(layer.weight.shape)
        return function(x, weight, None, layer.stride, padding, layer.dilation, layer.groups)

    return fake


def _linear_shape(layer: Any, x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], layer.weight.shape[0]))


def _linear_like_shape(layer: Any, x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], layer.out_features))


def _own_shape(layer: Any, x: Tensor) -> Tensor:
    """Return the shape of what a layer's own forward returns, by running it on fake tensors."""
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    fakes = {name: x.new_empty(t.shape, dtype=t.dtype) for name, t in tensors.items()}
    with torch.no_grad():
        y: Tensor = torch.func.functional_call(_FloatForward(layer), _prefixed(fakes), (x,))
    return y


def _prefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"layer.{name}": tensor for name, tensor in tensors.items()}


class _FloatForward(nn.Module):
    """Runs the float forward of a quantized layer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer._float_forward(x)
        return result


def _same_shape(layer: Any, x: Tensor) -> Tensor:
    return torch.empty_like(x)


#: Layers kept as one call: class → shape of the result. Export decomposes all others.
_SHAPES: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.Conv1d: _conv_shape(functional.conv1d),
    nn.Conv2d: _conv_shape(functional.conv2d),
    nn.Linear: _linear_shape,
    nn.BatchNorm1d: _same_shape,
    nn.BatchNorm2d: _same_shape,
    nn.PReLU: _same_shape,
    Int8Value: _same_shape,
    Int8Function: _same_shape,
    ExactMean: lambda layer, x: x.mean(layer.dims, layer.keepdim),
}


def _shape_row(module: nn.Module) -> Callable[[Any, Tensor], Tensor] | None:
    if isinstance(module, OwnForward):
        return _own_shape
    if isinstance(module, LinearLike):
        return _linear_like_shape
    if isinstance(module, QuantizedLayer):
        return next((row for kind, row in _SHAPES.items() if isinstance(module, kind)), None)
    return _SHAPES.get(type(module))


def _module_call_fake(x: Tensor, name: str, add_bias: bool = True) -> Tensor:
    module = _MARKED[name]
    row = _shape_row(module)
    assert row is not None
    return row(module, x)


torch.library.register_fake("fatnn_rs::module_call", _module_call_fake, lib=LIBRARY)


LIBRARY.define(
    "attention_call(Tensor query, Tensor key, Tensor value, Tensor? key_padding_mask, Tensor? "
    "attn_mask, bool need_weights, bool is_causal, str name) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _attention_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    need_weights: bool,
    is_causal: bool,
    name: str,
) -> tuple[Tensor, Tensor]:
    result, weights = _MARKED[name](
        query, key, value, key_padding_mask, need_weights, attn_mask, is_causal=is_causal
    )
    return result, result.new_empty(0) if weights is None else weights


LIBRARY.impl("attention_call", _attention_call, "CompositeExplicitAutograd")
LIBRARY.impl("attention_call", torch.library.fallthrough_kernel, "Autograd")


def _attention_call_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    need_weights: bool,
    is_causal: bool,
    name: str,
) -> tuple[Tensor, Tensor]:
    if not need_weights:
        return torch.empty_like(query), query.new_empty(0)
    at = 1 if _MARKED[name].batch_first or query.dim() == 2 else 0
    batch = [] if query.dim() == 2 else [query.shape[1 - at]]
    tokens = [x.shape[0 if x.dim() == 2 else at] for x in (query, key)]
    return torch.empty_like(query), query.new_empty([*batch, *tokens])


torch.library.register_fake("fatnn_rs::attention_call", _attention_call_fake, lib=LIBRARY)


def _is_attention(module: nn.Module) -> bool:
    """Whether a module is torch's attention: export would not take its fused path."""
    return type(module) is nn.MultiheadAttention and not any(
        isinstance(child, QuantizedLayer) for child in module.modules()
    )


class _Marker(nn.Module):
    """Replaces a layer while its model is exported.

    It has the layer's attributes, because other modules may read its weight, dtype or sizes.
    """

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self._stands_for = (name, layer)  # in a tuple, so that the layer is no submodule
        self._parameters.update(layer._parameters)

    def forward(self, x: Tensor, add_bias: bool = True) -> Tensor:
        result: Tensor = torch.ops.fatnn_rs.module_call(x, self._stands_for[0], add_bias)
        return result

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_stands_for"][1], name)


class _AttentionMarker(_Marker):
    """Replaces torch's attention while its model is exported."""

    def forward(  # type: ignore[override]
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
        name, layer = self._stands_for
        masks = (key_padding_mask, attn_mask)
        if need_weights and not average_attn_weights:
            whole: tuple[Tensor, Tensor | None] = layer(
                query, key, value, masks[0], True, masks[1], False, is_causal
            )
            return whole
        result, weights = torch.ops.fatnn_rs.attention_call(
            query, key, value, *masks, need_weights, is_causal, name
        )
        return result, weights if need_weights else None


def _marker(name: str, module: nn.Module) -> _Marker:
    return (_AttentionMarker if _is_attention(module) else _Marker)(name, module)


@contextmanager
def _marked(
    model: nn.Module,
) -> Iterator[tuple[nn.Module, dict[str, nn.Module], dict[str, nn.Module]]]:
    """Copy a model with markers in the place of known layers.

    Also return the modules of another copy by name, and those that the markers call.
    """
    whole = replica(model)
    register_contained(whole)
    modules = dict(whole.named_modules())
    layers = {
        name: module
        for name, module in modules.items()
        if name and (_shape_row(module) is not None or _is_attention(module))
    }
    copied = replica(
        whole, {module: _marker(name, module).eval() for name, module in layers.items()}
    )
    _MARKED.update(layers)
    try:
        yield copied, modules, layers
    finally:
        for name in layers:
            del _MARKED[name]


@contextmanager
def _masks_not_read() -> Iterator[None]:
    """Keep torch's transformer layers from comparing masks with a causal mask during export.

    They do so if ``is_causal`` is not given, and export cannot trace it. A causal mask that is
    treated as any other mask gives the same result.
    """
    detect = transformer._detect_is_causal_mask

    def declared_causal(mask: Any, is_causal: Any = None, size: Any = None) -> bool:
        return is_causal is True

    try:
        transformer._detect_is_causal_mask = declared_causal
        yield
    finally:
        transformer._detect_is_causal_mask = detect


def _export(
    model: nn.Module, arguments: tuple[Any, ...], dynamic: bool
) -> tuple[fx.GraphModule, Callable[..., Any], bool]:
    """Export a model; also return its guards on sizes, and whether all of them are bounds.

    With ``dynamic``, the first dimension of every tensor is dynamic if the model allows it.
    """
    shapes = None
    if dynamic:
        shapes = tuple(
            {0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.dim() else None
            for value in arguments
        )
    with warnings.catch_warnings(), _masks_not_read():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, arguments, dynamic_shapes=shapes, strict=False)
        exported: Any = program.module(check_guards=False)
        guards = getattr(program.module(check_guards=True), "_guards_fn", None) if dynamic else None
    assert isinstance(exported, fx.GraphModule)
    inline_autocast(exported)
    bounds = all(
        re.fullmatch(BOUND, str(code)) for code in getattr(program, "_guards_code", ["unknown"])
    )
    return exported, (lambda *values: None) if guards is None else guards, bounds


def by_export(model: nn.Module, arguments: tuple[Any, ...], expected: Any) -> Captured | str:
    """Capture by torch.export; return why if that fails."""
    reason = "nothing was tried"
    for dynamic in (True, False):
        given = double_batch_of_one(copies(arguments)) if dynamic else copies(arguments)
        try:
            with _marked(model) as (copied, modules, layers):
                module, check, bounds = _export(copied, given, dynamic)
                seen = record(module, copies(arguments), expected)
                is_dynamic = dynamic and batch_is_dynamic(module) and not isinstance(seen, str)
                smallest = (
                    smallest_batch(modules[""], layers, module, arguments) if is_dynamic else 0
                )
        except Exception as error:  # export runs user code and may raise anything
            reason = f"{type(error).__name__}: {error}"
            continue
        if isinstance(seen, str):
            reason = seen
            continue
        batch = batch_range(check, arguments, bounds, smallest) if is_dynamic else None
        if dynamic and batch is None:
            reason = "it computes different things for different batch sizes"
            continue
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        values = pytree.tree_leaves(arguments)
        if len(values) != len(placeholders) or len(values) != len(arguments):
            return "its arguments are nested"
        output = next(node for node in module.graph.nodes if node.op == "output")
        return Captured(
            module.graph,
            modules,
            module,
            [
                n.name
                for n, value in zip(placeholders, arguments, strict=True)
                if isinstance(value, Tensor)
            ],
            describe_arguments(model, arguments),
            filled(expected, output.args[0]),
            seen,
            expected,
            [
                "input sizes are fixed to the example's"
                + ("" if batch is None else describe_range(batch))
            ],
            tuple(
                range(
                    0 if batch is None else 1,
                    max(v.dim() for v in arguments if isinstance(v, Tensor)),
                )
            ),
            batch,
        )
    return reason
