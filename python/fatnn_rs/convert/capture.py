"""From a model to a torch.fx graph in which every known layer is one call.

Two ways, in this order: symbolic tracing (torch.fx), and, where the model's Python branches on shapes or values,
``torch.export`` (:mod:`fatnn_rs.convert.capture_export`). A captured graph is accepted only where it gives the
example's outputs bit for bit; what its values were is recorded on the way (:mod:`fatnn_rs.convert.record`). Models are
run and traced as copies (:func:`fatnn_rs.replica.replica`), for their code may write what it likes.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fatnn_rs.convert.record import Seen, record
from fatnn_rs.convert.structure import refilled, same_values
from fatnn_rs.errors import ConversionError, FatnnError
from fatnn_rs.nn import QuantizedLayer
from fatnn_rs.replica import patched_methods, replica
from fatnn_rs.signature import NOTHING, Argument

__all__ = ["Captured", "SizeRange", "capture"]


@dataclass(frozen=True)
class SizeRange:
    """Which batch sizes an input may have.

    Attributes
    ----------
    least, most
        Both included; ``most`` is None where there is no limit.
    multiple
        Sizes are multiples of this.
    """

    least: int = 0
    most: int | None = None
    multiple: int = 1


@dataclass
class Captured:
    """A graph that reproduces the model.

    Attributes
    ----------
    graph
        torch.fx graph; layers are ``call_module`` nodes, or calls of the export's marker.
    modules
        Qualified name → the model's own module.
    root
        Where ``get_attr`` nodes look things up.
    inputs
        Names of the placeholder nodes that the given arguments fill.
    arguments
        The model's arguments.
    outputs
        The structure returned, with fx nodes for values.
    seen
        fx node → what its value was.
    expected
        What the model returned.
    notes
        Remarks for the report.
    fixed
        Dimensions of the inputs in which sizes other than the example's are refused.
    batch
        Sizes that the first dimension of every input may have.
    asks_format
        Whether the model asks for strides or memory formats, and so may branch on them.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    root: nn.Module
    inputs: list[str]
    arguments: tuple[Argument, ...]
    outputs: Any
    seen: dict[fx.Node, Seen]
    expected: Any = None
    notes: list[str] = field(default_factory=list)
    fixed: tuple[int, ...] = ()
    batch: SizeRange | None = None
    asks_format: bool = False


class _AsksFormat(TorchFunctionMode):
    """Notes whether anybody asks a tensor for its place in memory."""

    _QUESTIONS = frozenset(
        {Tensor.is_contiguous, Tensor.stride, Tensor.storage_offset, Tensor.data_ptr, Tensor.untyped_storage}
    )

    def __init__(self) -> None:
        super().__init__()
        self.asked = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.asked |= func in self._QUESTIONS
        return func(*args, **(kwargs or {}))


class _Tracer(fx.Tracer):
    """Quantized layers, torch's own modules and modules with methods of their own stay calls.

    Except containers of torch's that hold a quantized layer.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, QuantizedLayer) or patched_methods(m):
            return True
        if any(isinstance(child, QuantizedLayer) for child in m.modules()):
            return False
        return super().is_leaf_module(m, module_qualified_name)


#: Python's operators that change a tensor: ``x += y``.
_IN_PLACE = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")


@contextmanager
def _faithful_proxies() -> Iterator[None]:
    """Let torch.fx trace ``x += y`` as what it is, and refuse ``x.data = y``.

    Its proxies have no such operators, so that Python takes ``x = x + y`` instead, and the tensor that others read
    stays as it was; and they keep what is assigned to their attributes.
    """
    before = {name: vars(fx.Proxy).get(name) for name in (*(f"__i{op}__" for op in _IN_PLACE), "__setattr__")}

    def in_place(op: str) -> Any:
        function = getattr(operator, f"i{op}")
        return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})

    def assign(self: fx.Proxy, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "root", "attr", "_node", "name", "default", "scope"):
            raise TypeError(f"assigning to {name!r} of a tensor cannot be traced")
        object.__setattr__(self, name, value)

    try:
        for op in _IN_PLACE:
            setattr(fx.Proxy, f"__i{op}__", in_place(op))
        fx.Proxy.__setattr__ = assign  # type: ignore[assignment,method-assign]
        yield
    finally:
        for name, method in before.items():
            if method is None:
                delattr(fx.Proxy, name)
            else:
                setattr(fx.Proxy, name, method)


def copies(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Tensors cloned, so that a model that works in place cannot change the caller's."""
    return tuple(pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, list(arguments)))


def described(model: nn.Module, given: tuple[Any, ...]) -> tuple[Argument, ...]:
    """Describe the arguments of a model's forward, as ``given`` fills them."""
    made: list[Argument] = []
    parameters = list(inspect.signature(model.forward).parameters.values())
    for p in parameters:
        if p.kind == p.VAR_POSITIONAL:
            rest = given[len(made) :]
            made.extend(
                Argument(f"{p.name}_{i}", isinstance(v, Tensor), _constant(v), keyword=False)
                for i, v in enumerate(rest)
            )
        elif p.kind != p.VAR_KEYWORD:
            default = NOTHING if p.default is p.empty else p.default
            value = given[len(made)] if len(made) < len(given) else default
            made.append(
                Argument(
                    p.name,
                    isinstance(value, Tensor),
                    _constant(value),
                    default,
                    positional=p.kind != p.KEYWORD_ONLY,
                    keyword=p.kind != p.POSITIONAL_ONLY,
                )
            )
    return tuple(made)


def _constant(value: Any) -> Any:
    return None if isinstance(value, Tensor) else value


def _by_fx(model: nn.Module, arguments: tuple[Any, ...], expected: Any) -> Captured | str:
    """Capture by symbolic tracing, or say why not."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return "its forward takes *args or **kwargs"
    if patched_methods(model):
        return f"{patched_methods(model)[0]!r} was replaced on the instance"
    # Arguments that were left out, and those that are no tensors, are constants of the capture.
    constants = {p.name: p.default for p in parameters[len(arguments) :]}
    constants |= {
        p.name: value for p, value in zip(parameters, arguments, strict=False) if not isinstance(value, Tensor)
    }
    if any(not isinstance(value, (type(None), bool, int, float, str)) for value in constants.values()):
        return "it takes arguments that are neither tensors nor plain constants"
    traced = replica(model)
    tracer = _Tracer()
    try:
        with _faithful_proxies():
            graph = tracer.trace(traced, concrete_args=constants)
        module = fx.GraphModule(tracer.root, graph)
    except Exception as error:  # user code meets proxies here and may raise anything
        return f"{type(error).__name__}: {error}"
    seen = record(module, copies(arguments), expected)
    if isinstance(seen, str):
        return seen
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    filled = [node.name for node, value in zip(placeholders, arguments, strict=False) if isinstance(value, Tensor)]
    output = next(node for node in module.graph.nodes if node.op == "output")
    outputs = refilled(expected, output.args[0])
    return Captured(
        module.graph, dict(traced.named_modules()), module, filled, described(model, arguments), outputs, seen, expected
    )


def _run_twice(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, bool]:
    """Return what a model makes of its arguments, and whether it asks for memory formats.

    One that makes something else the second time is refused.

    Raises
    ------
    ConversionError
        Where it fails, or where what it returns depends on earlier calls or on chance.
    """
    run = replica(model)
    try:
        expected = run(*copies(arguments))
        with _AsksFormat() as watch:
            again = run(*copies(arguments))
    except FatnnError as error:
        raise ConversionError(f"{type(model).__name__} fails on the example inputs: {error}") from error
    except Exception as error:
        raise ConversionError(
            f"{type(model).__name__} fails on the example inputs ({type(error).__name__}: {error}); give inputs that "
            "the model accepts"
        ) from error
    if problem := same_values(expected, again):
        raise ConversionError(
            f"{type(model).__name__} gives two results for the same inputs ({problem}): it draws random numbers, or "
            "keeps state from call to call, which a converted network does not; make forward a function of its "
            "arguments in eval mode"
        )
    return expected, watch.asked


@torch.no_grad()
def capture(model: nn.Module, arguments: tuple[Any, ...]) -> Captured:
    """Capture the model's graph at the given arguments.

    Raises
    ------
    ConversionError
        Where the model itself fails on the example, gives another result the second time, returns what is no structure
        of tensors and plain values, or neither way captures it.
    """
    from fatnn_rs.convert.capture_export import by_export

    expected, asks_format = _run_twice(model, arguments)
    traced = _by_fx(model, arguments, expected)
    if isinstance(traced, Captured):
        traced.asks_format = asks_format
        return traced
    exported = by_export(model, arguments, expected)
    if isinstance(exported, Captured):
        exported.asks_format = asks_format
        exported.notes.insert(0, f"captured by torch.export, for torch.fx cannot trace it: {_short(traced)}")
        return exported
    raise ConversionError(
        f"{type(model).__name__} cannot be captured. torch.fx: {_short(traced)}. torch.export: {_short(exported)}. "
        "Move Python that depends on values out of forward, or convert the submodules that hold quantized layers"
    )


def _short(reason: str) -> str:
    """Return the first line, at most 300 characters."""
    line = reason.strip().splitlines()[0] if reason.strip() else "no reason given"
    return line if len(line) <= 300 else line[:297] + "..."
