"""Build other runtimes' networks in a child process first.

A runtime that crashes ends its process, and every figure measured so far would be lost. So each
peer that reads a file is first built and run once in a child process.
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

#: Seconds after which a child process is killed.
_TIMEOUT_SECONDS = 600.0

_INPUTS = "inputs.pt"


def first_builds(task: BenchTask, names: Sequence[str]) -> dict[str, str]:
    """Build peers and run each once in a child process.

    Parameters
    ----------
    task
        The model and inputs that the peers run. The files that they read are made here.
    names
        Rows of :data:`fatnn_rs.bench.peers.PEERS`. Peers that read no file, or are not installed,
        are left out.

    Returns
    -------
    dict
        Name → what happened, for each peer that ended its process. A peer that raises is not
        included: it will raise again when it is built in this process.
    """
    left = [name for name in names if _can_be_built(task, name)]
    if left:
        torch.save(task.inputs, task.folder / _INPUTS)
    died: dict[str, str] = {}
    while left:
        finished, end = _run_child(task, left)
        left = left[finished:]
        if left and end:
            died[left.pop(0)] = f"it ended the process that built it first ({end})"
    return died


def _can_be_built(task: BenchTask, name: str) -> bool:
    """Whether a peer is installed and its file could be made."""
    peer = PEERS[name]
    if peer.file is None or peer.missing():
        return False
    try:
        with torch.inference_mode(False), torch.no_grad():
            getattr(task, peer.file)
    except Exception:  # raised again, and reported, when the peer is built
        return False
    return True


def _run_child(task: BenchTask, names: Sequence[str]) -> tuple[int, str]:
    """Build peers in a child process; return how many finished, and why the others did not."""
    command = [sys.executable, "-m", __name__, str(task.folder), str(task.threads), *names]
    # This process may have imported the package from a path that is not in PYTHONPATH.
    path = os.pathsep.join(part for part in sys.path if part)
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_SECONDS,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return len((error.stdout or b"").splitlines()), f"not done after {_TIMEOUT_SECONDS:.0f} s"
    count = len(done.stdout.splitlines())
    return count, "" if count == len(names) else _describe_exit_code(done.returncode)


def _describe_exit_code(code: int) -> str:
    """Describe an exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _main(folder: str, threads: str, *names: str) -> None:
    """Build and run peers in the child process; print a line for each that finished."""
    lines = os.dup(1)  # standard output for our lines; what runtimes print goes to standard error
    os.dup2(2, 1)
    torch.set_num_threads(int(threads))
    inputs = torch.load(Path(folder) / _INPUTS)
    task = BenchTask(torch.nn.Identity(), inputs, int(threads), Path(folder))
    for name in names:
        try:
            for call in PEERS[name].build(task).variants.values():
                call()
        except Exception as error:  # raised again when the peer is built
            print(f"{name}: {error}", file=sys.stderr)
        os.write(lines, f"{name}\n".encode())
    os._exit(0)  # without cleanup: a crash there says nothing about the networks


if __name__ == "__main__":
    _main(*sys.argv[1:])
