"""Values of a captured graph that depend on sizes only: positions, masks of positions, tables of indices.

They become constants. A batch that stays free is part of such sizes: everything is computed at two
batch sizes, and what is equal but for the first dimension, along which it repeats, is a constant
that follows the batch. Sizes behind the batch are the example's, and the inputs are held to them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fatnn_rs.convert.record import TensorMeta

__all__ = ["PLAIN", "Fixed", "Folding", "Repeated"]

#: Types of tensors that the engine may have, as graphs name them.
PLAIN: dict[torch.dtype, str] = {
    torch.float32: "float32",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.bool: "bool",
}

_aten = torch.ops.aten

#: Most elements of a constant that is made here; more stay a computation.
_MOST = 1 << 24


@dataclass(frozen=True)
class Fixed:
    """The same in every run."""

    value: Tensor


@dataclass(frozen=True)
class Repeated:
    """One sample's value, repeated along the first dimension for every sample of the batch."""

    sample: Tensor


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _by_chance(node: fx.Node) -> bool:
    """Whether a call may give other values next time: random numbers, memory that nobody filled."""
    tags = getattr(node.target, "tags", ())
    name = str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))
    named = any(part in name for part in ("rand", "dropout", "empty", "bernoulli", "normal_"))
    return torch.Tag.nondeterministic_seeded in tags or named


def _size_of(node: fx.Node) -> tuple[fx.Node, int] | None:
    """Find the tensor and the dimension whose size a node asks for."""
    args: tuple[Any, ...] = node.args
    if node.target in ("size", _aten.sym_size.int) and len(args) == 2:
        found, dim = args
    elif node.target is operator.getitem and isinstance(args[0], fx.Node):
        whole, dim = args
        rest = whole.args[1:]
        shape = (whole.target == "size" and not rest) or (
            whole.target is getattr and rest == ("shape",)
        )
        if not shape:
            return None
        found = whole.args[0]
    else:
        return None
    return (found, dim) if isinstance(found, fx.Node) and isinstance(dim, int) else None


class Folding:
    """Computes what depends on sizes only, node by node in the graph's order.

    Parameters
    ----------
    graph
        The captured one.
    seen
        What was recorded of it.
    inputs
        Placeholders that calls fill.
    fixed
        Dimensions of the inputs whose sizes are those of the example.
    attribute
        From a ``get_attr`` node to what it names.
    """

    def __init__(
        self,
        graph: fx.Graph,
        seen: dict[fx.Node, TensorMeta],
        inputs: Sequence[fx.Node],
        fixed: Sequence[int],
        attribute: Callable[[fx.Node], Any],
    ) -> None:
        self._seen, self._attribute = seen, attribute
        self._inputs = frozenset(inputs)
        sizes = {seen[node].shape[0] for node in inputs if seen[node].shape}
        self._batch = None if 0 in fixed or len(sizes) != 1 else sizes.pop()
        #: Node → its value at the example's batch, and at another.
        self.values: dict[fx.Node, tuple[Any, Any]] = {}
        #: Node → values of the graph on whose sizes it depends.
        self.sources: dict[fx.Node, frozenset[fx.Node]] = {}
        self._candidates = self._find(graph)

    def _find(self, graph: fx.Graph) -> set[fx.Node]:
        """Nodes that read nothing but parameters and sizes, and whose memory only such nodes write."""
        nodes = [node for node in graph.nodes if node in self._seen]
        parameters = {m for n in nodes if n.op == "get_attr" for m in self._seen[n].memory}
        barred = {
            number
            for n in nodes
            if self._seen[n].writes & parameters
            for number in self._seen[n].writes
        }
        while True:
            found: set[fx.Node] = set()
            for node in nodes:
                if self._seen[node].memory & barred:
                    continue
                if node.op == "get_attr" or self._is_size(node) or self._is_call(node, found):
                    found.add(node)
            more = {
                number for node in nodes if node not in found for number in self._seen[node].writes
            }
            if more <= barred:
                return found
            barred |= more

    def _is_call(self, node: fx.Node, known: set[fx.Node]) -> bool:
        """Whether a node is a call that reads only what is known, and always does the same."""
        return (
            node.op in ("call_function", "call_method")
            and getattr(node.target, "namespace", "") != "fatnn_rs"
            and not _by_chance(node)
            and all(
                argument in known or argument is self._only_typed(node)
                for argument in node.all_input_nodes
            )
        )

    def _only_typed(self, node: fx.Node) -> fx.Node | None:
        """Find the tensor of which a call that fills a new one takes the type, and the shape at most."""
        name = str(
            node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        )
        name = name.split(".")[0]
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or self._seen.get(source, TensorMeta()).dtype is None:
            return None
        if name in ("new_zeros", "new_ones", "new_full"):
            return source
        like = name in ("zeros_like", "ones_like", "full_like")
        return source if like and (self._batch is None or source in self._inputs) else None

    def _sample(self, node: fx.Node, extra: int) -> Tensor:
        """Make a tensor of a value's type and shape, at a batch that is larger by ``extra``."""
        seen = self._seen[node]
        first = [size + extra for size in seen.shape[:1]]
        return torch.zeros(()).to(seen.dtype).expand(*first, *seen.shape[1:])

    def _is_size(self, node: fx.Node) -> bool:
        asked = _size_of(node)
        if asked is None or asked[0] not in self._seen:
            return False
        source, dim = asked
        shape = self._seen[source].shape
        if not shape or not -len(shape) <= dim < len(shape):
            return False
        return dim % len(shape) > 0 or self._batch is None or source in self._inputs

    def compute(self, node: fx.Node) -> bool:
        """Compute a node, if it can be; whether it was."""
        if node not in self._candidates:
            return False
        if node.op == "get_attr":
            value = self._attribute(node)
            value = value.detach() if isinstance(value, Tensor) else value
            self.values[node], self.sources[node] = (value, value), frozenset()
            return True
        asked = _size_of(node) if self._is_size(node) else None
        if asked is not None:
            source, dim = asked
            shape = self._seen[source].shape
            size = shape[dim]
            first = dim % len(shape) == 0 and self._batch is not None
            self.values[node] = (size, size + 1 if first else size)
            self.sources[node] = frozenset() if first else frozenset((source,))
            return True
        typed = self._only_typed(node)
        if typed in self.values:
            typed = None
        read = [argument for argument in node.all_input_nodes if argument is not typed]
        if not all(argument in self.values for argument in read):
            return False
        results: list[Any] = []
        for i in range(2):
            known: dict[fx.Node, Any] = {argument: self.values[argument][i] for argument in read}
            if typed is not None:
                known[typed] = self._sample(typed, i if self._batch is not None else 0)
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            try:
                if node.op == "call_method":
                    results.append(getattr(args[0], str(node.target))(*args[1:], **kwargs))
                else:
                    results.append(node.target(*args, **kwargs))  # type: ignore[operator]
            except Exception:  # sizes that do not fit at another batch
                return False
            if sum(x.numel() for x in _tensors(results[-1])) > _MOST:
                return False
        self.values[node] = (results[0], results[1])
        sources = frozenset[fx.Node]().union(*(self.sources[argument] for argument in read))
        like = frozenset((typed,)) if typed is not None and "like" in str(node.target) else None
        self.sources[node] = sources if like is None else sources | like
        return True

    def tensor(self, node: fx.Node) -> Fixed | Repeated | None:
        """Say what a computed node's tensor is in every run, as it is now."""
        one, other = self.values[node]
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            return None
        if one.shape == other.shape:
            return Fixed(one) if _same(one, other) else None
        sample = one[:1]
        repeats = (
            one.dim() > 0
            and (one.shape[0], other.shape[0]) == (self._batch, (self._batch or 0) + 1)
            and one.shape[1:] == other.shape[1:]
            and one.shape[0] > 0
        )
        if not repeats:
            return None
        same = all(_same(x, sample.expand_as(x)) for x in (one, other))
        return Repeated(sample) if same else None

    def counts_samples(self, node: Any) -> int | None:
        """Rank of a value that is the number of each sample along its first dimension, or None."""
        if not isinstance(node, fx.Node) or node not in self.values or self._batch is None:
            return None
        for value, batch in zip(self.values[node], (self._batch, self._batch + 1), strict=True):
            if not isinstance(value, Tensor) or value.dtype not in (torch.int32, torch.int64):
                return None
            if not value.dim() or (value.shape[0], value.numel()) != (batch, batch):
                return None
            if value.flatten().tolist() != list(range(batch)):
                return None
        return int(self.values[node][0].dim())

    def number(self, node: Any) -> int | float | bool | None:
        """Return a computed number that does not depend on the batch, else None."""
        one, other = (
            self.values.get(node, (None, None)) if isinstance(node, fx.Node) else (None, None)
        )
        plain = isinstance(one, (bool, int, float)) and type(one) is type(other) and one == other
        return one if plain else None

    def version(self, node: fx.Node) -> int:
        """Count the writes into a computed tensor's memory so far."""
        value = self.values[node][0]
        return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether tensors have the same elements, of NaN and of zeros with their signs, too."""
    if a.dtype != b.dtype:
        return False
    if a is b or not a.is_floating_point():
        return torch.equal(a, b)
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(width), b.contiguous().view(width))
