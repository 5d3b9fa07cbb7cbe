"""From a captured torch.fx graph to our own :class:`~fatnn_rs.convert.graph.Graph`.

Every call is looked up in three tables: modules by class, functions, and tensor methods by name
(:mod:`fatnn_rs.convert.rows_modules`, :mod:`fatnn_rs.convert.rows_functions`). A row either emits nodes or declines;
what no row takes becomes a ``torch`` node that calls the original in its place. In-place operations become ordinary
ones: every later reading of the tensor they change reads their result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fatnn_rs.convert.capture import Captured, Seen
from fatnn_rs.convert.graph import Graph, Node, Ref, map_refs, refs
from fatnn_rs.errors import ConversionError
from fatnn_rs.nn import QuantizedLayer, TernaryLayer

__all__ = ["Lowering", "Row", "lower"]

#: Emits nodes for one call and returns their result, or declines with None.
Row = Callable[..., Ref | None]

_NOTHING = Seen()


class Lowering:
    """The state of one lowering: what rows read and emit."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.graph = Graph(notes=list(captured.notes))
        self.env: dict[fx.Node, Any] = {}
        self.node: fx.Node
        self.layer = ""
        self._bases: dict[str, str] = {}

    def seen(self, value: Any) -> Seen:
        """Say what a value was at the example inputs."""
        return self.captured.seen.get(value, _NOTHING) if isinstance(value, fx.Node) else _NOTHING

    def shape(self, value: Any) -> tuple[int, ...]:
        """Shape of a value at the example inputs."""
        return self.seen(value).shape

    def value(self, argument: Any) -> str | None:
        """Name of the float32 tensor that an argument is in the graph, or None for anything else."""
        if not isinstance(argument, fx.Node) or self.seen(argument).dtype != torch.float32:
            return None
        ref = self.env.get(argument)
        return ref.name if isinstance(ref, Ref) else None

    def emit(
        self,
        op: str,
        inputs: list[str],
        attrs: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor | None] | None = None,
        *,
        suffix: str = "",
        shape: tuple[int, ...] | None = None,
        note: str = "",
        call: Callable[..., Any] | None = None,
    ) -> Ref:
        """Add a node for the call being lowered.

        Parameters
        ----------
        suffix
            For nodes inside a call that becomes several; the last one has none and carries the call's name.
        shape
            Of the value; that of the call's result by default.
        """
        name = self.graph.fresh_name(self.node.name + suffix)
        node = Node(name, op, list(inputs), dict(attrs or {}), layer=self.layer, note=note, call=call)
        node.shape = self.shape(self.node) if shape is None else shape
        prefix = self.layer or name
        for role, tensor in (tensors or {}).items():
            if tensor is not None:
                node.tensors[role] = self.graph.add_tensor(f"{prefix}.{role}", tensor)
        self.graph.nodes.append(node)
        if op in ("flatten", "reshape_like", "rows"):
            self._bases[name] = self._bases.get(inputs[0], inputs[0])
        return Ref(name)

    def torch_node(self, call: Callable[..., Any], args: Any, kwargs: Any, target: str, note: str = "") -> Ref:
        """Add a node that calls torch (or the user's code) as the model did."""
        args, kwargs = self.resolve((tuple(args), dict(kwargs)))
        inputs = list(dict.fromkeys(ref.name for ref in refs((args, kwargs))))
        layouts = {
            ref.name: self.seen(argument).layout
            for argument, ref in ((a, self.env[a]) for a in self.node.all_input_nodes)
            if isinstance(ref, Ref)
        }
        attrs = {"target": target, "layouts": [layouts[name] for name in inputs]}
        result = self.emit("torch", inputs, attrs, note=note or "no Rust kernel and no row in the tables", call=call)
        self.graph.nodes[-1].arguments = (args, kwargs)
        return result

    def resolve(self, structure: Any) -> Any:
        """Express a structure of fx nodes as one of our references and constants."""
        return fx.node.map_arg(structure, lambda node: self.env[node])

    def replace_in_place(self, changed: Any, result: Ref) -> None:
        """Let whoever still reads ``changed`` read ``result``: the call works in place."""
        if not isinstance(changed, fx.Node) or not isinstance(self.env.get(changed), Ref):
            return
        old = self.env[changed].name
        base = self._bases.get(old, old)
        for node, ref in self.env.items():
            if not isinstance(ref, Ref):
                continue
            if ref.name == old:
                self.env[node] = result
            elif self._bases.get(ref.name, ref.name) == base and ref.name != result.name and self._read_later(node):
                raise ConversionError(
                    f"{self.node.format_node()}: works in place on a view of {base!r}, and {node.name!r}, another view "
                    "of it, is read afterwards; use the operation that returns a new tensor"
                )

    def _read_later(self, node: fx.Node) -> bool:
        return any(self.node < user for user in node.users)


def _is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a call changes its first argument."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.kwargs.get("inplace"):
        return True
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.is_mutable
    if name.endswith("_") and not name.endswith("__"):
        return True
    return getattr(target, "__module__", "") == "_operator" and name in _IN_PLACE_OPERATORS


_IN_PLACE_OPERATORS = frozenset(
    {"iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod", "iand", "ior", "ixor"}
)

#: Calls that only check something at capture and have no value.
_ASSERTIONS = frozenset({"_assert", "_assert_is_none", "_assert_scalar.default", "_assert_async.msg"})


def _clean_copy(module: nn.Module) -> nn.Module:
    copied = copy.deepcopy(module).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    for layer in copied.modules():
        if isinstance(layer, TernaryLayer):
            layer._held = None
    return copied


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _lower_module(ctx: Lowering, name: str, args: Any, kwargs: Any) -> Ref:
    from fatnn_rs.convert.rows_modules import module_row

    module = ctx.captured.modules[name]
    ctx.layer = name
    row = None if _has_hooks(module) else module_row(module)
    if row is not None:
        try:
            result = row(ctx, module, *args, **kwargs)
        except TypeError:
            result = None  # called with arguments the row does not know
        if result is not None:
            return result
    note = f"{type(module).__name__} is not one of the converted layers"
    if _has_hooks(module):
        note = "has forward hooks"
    elif isinstance(module, QuantizedLayer):
        note = "its input is no float32 batch"
    return ctx.torch_node(_clean_copy(module), args, kwargs, type(module).__name__, note)


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _lower_attribute(ctx: Lowering, target: str) -> Any:
    value = _attribute(ctx.captured.root, target)
    if not isinstance(value, Tensor):
        return value
    ctx.layer = ""
    if value.dtype == torch.float32:
        return ctx.emit("constant", [], {}, {"value": value}, shape=tuple(value.shape))
    kept = value.detach().clone()
    return ctx.torch_node(lambda: kept, (), {}, target, "a constant that is not float32")


def _lower_call(ctx: Lowering, node: fx.Node) -> Any:
    from fatnn_rs.convert.rows_functions import FUNCTIONS, METHODS

    if node.op == "get_attr":
        return _lower_attribute(ctx, str(node.target))
    ctx.layer = ""
    marker = node.target is torch.ops.fatnn_rs.module_call.default if node.op == "call_function" else False
    module = None
    if node.op == "call_module":
        module = ctx.captured.modules.get(str(node.target))
        result = _lower_module(ctx, str(node.target), node.args, node.kwargs)
    elif marker:
        result = _lower_module(ctx, str(node.args[1]), node.args[:1], {})
        module = ctx.captured.modules[str(node.args[1])]
    else:
        table: Mapping[Any, Row] = METHODS if node.op == "call_method" else FUNCTIONS
        row = table.get(node.target)
        made: Ref | None = None
        if row is not None:
            try:
                made = row(ctx, *node.args, **node.kwargs)
            except TypeError:
                made = None  # called with arguments the row does not know
        result = made if made is not None else _torch_call(ctx, node)
    if node.args and _is_in_place(node, module):
        ctx.replace_in_place(node.args[0], result)
    return result


def _torch_call(ctx: Lowering, node: fx.Node) -> Ref:
    if node.op == "call_method":
        method = str(node.target)
        return ctx.torch_node(
            lambda x, *a, **k: getattr(x, method)(*a, **k), node.args, node.kwargs, f"Tensor.{method}"
        )
    assert callable(node.target)
    name = getattr(node.target, "__name__", str(node.target))
    return ctx.torch_node(node.target, node.args, node.kwargs, name)


def lower(captured: Captured) -> Graph:
    """Lower a captured graph.

    Returns
    -------
    Graph
        With the capture's own ops ``act_quant`` and ``ternary`` still in it; the passes replace them.

    Raises
    ------
    ConversionError
        Where an operation works in place on a tensor whose views are read afterwards.
    """
    ctx = Lowering(captured)
    for node in captured.graph.nodes:
        ctx.node = node
        if node.op == "placeholder":
            if node.name in captured.inputs:
                seen = ctx.seen(node)
                ctx.layer = ""
                fixed = [dim for dim in captured.fixed if dim < len(seen.shape)]
                attrs = {"dtype": str(seen.dtype).removeprefix("torch."), "fixed": fixed}
                ctx.env[node] = ctx.emit("input", [], attrs)
            else:
                ctx.env[node] = None
        elif node.op == "output":
            break
        elif getattr(node.target, "__name__", "") not in _ASSERTIONS and node.target != "_guards_fn":
            ctx.env[node] = _lower_call(ctx, node)
    ctx.graph.outputs = map_refs(ctx.resolve(captured.outputs), lambda ref: ref)
    _find_channels(ctx.graph)
    return ctx.graph


_CHANNELS_SECOND = frozenset({"act_quant", "pad", "conv1d", "conv2d", "conv1d_int8", "conv2d_int8", "batch_norm"})
_CHANNELS_LAST = frozenset({"rows", "linear", "linear_int8"})


def _find_channels(graph: Graph) -> None:
    """Note on every input which dimension holds its channels, by who reads it; 0 where nobody says."""
    for node in graph.nodes:
        if node.op == "input":
            readers = {reader.op for reader in graph.users()[node.name] if reader is not None}
            second, last = bool(readers & _CHANNELS_SECOND), bool(readers & _CHANNELS_LAST)
            node.attrs["channel_dim"] = 1 if second else (len(node.shape) - 1 if last else 0)
