"""Functions of one element: how torch runs each, and which calls and modules become it.

Adding one takes a row here and a row in the core's table of operations. A row's attributes have the names that torch
gives the arguments and the module's attributes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from fatnn_rs.convert.graph import Node, Ref

if TYPE_CHECKING:
    from fatnn_rs.convert.lower import Lowering, Row

__all__ = ["FUNCTIONS", "METHODS", "MODULES", "SCALARS", "ScalarFunction"]

_aten = torch.ops.aten
Attrs = Mapping[str, Any]


def _always(attrs: Attrs) -> bool:
    return True


def _never(attrs: Attrs) -> bool:
    return False


@dataclass(frozen=True)
class ScalarFunction:
    """One operation.

    Attributes
    ----------
    function
        Torch's function of a tensor and the attributes, in order: what a network runs, and what the conversion
        evaluates to find integer thresholds.
    calls
        Functions and operators that become it; ``inplace`` is known to all.
    modules
        Module classes that become it.
    methods
        Tensor methods that become it.
    attrs
        Name and default of every attribute.
    nondecreasing
        Attributes → whether it never decreases.
    """

    function: Callable[..., Any]
    calls: tuple[Any, ...]
    modules: tuple[type[nn.Module], ...] = ()
    methods: tuple[str, ...] = ()
    attrs: Mapping[str, float] = field(default_factory=dict)
    nondecreasing: Callable[[Attrs], bool] = _never

    def bind(self, node: Node, tensors: Mapping[str, torch.Tensor]) -> Callable[..., Any]:
        """Return a node's function of its input."""
        if not self.attrs:
            return self.function
        values = [node.attrs[name] for name in self.attrs]
        return lambda x: self.function(x, *values)


#: Operation → how torch runs it.
SCALARS: dict[str, ScalarFunction] = {
    "relu": ScalarFunction(
        torch.relu,
        (torch.relu, torch.relu_, functional.relu, functional.relu_, _aten.relu.default, _aten.relu_.default),
        (nn.ReLU,),
        ("relu", "relu_"),
        nondecreasing=_always,
    ),
    "hardtanh": ScalarFunction(
        functional.hardtanh,
        (functional.hardtanh, _aten.hardtanh.default, _aten.hardtanh_.default),
        (nn.Hardtanh, nn.ReLU6),
        attrs={"min_val": -1.0, "max_val": 1.0},
        nondecreasing=_always,
    ),
    "leaky_relu": ScalarFunction(
        functional.leaky_relu,
        (functional.leaky_relu, _aten.leaky_relu.default, _aten.leaky_relu_.default),
        (nn.LeakyReLU,),
        attrs={"negative_slope": 0.01},
        nondecreasing=lambda attrs: bool(attrs["negative_slope"] >= 0),
    ),
    "hardswish": ScalarFunction(
        functional.hardswish,
        (functional.hardswish, _aten.hardswish.default, _aten.hardswish_.default),
        (nn.Hardswish,),
    ),
}


def _emit(ctx: Lowering, op: str, input: Any, values: tuple[Any, ...], named: Attrs) -> Ref | None:
    name, defaults = ctx.value(input), SCALARS[op].attrs
    attrs = {**defaults, **dict(zip(defaults, values, strict=False)), **named}
    if len(values) > len(defaults) or set(attrs) != set(defaults):
        raise TypeError(f"{op}: arguments that it does not have")
    if name is None or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in attrs.values()):
        return None
    return ctx.emit(op, [name], {key: float(value) for key, value in attrs.items()})


def _call(op: str, **fixed: float) -> Row:
    def row(ctx: Lowering, input: Any, *values: Any, inplace: Any = False, **named: Any) -> Ref | None:
        # ``inplace`` may also be the last positional argument.
        count = len(SCALARS[op].attrs) - len(fixed)
        return _emit(ctx, op, input, values[:count] if len(values) == count + 1 else values, {**fixed, **named})

    return row


def _module(op: str) -> Row:
    def row(ctx: Lowering, module: Any, input: Any) -> Ref | None:
        return _emit(ctx, op, input, (), {name: getattr(module, name) for name in SCALARS[op].attrs})

    return row


#: Functions and operators → row of the lowering.
FUNCTIONS: dict[Any, Row] = {
    **{call: _call(op) for op, scalar in SCALARS.items() for call in scalar.calls},
    **dict.fromkeys((functional.relu6, _aten.relu6.default), _call("hardtanh", min_val=0.0, max_val=6.0)),
}

#: Tensor methods → row of the lowering.
METHODS: dict[str, Row] = {method: _call(op) for op, scalar in SCALARS.items() for method in scalar.methods}

#: Module classes → row of the lowering.
MODULES: dict[type[nn.Module], Row] = {kind: _module(op) for op, scalar in SCALARS.items() for kind in scalar.modules}
