"""Where the values between layers are rounded to eight bits: rules on a lowered graph.

The engine runs a layer, its BatchNorm, its clamp, the addition of a residual and another clamp as
one operation, and a quantized layer rounds its input itself. So a value is rounded where such a
chain ends, and only if anything other than quantized layers reads it. Operations that only move
values do not count as readers: a value is rounded before a max-pool, a reshape or an upsampling.

Softmax and the products of attention read floats. What the network returns stays float, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.operations import OPERATIONS, form_of, products_of

__all__ = ["Function", "Mean", "Places", "find_places"]

#: Roles of operations in the rules.
#:
#: - clamp: piecewise linear, computed by the engine where it computes the layer before;
#: - floats: reads floats, so that what only such operations read stays float;
#: - arithmetic: belongs to attention if only operations of the role above read its result;
#: - view: changes no order in memory.
_ROLES: dict[str, tuple[str, ...]] = {
    "clamp": ("relu", "hardtanh", "clamp_min", "clamp_max", "leaky_relu"),
    "floats": (
        *("softmax", "log_softmax", "matmul", "attention", "multihead_attention"),
        "torch",
    ),
    "arithmetic": ("add", "sub", "mul", "div", "where"),
    "view": ("flatten", "flatten_leading", "reshape_like", "reshape", "squeeze", "unsqueeze"),
}


@dataclass(frozen=True)
class Mean:
    """A mean of values with eight bits: name of the node, dimensions, whether they are kept."""

    name: str
    dims: tuple[int, ...]
    keepdim: bool


@dataclass(frozen=True)
class Function:
    """A function of values with eight bits: its node, and the value that was rounded."""

    node: Node
    value: str


@dataclass(frozen=True)
class Places:
    """Values to round, and means and functions of them.

    Attributes
    ----------
    groups
        Names of values, in order of execution. Those of one group share a step, because a ``cat``
        joins them.
    means
        Means that read such values.
    functions
        Functions of such values whose bits differ between libraries.
    """

    groups: list[list[str]]
    means: list[Mean]
    functions: list[Function]


def find_places(graph: Graph, allowed: set[str]) -> Places:
    """Find the values to round.

    Parameters
    ----------
    graph
        A lowered graph, before the passes.
    allowed
        Names of the values that can be rounded.
    """
    return _PlaceFinder(graph, allowed).places()


def _moves(node: Node) -> bool:
    """Whether a node only moves the elements of its first input, or takes maxima of them."""
    if node.op == "pad":
        return bool(node.attrs["mode"] != "constant" or node.attrs["value"] == 0)
    if node.op.startswith("adaptive_max_pool"):
        return True
    return node.op != "cat" and form_of(node.op) in ("shape", "select", "pool")


def _is_quantized_layer(node: Node) -> bool:
    return node.op == "act_quant" or products_of(node.op) in ("int8", "codes")


def _continues_chain(node: Node) -> bool:
    """Whether the engine can compute a node where it computes the layer before it."""
    return node.op == "add" or node.op in _ROLES["clamp"] or form_of(node.op) == "channel"


def _ends_layer(node: Node) -> bool:
    return node.op == "ternary" or products_of(node.op) != "none" or _continues_chain(node)


@dataclass(frozen=True)
class _Read:
    """A read of a value: the reading node, and whether nodes in between move elements."""

    node: Node
    moved: bool


class _PlaceFinder:
    """The search in one graph."""

    def __init__(self, graph: Graph, allowed: set[str]) -> None:
        self._graph, self._allowed = graph, allowed
        self._index, self._users = graph.index(), graph.users()
        self._reads = {node.name: list(self._reads_of(node, False)) for node in graph.nodes}
        self._inner = self._inside_attention()
        #: Value → any other value of its group.
        self._joined: dict[str, str] = {}

    def places(self) -> Places:
        """Apply the rules to every value, from the last one to the first."""
        chosen: set[str] = set()
        cats: set[str] = set()
        for node in reversed(self._graph.nodes):
            if node.op == "input" or _moves(node):
                continue
            if node.op == "cat" and node.dtype == "float32" and self._join_inputs(node):
                cats.add(node.name)
            elif self._should_round(node, cats) and (place := self._place(node)) is not None:
                chosen.add(place)
        order = {node.name: i for i, node in enumerate(self._graph.nodes)}
        groups: dict[str, list[str]] = {}
        for name in sorted(chosen, key=order.__getitem__):
            groups.setdefault(self._group(name), []).append(name)
        rounded = chosen | cats
        return Places(
            list(groups.values()), list(self._means(rounded)), list(self._functions(rounded))
        )

    def _reads_of(self, node: Node, moved: bool) -> Iterator[_Read]:
        """Yield the reads of a value. Nodes that move it are replaced by the reads of theirs."""
        for user in self._users[node.name]:
            if user is None:
                continue
            if not _moves(user):
                yield _Read(user, moved)
            elif user.inputs[0] == node.name:  # other inputs only give a size
                yield from self._reads_of(user, moved or user.op not in _ROLES["view"])

    def _inside_attention(self) -> set[str]:
        """Return arithmetic that only softmax and matrix products read, such as scaled scores."""
        inner: set[str] = set()
        for node in reversed(self._graph.nodes):
            if node.op not in _ROLES["arithmetic"] and form_of(node.op) != "scalar":
                continue
            reads = self._reads[node.name]
            if reads and all(
                read.node.op in _ROLES["floats"] or read.node.name in inner for read in reads
            ):
                inner.add(node.name)
        return inner

    def _should_round(self, node: Node, cats: set[str]) -> bool:
        """Whether to round a value; ``cats`` are later ``cat`` nodes that read rounded values."""
        reads = [
            read for read in self._reads[node.name] if self._should_read_rounded(read.node, cats)
        ]
        if not reads or node.dtype != "float32":
            return False
        if len(self._reads[node.name]) > 1 or not _ends_layer(node):
            return True
        reader = reads[0].node
        if reads[0].moved and reader.op not in _ROLES["clamp"]:  # clamps commute with moves
            return True
        two_sums = node.op == "add" and reader.op == "add"
        return two_sums or not _continues_chain(reader)

    def _should_read_rounded(self, reader: Node, cats: set[str]) -> bool:
        """Whether the values that a node reads should be rounded."""
        if _is_quantized_layer(reader) or reader.op in _ROLES["floats"]:
            return False
        if reader.op == "cat":
            return reader.name in cats
        return reader.name not in self._inner

    def _place(self, node: Node) -> str | None:
        """Return the value to round: this one or, if it is not allowed, the result of moving it."""
        while node.name not in self._allowed:
            users = self._users[node.name]
            if len(users) != 1 or users[0] is None or not _moves(users[0]):
                return None
            node = users[0]
        return node.name

    def _source(self, name: str) -> Node:
        """Return the node whose elements a value has, before all moves."""
        node = self._index[name]
        while _moves(node):
            node = self._index[node.inputs[0]]
        return node

    def _join_inputs(self, cat: Node) -> bool:
        """Let all inputs of a ``cat`` share a step; return False if some cannot be rounded."""
        sources = [self._source(name) for name in cat.inputs]
        if not all(s.op == "cat" or self._place(s) for s in sources):
            return False
        for source in sources:
            member = source.name if source.op == "cat" else self._place(source)
            assert member is not None
            one, other = self._group(member), self._group(cat.name)
            if one != other:
                self._joined[one] = other
        return True

    def _group(self, name: str) -> str:
        while name in self._joined:
            name = self._joined[name]
        return name

    def _rounded_source(self, node: Node, rounded: set[str]) -> str | None:
        """Return the rounded value whose elements a node reads, or None."""
        name = node.inputs[0]
        while name not in rounded and _moves(self._index[name]):
            name = self._index[name].inputs[0]
        return name if name in rounded else None

    def _means(self, rounded: set[str]) -> Iterator[Mean]:
        for node in self._graph.nodes:
            pools_all = node.op.startswith("adaptive_avg_pool") and set(node.attrs["size"]) == {1}
            if node.name not in self._allowed or not (node.op == "mean" or pools_all):
                continue
            rank = len(self._index[node.inputs[0]].shape)
            if self._rounded_source(node, rounded) is None:
                continue
            if pools_all:
                yield Mean(node.name, tuple(range(2, rank)), True)
            else:
                dims = node.attrs["dims"] or range(rank)
                yield Mean(node.name, tuple(dims), node.attrs["keepdim"])

    def _functions(self, rounded: set[str]) -> Iterator[Function]:
        for node in self._graph.nodes:
            if node.name not in self._allowed or form_of(node.op) != "scalar":
                continue
            source = self._rounded_source(node, rounded)
            if OPERATIONS[node.op].exactness == "exact" or source is None:
                continue
            value = self._any_member(source)
            if value is not None:
                yield Function(node, value)

    def _any_member(self, name: str) -> str | None:
        """Return a value that is rounded with the step of ``name``, which may be a ``cat``."""
        if self._index[name].op != "cat":
            return name
        sources = [self._source(one) for one in self._index[name].inputs]
        places = [s.name if s.op == "cat" else self._place(s) for s in sources]
        return next((p for p in places if p is not None and self._index[p].op != "cat"), None)
