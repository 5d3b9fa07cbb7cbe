"""Peers on their way into a report: built, their answers checked, timed, and put down in a row each."""

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
from fatnn_rs.bench.export import Task
from fatnn_rs.bench.peers import INSTALL, Built, Peer, arrays_of
from fatnn_rs.bench.report import ABSENT, FAILED, MEASURED, PeerRow
from fatnn_rs.bench.timing import Spread, ratios

__all__ = [
    "Candidate",
    "build",
    "difference",
    "finish",
    "milliseconds",
    "note",
    "reason",
    "threads_of_all",
]

#: Terminal colours inside other packages' messages.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Candidate:
    """A peer on its way into the report."""

    name: str
    peer: Peer
    row: PeerRow
    calls: dict[str, Callable[[], Any]] = field(default_factory=dict)


@contextmanager
def threads_of_all(threads: int) -> Iterator[None]:
    """Set torch's and the core's number of threads, and put both back.

    The core follows torch unless told a number of its own (set_num_threads, FATNN_NUM_THREADS); it
    is told only then, so that it goes on following afterwards where it did before.
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


def note(candidate: Candidate, state: str, reason: str) -> None:
    """Put down why there is no figure."""
    candidate.row = PeerRow(candidate.name, candidate.peer.describe, state, reason)


def build(candidate: Candidate, task: Task, wanted: list[np.ndarray], has_amx: bool) -> None:
    """Make a peer ready and check its answer; what goes wrong goes into its row."""
    peer = candidate.peer
    missing = peer.missing()
    if missing:
        note(candidate, ABSENT, f"{', '.join(missing)} not installed: {INSTALL}")
        return
    start = time.perf_counter()
    try:
        # Exporters and runtimes write into the model's tensors' metadata, which inference mode
        # forbids.
        with torch.inference_mode(False), torch.no_grad():
            built = peer.build(task)
        seconds = time.perf_counter() - start
        errors = {variant: difference(call(), wanted) for variant, call in built.variants.items()}
    except (
        Exception
    ) as error:  # whatever another runtime raises belongs in its row, not in the caller's lap
        note(candidate, FAILED, reason(error))
        return
    worst = max(errors.values())
    if not math.isfinite(worst) or (peer.tolerance is not None and worst > peer.tolerance):
        note(
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
        amx=_amx(peer, built, has_amx),
        error=worst,
        build_seconds=round(seconds, 3),
    )


def reason(error: BaseException) -> str:
    """Name an exception and what it came from, in one line without terminal colours."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    parts = [
        f"{type(e).__name__}: {' '.join(_COLOUR.sub('', str(e)).split())[:300]}"
        for e in (error, root)
    ]
    return parts[0] if root is error else f"{parts[0]} (from {parts[1]})"


def difference(answer: Any, wanted: list[np.ndarray]) -> float:
    """Largest difference relative to the largest wanted value; infinity where shapes differ or a value is NaN."""
    got = list(arrays_of(answer))
    if [array.shape for array in got] != [array.shape for array in wanted]:
        return math.inf
    scale = max((float(np.abs(array).max()) for array in wanted if array.size), default=0.0) or 1.0
    worst = max(
        (float(np.abs(a - b).max()) for a, b in zip(got, wanted, strict=True) if a.size),
        default=0.0,
    )
    return worst / scale if math.isfinite(worst) else math.inf


def _amx(peer: Peer, built: Built, has_amx: bool) -> str:
    if not has_amx:
        return "no"
    if built.amx is not None:
        return "yes" if built.amx else "no"
    return "may" if peer.may_use_amx else "no"


def milliseconds(seconds: Sequence[float]) -> Spread:
    """Summarise seconds as milliseconds."""
    return Spread.of([1e3 * value for value in seconds])


def finish(
    candidate: Candidate, times: Mapping[tuple[str, str], Sequence[float]], ours: Sequence[float]
) -> PeerRow:
    """Put the best variant's figures into the row."""
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
        ratio=Spread.of(ratios(times[row.name, best], ours)),
        variant=best,
        variants={variant: spread.median for variant, spread in spreads.items()},
        details=row.details,
        amx=row.amx,
        error=row.error,
        build_seconds=row.build_seconds,
    )
