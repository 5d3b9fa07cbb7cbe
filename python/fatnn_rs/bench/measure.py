"""``bench``: time a converted network and other runtimes in turns, in this process."""

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
from fatnn_rs.bench.candidates import (
    Candidate,
    build_candidate,
    finished_row,
    milliseconds,
    set_unmeasured,
    use_threads,
)
from fatnn_rs.bench.export import BenchTask
from fatnn_rs.bench.first_build import first_builds
from fatnn_rs.bench.node_times import time_layers
from fatnn_rs.bench.peers import PEERS, arrays_of
from fatnn_rs.bench.results import FAILED, MEASURED, NO_MODEL, OURS, BenchReport, PeerRow
from fatnn_rs.bench.timing import PAUSE_SECONDS, interleaved
from fatnn_rs.convert import TernaryNetwork, summary
from fatnn_rs.convert.checks import check_inputs
from fatnn_rs.errors import ConfigError, InputError
from fatnn_rs.machine import AMX, Machine
from fatnn_rs.nn import QuantizedLayer

__all__ = ["bench"]

#: Called with a description of the work, the number of finished parts, and the number of parts.
Progress = Callable[[str, int, int], None]

_MIN_ROUNDS = 3


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
    """Time a converted network, and its float model in other runtimes, on this machine.

    All runtimes are built first and stay in memory. Those that read a file are first built in a
    child process, so that a crash is only reported. Then all run in turns; figures are medians over
    the rounds (see :mod:`fatnn_rs.bench.timing`). Before timing, every runtime's
    output is compared with the float model's. The network's nodes are timed separately.

    Parameters
    ----------
    net
        Result of :func:`fatnn_rs.convert` or :func:`fatnn_rs.load`.
    inputs
        A tensor, or a tuple of the model's positional arguments. They also calibrate the int8
        runtimes.
    against
        Names of runtimes, keys of :data:`fatnn_rs.bench.PEERS`; ``()`` to time only the network. A
        runtime that is not installed or fails is no error: the report says so.
    threads
        Number of threads, for the network and every runtime.
    float_model
        The model for the other runtimes, as it was *before* :func:`fatnn_rs.prepare` (keep a
        ``copy.deepcopy``); the converted network has no float weights. Its weights need not be
        trained, because time does not depend on them. Without it, only the network is timed.
    rounds
        Number of rounds, at least 3.
    label
        Name of the network in the report.
    progress
        Called with a description of the work, the finished parts, and the number of parts.

    Returns
    -------
    BenchReport
        Print it, or use ``to_json()``.

    Raises
    ------
    ConfigError
        An unknown runtime; ``threads`` or ``rounds`` too small; a float model that has quantized
        layers, fails on the inputs or returns other shapes than the network.
    InputError
        ``net`` is not a converted network, or ``inputs`` are not what it takes.
    """
    if not isinstance(net, TernaryNetwork):
        raise InputError(
            f"net: expected a converted network, got {type(net).__name__}; give what "
            "fatnn_rs.convert or fatnn_rs.load returned"
        )
    arguments, _ = check_inputs("inputs", inputs)
    names = _check_names(against)
    _check_number("threads", threads, 1)
    _check_number("rounds", rounds, _MIN_ROUNDS)
    _check_model(float_model)
    report = progress or _no_progress
    machine = Machine.current()
    rows = [
        Candidate(name, PEERS[name], PeerRow(name, PEERS[name].describe, NO_MODEL))
        for name in names
    ]
    with (
        tempfile.TemporaryDirectory(prefix="fatnn-bench-") as folder,
        use_threads(threads),
        torch.inference_mode(),
    ):
        answer = list(arrays_of(net(*arguments)))
        if float_model is None:
            for candidate in rows:
                set_unmeasured(
                    candidate,
                    NO_MODEL,
                    "it needs the float model: bench(..., float_model=model before prepare)",
                )
        else:
            with torch.inference_mode(False):
                model = copy.deepcopy(float_model).eval()
            wanted = _float_outputs(model, arguments)
            _check_shapes(answer, wanted)
            task = BenchTask(model, arguments, threads, Path(folder))
            report("building in a child process", 0, len(rows))
            died = first_builds(task, names)
            for done, candidate in enumerate(rows):
                if candidate.name in died:
                    set_unmeasured(candidate, FAILED, died[candidate.name])
                    continue
                report(f"building {candidate.name}", done, len(rows))
                build_candidate(candidate, task, wanted, AMX in machine.flags)
        calls: dict[tuple[str, str], Callable[[], Any]] = {(OURS, ""): lambda: net(*arguments)}
        calls |= {(c.name, variant): call for c in rows for variant, call in c.calls.items()}
        keyed = {f"{number}": call for number, call in enumerate(calls.values())}
        pause = PAUSE_SECONDS if threads > 1 else 0.0
        times = interleaved(keyed, rounds, pause, lambda done: report("measuring", done, rounds))
        by_call = dict(zip(calls, times.values(), strict=True))
        layers = time_layers(net, arguments, rounds, lambda done: report("layers", done, rounds))
        sizes = summary(net, arguments)
    ours = by_call[OURS, ""]
    # Convolutions use AMX if the machine has it.
    amx = "yes" if any("amx" in kernel for kernel in _core.cpu_info()["kernels"]) else "no"
    first = PeerRow(OURS, "this network", MEASURED, milliseconds=milliseconds(ours), amx=amx)
    return BenchReport(
        network=label or f"network of {net.report.layers_ternary} ternary layers",
        shapes=tuple(tuple(value.shape) for value in arguments if isinstance(value, Tensor)),
        threads=threads,
        rounds=rounds,
        macs=sizes.macs,
        macs_ternary=sum(row.macs for row in sizes.rows if row.weight_bits <= 2),
        rows=(first, *(finished_row(candidate, by_call, ours) for candidate in rows)),
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
                f"float_model holds quantized layers ({name or 'the model itself'!r}), which other "
                "runtimes would run as slow float code; give the model as it was before "
                "fatnn_rs.prepare (keep a copy.deepcopy)"
            )


def _float_outputs(model: nn.Module, arguments: tuple[Any, ...]) -> list[np.ndarray]:
    """Return the float model's outputs.

    Raises
    ------
    ConfigError
        The model fails; its error is the cause.
    """
    try:
        return list(arrays_of(model(*(_cloned(value) for value in arguments))))
    except Exception as error:
        raise ConfigError(
            f"float_model fails on these inputs ({type(error).__name__}: {error}); give the "
            "float32 model that the network was made from"
        ) from error


def _check_shapes(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    mine, other = [list(array.shape) for array in ours], [list(array.shape) for array in theirs]
    if mine != other:
        raise ConfigError(
            f"float_model returns shapes {other} for these inputs, the network {mine}; give the "
            "model that the network was made from"
        )


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _no_progress(what: str, done: int, total: int) -> None:
    pass
