"""The converted network: runs a graph, segment by segment."""

from __future__ import annotations

import copy
import inspect
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fatnn_rs.convert.engine import FLOAT_LAYERS, Reason, Segment, partition
from fatnn_rs.convert.graph import Graph, Node, Ref
from fatnn_rs.convert.inference_module import InferenceModule
from fatnn_rs.convert.inputs import check_call, check_input, refuse_tracing
from fatnn_rs.convert.memory_format import in_layout
from fatnn_rs.convert.network_op import (
    ExportableNetwork,
    file_bytes,
    fill_outputs,
    network_of_bytes,
    output_names,
    register,
)
from fatnn_rs.convert.plan import ExecutionStep, Observer, dry_run, observe_segment, plan_of
from fatnn_rs.convert.profile import Timer, measure
from fatnn_rs.convert.report import Report, make_report
from fatnn_rs.convert.structure import fill
from fatnn_rs.errors import ConfigError, UnsupportedError
from fatnn_rs.overview import Profile
from fatnn_rs.signature import Argument, bind_call

__all__ = ["TernaryNetwork"]

#: Attributes that are derived from the graph, and are not pickled.
_DERIVED = (
    *("_parts", "_why", "_single", "_single_lock", "_inputs"),
    *("_arguments", "_plain", "_simple", "_constants", "_in_engine", "key"),
)


def _no_reference() -> None:
    """Return no model."""


class TernaryNetwork(InferenceModule):
    """An inference-only network, made by :func:`fatnn_rs.convert` or :func:`fatnn_rs.load`.

    Ternary layers and the operations between them run in Rust, one call per
    :class:`~fatnn_rs.convert.engine.Segment`. Call it with the original model's arguments. It has
    no parameters and no training mode, and runs on the CPU.

    Parameters
    ----------
    graph
        The graph to run. Its nodes and tensors are not changed. Weights are packed here for this
        CPU's kernels.
    float_layers
        What runs float convolutions, linear layers and means. ``"torch"`` gives the eager model's
        bits. ``"rust"`` needs fewer calls, usually one for the whole network, but sums may differ
        in the last place.
    family
        Kernel family of integer products, for benchmarks: ``"popcount"``, ``"matrix"``,
        ``"table"`` or ``"dot"``. By default the engine chooses.

    Raises
    ------
    ConfigError
        If ``float_layers`` is neither ``"torch"`` nor ``"rust"``.
    UnsupportedError
        If ``family`` has no kernel on this CPU for a product of the network.
    InputError
        In calls: if the number, dtype, device, rank or channels of inputs are wrong, or if a
        quantizer reads NaN.
    """

    def __init__(
        self, graph: Graph, float_layers: str = "torch", family: str | None = None
    ) -> None:
        super().__init__()
        if not isinstance(float_layers, str) or float_layers not in FLOAT_LAYERS:
            raise ConfigError(
                f"float_layers must be one of {', '.join(map(repr, FLOAT_LAYERS))}, got "
                f"{float_layers!r}"
            )
        self.graph = graph
        self.float_layers = float_layers
        self.family = family
        #: Output value → its memory format, for a network that replaces a submodule.
        self.output_layouts: dict[str, str] = {}
        self.training = False
        self._excluded: frozenset[str] = frozenset()
        self._profile: Profile | None = None
        self._reference: Callable[[], nn.Module | None] = _no_reference
        self._prepare()

    def _prepare(self) -> None:
        graph = self.graph
        self._inputs = [node for node in graph.nodes if node.op == "input"]
        self.take_arguments(graph.arguments)
        constants = [
            graph.tensors[name]
            for n in graph.nodes
            if n.op == "constant"
            for name in n.tensors.values()
        ]
        self._constants = {tensor.untyped_storage().data_ptr() for tensor in constants}
        self._why: dict[str, Reason] = {}
        parts = partition(graph, self.float_layers, self._excluded, self.family, self._why)
        self._parts = plan_of(graph, parts)
        #: Whether no step runs in torch, and so depends on its modes.
        self._in_engine = all(isinstance(part.what, Segment) for part in self._parts)
        self._single: list[ExecutionStep] | None = None
        self._single_lock = threading.Lock()
        self.key = uuid.uuid4().hex
        register(self, self.key)

    def take_arguments(self, arguments: tuple[Argument, ...]) -> None:
        """Bind later calls to these arguments of the model; without any, to one per input."""
        self.graph.arguments = arguments
        self._arguments = arguments or tuple(Argument(node.name) for node in self._inputs)
        #: Whether the arguments of a call without keywords are its tensors.
        self._plain = all(a.tensor and a.positional and not a.sizes for a in self._arguments)
        self._simple = self._plain and isinstance(self.graph.outputs, Ref)

    @property
    def call_arguments(self) -> tuple[Argument, ...]:
        """The arguments that calls are bound to; without a description, one per input."""
        return self._arguments

    def _unfused_plan(self) -> list[ExecutionStep]:
        """Return a plan with every node on its own, for observers that need every value.

        It is made at the first use, because it packs the weights a second time.
        """
        with self._single_lock:
            if self._single is None:
                bound = {
                    part.what.name: part.run for part in self._parts if isinstance(part.what, Node)
                }
                nodes: list[Node | Segment] = [
                    node for node in self.graph.nodes if node.op != "input"
                ]
                self._single = plan_of(self.graph, nodes, bound)
            return self._single

    @torch.no_grad()
    def dry_run(self, inputs: tuple[Any, ...]) -> Any:
        """Run on the example. Segments that fail or give wrong shapes then run node by node.

        Parameters
        ----------
        inputs
            The example inputs with which the graph was captured.

        Returns
        -------
        Any
            The network's outputs for them.

        Raises
        ------
        InputError
            If a node refuses the inputs on its own, too (a quantizer that reads NaN).
        """
        values = self._bind_inputs(inputs, {})
        excluded = dry_run(self.graph, self._parts, values)
        if not excluded:
            return self._outputs(values)
        self._excluded |= excluded
        self._prepare()
        return self(*inputs)

    def keep_buffers(self, keep: bool) -> None:
        """Set whether buffers are kept for later runs with the same shapes."""
        for segment in self.segments:
            segment.keeps_buffers = keep
            if not keep:
                segment.network.drop_buffers()

    def reference(self) -> nn.Module:
        """Return the torch module that computes exactly what this network does.

        With ``convert(..., values="int8")`` it is what :func:`fatnn_rs.quantize_values` returned,
        otherwise the model that was converted: the module itself, not a copy, and only as long as
        something else keeps it.

        Raises
        ------
        ConfigError
            If the network was loaded or copied, or if the model does not exist any more.
        """
        model = self._reference()
        if model is None:
            raise ConfigError(
                "this network has no reference: it was loaded, copied or converted from a part of "
                "a model, or nothing keeps the model; keep the model that was converted"
            )
        return model

    def set_reference(self, model: nn.Module, keep: bool) -> None:
        """Set what :meth:`reference` returns, and whether the network keeps it in memory."""
        self._reference = (lambda: model) if keep else weakref.ref(model)

    @property
    def segments(self) -> list[Segment]:
        """The segments; each runs in one call of the engine."""
        return [part.what for part in self._parts if isinstance(part.what, Segment)]

    @property
    def report(self) -> Report:
        """Where each node runs, and why: one row per node. Print it."""
        parts = [part.what for part in self._parts]
        return make_report(self.graph, parts, self._why, self._profile)

    def profile(
        self, *inputs: Any, rounds: int = 5, float_layers: bool = False, timer: Timer | None = None
    ) -> Report:
        """Time every ternary and int8 layer, and torch's float32 layer of the same sizes.

        The two run in turns, with torch's number of threads. A layer's time includes what is
        fused into it. torch's time is that of the convolution or linear layer with bias.

        Parameters
        ----------
        *inputs
            The model's arguments, with the example's shapes.
        rounds
            Number of timed runs of each.
        float_layers
            Whether to also time the network with ``float_layers="rust"``. This packs the weights
            again.
        timer
            The clock that measures times; the system clock by default.

        Returns
        -------
        Report
            :attr:`report`, which now holds the profile.

        Raises
        ------
        InputError, ConfigError
            If inputs have other shapes than the example's, or ``rounds`` is less than 1.
        """
        self._profile = measure(self, inputs, rounds, float_layers, timer or Timer())
        return self.report

    @torch.no_grad()
    def node_seconds(self, *inputs: Any) -> dict[str, float]:
        """Run the network and return the seconds of each node, by name.

        A node that is fused into another one (an elementwise function, a pooling, a shortcut's
        convolution) has no time of its own.
        """
        values = self._bind_inputs(inputs, {})
        seconds: dict[str, float] = {}
        for part in self._parts:
            arguments = [values[name] for name in part.reads]
            if isinstance(part.what, Segment):
                results, seen = part.what.observed(*arguments)
                seconds.update(
                    {name: nanoseconds * 1e-9 for name, (nanoseconds, _) in seen.items()}
                )
            else:
                before = time.perf_counter()
                results = part.run(*arguments)
                seconds[part.what.name] = time.perf_counter() - before
            values.update(zip(part.makes, results, strict=True))
        return seconds

    def check(self, tensors: Sequence[Any]) -> None:
        """Check one tensor per input.

        Raises
        ------
        InputError
            If a call with these tensors would raise it.
        """
        for node, tensor in zip(self._inputs, tensors, strict=True):
            check_input(node, tensor)
        check_call(self._inputs, tensors)

    def _bind_inputs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the input tensors of a call, by the names of the inputs."""
        tensors = self._tensors(args, kwargs)
        refuse_tracing(tensors)
        self.check(tensors)
        return dict(zip((node.name for node in self._inputs), tensors, strict=True))

    def _tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return the values given for inputs, in order."""
        if self._plain and not kwargs and len(args) == len(self._inputs):
            return list(args)  # saves a microsecond, and a traced call the guards of bind_call
        return bind_call(self._arguments, args, kwargs)

    def run_as_op(self, args: Sequence[Any], kwargs: Mapping[str, Any], file: Tensor | None) -> Any:
        """Run as one operator: see :mod:`fatnn_rs.convert.network_op`."""
        key = self.key if file is None else f"{self.float_layers}:{self.key}"
        results = torch.ops.fatnn_rs.network(file, self._tensors(args, kwargs), key)
        return results[0] if self._simple else fill_outputs(self.graph, results)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network.

        Parameters
        ----------
        *args, **kwargs
            The original model's arguments. Arguments that are not tensors must have the values
            that they had at conversion.

        Returns
        -------
        Any
            The original model's outputs.
        """
        if torch.compiler.is_dynamo_compiling():
            with torch.no_grad():
                return self.run_as_op(args, kwargs, None)
        values = self._bind_inputs(args, kwargs)
        self._run(values, self._parts, None)
        with nullcontext() if self._in_engine and not self.output_layouts else torch.no_grad():
            return self._outputs(values)

    @torch.no_grad()
    def run_tensors(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run on checked input tensors; return each output tensor once, in a flat list."""
        values = dict(zip((node.name for node in self._inputs), inputs, strict=True))
        self._run(values, self._parts, None)
        return [self._output(values, Ref(name)) for name in output_names(self.graph)]

    def exportable(self) -> ExportableNetwork:
        """Return a module around this network that ``torch.export`` takes.

        Raises
        ------
        UnsupportedError
            If nodes run Python code of the model, which an exported program cannot hold.
        """
        return ExportableNetwork(self)

    @torch.no_grad()
    def run_observed(
        self,
        inputs: tuple[Any, ...],
        observer: Observer | None,
        as_run: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run, and call ``observer`` with every node, its result and the values that it read.

        With ``as_run`` the network runs in segments, as in a normal call. The observer then gets
        the codes of that run, and None for floats inside a segment. Otherwise nodes run one by one
        and the observer gets every value.
        """
        if not isinstance(inputs, (tuple, list)) or not (observer is None or callable(observer)):
            raise ConfigError("run_observed takes a tuple of arguments, and a function or None")
        values = self._bind_inputs(inputs, kwargs or {})
        self._run(values, self._parts if as_run else self._unfused_plan(), observer)
        return self._outputs(values)

    def _run(
        self, values: dict[str, Any], parts: list[ExecutionStep], observer: Observer | None
    ) -> None:
        """Run the steps, with ``values`` by name as their inputs and results."""
        if observer is None and parts is self._parts and self._in_engine:
            return self._run_steps(values, parts, None)
        # Autocast would give bfloat16 to layers that the eager model ran in float32.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return self._run_steps(values, parts, observer)

    def _run_steps(
        self, values: dict[str, Any], parts: list[ExecutionStep], observer: Observer | None
    ) -> None:
        for part in parts:
            arguments = [values[name] for name in part.reads]
            if observer is None:
                results = part.run(*arguments)
            elif isinstance(part.what, Segment):
                results = observe_segment(part.what, arguments, observer)
            else:
                results = part.run(*arguments)
                observer(part.what, results[0], arguments)
            values.update(zip(part.makes, results, strict=True))
            for name in part.drops:
                del values[name]

    def _outputs(self, values: dict[str, Any]) -> Any:
        """Return what the model returns, from ``values`` by name."""
        return fill(self.graph.outputs, lambda leaf: self._output(values, leaf), build=True)

    def _output(self, values: dict[str, Any], leaf: Any) -> Any:
        """Return an output; a constant is copied, because callers may write into it."""
        value = values[leaf.name] if isinstance(leaf, Ref) else leaf
        if self.output_layouts and isinstance(leaf, Ref):
            value = in_layout(value, self.output_layouts[leaf.name])
        if not self._constants or not isinstance(value, Tensor):
            return value
        return value.clone() if value.untyped_storage().data_ptr() in self._constants else value

    def __deepcopy__(self, memo: dict[int, Any]) -> TernaryNetwork:
        made: TernaryNetwork = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as the bytes of its file, which ``torch.load(weights_only=True)`` accepts.

        A network that cannot be saved is pickled with its graph and the model's functions.
        """
        if self.output_layouts:  # a file does not hold these
            return super().__reduce_ex__(protocol)
        try:
            file = file_bytes(self)
        except UnsupportedError:
            return super().__reduce_ex__(protocol)
        return network_of_bytes, (file, self.float_layers, self.graph.limits)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        for name in _DERIVED:
            del state[name]
        state["_reference"] = _no_reference
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def extra_repr(self) -> str:
        """Show counts of nodes, for ``print(net)``."""
        report = self.report
        return (
            f"{report.layers_ternary} ternary layers, {len(self.graph.nodes)} nodes, "
            f"{report.bytes_packed} bytes packed"
        )


def _signature_for_fx(self: TernaryNetwork, x: Any) -> None:
    """Signature of ``forward`` for torch.fx, which then calls it and gets a clear error."""


TernaryNetwork.forward.__wrapped__ = _signature_for_fx  # type: ignore[attr-defined]
TernaryNetwork.forward.__signature__ = inspect.signature(lambda self, *args, **kwargs: None)  # type: ignore[attr-defined]
