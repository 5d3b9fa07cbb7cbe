"""Fold values that depend only on sizes, such as positions, position masks and index tables.

They become constants. If the batch size is dynamic, each value is computed at two batch sizes. A
value that only repeats along its first dimension becomes one sample, which is repeated for every
batch. All other sizes are those of the example, and the network then accepts only inputs of these
sizes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fatnn_rs.convert.record import TensorMeta

__all__ = ["PLAIN", "Fixed", "Folding", "Repeated", "other_batch"]

#: Dtypes that the engine has → their names in graphs.
PLAIN: dict[torch.dtype, str] = {
    torch.float32: "float32",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.bool: "bool",
}

_aten = torch.ops.aten

#: Maximum number of elements of a folded constant; larger values stay a computation.
_MAX_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Fixed:
    """A value that is the same in every run."""

    value: Tensor


@dataclass(frozen=True)
class Repeated:
    """The value of one sample, repeated along the first dimension for every sample of the batch."""

    sample: Tensor


def other_batch(batch: int) -> int:
    """Return a second batch size. It is far from the first, to tell ``n // 2`` from a constant."""
    return 2 * batch + 1


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _is_random(node: fx.Node) -> bool:
    """Whether a call may give other values next time: random or uninitialised ones."""
    tags = getattr(node.target, "tags", ())
    name = str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))
    named = any(part in name for part in ("rand", "dropout", "empty", "bernoulli", "normal_"))
    return torch.Tag.nondeterministic_seeded in tags or named


def _size_of(node: fx.Node) -> tuple[fx.Node, int] | None:
    """Return the tensor and the dimension whose size a node reads, or None."""
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
    """Computes values that depend only on sizes, node by node in the graph's order.

    Parameters
    ----------
    graph
        The captured graph.
    seen
        Node → recorded metadata.
    inputs
        Placeholders of the input tensors.
    fixed
        Dimensions of the inputs whose sizes are fixed to the example's.
    attribute
        Maps a ``get_attr`` node to the attribute that it names.
    leading_sizes
        Node → size of dimension 0 of its value at :func:`other_batch`, if known.
    """

    def __init__(
        self,
        graph: fx.Graph,
        seen: dict[fx.Node, TensorMeta],
        inputs: Sequence[fx.Node],
        fixed: Sequence[int],
        attribute: Callable[[fx.Node], Any],
        leading_sizes: Mapping[fx.Node, int] | None = None,
    ) -> None:
        self._seen, self._attribute = seen, attribute
        self._leading_sizes = leading_sizes or {}
        self._inputs = frozenset(inputs)
        sizes = {seen[node].shape[0] for node in inputs if seen[node].shape}
        self._batch = None if 0 in fixed or len(sizes) != 1 else sizes.pop()
        #: Extra samples of the other batch size.
        self._more = 0 if self._batch is None else other_batch(self._batch) - self._batch
        #: Node → its values at the example's batch size and at the other one.
        self.values: dict[fx.Node, tuple[Any, Any]] = {}
        #: Node → the nodes on whose sizes it depends; with 0 for dimension 0, else with None.
        self.sources: dict[fx.Node, frozenset[tuple[fx.Node, int | None]]] = {}
        self._candidates = self._find(graph)

    def _find(self, graph: fx.Graph) -> set[fx.Node]:
        """Return nodes that read only parameters and sizes; only such nodes write their memory."""
        nodes = [node for node in graph.nodes if node in self._seen]
        parameters = {m for n in nodes if n.op == "get_attr" for m in self._seen[n].memory}
        excluded = {
            number
            for n in nodes
            if self._seen[n].writes & parameters
            for number in self._seen[n].writes
        }
        while True:
            found: set[fx.Node] = set()
            for node in nodes:
                if self._seen[node].memory & excluded:
                    continue
                if node.op == "get_attr" or self._is_size(node) or self._is_call(node, found):
                    found.add(node)
            written = {
                number for node in nodes if node not in found for number in self._seen[node].writes
            }
            if written <= excluded:
                return found
            excluded |= written

    def _is_call(self, node: fx.Node, known: set[fx.Node]) -> bool:
        """Whether a node is a deterministic call that reads only known nodes."""
        return (
            node.op in ("call_function", "call_method")
            and getattr(node.target, "namespace", "") != "fatnn_rs"
            and not _is_random(node)
            and all(
                argument in known or argument is self._type_source(node)
                for argument in node.all_input_nodes
            )
        )

    def _type_source(self, node: fx.Node) -> fx.Node | None:
        """Return the tensor whose dtype and shape ``zeros_like`` and others take, or None."""
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
        """Return zeros of a value's dtype and shape, with a batch that is larger by ``extra``."""
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
        known = self._batch is None or source in self._inputs or source in self._leading_sizes
        return dim % len(shape) > 0 or known

    def compute(self, node: fx.Node) -> bool:
        """Compute a node if possible; return whether it was computed."""
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
            other = self._leading_sizes.get(source, size + self._more) if first else size
            self.values[node] = (size, other)
            own = first and source in self._inputs
            self.sources[node] = (
                frozenset() if own else frozenset(((source, 0 if first else None),))
            )
            return True
        typed = self._type_source(node)
        if typed in self.values:
            typed = None
        read = [argument for argument in node.all_input_nodes if argument is not typed]
        if not all(argument in self.values for argument in read):
            return False
        results: list[Any] = []
        for i in range(2):
            known: dict[fx.Node, Any] = {argument: self.values[argument][i] for argument in read}
            if typed is not None:
                known[typed] = self._sample(typed, i * self._more)
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            try:
                if node.op == "call_method":
                    results.append(getattr(args[0], str(node.target))(*args[1:], **kwargs))
                else:
                    results.append(node.target(*args, **kwargs))  # type: ignore[operator]
            except Exception:  # the call fails at the other batch size
                return False
            if sum(x.numel() for x in _tensors(results[-1])) > _MAX_ELEMENTS:
                return False
        self.values[node] = (results[0], results[1])
        sources = [pair for argument in read for pair in self.sources[argument]]
        if typed is not None and "like" in str(node.target):
            sources.append((typed, None))
        self.sources[node] = frozenset(sources)
        return True

    def tensor(self, node: fx.Node) -> Fixed | Repeated | None:
        """Return a computed node's current value, or None if it is no such tensor."""
        one, other = self.values[node]
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            return None
        if one.shape == other.shape:
            return Fixed(one) if _same(one, other) else None
        sample = one[:1]
        repeats = (
            one.dim() > 0
            and (one.shape[0], other.shape[0]) == (self._batch, one.shape[0] + self._more)
            and one.shape[1:] == other.shape[1:]
            and one.shape[0] > 0
        )
        if not repeats:
            return None
        same = all(_same(x, sample.expand_as(x)) for x in (one, other))
        return Repeated(sample) if same else None

    def rank_of_sample_indices(self, node: Any) -> int | None:
        """Return the rank of a value that holds the indices 0, 1, ... of all samples, or None."""
        if not isinstance(node, fx.Node) or node not in self.values or self._batch is None:
            return None
        batches = (self._batch, self._batch + self._more)
        for value, batch in zip(self.values[node], batches, strict=True):
            if not isinstance(value, Tensor) or value.dtype not in (torch.int32, torch.int64):
                return None
            if not value.dim() or (value.shape[0], value.numel()) != (batch, batch):
                return None
            if value.flatten().tolist() != list(range(batch)):
                return None
        return int(self.values[node][0].dim())

    @property
    def needs_leading_sizes(self) -> bool:
        """Whether sizes of dimension 0 at another batch size could help, and are not known."""
        return self._batch is not None and not self._leading_sizes

    def number(self, node: Any) -> int | float | bool | None:
        """Return a computed number that does not depend on the batch, or None."""
        one, other = (
            self.values.get(node, (None, None)) if isinstance(node, fx.Node) else (None, None)
        )
        plain = isinstance(one, (bool, int, float)) and type(one) is type(other) and one == other
        return one if plain else None

    def version(self, node: fx.Node) -> int:
        """Return the number of writes into a computed tensor's memory so far."""
        value = self.values[node][0]
        return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether tensors have the same dtype and bits, including NaN and the signs of zeros."""
    if a.dtype != b.dtype:
        return False
    if a is b or not a.is_floating_point():
        return torch.equal(a, b)
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(width), b.contiguous().view(width))
