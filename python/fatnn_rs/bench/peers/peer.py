"""A runtime to compare with: an entry of :data:`fatnn_rs.bench.peers.PEERS`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from fatnn_rs.bench.export import BenchTask

__all__ = ["INSTALL", "BuiltPeer", "Peer", "arrays_of"]

#: Command that installs every runtime.
INSTALL = "pip install 'fatnn-rs[bench]'"


@dataclass(frozen=True)
class BuiltPeer:
    """A runtime that is ready to run.

    Attributes
    ----------
    variants
        Name of a variant → call that runs the network once. All variants are timed, and the fastest
        one counts.
    details
        The runtime's choice of kernels, for the report.
    amx
        Whether the runtime says that it uses AMX; None if it does not say.
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
        One line that says what is measured.
    modules
        Modules that must be installed.
    build
        Builds it for a task's inputs and number of threads.
    may_use_amx
        Whether its kernels for this precision may use AMX.
    tolerance
        Largest allowed difference from the float model's output, relative to the largest value of
        that output; None if rounding is part of the method (int8).
    instructions
        Processor flags (:data:`fatnn_rs.machine.FLAGS`), at least one of which is needed; without
        them, the processor emulates the precision. Empty: every processor can compute in it.
    file
        The file that it reads: an attribute of :class:`fatnn_rs.bench.export.BenchTask`. Such a
        peer is built in a child process first (:mod:`fatnn_rs.bench.first_build`). None if it runs
        the PyTorch model.
    """

    describe: str
    modules: tuple[str, ...]
    build: Callable[[BenchTask], BuiltPeer]
    may_use_amx: bool = False
    tolerance: float | None = None
    instructions: tuple[str, ...] = ()
    file: Literal["onnx", "qdq"] | None = None

    def missing(self) -> tuple[str, ...]:
        """Names of missing modules."""
        return tuple(name for name in self.modules if importlib.util.find_spec(name) is None)

    def emulated(self, flags: Collection[str]) -> bool:
        """Whether a processor with these flags only emulates the precision."""
        return bool(self.instructions) and not set(self.instructions) & set(flags)


def arrays_of(answer: Any) -> Iterator[np.ndarray]:
    """Yield every tensor or array in a network's output, in order, as arrays."""
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
