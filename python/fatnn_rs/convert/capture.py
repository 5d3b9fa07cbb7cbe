"""From a model to a torch.fx graph in which every known layer is one call.

Two ways, in this order: symbolic tracing (torch.fx), and, where the model's Python branches on shapes or values,
``torch.export`` (:mod:`fatnn_rs.convert.capture_export`). A captured graph is accepted only where it gives the
example's outputs bit for bit; its intermediate shapes and memory formats are recorded on the way.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fatnn_rs.convert.ops_table import layout_of
from fatnn_rs.errors import ConversionError
from fatnn_rs.nn import QuantizedLayer

__all__ = ["Captured", "Seen", "capture", "record"]


@dataclass(frozen=True)
class Seen:
    """Say what a value was at the example inputs.

    Attributes
    ----------
    shape
        Empty for what is not a tensor.
    layout
        See :func:`fatnn_rs.convert.ops_table.layout_of`.
    value
        The value itself where it is an integer, else None.
    dtype
        Of a tensor, else None.
    """

    shape: tuple[int, ...] = ()
    layout: str = "any"
    value: int | None = None
    dtype: torch.dtype | None = None


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
    outputs
        The structure returned, with fx nodes for values.
    seen
        fx node → what its value was.
    notes
        Remarks for the report.
    fixed
        Dimensions of the inputs in which sizes other than the example's are refused.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    root: nn.Module
    inputs: list[str]
    outputs: Any
    seen: dict[fx.Node, Seen]
    notes: list[str] = field(default_factory=list)
    fixed: tuple[int, ...] = ()


class _Tracer(fx.Tracer):
    """Quantized layers and torch's own modules stay calls, except containers that hold a quantized layer."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, QuantizedLayer):
            return True
        if any(isinstance(child, QuantizedLayer) for child in m.modules()):
            return False
        return super().is_leaf_module(m, module_qualified_name)


class _Recorder(fx.Interpreter):
    """Runs a graph and notes every value's shape and memory format before anything can change it."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[fx.Node, Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.seen[n] = Seen(tuple(value.shape), layout_of(value), None, value.dtype)
        else:
            self.seen[n] = Seen(value=value if type(value) is int else None)
        return value


def _copies(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Tensors cloned, so that a model that works in place cannot change the caller's."""
    return tuple(pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, list(arguments)))


def same(left: Any, right: Any) -> bool:
    """Whether two nested outputs have the same structure and bits."""
    left_leaves, left_spec = pytree.tree_flatten(left)
    right_leaves, right_spec = pytree.tree_flatten(right)
    if left_spec != right_spec:
        return False
    for one, other in zip(left_leaves, right_leaves, strict=True):
        if isinstance(one, Tensor) != isinstance(other, Tensor):
            return False
        if isinstance(one, Tensor):
            if (
                one.shape != other.shape
                or one.dtype != other.dtype
                or not torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
            ):
                return False
        elif one != other:
            return False
    return True


def record(module: fx.GraphModule, arguments: tuple[Any, ...], expected: Any) -> dict[fx.Node, Seen] | str:
    """Run a captured graph; what its values were, or why it does not reproduce the model."""
    recorder = _Recorder(module)
    try:
        result = recorder.run(*_copies(arguments))
    except Exception as error:  # whatever a wrongly captured graph may raise, the answer is the same
        return f"the captured graph fails where the model does not ({type(error).__name__}: {error})"
    if not same(result, expected):
        return "the captured graph does not reproduce the model's output"
    return recorder.seen


def _by_fx(model: nn.Module, arguments: tuple[Any, ...], expected: Any) -> Captured | str:
    """Capture by symbolic tracing, or say why not."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return "its forward takes *args or **kwargs"
    # Arguments that were left out, and those that are no tensors, are constants of the capture.
    constants = {p.name: p.default for p in parameters[len(arguments) :]}
    constants |= {
        p.name: value for p, value in zip(parameters, arguments, strict=False) if not isinstance(value, Tensor)
    }
    if any(not isinstance(value, (type(None), bool, int, float, str)) for value in constants.values()):
        return "it takes arguments that are neither tensors nor plain constants"
    tracer = _Tracer()
    try:
        graph = tracer.trace(model, concrete_args=constants)
        module = fx.GraphModule(tracer.root, graph)
    except Exception as error:  # user code meets proxies here and may raise anything
        return f"{type(error).__name__}: {error}"
    seen = record(module, arguments, expected)
    if isinstance(seen, str):
        return seen
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    filled = [node.name for node, value in zip(placeholders, arguments, strict=False) if isinstance(value, Tensor)]
    output = next(node for node in module.graph.nodes if node.op == "output")
    return Captured(module.graph, dict(model.named_modules()), module, filled, output.args[0], seen)


@torch.no_grad()
def capture(model: nn.Module, arguments: tuple[Any, ...]) -> Captured:
    """Capture the model's graph at the given arguments.

    Raises
    ------
    ConversionError
        Where the model itself fails on the example, or neither way captures it.
    """
    from fatnn_rs.convert.capture_export import by_export

    try:
        expected = model(*_copies(arguments))
    except Exception as error:
        raise ConversionError(
            f"{type(model).__name__} fails on the example inputs ({type(error).__name__}: {error}); give inputs that "
            "the model accepts"
        ) from error
    traced = _by_fx(model, arguments, expected)
    if isinstance(traced, Captured):
        return traced
    exported = by_export(model, arguments, expected)
    if isinstance(exported, Captured):
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
