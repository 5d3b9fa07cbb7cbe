"""What a peer is: a row of :data:`fatnn_rs.bench.peers.PEERS`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from fatnn_rs.bench.export import Task

__all__ = ["INSTALL", "Built", "Peer", "arrays_of"]

#: What brings every peer.
INSTALL = "pip install 'fatnn-rs[bench]'"


@dataclass(frozen=True)
class Built:
    """A peer that is ready to run.

    Attributes
    ----------
    variants
        What was tried → a call that runs the network once. Several where it is not known beforehand
        which is fastest: all are measured and the best counts.
    details
        What the runtime says it chose, for the report.
    amx
        Whether the runtime says that it uses AMX; None where it says nothing.
    """

    variants: Mapping[str, Callable[[], Any]]
    details: str = ""
    amx: bool | None = None


@dataclass(frozen=True)
class Peer:
    """One runtime in one precision.

    Attributes
    ----------
    describe
        One line: what is measured.
    modules
        Importable names without which the peer is absent.
    build
        Makes it ready, single use, for the task's inputs and threads.
    may_use_amx
        Whether its kernels for this precision include AMX ones, on a processor that has AMX.
    tolerance
        Largest difference from the float model's answer, relative to that answer's largest value,
        above which something is wrong; None where rounding is part of the method (int8).
    instructions
        Processor flags (:data:`fatnn_rs.machine.FLAGS`) one of which it takes to compute in this
        precision; a processor without them only emulates it. Empty: every processor has what it
        takes.
    file
        The file that it reads: an attribute of :class:`fatnn_rs.bench.export.Task`. Such a peer is
        built in a child process first (:mod:`fatnn_rs.bench.first_build`). None where it runs the
        model itself.
    """

    describe: str
    modules: tuple[str, ...]
    build: Callable[[Task], Built]
    may_use_amx: bool = False
    tolerance: float | None = None
    instructions: tuple[str, ...] = ()
    file: Literal["onnx", "qdq"] | None = None

    def missing(self) -> tuple[str, ...]:
        """Names of the modules that are not installed."""
        return tuple(name for name in self.modules if importlib.util.find_spec(name) is None)

    def emulated(self, flags: Collection[str]) -> bool:
        """Whether a processor with these flags only emulates the precision."""
        return bool(self.instructions) and not set(self.instructions) & set(flags)


def arrays_of(answer: Any) -> Iterator[np.ndarray]:
    """Every tensor or array in what a network returned, in order, as arrays."""
    if isinstance(answer, Tensor):
        yield answer.detach().numpy()
    elif isinstance(answer, np.ndarray):
        yield answer
    elif isinstance(answer, Mapping):
        for value in answer.values():
            yield from arrays_of(value)
    elif isinstance(answer, (list, tuple)):
        for value in answer:
            yield from arrays_of(value)
