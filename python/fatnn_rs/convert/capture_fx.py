"""Capture by symbolic tracing with torch.fx."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace

from fatnn_rs.contained import register_contained
from fatnn_rs.convert.arguments import describe_arguments
from fatnn_rs.convert.capture import Captured, copies
from fatnn_rs.convert.input_sizes import InputSizes
from fatnn_rs.convert.int8_function import Int8Function
from fatnn_rs.convert.record import record
from fatnn_rs.convert.structure import refilled
from fatnn_rs.convert.transformer import unmasked_forward, unmasked_root
from fatnn_rs.nn import QuantizedLayer
from fatnn_rs.nn.exact_mean import ExactMean
from fatnn_rs.quant.values import Int8Value
from fatnn_rs.replica import chooses_forward, patched_methods, replica

__all__ = ["by_fx"]


class _UntraceableError(BaseException):
    """Stops tracing. Not an ``Exception``, so that ``except`` in the model does not catch it."""


def _untraceable(what: str) -> Any:
    def refuse(self: Any, *args: Any) -> Any:
        raise _UntraceableError(f"its forward {what} a value that is unknown during tracing")

    return refuse


class _Tracer(fx.Tracer):
    """Keeps quantized layers, torch's modules and modules with patched methods as one call each.

    It traces into those of torch's modules that contain a quantized layer.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = (QuantizedLayer, Int8Value, Int8Function, ExactMean, InputSizes)
        if isinstance(m, known) or (patched_methods(m) and not chooses_forward(m)):
            return True
        if any(isinstance(child, QuantizedLayer) for child in m.modules()):
            return False
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return super().call_module(m, unmasked_forward(m, forward), args, kwargs)

    to_bool = _untraceable("branches on")
    iter = _untraceable("iterates over")
    keys = _untraceable("takes keys of")


#: Python's in-place operators, such as ``x += y``.
_IN_PLACE = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)


@contextmanager
def _faithful_proxies() -> Iterator[None]:
    """Make torch.fx trace ``x += y`` in place; refuse ``x.data = y`` and ``x.shape[0] in {8}``.

    torch.fx's proxies lack in-place operators, so Python would run ``x = x + y``, and other readers
    of the tensor would keep the old value. Proxies also accept any attribute, and never equal a key
    of a set or dict.
    """
    names = (*(f"__i{op}__" for op in _IN_PLACE), "__setattr__", "__hash__")
    before = {name: vars(fx.Proxy).get(name) for name in names}

    def in_place(op: str) -> Any:
        function = getattr(operator, f"i{op}")
        return lambda self, other: self.tracer.create_proxy(
            "call_function", function, (self, other), {}
        )

    def assign(self: fx.Proxy, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "root", "attr", "_node", "name", "default", "scope"):
            raise _UntraceableError(f"its forward assigns to {name!r} of a tensor")
        object.__setattr__(self, name, value)

    try:
        for op in _IN_PLACE:
            setattr(fx.Proxy, f"__i{op}__", in_place(op))
        fx.Proxy.__setattr__ = assign  # type: ignore[assignment,method-assign]
        fx.Proxy.__hash__ = _untraceable("looks up")  # type: ignore[method-assign]
        yield
    finally:
        for name, method in before.items():
            if method is None:
                delattr(fx.Proxy, name)
            else:
                setattr(fx.Proxy, name, method)


#: Modules whose functions ``torch.fx.wrap`` makes opaque; we trace into them instead.
_TRACED_THROUGH = frozenset({"torchvision.models.swin_transformer"})


@contextmanager
def _trace_through_wrapped() -> Iterator[None]:
    """Let torch.fx trace into wrapped functions whose calls the lowering knows."""
    patched = _symbolic_trace._wrapped_fns_to_patch
    kept = {
        key: scope for key, scope in patched.items() if scope.get("__name__") in _TRACED_THROUGH
    }
    try:
        for key in kept:
            del patched[key]
        yield
    finally:
        patched.update(kept)


def by_fx(model: nn.Module, arguments: tuple[Any, ...], expected: Any) -> Captured | str:
    """Capture by symbolic tracing; return why if that fails."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return "its forward takes *args or **kwargs"
    if patched_methods(model) and not chooses_forward(model):
        return f"{patched_methods(model)[0]!r} was replaced on the instance"
    # Omitted arguments and arguments that are not tensors become constants.
    constants = {p.name: p.default for p in parameters[len(arguments) :]}
    constants |= {
        p.name: value
        for p, value in zip(parameters, arguments, strict=False)
        if not isinstance(value, Tensor)
    }
    if any(
        not isinstance(value, (type(None), bool, int, float, str)) for value in constants.values()
    ):
        return "it takes arguments that are neither tensors nor plain constants"
    traced = replica(model)
    register_contained(traced)
    unmasked_root(traced, constants)
    tracer = _Tracer()
    try:
        with _faithful_proxies(), _trace_through_wrapped():
            graph = tracer.trace(traced, concrete_args=constants)
        module = fx.GraphModule(tracer.root, graph)
    except _UntraceableError as error:
        return str(error)
    except Exception as error:  # user code meets proxies here and may raise anything
        return f"{type(error).__name__}: {error}"
    seen = record(module, copies(arguments), expected)
    if isinstance(seen, str):
        return seen
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    filled = [
        node.name
        for node, value in zip(placeholders, arguments, strict=False)
        if isinstance(value, Tensor)
    ]
    output = next(node for node in module.graph.nodes if node.op == "output")
    outputs = refilled(expected, output.args[0])
    modules = dict(traced.named_modules())
    limits = [m for m in modules.values() if isinstance(m, InputSizes)]
    return Captured(
        module.graph,
        modules,
        module,
        filled,
        describe_arguments(model, arguments),
        outputs,
        seen,
        expected,
        fixed=tuple(sorted({dim for limit in limits for dim in limit.fixed})),
        batch=limits[0].batch if limits else None,
    )
