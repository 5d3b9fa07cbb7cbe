"""Capture by ``torch.export``, for models whose Python branches on shapes or values.

Export turns everything into aten operations, and quantized layers would dissolve with it. So, in a copy of the model,
the layers that the conversion knows as wholes are replaced by a marker whose forward calls one custom op,
``fatnn_rs::module_call(x, name)``; its fake kernel knows the layer's output shape, its real kernel calls the layer.
Branches on sizes are decided as the example decides them, so only the batch size stays free, and that only where export
found it to be.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.nn import functional
from torch.utils import _pytree as pytree

from fatnn_rs.convert.capture import Captured, record
from fatnn_rs.nn import QuantizedLayer
from fatnn_rs.ops.schema import LIBRARY

__all__ = ["by_export"]

#: The modules behind the markers of the capture that is running.
_MARKED: dict[str, nn.Module] = {}

LIBRARY.define("module_call(Tensor x, str name) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def _module_call(x: Tensor, name: str) -> Tensor:
    result = _MARKED[name](x)
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


def _same_shape(layer: Any, x: Tensor) -> Tensor:
    return torch.empty_like(x)


#: Layers kept whole: class → shape of the result. Others dissolve into aten operations.
_SHAPES: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.Conv1d: _conv_shape(functional.conv1d),
    nn.Conv2d: _conv_shape(functional.conv2d),
    nn.Linear: _linear_shape,
    nn.BatchNorm1d: _same_shape,
    nn.BatchNorm2d: _same_shape,
    nn.PReLU: _same_shape,
}


def _shape_row(module: nn.Module) -> Callable[[Any, Tensor], Tensor] | None:
    if isinstance(module, QuantizedLayer):
        return next((row for kind, row in _SHAPES.items() if isinstance(module, kind)), None)
    return _SHAPES.get(type(module))


def _module_call_fake(x: Tensor, name: str) -> Tensor:
    module = _MARKED[name]
    row = _shape_row(module)
    assert row is not None
    return row(module, x)


torch.library.register_fake("fatnn_rs::module_call", _module_call_fake, lib=LIBRARY)


class _Marker(nn.Module):
    """Stands for a layer while its model is exported."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.fatnn_rs.module_call(x, self.name)
        return result


@contextmanager
def _marked(model: nn.Module) -> Iterator[nn.Module]:
    """Give a copy of the model with markers for the layers that stay whole."""
    layers = {name: module for name, module in model.named_modules() if name and _shape_row(module) is not None}
    # The markers go into the copy's memo, so that the layers themselves are not copied.
    memo: dict[int, Any] = {id(module): _Marker(name).eval() for name, module in layers.items()}
    copied = copy.deepcopy(model, memo)
    _MARKED.update(layers)
    try:
        yield copied
    finally:
        for name in layers:
            del _MARKED[name]


def _export(model: nn.Module, arguments: tuple[Any, ...], dynamic: bool) -> fx.GraphModule:
    """Export; with ``dynamic``, the first dimension of every tensor stays open where the model allows it."""
    shapes = None
    if dynamic:
        shapes = tuple(
            {0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.dim() else None for value in arguments
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, arguments, dynamic_shapes=shapes, strict=False)
        exported: Any = program.module(check_guards=False)
    assert isinstance(exported, fx.GraphModule)
    return exported


def _doubled(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Double a batch of one: export takes sizes of 0 and 1 for constants."""
    return tuple(
        torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() and value.shape[0] == 1 else value
        for value in arguments
    )


def by_export(model: nn.Module, arguments: tuple[Any, ...], expected: Any) -> Captured | str:
    """Capture by torch.export, or say why not."""
    reason = "no way tried"
    for dynamic in (True, False):
        given = _doubled(arguments) if dynamic else arguments
        try:
            with _marked(model) as copied:
                module = _export(copied, given, dynamic)
                seen = record(module, arguments, expected)
        except Exception as error:  # export runs user code and may raise anything
            reason = f"{type(error).__name__}: {error}"
            continue
        if isinstance(seen, str):
            reason = seen
            continue
        if dynamic and not _batch_is_free(module):
            reason = "the batch size decides what it does"
            continue
        return _captured(model, module, arguments, seen, free_batch=dynamic)
    return reason


def _batch_is_free(module: fx.GraphModule) -> bool:
    """Whether export left the first dimension of every tensor input open."""
    values = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    return not any(is_concrete_int(v.shape[0]) for v in values if isinstance(v, Tensor) and v.dim())


def _captured(
    model: nn.Module, module: fx.GraphModule, arguments: tuple[Any, ...], seen: Any, free_batch: bool
) -> Captured | str:
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    leaves = pytree.tree_leaves(arguments)
    if len(leaves) != len(placeholders) or len(leaves) != len(arguments):
        return "its arguments are nested"
    inputs = [n.name for n, value in zip(placeholders, arguments, strict=True) if isinstance(value, Tensor)]
    output = next(node for node in module.graph.nodes if node.op == "output")
    codegen: Any = module.graph._codegen
    spec = codegen.pytree_info.out_spec
    outputs = pytree.tree_unflatten(list(output.args[0]), spec)
    ranks = [value.dim() for value in arguments if isinstance(value, Tensor)]
    fixed = tuple(range(1 if free_batch else 0, max(ranks)))
    notes = [f"input sizes are fixed to the example's{', but for the batch' if free_batch else ''}"]
    return Captured(module.graph, dict(model.named_modules()), module, inputs, outputs, seen, notes, fixed)
