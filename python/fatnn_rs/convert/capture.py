"""From a model to a torch.fx graph in which every known layer is one call.

Symbolic tracing (torch.fx) comes first. If the model's Python branches on shapes or values,
``torch.export`` follows (:mod:`fatnn_rs.convert.capture_export`). A captured graph has to give the
example's outputs bit for bit; its values are recorded at the same time
(:mod:`fatnn_rs.convert.record`). Models are run and traced as copies
(:func:`fatnn_rs.replica.replica`), because their code may change their state.
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
from torch.fx import _symbolic_trace
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fatnn_rs.contained import register_contained
from fatnn_rs.convert.record import TensorMeta, record
from fatnn_rs.convert.structure import fill, leaves, plain, refilled, same_values
from fatnn_rs.convert.transformer import unmasked_forward, unmasked_root
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
        Smallest and largest size; ``most`` is None if there is no limit.
    multiple
        Common factor of all sizes.
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
        torch.fx graph; layers are ``call_module`` nodes or calls of the export's marker function.
    modules
        Qualified name → the model's own module.
    root
        Module in which ``get_attr`` nodes are looked up.
    inputs
        Names of the placeholder nodes that the given arguments fill.
    arguments
        The model's arguments.
    outputs
        The returned structure, with fx nodes for values.
    seen
        fx node → metadata of its value.
    expected
        What the model returned for the example.
    notes
        Remarks for the report.
    fixed
        Dimensions of the inputs whose sizes must be the example's.
    batch
        Allowed sizes of the first dimension of every input.
    asks_format
        Whether the model reads strides or memory formats, and so may branch on them.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    root: nn.Module
    inputs: list[str]
    arguments: tuple[Argument, ...]
    outputs: Any
    seen: dict[fx.Node, TensorMeta]
    expected: Any = None
    notes: list[str] = field(default_factory=list)
    fixed: tuple[int, ...] = ()
    batch: SizeRange | None = None
    asks_format: bool = False


class _AsksFormat(TorchFunctionMode):
    """Records whether code reads a tensor's strides, offset or address."""

    _QUESTIONS = frozenset(
        {
            Tensor.is_contiguous,
            Tensor.stride,
            Tensor.storage_offset,
            Tensor.data_ptr,
            Tensor.untyped_storage,
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.asked = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.asked |= func in self._QUESTIONS
        return func(*args, **(kwargs or {}))


class _UntraceableError(BaseException):
    """Stops tracing. No ``Exception``, so that the model's own ``except`` does not catch it."""


def _untraceable(what: str) -> Any:
    def refuse(self: Any, *args: Any) -> Any:
        raise _UntraceableError(f"its forward {what} a value that is unknown during tracing")

    return refuse


class _Tracer(fx.Tracer):
    """Keeps calls of quantized layers, torch's modules and modules with patched methods.

    torch's containers that hold a quantized layer are traced through.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, QuantizedLayer) or patched_methods(m):
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


#: Modules whose functions torch.fx keeps as one call, and that are better seen through.
_OPENED = frozenset({"torchvision.models.swin_transformer"})


@contextmanager
def _opened() -> Iterator[None]:
    """Let torch.fx trace into functions that their module wrapped: their calls have rows."""
    patched = _symbolic_trace._wrapped_fns_to_patch
    kept = {key: scope for key, scope in patched.items() if scope.get("__name__") in _OPENED}
    try:
        for key in kept:
            del patched[key]
        yield
    finally:
        patched.update(kept)


def copies(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Clone all tensors, so that a model that works in place cannot change the caller's."""
    return tuple(
        pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, list(arguments))
    )


def described(model: nn.Module, given: tuple[Any, ...]) -> tuple[Argument, ...]:
    """Describe the arguments of a model's forward, with the values in ``given``."""
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
    """Capture by symbolic tracing; return why if that fails."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return "its forward takes *args or **kwargs"
    if patched_methods(model):
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
        with _faithful_proxies(), _opened():
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
    return Captured(
        module.graph,
        dict(traced.named_modules()),
        module,
        filled,
        described(model, arguments),
        outputs,
        seen,
        expected,
    )


def _run_twice(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, bool]:
    """Run a model twice; return its outputs, and whether it reads memory formats.

    Raises
    ------
    ConversionError
        If the model fails, or if its outputs depend on earlier calls or on chance.
    """
    run = replica(model)
    try:
        expected, again = run(*copies(arguments)), run(*copies(arguments))
    except FatnnError as error:
        raise ConversionError(
            f"{type(model).__name__} fails on the example inputs: {error}"
        ) from error
    except Exception as error:
        raise ConversionError(
            f"{type(model).__name__} fails on the example inputs ({type(error).__name__}: "
            f"{error}); give inputs that the model accepts"
        ) from error
    if problem := same_values(expected, again):
        raise ConversionError(
            f"{type(model).__name__} gives two results for the same inputs ({problem}): it draws "
            "random numbers, or keeps state from call to call, which a converted network does not; "
            "make forward a function of its arguments in eval mode"
        )
    asked = _check_state(model, run, arguments)
    _check_grad_mode(model, arguments, expected)
    return expected, asked


def other_values(arguments: tuple[Any, ...], factor: float) -> tuple[Any, ...]:
    """Multiply floating-point tensors by a factor and reverse the order of their samples."""

    def changed(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value.clone() if isinstance(value, Tensor) else value
        made = torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=value.device
        )
        return made.copy_((value.flip(0) if value.dim() else value) * factor)

    return tuple(pytree.tree_map(changed, list(arguments)))


def _check_state(model: nn.Module, used: nn.Module, arguments: tuple[Any, ...]) -> bool:
    """Compare a model that has run with a fresh one, on other values.

    Returns
    -------
    bool
        Whether the model asks for memory formats.

    Raises
    ------
    ConversionError
        If they differ: the first call changed the model's state.
    """
    others = other_values(arguments, 1.25)
    watch = _AsksFormat()
    try:
        with watch:  # this mode disables torch's fast paths, in both runs
            fresh, after = replica(model)(*copies(others)), used(*copies(others))
    except Exception:  # the model refuses the other values
        with watch:
            used(*copies(arguments))
        return watch.asked
    if problem := same_values(fresh, after):
        raise ConversionError(
            f"{type(model).__name__} gives another result after an earlier call ({problem}): it "
            "keeps state from call to call, which a converted network does not; make forward a "
            "function of its arguments in eval mode"
        )
    return watch.asked


def _check_grad_mode(model: nn.Module, arguments: tuple[Any, ...], expected: Any) -> None:
    """Refuse a model whose outputs change by more than rounding when gradients are recorded."""
    try:
        with torch.enable_grad():
            other = _without_saved(model, arguments)
    except Exception:  # an in-place write, say, that autograd refuses
        return
    detached = fill(plain(other), lambda v: v.detach() if isinstance(v, Tensor) else v)
    if problem := same_values(list(leaves(detached)), list(leaves(plain(expected))), 0.05):
        raise ConversionError(
            f"{type(model).__name__} gives another result where gradients are recorded "
            f"({problem}), and a converted network does not record any; let forward not branch on "
            "torch.is_grad_enabled() or requires_grad"
        )


def _without_saved(model: nn.Module, arguments: tuple[Any, ...]) -> Any:
    """Run a model without keeping activations for a backward pass that does not come."""
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda saved: None, _refuse_backward)
    try:
        with hooks:
            return replica(model)(*copies(arguments))
    except Exception:  # it takes a gradient itself, say
        return replica(model)(*copies(arguments))


def _refuse_backward(kept: None) -> Any:
    raise RuntimeError("activations were not kept")


@torch.no_grad()
def capture(model: nn.Module, arguments: tuple[Any, ...]) -> Captured:
    """Capture the model's graph at the given arguments.

    Raises
    ------
    ConversionError
        If the model fails on the example, gives another result the second time, returns anything
        but a structure of tensors and plain values, or cannot be captured.
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
        exported.notes.insert(
            0, f"captured by torch.export, because torch.fx cannot trace it: {_short(traced)}"
        )
        return exported
    raise ConversionError(
        f"{type(model).__name__} cannot be captured. torch.fx: {_short(traced)}. torch.export: "
        f"{_short(exported)}. Move Python that depends on values out of forward, or convert the "
        "submodules that hold quantized layers with fatnn_rs.convert_submodule"
    )


def _short(reason: str) -> str:
    """Return the first line, at most 300 characters."""
    line = reason.strip().splitlines()[0] if reason.strip() else "no reason given"
    return line if len(line) <= 300 else line[:297] + "..."
