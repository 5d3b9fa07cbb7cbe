"""One network of the zoo, timed in this process: ``python -m zoo.measure NAME ROUNDS``.

What is printed last is one line of JSON, a :class:`Row`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

import fatnn_rs
from fatnn_rs.bench.candidates import (
    Candidate,
    build_candidate,
    describe_error,
    milliseconds,
    use_threads,
)
from fatnn_rs.bench.export import BenchTask
from fatnn_rs.bench.first_build import first_builds
from fatnn_rs.bench.networks import convert_and_verify, randomised
from fatnn_rs.bench.peers import PEERS, arrays_of
from fatnn_rs.bench.results import FAILED, NO_MODEL, PeerRow
from fatnn_rs.bench.timing import interleaved, ratios
from zoo.networks import SIZE, ZOO

__all__ = ["AGAINST", "OURS", "Cell", "Row", "measure"]

#: Other runtimes, rows of :data:`fatnn_rs.bench.peers.PEERS`.
AGAINST = ("torch", "onnxruntime", "onnxruntime-int8", "openvino-int8")

_INT8_ENDS = fatnn_rs.TernaryConfig(first="int8", last="int8")

#: Our own columns: name → configuration and ``float_layers``.
OURS: dict[str, tuple[fatnn_rs.TernaryConfig, str]] = {
    "default": (fatnn_rs.TernaryConfig(), "torch"),
    "rust": (_INT8_ENDS, "rust"),
}


@dataclass
class Cell:
    """One candidate.

    Attributes
    ----------
    milliseconds
        Median, minimum and quartiles of one call; None where there is none.
    over
        Its time divided by that of each of our own columns, inside each round, medians.
    variants
        Medians of what was tried: memory formats.
    reason
        Why there is no figure.
    """

    milliseconds: dict[str, float] | None = None
    over: dict[str, float] = field(default_factory=dict)
    variants: dict[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass
class Row:
    """One network: cells by the name of a candidate, compared codes, seconds of all of it."""

    network: str
    cells: dict[str, Cell] = field(default_factory=dict)
    codes_verified: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def measure(name: str, rounds: int) -> Row:
    """Build a network and every candidate once, check their answers, and time them in turns.

    Parameters
    ----------
    name
        Row of :data:`zoo.networks.ZOO`.
    rounds
        Turns of every candidate, at least 3.
    """
    start = time.perf_counter()
    row = Row(name)
    with use_threads(1), tempfile.TemporaryDirectory(prefix="fatnn-zoo-") as folder:
        made = randomised(name, ZOO[name], SIZE)
        image = made.images(1)
        calls: dict[tuple[str, str], Callable[[], Any]] = {}
        for column, (config, float_layers) in OURS.items():
            try:
                net, row.codes_verified[column] = convert_and_verify(made, config, float_layers)
            except Exception as error:  # one column less
                row.cells[column] = Cell(reason=describe_error(error))
                continue
            calls[column, ""] = partial(net, image)
        calls |= _peers(row, made.model, image, Path(folder))
        with torch.inference_mode():
            keyed = {str(number): call for number, call in enumerate(calls.values())}
            times = dict(zip(calls, interleaved(keyed, rounds).values(), strict=True))
    _fill(row, times)
    row.seconds = round(time.perf_counter() - start, 1)
    return row


def _peers(
    row: Row, model: torch.nn.Module, image: torch.Tensor, folder: Path
) -> dict[tuple[str, str], Callable[[], Any]]:
    """Build the other runtimes; those that fail get their cells."""
    task = BenchTask(model, (image,), 1, folder)
    with torch.inference_mode():
        wanted = list(arrays_of(model(image)))
    died = first_builds(task, AGAINST)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for name in AGAINST:
        peer = PEERS[name]
        candidate = Candidate(name, peer, PeerRow(name, peer.describe, NO_MODEL))
        if name in died:
            candidate.row = PeerRow(name, peer.describe, FAILED, died[name])
        else:
            with torch.inference_mode():
                build_candidate(candidate, task, wanted, has_amx=False)
        if not candidate.calls:
            row.cells[name] = Cell(reason=f"{candidate.row.state}: {candidate.row.reason}")
        calls |= {(name, variant): call for variant, call in candidate.calls.items()}
    return calls


def _fill(row: Row, times: dict[tuple[str, str], list[float]]) -> None:
    """Put figures into cells, of a candidate's fastest variant."""
    ours = {column: times[column, ""] for column in OURS if (column, "") in times}
    for name in dict.fromkeys(name for name, _ in times):
        spreads = {
            variant: milliseconds(seconds)
            for (candidate, variant), seconds in times.items()
            if candidate == name
        }
        best = min(spreads, key=lambda variant: spreads[variant].median)
        over = {
            column: median(ratios(times[name, best], seconds)) for column, seconds in ours.items()
        }
        variants = {variant: spread.median for variant, spread in spreads.items()}
        row.cells[name] = Cell(asdict(spreads[best]), over, variants if len(variants) > 1 else {})


if __name__ == "__main__":
    print(json.dumps(asdict(measure(sys.argv[1], int(sys.argv[2])))))
