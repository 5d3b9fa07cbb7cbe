"""``bench``: a converted network against other runtimes, measured in turns in this process."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fatnn_rs import _core
from fatnn_rs.bench.candidates import Candidate, build, finish, milliseconds, note, threads_of_all
from fatnn_rs.bench.export import Task
from fatnn_rs.bench.first_build import first_builds
from fatnn_rs.bench.layers import time_layers
from fatnn_rs.bench.peers import PEERS, arrays_of
from fatnn_rs.bench.report import FAILED, MEASURED, NO_MODEL, OURS, BenchReport, PeerRow
from fatnn_rs.bench.timing import PAUSE_SECONDS, interleaved
from fatnn_rs.convert import TernaryNetwork, summary
from fatnn_rs.convert.checks import check_inputs
from fatnn_rs.errors import ConfigError, InputError
from fatnn_rs.machine import AMX, Machine
from fatnn_rs.nn import QuantizedLayer

__all__ = ["bench"]

#: Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

_FEWEST_ROUNDS = 3


def bench(
    net: TernaryNetwork,
    inputs: Any,
    against: Sequence[str] = ("torch",),
    threads: int = 1,
    *,
    float_model: nn.Module | None = None,
    rounds: int = 25,
    label: str | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Time a converted network, and the float model it stands for in other runtimes, on this machine.

    All candidates are built first and stay in memory, runtimes that read a file in a child process
    before, so that one that crashes is only named; then they run in turns, and figures are
    medians over the rounds (see :mod:`fatnn_rs.bench.timing`). Every peer's answer is compared with
    the float model's before anything is timed. The network's own nodes are timed apart.

    Parameters
    ----------
    net
        What :func:`fatnn_rs.convert` or :func:`fatnn_rs.load` returned.
    inputs
        A tensor, or a tuple of the model's positional arguments. The int8 peers are calibrated on
        them.
    against
        Names of rows of :data:`fatnn_rs.bench.PEERS`; ``()`` to time the network alone. A peer that
        is not installed is named as absent, one that fails says why in its row: neither is an
        error.
    threads
        For the network and for every peer.
    float_model
        What the peers run: the model as it was *before* :func:`fatnn_rs.prepare` (keep a
        ``copy.deepcopy``), whose convolutions and linear layers are plain float ones. A converted
        network holds no float weights that others could run. Weights need not be trained, for time
        does not depend on them. Without it, peers are not measured, and their rows say so.
    rounds
        Turns of every candidate, at least 3.
    label
        Name of the network in the report.
    progress
        Called with what is being done, how much of it is done, and how much there is.

    Returns
    -------
    BenchReport
        Printable; ``to_json()``.

    Raises
    ------
    ConfigError
        An unknown peer; ``threads`` or ``rounds`` too small; a float model that holds quantized
        layers, or whose outputs have other shapes than the network's.
    InputError
        ``net`` is no converted network; ``inputs`` hold no tensor, or not what the network takes.
    """
    if not isinstance(net, TernaryNetwork):
        raise InputError(
            f"net: expected a converted network, got {type(net).__name__}; give what fatnn_rs.convert or fatnn_rs.load "
            "returned"
        )
    arguments = check_inputs("inputs", inputs)
    names = _check_names(against)
    _check_number("threads", threads, 1)
    _check_number("rounds", rounds, _FEWEST_ROUNDS)
    _check_model(float_model)
    report = progress or _no_progress
    machine = Machine.current()
    rows = [
        Candidate(name, PEERS[name], PeerRow(name, PEERS[name].describe, NO_MODEL))
        for name in names
    ]
    with (
        tempfile.TemporaryDirectory(prefix="fatnn-bench-") as folder,
        threads_of_all(threads),
        torch.inference_mode(),
    ):
        answer = list(arrays_of(net(*arguments)))
        if float_model is None:
            for candidate in rows:
                note(
                    candidate,
                    NO_MODEL,
                    "it needs the float model: bench(..., float_model=model before prepare)",
                )
        else:
            with torch.inference_mode(False):
                model = copy.deepcopy(float_model).eval()
            wanted = _answer_of(model, arguments)
            _check_answer(answer, wanted)
            task = Task(model, arguments, threads, Path(folder))
            report("building in a child process", 0, len(rows))
            died = first_builds(task, names)
            for done, candidate in enumerate(rows):
                if candidate.name in died:
                    note(candidate, FAILED, died[candidate.name])
                    continue
                report(f"building {candidate.name}", done, len(rows))
                build(candidate, task, wanted, AMX in machine.flags)
        calls: dict[tuple[str, str], Callable[[], Any]] = {(OURS, ""): lambda: net(*arguments)}
        calls |= {(c.name, variant): call for c in rows for variant, call in c.calls.items()}
        keyed = {f"{number}": call for number, call in enumerate(calls.values())}
        pause = PAUSE_SECONDS if threads > 1 else 0.0
        times = interleaved(keyed, rounds, pause, lambda done: report("measuring", done, rounds))
        by_call = dict(zip(calls, times.values(), strict=True))
        layers = time_layers(net, arguments, rounds, lambda done: report("layers", done, rounds))
        sizes = summary(net, arguments)
    ours = by_call[OURS, ""]
    # Convolutions take the matrix unit where there is one.
    amx = "yes" if any("amx" in kernel for kernel in _core.cpu_info()["kernels"]) else "no"
    first = PeerRow(OURS, "this network", MEASURED, milliseconds=milliseconds(ours), amx=amx)
    return BenchReport(
        network=label or f"network of {net.report.layers_ternary} ternary layers",
        shapes=tuple(tuple(value.shape) for value in arguments if isinstance(value, Tensor)),
        threads=threads,
        rounds=rounds,
        macs=sizes.macs,
        macs_ternary=sum(row.macs for row in sizes.rows if row.weight_bits <= 2),
        rows=(first, *(finish(candidate, by_call, ours) for candidate in rows)),
        layers=layers,
        machine=machine,
    )


def _check_names(against: Sequence[str]) -> tuple[str, ...]:
    if isinstance(against, str):
        raise ConfigError(
            f"against must be a sequence of names, got {against!r}; write ({against!r},) for one"
        )
    if not isinstance(against, Sequence):
        raise ConfigError(f"against must be a sequence of names, got {type(against).__name__}")
    for name in against:
        if not isinstance(name, str) or name not in PEERS:
            raise ConfigError(f"against: unknown peer {name!r}; the peers are: {', '.join(PEERS)}")
    return tuple(dict.fromkeys(against))


def _check_number(what: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{what} must be a whole number of at least {least}, got {value!r}")


def _check_model(model: Any) -> None:
    if model is None:
        return
    if not isinstance(model, nn.Module):
        raise ConfigError(f"float_model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, (QuantizedLayer, TernaryNetwork)):
            raise ConfigError(
                f"float_model holds quantized layers ({name or 'the model itself'!r}), which other runtimes would run "
                "as slow float code; give the model as it was before fatnn_rs.prepare (keep a copy.deepcopy)"
            )


def _answer_of(model: nn.Module, arguments: tuple[Any, ...]) -> list[np.ndarray]:
    """Return what the float model gives for the inputs.

    Raises
    ------
    ConfigError
        It raises an error of its own, which is the cause.
    """
    try:
        return list(arrays_of(model(*(_cloned(value) for value in arguments))))
    except Exception as error:
        raise ConfigError(
            f"float_model fails on these inputs ({type(error).__name__}: {error}); give the float32 model that the "
            "network was made from"
        ) from error


def _check_answer(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    mine, other = [list(array.shape) for array in ours], [list(array.shape) for array in theirs]
    if mine != other:
        raise ConfigError(
            f"float_model returns shapes {other} for these inputs, the network {mine}; give the model that the network "
            "was made from"
        )


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _no_progress(what: str, done: int, total: int) -> None:
    pass
