"""What a captured graph's values were at the example inputs: shapes, memory formats, shared memory, writes.

Two values of a graph may share memory (a view and what it is a view of), and a node may write into
what others read. The graph does not say so; running it does. Every tensor gets the number of the
memory that it lies in, and a write is seen by the version counter that torch keeps for each tensor
and its views.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fatnn_rs.convert.memory_format import layout_of
from fatnn_rs.convert.structure import leaves, plain, same_values

__all__ = ["TensorMeta", "record"]

Geometry = tuple[Any, ...]


@dataclass(frozen=True)
class TensorMeta:
    """Say what a value was at the example inputs.

    Attributes
    ----------
    shape
        Empty for what is not a tensor.
    layout
        See :func:`fatnn_rs.convert.memory_format.layout_of`.
    value
        The value itself where it is an integer, else None.
    dtype
        Of a tensor, else None.
    memory
        Numbers of the memory that its tensors lie in.
    geometry
        Of a tensor: place, shape and strides in its memory. Values of one memory and geometry are
        the same.
    writes
        Numbers of the memory that the node wrote into.
    overlaps
        Whether two of its tensors share memory.
    reshapes
        Whether the node changed shape, strides or memory of a tensor that it read, in place.
    same_as
        The node whose value is the very object that this node returned, or None.
    """

    shape: tuple[int, ...] = ()
    layout: str = "any"
    value: int | None = None
    dtype: torch.dtype | None = None
    memory: frozenset[int] = frozenset()
    geometry: Geometry = ()
    writes: frozenset[int] = frozenset()
    overlaps: bool = False
    reshapes: bool = False
    same_as: fx.Node | None = None


def _version(x: Tensor) -> int:
    try:
        return x._version
    except RuntimeError:  # made in inference mode: nobody counts
        return 0


def _geometry(x: Tensor) -> Geometry:
    if x.layout != torch.strided:
        return (id(x),)
    return (x.storage_offset(), tuple(x.shape), tuple(x.stride()), x.dtype)


def _address(x: Tensor) -> int | None:
    """Where a tensor's memory is; None where that means nothing."""
    if x.layout != torch.strided or x.device.type == "meta":
        return None
    try:
        return x.untyped_storage().data_ptr() or None
    except RuntimeError:  # a tensor without storage
        return None


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))


class _Recorder(fx.Interpreter):
    """Runs a graph and notes what every value is before anything can change it."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[fx.Node, TensorMeta] = {}
        self._places: dict[fx.Node, dict[int, int]] = {}
        self._constants: dict[int, int] = {}
        self._count = 0

    def run_node(self, n: fx.Node) -> Any:
        read = {node: self.env[node] for node in n.all_input_nodes}
        before = [
            (node, x, _version(x), _geometry(x), _address(x))
            for node, v in read.items()
            for x in _tensors(v)
        ]
        value = super().run_node(n)
        writes: set[int] = set()
        reshapes = False
        for node, x, version, geometry, address in before:
            if _version(x) != version and address is not None:
                writes.add(self._places[node][address])
            reshapes |= _geometry(x) != geometry or _address(x) != address
        self._places[n] = self._place(n, value, read)
        memory = frozenset(self._places[n].values())
        overlaps = len([x for x in _tensors(value) if _address(x) is not None]) > len(memory)
        common: dict[str, Any] = {
            "memory": memory,
            "writes": frozenset(writes),
            "overlaps": overlaps,
            "reshapes": reshapes,
        }
        if isinstance(value, Tensor):
            same_as = next((node for node, other in read.items() if other is value), None)
            self.seen[n] = TensorMeta(
                tuple(value.shape),
                layout_of(value),
                None,
                value.dtype,
                geometry=_geometry(value),
                same_as=same_as,
                **common,
            )
        else:
            same_as = next(
                (node for node, other in read.items() if other is value and value is not None), None
            )
            self.seen[n] = TensorMeta(
                value=value if type(value) is int else None, same_as=same_as, **common
            )
        return value

    def _place(self, n: fx.Node, value: Any, read: dict[fx.Node, Any]) -> dict[int, int]:
        """Address → number of memory, of a value's tensors: that of an argument which lies there, else a new one."""
        known = {address: number for node in read for address, number in self._places[node].items()}
        if n.op == "get_attr":
            known = self._constants
        places: dict[int, int] = {}
        for x in _tensors(value):
            address = _address(x)
            if address is None:
                continue
            if address not in known and address not in places:
                self._count += 1
            number = known.get(address, places.get(address, self._count))
            places[address] = number
            if n.op == "get_attr":
                self._constants[address] = number
        return places


def record(
    module: fx.GraphModule, arguments: tuple[Any, ...], expected: Any
) -> dict[fx.Node, TensorMeta] | str:
    """Run a captured graph; what its values were, or why it does not reproduce the model.

    Containers of the outputs are not compared: tracing makes tuples, lists and dicts of some.
    """
    recorder = _Recorder(module)
    try:
        result = recorder.run(*arguments)
    except (
        Exception
    ) as error:  # whatever a wrongly captured graph may raise, the answer is the same
        return (
            f"the captured graph fails where the model does not ({type(error).__name__}: {error})"
        )
    if problem := same_values(list(leaves(plain(result))), list(leaves(plain(expected)))):
        return f"the captured graph does not reproduce the model's output ({problem})"
    return recorder.seen
