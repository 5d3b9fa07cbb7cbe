"""Elementwise functions: how torch runs each, and which calls and modules become it.

To add one, add a row here and a row in the core's table of operations. A row's attributes have the
names of torch's arguments and of the module's attributes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from fatnn_rs.convert.graph import Node, Ref
from fatnn_rs.operations import OPERATIONS
from fatnn_rs.quant.values import fake_quantize

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
    """How torch runs one elementwise operation, and what becomes it.

    Attributes
    ----------
    function
        Torch's function of a tensor and the attributes, in order. A network runs it, and the
        conversion evaluates it to find integer thresholds.
    calls
        Functions and operators that become it; all of them accept ``inplace``.
    modules
        Module classes that become it.
    methods
        Tensor methods that become it.
    attrs
        Attribute → default; None if it must be given.
    nondecreasing
        Attributes → whether the function is nondecreasing.
    """

    function: Callable[..., Any]
    calls: tuple[Any, ...]
    modules: tuple[type[nn.Module], ...] = ()
    methods: tuple[str, ...] = ()
    attrs: Mapping[str, float | None] = field(default_factory=dict)
    nondecreasing: Callable[[Attrs], bool] = _never

    def bind(self, node: Node, tensors: Mapping[str, torch.Tensor]) -> Callable[..., Any]:
        """Return the function of a node's input."""
        if not self.attrs:
            return self.function
        values = [node.attrs[name] for name in self.attrs]
        return lambda x: self.function(x, *values)


def _plain(
    function: Callable[..., Any],
    *modules: type[nn.Module],
    also: tuple[Any, ...] = (),
    methods: tuple[str, ...] = (),
    nondecreasing: bool = False,
) -> ScalarFunction:
    """Describe a function without attributes, in all of its forms in torch."""
    name = function.__name__
    spaces = (torch, functional, torch.special)
    in_place = [getattr(space, f"{name}_") for space in spaces if hasattr(space, f"{name}_")]
    operators = [getattr(_aten, n).default for n in (name, f"{name}_") if hasattr(_aten, n)]
    own = tuple(n for n in (name, f"{name}_") if hasattr(torch.Tensor, n))
    calls = dict.fromkeys((function, *also, *in_place, *operators))
    return ScalarFunction(
        function,
        tuple(calls),
        modules,
        (*own, *methods),
        nondecreasing=_always if nondecreasing else _never,
    )


def _gelu_tanh(x: Any) -> Any:
    return functional.gelu(x, approximate="tanh")


#: Operation → how torch runs it.
SCALARS: dict[str, ScalarFunction] = {
    "relu": ScalarFunction(
        torch.relu,
        (
            torch.relu,
            torch.relu_,
            functional.relu,
            functional.relu_,
            _aten.relu.default,
            _aten.relu_.default,
        ),
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
    "hardsigmoid": _plain(functional.hardsigmoid, nn.Hardsigmoid, nondecreasing=True),
    "clamp_min": ScalarFunction(
        torch.clamp_min,
        (torch.clamp_min, torch.clamp_min_, _aten.clamp_min.default, _aten.clamp_min_.default),
        methods=("clamp_min", "clamp_min_"),
        attrs={"min": None},
        nondecreasing=_always,
    ),
    "clamp_max": ScalarFunction(
        torch.clamp_max,
        (torch.clamp_max, torch.clamp_max_, _aten.clamp_max.default, _aten.clamp_max_.default),
        methods=("clamp_max", "clamp_max_"),
        attrs={"max": None},
        nondecreasing=_always,
    ),
    "abs": _plain(torch.abs, also=(torch.absolute, operator.abs), methods=("absolute", "__abs__")),
    "neg": _plain(torch.neg, also=(torch.negative, operator.neg), methods=("negative", "__neg__")),
    "square": _plain(torch.square),
    "sqrt": _plain(torch.sqrt),
    "rsqrt": _plain(torch.rsqrt),
    "reciprocal": _plain(torch.reciprocal),
    "exp": _plain(torch.exp),
    "log": _plain(torch.log),
    "sigmoid": _plain(torch.sigmoid, nn.Sigmoid, also=(functional.sigmoid, torch.special.expit)),
    "tanh": _plain(torch.tanh, nn.Tanh, also=(functional.tanh,)),
    "silu": _plain(functional.silu, nn.SiLU),
    "mish": _plain(functional.mish, nn.Mish),
    "floor": _plain(torch.floor, nondecreasing=True),
    "ceil": _plain(torch.ceil, nondecreasing=True),
    "round": _plain(torch.round, nondecreasing=True),
    "trunc": _plain(torch.trunc, also=(torch.fix,), methods=("fix",), nondecreasing=True),
    "frac": _plain(torch.frac),
    "sign": _plain(torch.sign),
    "expm1": _plain(torch.expm1, also=(torch.special.expm1,)),
    "exp2": _plain(torch.exp2, also=(torch.special.exp2,)),
    "log1p": _plain(torch.log1p, also=(torch.special.log1p,)),
    "log2": _plain(torch.log2),
    "log10": _plain(torch.log10),
    "erf": _plain(torch.erf, also=(torch.special.erf,)),
    "sin": _plain(torch.sin),
    "cos": _plain(torch.cos),
    "selu": _plain(functional.selu, nn.SELU, also=(torch.selu,)),
    "log_sigmoid": _plain(functional.logsigmoid, nn.LogSigmoid),
    "pow": ScalarFunction(torch.pow, (), attrs={"exponent": None}),
    "gelu": ScalarFunction(functional.gelu, ()),
    "gelu_tanh": ScalarFunction(_gelu_tanh, ()),
    "elu": ScalarFunction(
        functional.elu,
        (functional.elu, functional.elu_, _aten.elu.default, _aten.elu_.default),
        (nn.ELU,),
        attrs={"alpha": 1.0},
    ),
    "softplus": ScalarFunction(
        functional.softplus,
        (functional.softplus, _aten.softplus.default),
        (nn.Softplus,),
        attrs={"beta": 1.0, "threshold": 20.0},
    ),
    "fake_quantize": ScalarFunction(
        fake_quantize,
        (fake_quantize,),
        attrs={"step_size": None, "low": None, "high": None},
        nondecreasing=_always,
    ),
}


def _emit(ctx: Lowering, op: str, input: Any, values: tuple[Any, ...], named: Attrs) -> Ref | None:
    name, defaults = ctx.value(input), SCALARS[op].attrs
    attrs = {**defaults, **dict(zip(defaults, values, strict=False)), **named}
    if len(values) > len(defaults) or set(attrs) != set(defaults):
        raise TypeError(
            f"{op}: expected the arguments {list(defaults)}, got {values} and {list(named)}"
        )
    if name is None or not all(
        isinstance(v, (int, float)) and math.isfinite(v) for v in attrs.values()
    ):
        return None
    types = {"int": int, "float": float}
    made: dict[str, Any] = {
        key: types[OPERATIONS[op].attrs[key][0]](value) for key, value in attrs.items()
    }
    if OPERATIONS[op].exactness != "exact":
        made["layout"] = ctx.seen(input).layout
    return ctx.emit(op, [name], made)


def _call(op: str, **fixed: float) -> Row:
    def row(
        ctx: Lowering, input: Any, *values: Any, inplace: Any = False, **named: Any
    ) -> Ref | None:
        # ``inplace`` may also be the last positional argument.
        count = len(SCALARS[op].attrs) - len(fixed)
        return _emit(
            ctx,
            op,
            input,
            values[:count] if len(values) == count + 1 else values,
            {**fixed, **named},
        )

    return row


def _module(op: str) -> Row:
    def row(ctx: Lowering, module: Any, input: Any) -> Ref | None:
        return _emit(
            ctx, op, input, (), {name: getattr(module, name) for name in SCALARS[op].attrs}
        )

    return row


def clamp(ctx: Lowering, input: Any, min: Any = None, max: Any = None) -> Ref | None:
    """Lower ``clamp`` and ``clip`` with numbers; one of them may be absent."""
    if min is None:
        return _emit(ctx, "clamp_max", input, (max,), {})
    if max is None:
        return _emit(ctx, "clamp_min", input, (min,), {})
    both = all(isinstance(v, (int, float)) for v in (min, max)) and min <= max
    return _emit(ctx, "hardtanh", input, (min, max), {}) if both else None


#: Exponents for which torch computes another function.
_POWERS: tuple[tuple[float, Any], ...] = (
    (2, torch.square),
    (0.5, torch.sqrt),
    (-0.5, torch.rsqrt),
    (-1, torch.reciprocal),
)


#: Exponents for which torch multiplies; they are compositions, if any.
_COMPOSED_POWERS = (0, 3, -2)


def _power(exponent: Any) -> str | None:
    """Return the operation that a power becomes, or None."""
    found = [
        f.__name__
        for value, f in _POWERS
        if isinstance(exponent, (int, float)) and value == exponent
    ]
    return found[0] if found else None


def power(ctx: Lowering, input: Any, exponent: Any) -> Ref | None:
    """Lower ``x ** 2`` and other powers that torch computes as another function."""
    op, name = _power(exponent), ctx.value(input)
    if exponent == 1 and not isinstance(exponent, bool) and name is not None:
        return Ref(name)
    if op is None and type(exponent) in (int, float) and exponent not in _COMPOSED_POWERS:
        return _emit(ctx, "pow", input, (exponent,), {})
    return None if op is None else _emit(ctx, op, input, (), {})


def gelu(ctx: Lowering, input: Any, *, approximate: Any = "none") -> Ref | None:
    """Lower GELU, exact or with the tanh approximation."""
    if approximate not in ("none", "tanh"):
        return None
    return _emit(ctx, "gelu" if approximate == "none" else "gelu_tanh", input, (), {})


_CLAMP = (
    torch.clamp,
    torch.clamp_,
    torch.clip,
    torch.clip_,
    _aten.clamp.default,
    _aten.clamp_.default,
)
_POWER = (torch.pow, operator.pow, _aten.pow.Tensor_Scalar, _aten.pow_.Scalar)

#: Functions and operators → row of the lowering.
FUNCTIONS: dict[Any, Row] = {
    **{call: _call(op) for op, scalar in SCALARS.items() for call in scalar.calls},
    **dict.fromkeys(
        (functional.relu6, _aten.relu6.default), _call("hardtanh", min_val=0.0, max_val=6.0)
    ),
    **dict.fromkeys(_CLAMP, clamp),
    **dict.fromkeys(_POWER, power),
    **dict.fromkeys((functional.gelu, _aten.gelu.default), gelu),
}

#: Tensor methods → row of the lowering.
METHODS: dict[str, Row] = {
    **{method: _call(op) for op, scalar in SCALARS.items() for method in scalar.methods},
    **dict.fromkeys(("clamp", "clamp_", "clip", "clip_"), clamp),
    **dict.fromkeys(("pow", "pow_"), power),
}

#: Module classes → row of the lowering.
MODULES: dict[type[nn.Module], Row] = {
    **{kind: _module(op) for op, scalar in SCALARS.items() for kind in scalar.modules},
    nn.GELU: lambda ctx, module, input: gelu(ctx, input, approximate=module.approximate),
}
