"""``quantize_values``: round the values between a prepared model's layers to eight bits."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fatnn_rs.convert.arguments import flatten_arguments
from fatnn_rs.convert.capture import Captured, SizeRange, capture, copies
from fatnn_rs.convert.checks import as_root, check_inputs, check_model, check_reached
from fatnn_rs.convert.input_sizes import InputSizes
from fatnn_rs.convert.int8_function import Int8Function
from fatnn_rs.convert.lower import lower
from fatnn_rs.convert.lower.lowering import attribute_of
from fatnn_rs.convert.scalar import SCALARS
from fatnn_rs.convert.structure import Container, fill, same_values
from fatnn_rs.convert.value_places import Places, find_places
from fatnn_rs.errors import ConfigError, ConversionError
from fatnn_rs.nn.exact_mean import ExactMean
from fatnn_rs.nn.layers import held_weights
from fatnn_rs.quant.values import Int8Value
from fatnn_rs.replica import replica, unwrapped
from fatnn_rs.threads import one_thread

__all__ = ["quantize_values"]


@torch.no_grad()
def quantize_values(
    model: nn.Module, example_inputs: Any, *, calibration: Iterable[Any] | None = None
) -> fx.GraphModule:
    """Round the values between a prepared model's layers to eight bits, with learned steps.

    The model is captured as for :func:`fatnn_rs.convert`. Wherever a value is read by anything
    other than quantized layers (the sums of a residual, what a pool, a ``cat`` or a SiLU reads), an
    :class:`~fatnn_rs.quant.values.Int8Value` rounds it. Means of such values are summed in float64.
    Inputs, outputs, and what softmax and the products of attention read stay float.

    The result computes exactly what the converted network computes. Train it, or convert it as it
    is.

    Parameters
    ----------
    model
        A prepared model with initialised steps. It is not changed and shares no memory with the
        result. Only tensors may be its arguments.
    example_inputs
        One batch of *real* data, as for :func:`fatnn_rs.convert`. It initialises the steps.
    calibration
        More batches to initialise the steps from, in the form of ``example_inputs``.

    Returns
    -------
    torch.fx.GraphModule
        A module with the model's arguments, results, mode, and names of parameters and buffers.
        Modules that forward does not call in eval mode are left out. Code of forward that depends
        on ``self.training``, such as a functional dropout, does what it does in eval mode.

    Raises
    ------
    ConversionError
        If the model cannot be captured, has no quantized layer, has arguments that are not tensors,
        or returns containers other than tuples, lists and dicts.
    ConfigError
        If the model's values are quantized already.
    InputError
        If the model does not take the inputs, or if NaN or infinity reaches a value.
    """
    model = unwrapped(model)
    if isinstance(model, nn.Module) and any(isinstance(m, Int8Value) for m in model.modules()):
        raise ConfigError(
            "the values of this model are quantized already; train or convert it as it is"
        )
    evaluated = replica(model).eval() if isinstance(model, nn.Module) else model
    check_model(evaluated)
    arguments, named = check_inputs("example_inputs", example_inputs, evaluated)
    batches = _more_batches(calibration, evaluated)
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        made = _with_int8_values(as_root(evaluated), arguments, named)
        _initialize(made, batches)
    return made.train(model.training)


def _more_batches(calibration: Iterable[Any] | None, model: nn.Module) -> list[tuple[Any, ...]]:
    if calibration is None:
        return []
    if isinstance(calibration, (Tensor, Mapping)) or not isinstance(calibration, Iterable):
        raise ConfigError(
            "calibration: expected an iterable of batches, each in the form of example_inputs, got "
            f"{type(calibration).__name__}; write [batch]"
        )
    return [check_inputs("calibration", batch, model)[0] for batch in calibration]


def _with_int8_values(
    model: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> fx.GraphModule:
    name = type(model).__name__
    if flatten_arguments(model, arguments, named)[2] is not None or not all(
        isinstance(value, (Tensor, type(None))) for value in arguments
    ):
        raise ConversionError(
            f"{name} takes arguments that are not tensors, which quantize_values cannot give to "
            "the module it returns; wrap the model in a module that takes only tensors, by position"
        )
    with held_weights(model), one_thread():
        captured = capture(model, arguments)
        check_reached(captured.graph, model)
        graph = lower(captured)
    if _has_containers(captured.outputs):
        raise ConversionError(
            f"{name} returns a {type(captured.expected).__name__}, which quantize_values cannot "
            "make; wrap the model in a module that returns tensors, tuples, lists or dicts"
        )
    shared = _written_through_views(captured)
    known = {
        node.name
        for node in captured.graph.nodes
        if captured.seen[node].dtype == torch.float32
        and node.op not in ("placeholder", "get_attr")
        and not captured.seen[node].memory & shared
    }
    editor = _Editor(captured)
    editor.insert(find_places(graph, known & _depends_on_inputs(captured)))
    made = editor.module(name)
    # Values are recorded, and not rounded yet.
    if problem := same_values(_run(made, arguments), captured.expected, 0.01):
        raise ConversionError(
            f"{name}: its captured graph gives another result than the model ({problem})"
        )
    return made


def _has_containers(structure: Any) -> bool:
    if isinstance(structure, dict):
        return any(map(_has_containers, structure.values()))
    if isinstance(structure, (tuple, list)):
        return any(map(_has_containers, structure))
    return isinstance(structure, Container)


def _depends_on_inputs(captured: Captured) -> set[str]:
    found: set[str] = set(captured.inputs)
    for node in captured.graph.nodes:
        if any(read.name in found for read in node.all_input_nodes):
            found.add(node.name)
    return found


def _written_through_views(captured: Captured) -> set[int]:
    """Return the memory blocks that are written while views of them are read later.

    Their values are not rounded: a rounded copy would not see the write.
    """
    found: set[int] = set()
    order = {node: i for i, node in enumerate(captured.graph.nodes)}
    for writer in captured.graph.nodes:
        seen = captured.seen[writer]
        whole = None if seen.same_as is None else captured.seen[seen.same_as].geometry
        for node in captured.graph.nodes if seen.writes else ():
            other = captured.seen[node]
            written = other.memory & seen.writes
            read_later = any(order[user] > order[writer] for user in node.users)
            if written and order[node] < order[writer] and other.geometry != whole and read_later:
                found |= written
    return found


def _int8_values(module: nn.Module) -> dict[str, Int8Value]:
    return {name: m for name, m in module.named_modules() if isinstance(m, Int8Value)}


def _run(module: fx.GraphModule, arguments: tuple[Any, ...]) -> Any:
    return module(*(value for value in copies(arguments) if isinstance(value, Tensor)))


def _initialize(module: fx.GraphModule, batches: list[tuple[Any, ...]]) -> None:
    """Fit the steps to the values that were recorded, and to those of more batches."""
    values = _int8_values(module)
    for batch in batches:
        _run(module, batch)
    for name, value in values.items():
        value.layer_name, recorded = name, value.recorded
        value.recorded = None
        value.calibrating = True
        try:
            value.initialize(torch.cat(recorded or [torch.zeros(1)]))
        finally:
            value.calibrating = False


class _Editor:
    """Turns a captured graph into a module of its own."""

    def __init__(self, captured: Captured) -> None:
        self._captured, self._graph = captured, captured.graph
        self._nodes = {node.name: node for node in self._graph.nodes}
        self._added: dict[str, nn.Module] = {}
        self._replaced: dict[fx.Node, fx.Node] = {}
        self._read_after_writes()
        taken = {name.partition(".")[0] for name in captured.modules} | set(
            vars(captured.modules[""])
        )
        self._prefix = "int8_values"
        while self._prefix in taken:
            self._prefix += "_"

    def insert(self, places: Places) -> None:
        """Round the values of ``places``; make their means exact, and tables of functions."""
        for mean in places.means:
            node = self._nodes[mean.name]
            source = node.args[0] if node.args else node.kwargs["input"]
            module = ExactMean(list(mean.dims), mean.keepdim)
            with self._graph.inserting_before(node):
                made = self._call(f"means.{mean.name}", module, source)
            self._replace(node, made)
            self._nodes[mean.name] = made
        values: dict[str, Int8Value] = {}
        for group in places.groups:
            shared = Int8Value()
            values |= dict.fromkeys(group, shared)
            shared.recorded = []
            for name in group:
                node = self._nodes[name]
                with self._graph.inserting_after(node):
                    made = self._call(group[0], shared, node)
                node.replace_all_uses_with(
                    made, lambda user, made=made: user is not made and user.op != "output"
                )
        for function in places.functions:
            node = self._nodes[function.node.name]
            attrs = {name: function.node.attrs[name] for name in SCALARS[function.node.op].attrs}
            table = Int8Function(values[function.value], function.node.op, attrs)
            source = node.args[0] if node.args else node.kwargs["input"]
            with self._graph.inserting_before(node):
                made = self._call(f"functions.{function.node.name}", table, source)
            self._replace(node, made)

    def module(self, name: str) -> fx.GraphModule:
        """Return a module that shares nothing with the model."""
        self._remove_constant_arguments()
        self._limit_sizes()
        self._call_layers()
        self._graph.set_codegen(fx.graph.CodeGen())
        output = next(node for node in self._graph.nodes if node.op == "output")
        output.args = (fill(self._captured.outputs, lambda leaf: self._replaced.get(leaf, leaf)),)
        targets = {
            str(node.target): self._target(node)
            for node in self._graph.nodes
            if node.op in ("call_module", "get_attr")
        }
        made: fx.GraphModule = copy.deepcopy(fx.GraphModule(targets, self._graph, name))
        made.graph.lint()
        return made.eval()

    def _call(self, name: str, module: nn.Module, source: Any) -> fx.Node:
        target = f"{self._prefix}.{name}"
        self._added[target] = module
        # Not ``call_module``, which looks for the module in the captured one.
        return self._graph.create_node("call_module", target, (source,))

    def _replace(self, node: fx.Node, made: fx.Node) -> None:
        node.replace_all_uses_with(made)
        self._graph.erase_node(node)
        self._replaced[node] = made

    def _read_after_writes(self) -> None:
        """Let what reads a tensor after a write in place read the result of the write."""
        order = {node: i for i, node in enumerate(self._graph.nodes)}
        for node in list(self._graph.nodes):
            seen = self._captured.seen[node]
            if seen.writes and seen.same_as is not None:
                for user in list(seen.same_as.users):
                    if order[user] > order[node]:
                        user.replace_input_with(seen.same_as, node)

    def _remove_constant_arguments(self) -> None:
        """Remove arguments that are not tensors, and the checks that they equal the example's."""
        removed: list[fx.Node] = []
        for node in self._graph.nodes:
            constant = node.op == "placeholder" and node.name not in self._captured.inputs
            if constant or any(read in removed for read in node.all_input_nodes):
                removed.append(node)
        for node in reversed(removed):
            self._graph.erase_node(node)

    def _limit_sizes(self) -> None:
        """Let the module refuse the sizes that the capture is not for."""
        captured = self._captured
        batch = None if captured.batch == SizeRange() else captured.batch
        if batch is None and not captured.fixed:
            return
        for node in [n for n in self._graph.nodes if n.op == "placeholder"]:
            shape = captured.seen[node].shape
            fixed = {dim: shape[dim] for dim in captured.fixed if dim < len(shape)}
            with self._graph.inserting_after(node):
                made = self._call(f"sizes.{node.name}", InputSizes(node.name, fixed, batch), node)
            node.replace_all_uses_with(made, lambda user, made=made: user is not made)

    def _call_layers(self) -> None:
        """Replace the operators of a capture by ``torch.export`` by calls of the layers."""
        ops = torch.ops.fatnn_rs
        for node in list(self._graph.nodes):
            if node.target is ops.module_call.default:
                x, name, *rest = node.args
                args: tuple[Any, ...] = (x,)
                kwargs: dict[str, Any] = {} if all(rest) else {"add_bias": False}
            elif node.target is ops.attention_call.default:
                *qkv, padding, mask, weights, causal, name = node.args
                args, kwargs = (*qkv, padding, weights, mask), {"is_causal": causal}
            else:
                continue
            with self._graph.inserting_before(node):
                made = self._graph.create_node("call_module", str(name), args, kwargs)
            self._replace(node, made)

    def _target(self, node: fx.Node) -> Any:
        name = str(node.target)
        if node.op == "call_module":
            return self._added.get(name) or self._captured.modules[name]
        try:
            return attribute_of(self._captured.modules[""], name)
        except AttributeError:
            return attribute_of(self._captured.root, name)
