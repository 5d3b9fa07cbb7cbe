"""What layers and networks share when they are measured: candidates in, seconds out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fatnn_rs.bench.candidates import Candidate, build
from fatnn_rs.bench.export import Task
from fatnn_rs.bench.peers import PEERS
from fatnn_rs.bench.report import ABSENT, FAILED, PeerRow
from fatnn_rs.bench.timing import PAUSE_SECONDS, interleaved
from fatnn_rs.machine import AMX, Machine

__all__ = ["CODES", "FEWEST_ROUNDS", "FLOATS", "Entry", "Found", "Progress"]

#: Ways through a layer: from packed codes to packed codes, as inside a network, and from floats to floats.
CODES, FLOATS = "codes", "floats"

#: Seconds that the rounds of a process may take; where they would take longer, there are fewer of them.
BUDGET = 60.0

#: Fewest rounds: less has no quartiles.
FEWEST_ROUNDS = 3

#: Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Entry:
    """Something to time.

    Attributes
    ----------
    who
        Name of a rung or of a peer.
    kind
        ``"rung"`` or ``"peer"``.
    way
        :data:`CODES` or :data:`FLOATS`.
    variant
        A kernel, a memory format: of those with the same ``who`` and ``way`` the fastest counts.
    call
        Runs it once.
    facts
        What else there is to say, as plain data.
    """

    who: str
    kind: str
    way: str
    variant: str
    call: Callable[[], Any]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Found:
    """The candidates of a case.

    Attributes
    ----------
    macs
        Multiply-accumulates of one call.
    entries
        What is timed.
    missing, failed
        Who cannot run here, and who should and did not: names with reasons.
    """

    macs: int
    entries: list[Entry] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)

    def add_peers(
        self, names: Sequence[str], task: Task, wanted: list[np.ndarray], progress: Progress
    ) -> None:
        """Build peers on the float model, check their answers, and add those that can be timed."""
        has_amx = AMX in Machine.current().flags
        for done, name in enumerate(names):
            progress(f"building {name}", done, len(names))
            candidate = Candidate(name, PEERS[name], PeerRow(name, PEERS[name].describe, ""))
            build(candidate, task, wanted, has_amx)
            row = candidate.row
            for state, rows in ((ABSENT, self.missing), (FAILED, self.failed)):
                if row.state == state:
                    rows.append({"who": name, "reason": row.reason})
            facts = {"details": row.details, "amx": row.amx, "error": row.error}
            self.entries += [
                Entry(name, "peer", FLOATS, variant, call, facts)
                for variant, call in candidate.calls.items()
            ]

    def timed(self, rounds: int, threads: int, progress: Progress) -> dict[str, Any]:
        """Time everything in turns; all there is to say about the case, as plain data."""
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
    """So many rounds, or as many as :data:`BUDGET` allows: a turn of a long call is one untimed and one timed."""
    start = time.perf_counter()
    for call in calls:
        call()
    once = 2 * (time.perf_counter() - start)
    return max(FEWEST_ROUNDS, min(rounds, int(BUDGET / max(once, 1e-9))))
