"""The graph between a captured model and a running network: plain data except for torch nodes.

A :class:`Graph` is a list of :class:`Node` in execution order. Every node makes one value, which
has the node's name. Tensors (weights, thresholds, statistics) are in one dictionary; a node refers
to them by role. A graph without ``torch`` nodes is JSON plus tensors: the content of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fatnn_rs.convert.memory_format import with_strides
from fatnn_rs.convert.structure import Container
from fatnn_rs.signature import Argument

__all__ = ["Dtype", "Graph", "Node", "NodeIndex", "Ref"]

#: Type of a value: "float32" or ``{"codes": "ternary", "channels": 64, "groups": 1}``. Inputs may
#: have any of torch's types.
Dtype = str | dict[str, Any]


@dataclass(frozen=True)
class Ref:
    """Stands for a value in the arguments of a torch node or in the outputs."""

    name: str


@dataclass
class Node:
    """One operation.

    Attributes
    ----------
    name
        Name of the node and of its value.
    op
        Row of :data:`fatnn_rs.convert.torch_ops.RUNTIME_OPS`, or an intermediate operation that the
        passes replace.
    inputs
        Names of the values it reads.
    attrs
        Numbers, strings and lists of them.
    tensors
        Role → name in :attr:`Graph.tensors`.
    layer
        Qualified name of its module; empty for functions.
    shape
        Shape of the value at the example inputs, in torch's order of dimensions.
    dtype
        Type of the value; meaningless for torch nodes.
    note
        Note for the report, such as why torch runs it.
    macs
        Multiply-accumulates of a torch node at the example inputs. Not saved.
    call
        The eager module, or a torch node's target. Not saved.
    arguments
        A torch node's ``(args, kwargs)`` with :class:`Ref` for values. Not saved.
    """

    name: str
    op: str
    inputs: list[str] = field(default_factory=list)
    attrs: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    layer: str = ""
    shape: tuple[int, ...] = ()
    dtype: Dtype = "float32"
    note: str = ""
    macs: int = 0
    call: Callable[..., Any] | None = None
    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    @property
    def codes(self) -> str:
        """Type of its codes: ``"ternary"``, ``"two-bit"`` or ``"binary"``; empty for floats."""
        return "" if isinstance(self.dtype, str) else str(self.dtype["codes"])


@dataclass
class Graph:
    """Nodes in order of execution, their tensors, and what goes in and out.

    Attributes
    ----------
    nodes
        The first ones have op ``"input"``.
    tensors
        CPU tensors: floats with the strides of the model, others contiguous.
    dtypes
        Name of a tensor → ``"binary"``, ``"ternary"`` or ``"two-bit"``, for int8 tensors that hold
        such weights. The type of every other tensor is its own.
    outputs
        The structure the model returns: tuples, lists, dicts, containers
        (:mod:`fatnn_rs.convert.structure`) and constants, with :class:`Ref` for values.
    arguments
        The model's arguments, to bind calls: see :class:`fatnn_rs.signature.Argument`.
    notes
        Remarks on the capture, for the report.
    limits
        ``max_bytes`` and ``max_macs`` as in :func:`fatnn_rs.load`; None for no limit.
    """

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    outputs: Any = None
    notes: list[str] = field(default_factory=list)
    arguments: tuple[Argument, ...] = ()
    limits: tuple[int | None, int | None] = (None, None)
    dtypes: dict[str, str] = field(default_factory=dict)

    def node(self, name: str) -> Node:
        """Return the node with that name."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def index(self) -> dict[str, Node]:
        """Name → node."""
        return {node.name: node for node in self.nodes}

    def fix_inputs(self, dims: slice) -> None:
        """Let every input have the example's sizes only, in these dimensions."""
        for node in self.nodes:
            if node.op == "input":
                chosen = range(len(node.shape))[dims]
                node.attrs["fixed"] = sorted({*node.attrs["fixed"], *chosen})

    def users(self) -> dict[str, list[Node | None]]:
        """Map a value to the nodes that read it, once per read; None means the outputs."""
        users: dict[str, list[Node | None]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                users[name].append(node)
        for ref in refs(self.outputs):
            users[ref.name].append(None)
        return users

    def tensor(self, node: Node, role: str) -> Tensor | None:
        """Return a node's tensor, or None if it has none in that role."""
        name = node.tensors.get(role)
        return None if name is None else self.tensors[name]

    def dtype(self, node: Node, role: str) -> str:
        """Return the type of a node's tensor, as the table of operations names it."""
        name = node.tensors[role]
        return self.dtypes.get(name) or str(self.tensors[name].dtype).removeprefix("torch.")

    def add_tensor(
        self, name: str, tensor: Tensor, dtype: str | None = None, own: bool = False
    ) -> str:
        """Keep a copy of a tensor under ``name``, or a numbered variant of it; return its name.

        ``dtype`` names the type of weights that are codes, as :attr:`dtypes` does. With ``own``
        the tensor belongs to the graph already and is kept itself. Copies of floats have the same
        strides, because the order of torch's additions depends on them.
        """
        free, number = name, 1
        while free in self.tensors:
            number += 1
            free = f"{name}.{number}"
        kept = tensor.detach()
        copied = None
        if not own and kept.is_floating_point():
            copied = with_strides(kept, kept.stride())
        if copied is None:
            copied = (kept if own else kept.clone()).contiguous()
        self.tensors[free] = copied
        if dtype is not None:
            self.dtypes[free] = dtype
        return free

    def fresh_name(self, name: str) -> str:
        """Return ``name``, or a numbered variant that no node has."""
        return unused_name(name, {node.name for node in self.nodes})

    def rename_value(self, old: str, new: str) -> None:
        """Make every reader of ``old`` read ``new``."""
        for node in self.nodes:
            node.inputs = [new if name == old else name for name in node.inputs]
            if node.arguments is not None:
                args, kwargs = map_refs(
                    node.arguments, lambda ref: Ref(new) if ref.name == old else ref
                )
                node.arguments = (args, kwargs)
        self.outputs = map_refs(self.outputs, lambda ref: Ref(new) if ref.name == old else ref)


class NodeIndex:
    """Name → node, of a graph that rows append nodes to, or take their last ones back from."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: list[Node] = []
        self._index: dict[str, Node] = {}

    def nodes(self) -> dict[str, Node]:
        """Return the index of the present nodes; do not change it."""
        nodes, known = self._graph.nodes, self._known
        while known and (len(known) > len(nodes) or known[-1] is not nodes[len(known) - 1]):
            del self._index[known.pop().name]
        for node in nodes[len(known) :]:
            known.append(node)
            self._index[node.name] = node
        return self._index


def unused_name(name: str, taken: Collection[str]) -> str:
    """Return ``name``, or a numbered variant that is not taken."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def refs(structure: Any) -> Iterator[Ref]:
    """Yield every :class:`Ref` in a nested structure, in order."""
    if isinstance(structure, Ref):
        yield structure
    elif isinstance(structure, dict):
        for value in structure.values():
            yield from refs(value)
    elif isinstance(structure, (list, tuple)):
        for value in structure:
            yield from refs(value)
    elif isinstance(structure, Container):
        yield from refs(structure.items)
    elif isinstance(structure, slice):
        yield from refs((structure.start, structure.stop, structure.step))


def map_refs(structure: Any, function: Callable[[Ref], Any]) -> Any:
    """Return the same structure with every :class:`Ref` replaced."""
    if isinstance(structure, Ref):
        return function(structure)
    if isinstance(structure, dict):
        return {key: map_refs(value, function) for key, value in structure.items()}
    if isinstance(structure, Container):
        return structure.with_items([map_refs(item, function) for item in structure.items])
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(map_refs(value, function) for value in structure))
    if isinstance(structure, (list, tuple)):
        # Immutable list classes come from torch.fx, not from the model.
        plain = tuple if isinstance(structure, tuple) else list
        return plain(map_refs(value, function) for value in structure)
    if isinstance(structure, slice):
        return slice(
            *(
                map_refs(value, function)
                for value in (structure.start, structure.stop, structure.step)
            )
        )
    return structure
