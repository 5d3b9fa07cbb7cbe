"""Metadata of a captured graph's values at the example: shapes, memory formats, aliases, writes.

Two values may share memory (a view and its base), and a node may write into memory that others
read. The graph does not show this, so it is run. Every memory block gets a number. Writes show in
the version counter that torch keeps for a tensor and its views.
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
    """Metadata of a value at the example inputs.

    Attributes
    ----------
    shape
        Shape of a tensor; empty for other values.
    layout
        See :func:`fatnn_rs.convert.memory_format.layout_of`.
    value
        The value if it is an integer, else None.
    dtype
        Type of a tensor, else None.
    memory
        Numbers of the memory blocks that hold its tensors.
    geometry
        Offset, shape and strides of a tensor in its memory. Values with one memory block and
        geometry are equal.
    writes
        Numbers of the memory blocks that the node wrote.
    overlaps
        Whether two of its tensors share memory.
    reshapes
        Whether the node changed shape, strides or memory of an input tensor in place.
    same_as
        The node that made the same Python object, or None.
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
    except RuntimeError:  # tensors of inference mode have no counter
        return 0


def _geometry(x: Tensor) -> Geometry:
    if x.layout != torch.strided:
        return (id(x),)
    return (x.storage_offset(), tuple(x.shape), tuple(x.stride()), x.dtype)


def _address(x: Tensor) -> int | None:
    """Address of a tensor's memory; None if it has none."""
    if x.layout != torch.strided or x.device.type == "meta":
        return None
    try:
        return x.untyped_storage().data_ptr() or None
    except RuntimeError:  # a tensor without storage
        return None


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))


class _Recorder(fx.Interpreter):
    """Runs a graph and records each value before anything can change it."""

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
        self._places[n] = self._number_memory(n, value, read)
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

    def _number_memory(self, n: fx.Node, value: Any, read: dict[fx.Node, Any]) -> dict[int, int]:
        """Assign numbers to the memory blocks of a value; blocks of arguments keep theirs."""
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
    """Run a captured graph; return its metadata, or why it does not reproduce the model.

    Container classes of the outputs are not compared: tracing makes some of them plain.
    """
    recorder = _Recorder(module)
    try:
        result = recorder.run(*arguments)
    except Exception as error:  # a wrongly captured graph may raise anything
        return f"the captured graph fails, but the model does not ({type(error).__name__}: {error})"
    if problem := same_values(list(leaves(plain(result))), list(leaves(plain(expected)))):
        return f"the captured graph does not reproduce the model's output ({problem})"
    return recorder.seen
