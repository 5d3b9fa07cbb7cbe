"""Operations that write into their arguments, as functions.

Values of our graph are immutable, so a node that writes becomes a function. The function copies the
memory that the node writes into, makes the views that later nodes read, writes, and returns all of
them. :mod:`fatnn_rs.convert.record` ran the captured graph and recorded which values share memory
and which nodes write.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fatnn_rs.convert.record import TensorMeta
from fatnn_rs.errors import ConversionError

__all__ = ["Aliases", "Rewritten", "first", "is_slot"]


#: Functions and methods that return a view or a copy, depending on sizes and strides.
_VIEW_OR_COPY = frozenset(
    {
        "contiguous",
        "reshape",
        "reshape_as",
        "flatten",
        "ravel",
        "expand_copy",
    }
)

#: Conversions, which return their input if it has the type already: sizes decide only with a memory
#: format.
_CONVERSIONS = frozenset({"to", "type", "type_as", "float"})


@dataclass(frozen=True)
class _Slot:
    """A placeholder, in the arguments of a call, for the result of an earlier call."""

    index: int


def _slot(index: int) -> Any:
    return _Slot(index)


def is_slot(value: Any) -> bool:
    """Whether a step's argument is the result of an earlier one; ``value.index`` is its slot."""
    return isinstance(value, _Slot)


class Rewritten:
    """A function that replaces a node that writes; it changes none of its arguments.

    It takes the written tensors (``bases``) and the node's other arguments. It returns a list: the
    node's own result, then every requested value after the write.

    Attributes
    ----------
    steps
        Function, arguments and keywords of every call; the last one writes.
    results
        Slots of the returned values: arguments first, then the results of the steps.
    """

    def __init__(
        self, bases: int, steps: list[tuple[Callable[..., Any], Any, Any]], results: list[int]
    ) -> None:
        self._bases, self.steps, self.results = bases, steps, results

    def __call__(self, *values: Any) -> list[Any]:
        """Run the calls on copies of the bases."""
        slots = [_copied(value) if i < self._bases else value for i, value in enumerate(values)]
        for function, args, kwargs in self.steps:
            args, kwargs = fx.node.map_aggregate(
                (args, kwargs), lambda leaf: slots[leaf.index] if isinstance(leaf, _Slot) else leaf
            )
            slots.append(function(*args, **kwargs))
        return [slots[index] for index in self.results]


def _copied(value: Any) -> Any:
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, value)


class Aliases:
    """Which nodes of a captured graph share memory; updated while the graph is lowered.

    Parameters
    ----------
    graph
        The captured graph.
    seen
        The metadata recorded for its nodes.
    call
        Returns the function that a node calls. The function must not refer to the user's model.
    """

    def __init__(
        self,
        graph: fx.Graph,
        seen: dict[fx.Node, TensorMeta],
        call: Callable[[fx.Node], Callable[..., Any]],
    ) -> None:
        self._seen, self._call = seen, call
        self._nodes = list(graph.nodes)
        #: Memory number → the node from whose current value all values in that memory can be made.
        self._bases: dict[int, fx.Node] = {}
        for node in self._nodes:
            for number in seen[node].memory if node in seen else ():
                self._bases.setdefault(number, node)

    def sharing(self, number: int, before: fx.Node) -> list[fx.Node]:
        """Nodes before ``before`` in that memory that ``before`` or a later node reads."""
        return [
            node
            for node in self._nodes[: self._nodes.index(before)]
            if node in self._seen
            and number in self._seen[node].memory
            and any(not u < before for u in node.users)
        ]

    def read_after(self, number: int, writer: fx.Node) -> list[fx.Node]:
        """Nodes before ``writer`` in that memory that a node after it reads."""
        return [n for n in self.sharing(number, writer) if any(writer < user for user in n.users)]

    def replaced_argument(self, writer: fx.Node) -> fx.Node | None:
        """Return the argument that ``writer`` replaces completely; None if it does anything else.

        A complete replacement returns the object that it writes into, and every later reader of
        that memory reads the same elements in the same order.
        """
        seen = self._seen[writer]
        target = seen.same_as
        if (
            target is None
            or seen.reshapes
            or len(seen.writes) != 1
            or self._seen[target].memory != seen.writes
        ):
            return None
        (number,) = seen.writes
        geometry = self._seen[target].geometry
        same = all(
            self._seen[node].geometry == geometry for node in self.read_after(number, writer)
        )
        constant = self._bases[number].op == "get_attr"
        return target if geometry and same and not constant else None

    def replaced(self, writer: fx.Node) -> None:
        """Record that all values in the writer's memory are now made from its result."""
        for number in self._seen[writer].writes:
            self._bases[number] = writer

    def rewrite(self, writer: fx.Node) -> tuple[Rewritten, list[fx.Node], list[fx.Node]]:
        """Make the function that replaces a writer.

        Returns
        -------
        tuple
            The function, the nodes whose values it takes, and the nodes whose new values it
            returns after the writer's own result.

        Raises
        ------
        ConversionError
            If no such function exists.
        """
        seen = self._seen[writer]
        if seen.reshapes:
            raise _refusal(writer, "changes the shape or the memory of a tensor in place")
        bases = list(dict.fromkeys(self._bases[number] for number in sorted(seen.writes)))
        if any(self._seen[base].overlaps for base in bases):
            raise _refusal(writer, "writes into one of several results that share their memory")
        wanted = [n for number in sorted(seen.writes) for n in self.read_after(number, writer)]
        wanted = list(dict.fromkeys((*bases, *wanted)))
        inputs, order = list(bases), list[fx.Node]()
        for node in (*wanted, *writer.all_input_nodes):
            self._collect(node, writer, bases, inputs, order)
        slots = {node: index for index, node in enumerate((*inputs, *order, writer))}
        for node in (
            *wanted,
            *order,
            *writer.all_input_nodes,
            *(s for n in order for s in self._sources(n)),
        ):
            equal = self._same_base(node, bases)
            if node not in slots and equal is not None:
                slots[node] = slots[equal]
        steps: list[tuple[Callable[..., Any], Any, Any]] = []
        for node in (*order, writer):
            same = self._seen[node].same_as
            if node is not writer and self._seen[node].writes and same is not None:
                # This writer was rewritten before; its result is its argument.
                steps.append((first, (_Slot(slots[same]),), {}))
                continue
            filled: Any = fx.node.map_arg((node.args, node.kwargs), lambda n: _slot(slots[n]))
            args, kwargs = filled
            steps.append((self._call(node), args, kwargs))
        return (
            Rewritten(len(bases), steps, [slots[writer], *(slots[n] for n in wanted)]),
            inputs,
            wanted,
        )

    def _same_base(self, node: fx.Node, bases: list[fx.Node]) -> fx.Node | None:
        """Return the base with the same memory and geometry as the node's value, if any."""
        seen = self._seen[node]
        same = (b for b in bases if seen.geometry and seen.geometry == self._seen[b].geometry)
        return next((b for b in same if self._seen[b].memory == seen.memory), None)

    def _collect(
        self,
        node: fx.Node,
        writer: fx.Node,
        bases: list[fx.Node],
        inputs: list[fx.Node],
        order: list[fx.Node],
    ) -> None:
        """Collect the values (``inputs``) and calls (``order``) that make a node's value."""
        if node in inputs or node in order or self._same_base(node, bases) is not None:
            return
        shared = self._seen[node].memory & self._seen[writer].writes
        if not shared:
            inputs.append(node)
            return
        if node.op in ("placeholder", "get_attr") or not node.all_input_nodes:
            raise _refusal(
                writer, f"writes into memory that {node.name!r} shares with another value"
            )
        if self._seen[node].writes and self._seen[node].same_as is None:
            raise _refusal(writer, f"writes into a view that {node.name!r} made while it wrote")
        for source in self._sources(node):
            self._collect(source, writer, bases, inputs, order)
        order.append(node)

    def _sources(self, node: fx.Node) -> Iterator[fx.Node]:
        same = self._seen[node].same_as
        if self._seen[node].writes and same is not None:
            yield same
        else:
            yield from node.all_input_nodes

    def inputs_written(self) -> list[str]:
        """Names of the model's arguments whose memory some node writes."""
        written = frozenset[int]().union(*(seen.writes for seen in self._seen.values()))
        return [
            n.name
            for n in self._nodes
            if n.op == "placeholder" and n in self._seen and self._seen[n].memory & written
        ]

    def depends_on_sizes(self, computed: Container[fx.Node] = ()) -> str:
        """Name of a view at some sizes and copy at others whose memory a later node writes, or "".

        Nodes that are ``computed`` already do not count.
        """
        written = frozenset[int]()
        for node in reversed(self._nodes):
            name = (
                node.target
                if isinstance(node.target, str)
                else getattr(node.target, "__name__", "")
            )
            name = str(name).split(".")[0]
            formatted = name in _CONVERSIONS and node.kwargs.get("memory_format") is not None
            if (name in _VIEW_OR_COPY or formatted) and node not in computed:
                memory = self._seen[node].memory.union(
                    *(self._seen[n].memory for n in node.all_input_nodes)
                )
                if memory & written:
                    return str(node.name)
            if node in self._seen:
                written |= self._seen[node].writes
        return ""

    def constant_written(self, writer: fx.Node) -> str:
        """Name of the parameter or buffer that a node writes into, or empty."""
        for number in self._seen[writer].writes:
            if self._bases[number].op == "get_attr":
                return str(self._bases[number].target)
        return ""

    def matters(self, writer: fx.Node) -> bool:
        """Whether any output of the graph depends on the memory that a node writes."""
        written = self._seen[writer].writes
        needed: set[fx.Node] = set()
        for node in reversed(self._nodes):
            seen = self._seen.get(node)
            writes = frozenset() if seen is None else seen.writes
            if (
                node.op == "output"
                or (writes and not writes <= written)
                or (node in needed and not writes)
            ):
                needed.update(node.all_input_nodes)
        return any(n in self._seen and self._seen[n].memory & written for n in needed)


def first(value: Any) -> Any:
    """Return the argument: the result of a writer that was rewritten before."""
    return value


def _refusal(writer: fx.Node, why: str) -> ConversionError:
    return ConversionError(
        f"{writer.format_node()}: {why}, which a converted network cannot do; use the operation "
        "that returns a new tensor"
    )
