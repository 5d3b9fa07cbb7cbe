"""The runtimes of one benchmark: build them, check their outputs, and make their report rows."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fatnn_rs import _core
from fatnn_rs.bench.export import BenchTask
from fatnn_rs.bench.peers import INSTALL, BuiltPeer, Peer, arrays_of
from fatnn_rs.bench.results import ABSENT, FAILED, MEASURED, PeerRow
from fatnn_rs.bench.timing import Quartiles, ratios

__all__ = [
    "Candidate",
    "build_candidate",
    "describe_error",
    "finished_row",
    "milliseconds",
    "relative_error",
    "set_unmeasured",
    "use_threads",
]

#: Terminal colours inside other packages' messages.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Candidate:
    """A runtime in a benchmark, and its row of the report."""

    name: str
    peer: Peer
    row: PeerRow
    calls: dict[str, Callable[[], Any]] = field(default_factory=dict)


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Set the number of threads of torch and the core; restore both at the end.

    The core follows torch unless it was given its own number (``set_num_threads``,
    FATNN_NUM_THREADS). Only in that case ``set_num_threads`` is called, so that a core that follows
    torch continues to do so.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    _core.set_default_threads(threads)
    own = _core.get_num_threads()
    if own != threads:
        _core.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _core.set_default_threads(before)
        if own != threads:
            _core.set_num_threads(own)


def set_unmeasured(candidate: Candidate, state: str, reason: str) -> None:
    """Record why a runtime has no figure."""
    candidate.row = PeerRow(candidate.name, candidate.peer.describe, state, reason)


def build_candidate(
    candidate: Candidate, task: BenchTask, wanted: list[np.ndarray], has_amx: bool
) -> None:
    """Build a runtime and compare its output with ``wanted``; failures go into its row."""
    peer = candidate.peer
    missing = peer.missing()
    if missing:
        set_unmeasured(candidate, ABSENT, f"{', '.join(missing)} not installed: {INSTALL}")
        return
    start = time.perf_counter()
    try:
        # Exporters and runtimes write tensor metadata, which inference mode forbids.
        with torch.inference_mode(False), torch.no_grad():
            built = peer.build(task)
        seconds = time.perf_counter() - start
        errors = {
            variant: relative_error(call(), wanted) for variant, call in built.variants.items()
        }
    except Exception as error:  # Runtimes raise anything; their row reports it.
        set_unmeasured(candidate, FAILED, describe_error(error))
        return
    worst = max(errors.values())
    if not math.isfinite(worst) or (peer.tolerance is not None and worst > peer.tolerance):
        set_unmeasured(
            candidate,
            FAILED,
            f"its answer differs from the float model's by {worst:.1e} of the largest value",
        )
        return
    candidate.calls = dict(built.variants)
    candidate.row = PeerRow(
        candidate.name,
        peer.describe,
        MEASURED,
        details=built.details,
        amx=_uses_amx(peer, built, has_amx),
        error=worst,
        build_seconds=round(seconds, 3),
    )


def describe_error(error: BaseException) -> str:
    """Describe an exception and its root cause in one line, without terminal colours."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    parts = [
        f"{type(e).__name__}: {' '.join(_COLOUR.sub('', str(e)).split())[:300]}"
        for e in (error, root)
    ]
    return parts[0] if root is error else f"{parts[0]} (from {parts[1]})"


def relative_error(answer: Any, wanted: list[np.ndarray]) -> float:
    """Largest difference relative to the largest wanted value; infinity for other shapes or NaN."""
    got = list(arrays_of(answer))
    if [array.shape for array in got] != [array.shape for array in wanted]:
        return math.inf
    scale = max((float(np.abs(array).max()) for array in wanted if array.size), default=0.0) or 1.0
    worst = max(
        (float(np.abs(a - b).max()) for a, b in zip(got, wanted, strict=True) if a.size),
        default=0.0,
    )
    return worst / scale if math.isfinite(worst) else math.inf


def _uses_amx(peer: Peer, built: BuiltPeer, has_amx: bool) -> str:
    if not has_amx:
        return "no"
    if built.amx is not None:
        return "yes" if built.amx else "no"
    return "may" if peer.may_use_amx else "no"


def milliseconds(seconds: Sequence[float]) -> Quartiles:
    """Convert seconds to a summary in milliseconds."""
    return Quartiles.of([1e3 * value for value in seconds])


def finished_row(
    candidate: Candidate, times: Mapping[tuple[str, str], Sequence[float]], ours: Sequence[float]
) -> PeerRow:
    """Return the row of a runtime, with the figures of its fastest variant."""
    if not candidate.calls:
        return candidate.row
    spreads = {variant: milliseconds(times[candidate.name, variant]) for variant in candidate.calls}
    best = min(spreads, key=lambda variant: spreads[variant].median)
    row = candidate.row
    return PeerRow(
        row.name,
        row.describe,
        row.state,
        milliseconds=spreads[best],
        ratio=Quartiles.of(ratios(times[row.name, best], ours)),
        variant=best,
        variants={variant: spread.median for variant, spread in spreads.items()},
        details=row.details,
        amx=row.amx,
        error=row.error,
        build_seconds=row.build_seconds,
    )
