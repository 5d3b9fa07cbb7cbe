"""Collect the calls of a case and time them, for layers and for networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fatnn_rs.bench.candidates import Candidate, build_candidate
from fatnn_rs.bench.export import BenchTask
from fatnn_rs.bench.peers import PEERS
from fatnn_rs.bench.results import ABSENT, FAILED, PeerRow
from fatnn_rs.bench.timing import PAUSE_SECONDS, interleaved
from fatnn_rs.machine import AMX, Machine

__all__ = ["CODES", "FLOATS", "MIN_ROUNDS", "CaseCalls", "Progress", "TimedCall"]

#: Interfaces of a layer: packed codes to packed codes, as inside a network, or floats to floats.
CODES, FLOATS = "codes", "floats"

#: Maximum seconds for the rounds of a process; longer calls get fewer rounds.
BUDGET = 60.0

#: Minimum number of rounds; fewer have no quartiles.
MIN_ROUNDS = 3

#: Called with a description of the work, the number of finished parts, and the number of parts.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TimedCall:
    """A call to time.

    Attributes
    ----------
    who
        Name of a rung or a runtime.
    kind
        ``"rung"`` or ``"peer"`` (another runtime).
    way
        Interface: :data:`CODES` or :data:`FLOATS`.
    variant
        A kernel or a memory format. Of all variants of the same ``who`` and ``way``, the fastest
        counts.
    call
        Runs the layer or network once.
    facts
        Other facts for the report, as plain data.
    """

    who: str
    kind: str
    way: str
    variant: str
    call: Callable[[], Any]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class CaseCalls:
    """All calls of a case, and which rungs and runtimes have none.

    Attributes
    ----------
    macs
        Multiply-accumulates of one call.
    entries
        The calls.
    missing, failed
        Rungs and runtimes that cannot run here, and those that failed, each with the reason.
    """

    macs: int
    entries: list[TimedCall] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)

    def add_peers(
        self, names: Sequence[str], task: BenchTask, wanted: list[np.ndarray], progress: Progress
    ) -> None:
        """Build runtimes on the float model, check their outputs, and add their calls."""
        has_amx = AMX in Machine.current().flags
        for done, name in enumerate(names):
            progress(f"building {name}", done, len(names))
            candidate = Candidate(name, PEERS[name], PeerRow(name, PEERS[name].describe, ""))
            build_candidate(candidate, task, wanted, has_amx)
            row = candidate.row
            for state, rows in ((ABSENT, self.missing), (FAILED, self.failed)):
                if row.state == state:
                    rows.append({"who": name, "reason": row.reason})
            facts = {"details": row.details, "amx": row.amx, "error": row.error}
            self.entries += [
                TimedCall(name, "peer", FLOATS, variant, call, facts)
                for variant, call in candidate.calls.items()
            ]

    def timed(self, rounds: int, threads: int, progress: Progress) -> dict[str, Any]:
        """Time all calls in turns; return the case's results as plain data."""
        calls = {str(number): entry.call for number, entry in enumerate(self.entries)}
        pause = PAUSE_SECONDS if threads > 1 else 0.0
        rounds = _affordable(calls.values(), rounds)
        seconds = (
            interleaved(calls, rounds, pause, lambda done: progress("measuring", done, rounds))
            if calls
            else {}
        )
        entries = [
            {
                "who": entry.who,
                "kind": entry.kind,
                "way": entry.way,
                "variant": entry.variant,
                "facts": entry.facts,
                "seconds": seconds[str(number)],
            }
            for number, entry in enumerate(self.entries)
        ]
        return {
            "macs": self.macs,
            "rounds": rounds,
            "entries": entries,
            "missing": self.missing,
            "failed": self.failed,
        }


def _affordable(calls: Iterable[Callable[[], Any]], rounds: int) -> int:
    """Return ``rounds``, or fewer so that they fit :data:`BUDGET`; a turn makes two calls."""
    start = time.perf_counter()
    for call in calls:
        call()
    once = 2 * (time.perf_counter() - start)
    return max(MIN_ROUNDS, min(rounds, int(BUDGET / max(once, 1e-9))))
