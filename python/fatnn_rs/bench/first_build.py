"""Building other runtimes' networks in a child process first.

A runtime that crashes takes its process with it, and with that every figure measured so far. So
each peer that reads a file is built and run once elsewhere before it is built here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fatnn_rs.bench.export import BenchTask
from fatnn_rs.bench.peers import PEERS

__all__ = ["first_builds"]

#: Seconds after which a child that still builds or runs is ended.
_PATIENCE = 600.0

_INPUTS = "inputs.pt"


def first_builds(task: BenchTask, names: Sequence[str]) -> dict[str, str]:
    """Build peers and run each once in a child process.

    Parameters
    ----------
    task
        What they run; files that they read are made here.
    names
        Rows of :data:`fatnn_rs.bench.peers.PEERS`. Peers that read no file, or are not installed,
        are left out.

    Returns
    -------
    dict
        Name → what happened, for each peer that ended its process. A peer that merely raises is
        not among them: whoever builds it here gets the exception.
    """
    left = [name for name in names if _readable(task, name)]
    if left:
        torch.save(task.inputs, task.folder / _INPUTS)
    died: dict[str, str] = {}
    while left:
        finished, end = _child(task, left)
        left = left[finished:]
        if left and end:
            died[left.pop(0)] = f"it ended the process that built it first ({end})"
    return died


def _readable(task: BenchTask, name: str) -> bool:
    """Whether a peer is installed and its file could be made."""
    peer = PEERS[name]
    if peer.file is None or peer.missing():
        return False
    try:
        with torch.inference_mode(False), torch.no_grad():
            getattr(task, peer.file)
    except Exception:  # raised again where the peer is built, whose row then says why
        return False
    return True


def _child(task: BenchTask, names: Sequence[str]) -> tuple[int, str]:
    """Build peers in turn; how many were done, and how the child ended before the others."""
    command = [sys.executable, "-m", __name__, str(task.folder), str(task.threads), *names]
    # The package may have been imported from a folder that only this process knows.
    path = os.pathsep.join(part for part in sys.path if part)
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return len((error.stdout or b"").splitlines()), f"not done after {_PATIENCE:.0f} s"
    count = len(done.stdout.splitlines())
    return count, "" if count == len(names) else _how(done.returncode)


def _how(code: int) -> str:
    """Name an exit code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _main(folder: str, threads: str, *names: str) -> None:
    """Build and run, and print a line for each peer that is through."""
    lines = os.dup(1)  # what runtimes print themselves goes elsewhere
    os.dup2(2, 1)
    torch.set_num_threads(int(threads))
    inputs = torch.load(Path(folder) / _INPUTS)
    task = BenchTask(torch.nn.Identity(), inputs, int(threads), Path(folder))
    for name in names:
        try:
            for call in PEERS[name].build(task).variants.values():
                call()
        except Exception as error:  # said again where the peer is built
            print(f"{name}: {error}", file=sys.stderr)
        os.write(lines, f"{name}\n".encode())
    os._exit(0)  # a crash while a runtime is taken down is none of a network's


if __name__ == "__main__":
    _main(*sys.argv[1:])
