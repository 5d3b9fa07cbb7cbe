"""Lower a captured graph, call by call.

Each call is looked up in three tables: module classes, functions and tensor methods. The row found
there is a function that adds nodes to the graph or declines. A call that no row lowers becomes a
``torch`` node, which runs the original. A call that writes into its arguments is replaced by one
that returns a new value, which later reads of that memory get (:mod:`fatnn_rs.convert.mutation`).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fatnn_rs.convert.capture import Captured
from fatnn_rs.convert.graph import Graph, Ref, refs
from fatnn_rs.convert.leading_sizes import leading_sizes
from fatnn_rs.convert.lower import compositions
from fatnn_rs.convert.lower.calls import clean_copy, has_hooks, target_name
from fatnn_rs.convert.lower.composed import compose
from fatnn_rs.convert.lower.constants import fold, is_folded, with_numbers
from fatnn_rs.convert.lower.folding import PLAIN
from fatnn_rs.convert.lower.functions import FUNCTIONS, METHODS, NAMED
from fatnn_rs.convert.lower.input_limits import (
    NO_LIMIT,
    fix_input_formats,
    fix_input_sizes,
    fix_sizes_of,
    set_channel_dims,
)
from fatnn_rs.convert.lower.lowering import Lowering, Row, attribute_of, fx_nodes
from fatnn_rs.convert.lower.modules import module_row
from fatnn_rs.convert.lower.reasons import reason
from fatnn_rs.convert.lower.slice_writes import without_writes
from fatnn_rs.convert.lower.strides import keep_strides
from fatnn_rs.convert.structure import fill
from fatnn_rs.errors import ConversionError
from fatnn_rs.nn import QuantizedLayer
from fatnn_rs.replica import patched_methods
from fatnn_rs.report import unsupported_call

__all__ = ["lower"]


#: Calls that only check something during capture and return no value.
_ASSERTIONS = frozenset(
    {
        "_assert",
        "_assert_is_none",
        "_assert_scalar.default",
        "_assert_async.msg",
        "_assert_tensor_metadata.default",
    }
)


#: Names of calls that read sizes.
_SIZES = frozenset({"getattr", "Tensor.size", "sym_size.int"})


def _lower_module(ctx: Lowering, name: str, args: Any, kwargs: Any) -> Ref:
    module = ctx.captured.modules[name]
    ctx.layer = name
    own = patched_methods(module)
    row = None if has_hooks(module) or own else module_row(module)
    if row is not None:
        try:
            result: Ref | None = row(ctx, module, *args, **kwargs)
        except TypeError:
            result = None  # the row does not support these arguments
        if result is not None:
            return result
    composition = compositions.MODULES.get(type(module))
    if composition is not None and not has_hooks(module) and not own:
        copied = clean_copy(module)
        function = functools.partial(composition, copied)
        composed: Ref | None = compose(ctx, function, copied, (args, kwargs), _lower_function)
        if composed is not None:
            return composed
    note = f"{type(module).__name__} is not one of the converted layers"
    rule = "unknown"
    if has_hooks(module):
        rule, note = "module", "has forward hooks"
    elif own:
        rule, note = "module", f"its {own[0]} was replaced on the instance"
    elif isinstance(module, QuantizedLayer):
        rule, note = "dtype", "its input is not a float32 batch"
    elif row is not None:
        rule, note = unsupported_call(ctx.seen(node).dtype for node in fx_nodes((args, kwargs)))
    note = reason(type(module).__name__, vars(module)) or note
    call = clean_copy(module)
    return ctx.torch_node(call, args, kwargs, type(module).__name__, note, rule)


def _lower_attention(ctx: Lowering, node: fx.Node) -> Any:
    *given, padding, mask, weights, causal, name = node.args
    ctx.layer = str(name)
    module = ctx.captured.modules[ctx.layer]
    row = None if has_hooks(module) else module_row(module)
    if row is not None:
        made = row(ctx, module, *given, padding, weights, mask, is_causal=causal)
        if made is not None:
            return made
    return ctx.torch_node(ctx.call_of(node), node.args, {}, type(module).__name__)


def _lower_attribute(ctx: Lowering, target: str) -> Any:
    value = attribute_of(ctx.captured.root, target)
    if not isinstance(value, Tensor):
        return value
    ctx.layer = ""
    if value.dtype in PLAIN:
        return ctx.emit(
            "constant",
            [],
            {},
            {"value": value},
            shape=tuple(value.shape),
            dtype=PLAIN[value.dtype],
        )
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
    target = ctx.aliases.replaced_argument(node)
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
    """Lower a call by its result only, as if it wrote into nothing."""
    if node.op == "call_module":
        return _lower_module(ctx, str(node.target), node.args, node.kwargs)
    if node.target is torch.ops.fatnn_rs.module_call.default:
        bias = {} if all(node.args[2:]) else {"add_bias": False}
        return _lower_module(ctx, str(node.args[1]), node.args[:1], bias)
    if node.target is torch.ops.fatnn_rs.attention_call.default:
        return _lower_attention(ctx, node)
    table: Mapping[Any, Row] = METHODS if node.op == "call_method" else FUNCTIONS
    row = table.get(node.target)
    if row is None:
        target: Any = node.target
        row = NAMED.get((getattr(target, "__module__", ""), getattr(target, "__name__", "")))
    made: Ref | None = None
    if row is not None:
        try:
            made = row(ctx, *node.args, **node.kwargs)
            if made is None:
                count = len(ctx.size_limits)
                args, kwargs = with_numbers(ctx, node)
                if len(ctx.size_limits) > count or (args, kwargs) != (node.args, node.kwargs):
                    made = row(ctx, *args, **kwargs)
                if made is None:
                    del ctx.size_limits[count:]
        except TypeError:
            made = None  # the row does not support these arguments
    if made is None:
        made = _composed(ctx, node)
    if made is not None:
        return made
    reads = (ctx.seen(read).dtype for read in node.all_input_nodes)
    rule, note = ("unknown", "") if row is None else unsupported_call(reads)
    note = reason(target_name(node), node.kwargs) or note
    return ctx.torch_node(ctx.call_of(node), node.args, node.kwargs, target_name(node), note, rule)


def _composed(ctx: Lowering, node: fx.Node) -> Any:
    """Lower a call that is a composition of others, or return None."""
    by_name = node.op == "call_method"
    table: Mapping[Any, Any] = compositions.METHODS if by_name else compositions.FUNCTIONS
    composition = table.get(node.target)
    if composition is None:
        return None
    count = len(ctx.size_limits)
    given = with_numbers(ctx, node)
    made = compose(ctx, composition, ctx.call_of(node), given, _lower_function)
    if made is None:
        del ctx.size_limits[count:]
    return made


def _lower_write(ctx: Lowering, node: fx.Node) -> Ref:
    """Lower a call that writes into its arguments: it writes into copies instead."""
    function, inputs, changed = ctx.aliases.rewrite(node)
    ctx.writes = True
    given = (tuple(inputs), dict[str, Any]())
    made = compose(ctx, without_writes(function), function, given, _lower_function)
    if made is not None:
        for alias, value in zip(changed, made[1:], strict=True):
            ctx.env[alias], ctx.written[value.name] = value, alias
        result: Ref = made[0]
        return result
    whole = ctx.torch_node(function, inputs, {}, target_name(node), rule="write")
    parts = []
    for index, (part, suffix) in enumerate(
        ((node, "_result"), *((alias, f"_{alias.name}") for alias in changed))
    ):
        shape, seen = ctx.shape(part), ctx.seen(part)
        attrs = {"target": "getitem", "layouts": ["any"], "rule": "write"}
        dtype = str(seen.dtype or torch.float32).removeprefix("torch.")
        item = ctx.emit(
            "torch",
            [whole.name],
            attrs,
            suffix=suffix,
            shape=shape,
            dtype=dtype,
            call=operator.getitem,
        )
        ctx.graph.nodes[-1].arguments = ((Ref(whole.name), index), {})
        ctx.graph.nodes[-1].note = "" if seen.shape else "not a tensor"
        parts.append(item)
    for alias, item in zip(changed, parts[1:], strict=True):
        ctx.env[alias] = item
    return parts[0]


def _lower_state(ctx: Lowering, node: fx.Node, buffer: str) -> None:
    """Drop a call that writes into a parameter or buffer, if no result depends on it.

    Raises
    ------
    ConversionError
        If a result depends on what the call wrote.
    """
    if ctx.aliases.matters(node):
        raise ConversionError(
            f"forward writes into {buffer!r} and computes with it, but a converted network keeps "
            "no state between calls; pass the changing tensor in as an argument and return it, or "
            "compute it before conversion"
        )
    ctx.graph.notes.append(f"forward's write into {buffer!r} is left out: no result depends on it")


def lower(captured: Captured) -> Graph:
    """Lower a captured graph.

    Returns
    -------
    Graph
        It still holds ``act_quant`` and ``ternary`` nodes; the passes replace them.

    Raises
    ------
    ConversionError
        If an operation writes into memory in a way that no function can express.
    """
    ctx = _lower(captured, frozenset())
    if ctx.folding.needs_leading_sizes and _reads_a_size(ctx.graph):
        captured.leading_sizes = leading_sizes(captured)
        if captured.leading_sizes:
            ctx = _lower(captured, frozenset())
    return ctx.graph


def _reads_a_size(graph: Graph) -> bool:
    """Whether a value that the outputs depend on comes from a size that torch reads."""
    index = graph.index()
    rest = [ref.name for ref in refs(graph.outputs)]
    found: set[str] = set()
    while rest:
        name = rest.pop()
        if name not in found:
            found.add(name)
            rest += index[name].inputs
    return any(
        index[name].op == "torch" and index[name].attrs["target"] in _SIZES for name in found
    )


def _lower(captured: Captured, not_composed: frozenset[fx.Node]) -> Lowering:
    """Lower a captured graph without composing some of its calls."""
    ctx = Lowering(captured, not_composed)
    # torch.fx renames an argument such as "input"; the model's name is in the messages.
    given = [argument.name for argument in captured.arguments if argument.tensor]
    names = dict(zip(captured.inputs, given, strict=len(given) == len(captured.inputs)))
    for node in captured.graph.nodes:
        ctx.node = node
        if node.op == "placeholder":
            if node.name in captured.inputs:
                seen = ctx.seen(node)
                ctx.layer = ""
                fixed = [dim for dim in captured.fixed if dim < len(seen.shape)]
                attrs: dict[str, Any] = {"fixed": fixed}
                if captured.batch is not None:
                    high = NO_LIMIT if captured.batch.max is None else captured.batch.max
                    attrs["batch"] = [captured.batch.min, high, captured.batch.multiple]
                dtype = str(seen.dtype).removeprefix("torch.")
                name = names.get(node.name, node.name)
                ctx.env[node] = ctx.emit("input", [], attrs, dtype=dtype, name=name)
                ctx.inputs[node] = ctx.env[node].name
            else:
                ctx.env[node] = None
        elif node.op == "output":
            for read in node.all_input_nodes:
                ctx.node = read
                fold(ctx, read)
            break
        elif getattr(node.target, "__name__", "") in _ASSERTIONS or node.target == "_guards_fn":
            continue
        # A value that depends only on sizes becomes a constant when something else first reads it.
        elif not (ctx.folding.compute(node) and is_folded(ctx, node)):
            for read in node.all_input_nodes:
                fold(ctx, read)
            ctx.env[node] = _lower_call(ctx, node)
    ctx.graph.outputs = fill(
        captured.outputs, lambda leaf: ctx.env[leaf] if isinstance(leaf, fx.Node) else leaf
    )
    for name in ctx.aliases.inputs_written():
        ctx.graph.notes.append(
            f"forward writes into its argument {name!r}; the network does not change the caller's "
            "tensor"
        )
    if view_name := ctx.aliases.depends_on_sizes(ctx.folding.values):
        fix_input_sizes(
            ctx.graph,
            f"forward writes into {view_name!r}, and its size decides whether it is a view",
        )
    if captured.asks_format or ctx.writes or view_name:
        fix_input_formats(ctx)
    if strided := keep_strides(ctx.graph, ctx.layouts(), ctx.composed):
        return _lower(captured, not_composed | {ctx.composed[name] for name in strided})
    set_channel_dims(ctx.graph)
    fix_sizes_of(ctx.graph, ctx.size_limits)
    return ctx
