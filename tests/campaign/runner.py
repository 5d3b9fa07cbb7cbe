"""Trials in forked children: a crash, a hang or too much memory ends a child and is a finding.

The parent only imports torch and forks, so that a new child costs milliseconds. It starts no
threads and runs no trial.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from campaign.outcome import FINDING, Outcome

#: Trials after which a child is replaced, so that nothing one of them leaves behind lasts for long.
TRIALS_PER_CHILD = 40


@dataclass(frozen=True)
class Limits:
    """What one trial may take.

    Attributes
    ----------
    cpu_seconds
        Of the process, all its threads together. Eight times as much by the clock, for a busy
        machine.
    peak_bytes
        Resident memory beyond what the child had before the trial. Above it the trial is a finding.
    address_bytes
        Address space beyond the child's own. Above it allocations fail.
    """

    cpu_seconds: float
    peak_bytes: int = 1 << 30
    address_bytes: int = 4 << 30


@dataclass(frozen=True)
class Kind:
    """A kind of trial.

    Attributes
    ----------
    trial
        Seed → outcome. Runs in a child.
    reproduction
        Seed → Python that can be pasted, without running the fault. Runs in a child.
    limits
        Of each trial.
    """

    trial: Callable[[int], Outcome]
    reproduction: Callable[[int], str]
    limits: Limits


@dataclass
class _Child:
    pid: int
    pipe: int
    seeds: list[int]
    errors: str
    #: Trials that have ended.
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    cpu: float = 0.0
    rest: bytes = b""
    killed: str = ""


def _status_bytes(key: str) -> int:
    with open("/proc/self/status") as status:
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith(key)), 0)


def _cpu_seconds(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _reset_peak() -> int:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    return _status_bytes("VmHWM")


def guarded(kind: Kind, seed: int) -> Outcome:
    """Run one trial here and measure its memory; an unexpected exception is a finding."""
    before = _reset_peak()
    try:
        outcome = kind.trial(seed)
    except BaseException as error:
        import traceback

        outcome = Outcome(
            FINDING,
            f"the trial itself failed: {type(error).__name__}: {error}"[:120],
            traceback.format_exc()[-1500:],
        )
    grown = _status_bytes("VmHWM") - before
    if outcome.verdict != FINDING and grown > kind.limits.peak_bytes:
        what = f"took more than {kind.limits.peak_bytes >> 20} MiB of memory"
        outcome = Outcome(FINDING, what, f"{grown >> 20} MiB", kind.reproduction(seed))
    return outcome


def _run_child(kind: Kind, seeds: list[int], pipe: int, errors: str) -> None:
    """The child: trial after trial, each announced before it starts."""
    sink = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    faulthandler.enable(sink)
    warnings.simplefilter("ignore")
    space = _status_bytes("VmSize") + kind.limits.address_bytes
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for seed in seeds:
        os.ftruncate(sink, 0)
        outcome = guarded(kind, seed)
        os.write(pipe, (json.dumps(outcome.to_json()) + "\n").encode())


def _fork(kind: Kind, seeds: list[int], errors: str) -> _Child:
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        try:
            _run_child(kind, seeds, writer, errors)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    return _Child(pid, reader, seeds, errors)


def _in_child(call: Callable[[], str], seconds: float = 60.0) -> str:
    """What ``call`` returns, computed in a child of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.write(writer, call().encode()[:60000])
        finally:
            os._exit(0)
    os.close(writer)
    text, until = b"", time.monotonic() + seconds
    while time.monotonic() < until and select.select([reader], [], [], 1.0)[0] is not None:
        if select.select([reader], [], [], 0)[0]:
            part = os.read(reader, 65536)
            if not part:
                break
            text += part
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(reader)
    os.waitpid(pid, 0)
    return text.decode(errors="replace")


def _ended(child: _Child, kind: Kind) -> Iterator[tuple[int, Outcome]]:
    """What the end of a child says: nothing where it had finished, else the trial that ended it."""
    _, status = os.waitpid(child.pid, 0)
    os.close(child.pipe)
    if child.done < len(child.seeds):
        seed = child.seeds[child.done]
        code = os.waitstatus_to_exitcode(status)
        if child.killed:
            what = child.killed
        elif code < 0:
            what = f"the process died of {signal.Signals(-code).name}"
        else:
            what = f"the process exited with {code}"
        with open(child.errors, errors="replace") as errors:
            said = errors.read()
        important = [
            line for line in said.split("\n") if "panicked" in line or "allocation of" in line
        ]
        if important:
            what += f" ({important[0][:80]})"
        reproduction = _in_child(lambda: kind.reproduction(seed))
        yield seed, Outcome(FINDING, what, said[-1500:], reproduction)


def run(
    kind: Kind, seeds: Iterator[int], until: float | None, jobs: int, folder: str
) -> Iterator[tuple[int, Outcome]]:
    """Run trials until the time ``until`` or the end of ``seeds``; yield (seed, outcome)."""
    children: dict[int, _Child] = {}
    waiting: list[list[int]] = []
    over = False
    number = 0

    def batch() -> list[int]:
        found: list[int] = []
        for seed in seeds:
            found.append(seed)
            if len(found) == TRIALS_PER_CHILD:
                break
        return found

    while True:
        over = over or (until is not None and time.monotonic() > until)
        while len(children) < jobs and not over:
            given = waiting.pop() if waiting else batch()
            if not given:
                break
            number += 1
            child = _fork(kind, given, os.path.join(folder, f"errors-{number % (4 * jobs)}"))
            children[child.pipe] = child
        if not children:
            return
        ready = select.select(list(children), [], [], 0.5)[0]
        for pipe in ready:
            child = children[pipe]
            part = os.read(pipe, 1 << 16)
            if not part:
                del children[pipe]
                rest = child.seeds[child.done + 1 :]
                yield from _ended(child, kind)
                if rest and not over:
                    waiting.append(rest)
                continue
            *lines, child.rest = (child.rest + part).split(b"\n")
            for line in lines:
                yield child.seeds[child.done], Outcome(**json.loads(line))
                child.done += 1
                child.started, child.cpu = time.monotonic(), _cpu_seconds(child.pid)
        for child in list(children.values()):
            cpu, clock = _cpu_seconds(child.pid) - child.cpu, time.monotonic() - child.started
            if over and child.done:
                # Between trials or in one: the time is up.
                _stop(child, children)
            elif cpu > kind.limits.cpu_seconds or clock > 8 * kind.limits.cpu_seconds:
                child.killed = f"took more than {kind.limits.cpu_seconds:g} s"
                os.kill(child.pid, signal.SIGABRT)  # faulthandler then says where it was
                time.sleep(0.2)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)


def _stop(child: _Child, children: dict[int, Any]) -> None:
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    os.close(child.pipe)
    del children[child.pipe]
