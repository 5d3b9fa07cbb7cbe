"""From a captured torch.fx graph to our own :class:`~fatnn_rs.convert.graph.Graph`.

Every call is looked up in three tables: modules by class, functions, and tensor methods by name
(:mod:`fatnn_rs.convert.lower.modules`, :mod:`fatnn_rs.convert.lower.functions`). A row either emits
nodes or declines; what no row takes becomes a ``torch`` node that calls the original in its place.
Operations that write into their arguments become functions: every later reading of the memory they
change reads their result (:mod:`fatnn_rs.convert.mutation`).
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fatnn_rs.convert.capture import Captured
from fatnn_rs.convert.graph import Dtype, Graph, Node, NodeIndex, Ref, refs, unused_name
from fatnn_rs.convert.mutation import Aliases
from fatnn_rs.convert.record import TensorMeta
from fatnn_rs.convert.shapes import run_time_shapes
from fatnn_rs.convert.structure import fill
from fatnn_rs.errors import ConversionError
from fatnn_rs.nn import QuantizedLayer, TernaryLayer
from fatnn_rs.nn.base import weight_hooks
from fatnn_rs.operations import OPERATIONS, products_of
from fatnn_rs.replica import patched_methods
from fatnn_rs.report import RULES, declined

__all__ = ["Lowering", "Row", "lower"]

#: Emits nodes for one call and returns their result, or declines with None.
Row = Callable[..., Any]

_NOTHING = TensorMeta()


class Lowering:
    """The state of one lowering: what rows read and emit."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.graph = Graph(notes=list(captured.notes), arguments=captured.arguments)
        self.env: dict[fx.Node, Any] = {}
        self.node: fx.Node
        self.layer = ""
        #: Values whose sizes behind the batch forward takes to be the example's: ``x.view(-1, 400)``.
        self.of_one_size: list[str] = []
        #: Placeholder → name of the input.
        self.inputs: dict[fx.Node, str] = {}
        #: Whether a call became a function that writes into a copy.
        self.writes = False
        self.aliases = Aliases(captured.graph, captured.seen, self.call_of)
        #: Name → node, of those emitted so far.
        self.index = NodeIndex(self.graph).nodes

    def seen(self, value: Any) -> TensorMeta:
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

    def attribute(self, value: Any) -> Any:
        """Return the model's own parameter, buffer or constant that an argument is, else None."""
        is_one = isinstance(value, fx.Node) and value.op == "get_attr"
        return _attribute(self.captured.root, str(value.target)) if is_one else None

    def emit(
        self,
        op: str,
        inputs: list[str],
        attrs: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor | None] | None = None,
        *,
        suffix: str = "",
        shape: tuple[int, ...] | None = None,
        dtype: Dtype = "float32",
        dtypes: Mapping[str, str] | None = None,
        note: str = "",
        call: Callable[..., Any] | None = None,
    ) -> Ref:
        """Add a node for the call being lowered.

        Parameters
        ----------
        suffix
            For nodes inside a call that becomes several; the last one has none and carries the
            call's name.
        shape
            Of the value; that of the call's result by default.
        dtype
            Of the value.
        dtypes
            Role → type of weights that are codes.
        """
        name = unused_name(self.node.name + suffix, self.index())
        node = Node(
            name,
            op,
            list(inputs),
            dict(attrs or {}),
            layer=self.layer,
            dtype=dtype,
            note=note,
            call=call,
        )
        node.shape = self.shape(self.node) if shape is None else shape
        prefix = self.layer or name
        for role, tensor in (tensors or {}).items():
            if tensor is not None:
                node.tensors[role] = self.graph.add_tensor(
                    f"{prefix}.{role}", tensor, (dtypes or {}).get(role)
                )
        self.graph.nodes.append(node)
        return Ref(name)

    def torch_node(
        self,
        call: Callable[..., Any],
        args: Any,
        kwargs: Any,
        target: str,
        note: str = "",
        rule: str = "unknown",
    ) -> Ref:
        """Add a node that calls torch (or the user's code) as the model did.

        ``rule`` is a key of :data:`fatnn_rs.report.RULES`, ``note`` the reason in words.
        """
        layouts = {
            ref.name: self.seen(argument).layout
            for argument, ref in ((a, self.env[a]) for a in _fx_nodes((args, kwargs)))
            if isinstance(ref, Ref)
        }
        args, kwargs = self.resolve((tuple(args), dict(kwargs)))
        inputs = list(dict.fromkeys(ref.name for ref in refs((args, kwargs))))
        formats = [layouts.get(name, "any") for name in inputs]
        attrs = {"target": target, "layouts": formats, "rule": rule}
        result = self.emit("torch", inputs, attrs, note=note or RULES[rule], call=call)
        self.graph.nodes[-1].arguments = (args, kwargs)
        return result

    def resolve(self, structure: Any) -> Any:
        """Express a structure of fx nodes as one of our references and constants."""
        return fx.node.map_arg(structure, lambda node: self.env[node])

    def call_of(self, node: fx.Node) -> Callable[..., Any]:
        """Return the function that a captured node calls, which shares nothing with the model."""
        if node.op == "call_method":
            return _Method(str(node.target))
        if node.op == "call_module":
            return _clean_copy(self.captured.modules[str(node.target)])
        if node.target is torch.ops.fatnn_rs.module_call.default:
            layer = _clean_copy(self.captured.modules[str(node.args[1])])
            return lambda x, name, add_bias=True: layer(x) if add_bias else layer(x, False)
        assert callable(node.target)
        return node.target


def _fx_nodes(structure: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(structure, found.append)
    return found


class _Method:
    """Calls a method of its first argument."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, self.name)(*args, **kwargs)


def _target_name(node: fx.Node) -> str:
    """Name what a node calls, for reports."""
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    return str(getattr(node.target, "__name__", node.target))


#: Calls that only check something at capture and have no value.
_ASSERTIONS = frozenset(
    {"_assert", "_assert_is_none", "_assert_scalar.default", "_assert_async.msg"}
)


def _clean_copy(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, QuantizedLayer):
            layer.latent_weight()  # what a hook computed with a gradient cannot be copied
    copied = copy.deepcopy(module).eval()
    for parameter in copied.parameters():
        parameter.grad = (
            None  # it still requires one, for torch runs its recurrent layers otherwise without
        )
    for layer in copied.modules():
        if isinstance(layer, TernaryLayer):
            layer._held = None
    return copied


def _has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks, other than those that compute a quantized layer's weight."""
    before = len(module._forward_pre_hooks)
    if isinstance(module, QuantizedLayer):
        before -= len(weight_hooks(module))
    return bool(module._forward_hooks or before)


def _lower_module(ctx: Lowering, name: str, args: Any, kwargs: Any) -> Ref:
    from fatnn_rs.convert.lower.modules import module_row

    module = ctx.captured.modules[name]
    ctx.layer = name
    own = patched_methods(module)
    row = None if _has_hooks(module) or own else module_row(module)
    if row is not None:
        try:
            result: Ref | None = row(ctx, module, *args, **kwargs)
        except TypeError:
            result = None  # called with arguments the row does not know
        if result is not None:
            return result
    note = f"{type(module).__name__} is not one of the converted layers"
    rule = "unknown"
    if _has_hooks(module):
        rule, note = "module", "has forward hooks"
    elif own:
        rule, note = "module", f"its {own[0]} was replaced on the instance"
    elif isinstance(module, QuantizedLayer):
        rule, note = "dtype", "its input is no float32 batch"
    elif row is not None:
        rule, note = declined(ctx.seen(node).dtype for node in _fx_nodes((args, kwargs)))
    call = _clean_copy(module)
    return ctx.torch_node(call, args, kwargs, type(module).__name__, note, rule)


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
    return ctx.torch_node(lambda: kept, (), {}, target, rule="constant")


def _lower_call(ctx: Lowering, node: fx.Node) -> Any:
    if node.op == "get_attr":
        return _lower_attribute(ctx, str(node.target))
    ctx.layer = ""
    if not ctx.seen(node).writes and not ctx.seen(node).reshapes:
        return _lower_function(ctx, node)
    buffer = ctx.aliases.constant_written(node)
    if buffer:
        return _lower_state(ctx, node, buffer)
    target = ctx.aliases.whole(node)
    before = len(ctx.graph.nodes)
    if target is not None:
        result = _lower_function(ctx, node)
        if all(made.op != "torch" for made in ctx.graph.nodes[before:]):
            ctx.aliases.replaced(node)
            (number,) = ctx.seen(node).writes
            for alias in (target, *ctx.aliases.read_after(number, node)):
                ctx.env[alias] = result
            return result
        del ctx.graph.nodes[before:]
    return _lower_write(ctx, node)


def _lower_function(ctx: Lowering, node: fx.Node) -> Any:
    """Lower a call that changes nothing, or what it would be without changing anything."""
    from fatnn_rs.convert.lower.functions import FUNCTIONS, METHODS, NAMED

    if node.op == "call_module":
        return _lower_module(ctx, str(node.target), node.args, node.kwargs)
    if node.target is torch.ops.fatnn_rs.module_call.default:
        bias = {} if all(node.args[2:]) else {"add_bias": False}
        return _lower_module(ctx, str(node.args[1]), node.args[:1], bias)
    table: Mapping[Any, Row] = METHODS if node.op == "call_method" else FUNCTIONS
    row = table.get(node.target)
    if row is None:
        target: Any = node.target
        row = NAMED.get((getattr(target, "__module__", ""), getattr(target, "__name__", "")))
    made: Ref | None = None
    if row is not None:
        try:
            made = row(ctx, *node.args, **node.kwargs)
        except TypeError:
            made = None  # called with arguments the row does not know
    if made is not None:
        return made
    reads = (ctx.seen(read).dtype for read in node.all_input_nodes)
    rule, note = ("unknown", "") if row is None else declined(reads)
    return ctx.torch_node(ctx.call_of(node), node.args, node.kwargs, _target_name(node), note, rule)


def _lower_write(ctx: Lowering, node: fx.Node) -> Ref:
    """Lower a call that writes into its arguments, by copying them."""
    function, inputs, changed = ctx.aliases.rewrite(node)
    ctx.writes = True
    whole = ctx.torch_node(function, inputs, {}, _target_name(node), rule="write")
    parts = []
    for index, (part, suffix) in enumerate(
        ((node, "_result"), *((alias, f"_{alias.name}") for alias in changed))
    ):
        shape, seen = ctx.shape(part), ctx.seen(part)
        attrs = {"target": "getitem", "layouts": ["any"], "rule": "write"}
        item = ctx.emit(
            "torch", [whole.name], attrs, suffix=suffix, shape=shape, call=operator.getitem
        )
        ctx.graph.nodes[-1].arguments = ((Ref(whole.name), index), {})
        ctx.graph.nodes[-1].note = "" if seen.shape else "no tensor"
        parts.append(item)
    for alias, item in zip(changed, parts[1:], strict=True):
        ctx.env[alias] = item
    return parts[0]


def _lower_state(ctx: Lowering, node: fx.Node, buffer: str) -> None:
    """Leave out a call that writes into a parameter or buffer, where nobody would see what it wrote."""
    if ctx.aliases.matters(node):
        raise ConversionError(
            f"forward writes into {buffer!r} and computes with it: a converted network keeps nothing from call to "
            "call; hand what changes in and out as arguments and results, or compute it before"
        )
    ctx.graph.notes.append(
        f"what forward writes into {buffer!r} is left out: no result depends on it"
    )


def lower(captured: Captured) -> Graph:
    """Lower a captured graph.

    Returns
    -------
    Graph
        With the capture's own ops ``act_quant`` and ``ternary`` still in it; the passes replace
        them.

    Raises
    ------
    ConversionError
        Where an operation writes into memory in a way that no function expresses.
    """
    ctx = Lowering(captured)
    for node in captured.graph.nodes:
        ctx.node = node
        if node.op == "placeholder":
            if node.name in captured.inputs:
                seen = ctx.seen(node)
                ctx.layer = ""
                fixed = [dim for dim in captured.fixed if dim < len(seen.shape)]
                attrs: dict[str, Any] = {"fixed": fixed}
                if captured.batch is not None:
                    most = NO_LIMIT if captured.batch.most is None else captured.batch.most
                    attrs["batch"] = [captured.batch.least, most, captured.batch.multiple]
                ctx.env[node] = ctx.emit(
                    "input", [], attrs, dtype=str(seen.dtype).removeprefix("torch.")
                )
                ctx.inputs[node] = ctx.env[node].name
            else:
                ctx.env[node] = None
        elif node.op == "output":
            break
        elif (
            getattr(node.target, "__name__", "") not in _ASSERTIONS and node.target != "_guards_fn"
        ):
            ctx.env[node] = _lower_call(ctx, node)
    ctx.graph.outputs = fill(
        captured.outputs, lambda leaf: ctx.env[leaf] if isinstance(leaf, fx.Node) else leaf
    )
    for name in ctx.aliases.inputs_written():
        ctx.graph.notes.append(
            f"forward writes into its argument {name!r}; the network leaves the caller's as it is"
        )
    if maker := ctx.aliases.depends_on_sizes():
        _hold(ctx.graph, f"{maker!r} is a view or a copy by its size, and forward writes into it")
    if captured.asks_format or ctx.writes:
        _hold_formats(ctx)
    _find_channels(ctx.graph)
    _hold_sizes(ctx.graph, ctx.of_one_size)
    return ctx.graph


def _hold_formats(ctx: Lowering) -> None:
    """Hold inputs to the example's memory format, on which it depends what is a view of what."""
    for node, name in ctx.inputs.items():
        ctx.graph.node(name).attrs["layout"] = ctx.seen(node).layout
    ctx.graph.notes.append(
        "inputs must have the example's memory format: forward asks for it, or writes into tensors"
    )


def _hold_sizes(graph: Graph, values: list[str]) -> None:
    """Fix the inputs' sizes where values must have the example's, and would have others with other inputs."""
    shapes = run_time_shapes(graph) if values else {}
    if all(size >= 0 for name in values for size in shapes[name][1:]):
        return
    _hold(graph, "forward has a size of it in a view", 1)


def _hold(graph: Graph, why: str, first: int = 0) -> None:
    """Fix the inputs' sizes from dimension ``first`` on."""
    for node in graph.nodes:
        if node.op == "input":
            node.attrs["fixed"] = sorted({*node.attrs["fixed"], *range(first, len(node.shape))})
    graph.notes.append(
        f"input sizes are fixed to the example's{', but for the batch' if first else ''}: {why}"
    )


#: Greatest batch size where there is no limit, in the attribute ``batch`` of inputs.
NO_LIMIT = (1 << 31) - 1


def _channels_second(op: str) -> bool:
    """Whether an operation has channels in the second dimension of what it reads."""
    if products_of(op) != "none":
        return "stride" in OPERATIONS[op].attrs
    return op in ("act_quant", "pad", "batch_norm")


def _channels_last(op: str) -> bool:
    """Whether an operation has channels in the last dimension of what it reads."""
    if products_of(op) != "none":
        return "stride" not in OPERATIONS[op].attrs
    return op == "flatten_leading"


def _find_channels(graph: Graph) -> None:
    """Note on every input which dimension holds its channels, by who reads it; 0 where nobody says."""
    for node in graph.nodes:
        if node.op == "input":
            readers = {reader.op for reader in graph.users()[node.name] if reader is not None}
            second, last = any(map(_channels_second, readers)), any(map(_channels_last, readers))
            node.attrs["channel_dim"] = 1 if second else (len(node.shape) - 1 if last else 0)
