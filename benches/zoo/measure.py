"""Time one network of the zoo in this process: ``python -m zoo.measure NAME ROUNDS``.

The last line of output is a :class:`Row` as JSON.
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

#: The other runtimes, keys of :data:`fatnn_rs.bench.peers.PEERS`.
AGAINST = ("torch", "onnxruntime", "onnxruntime-int8", "openvino-int8")

_INT8_FIRST_LAST = fatnn_rs.TernaryConfig(first="int8", last="int8")

#: The columns of fatnn-rs: name → configuration and ``float_layers``.
OURS: dict[str, tuple[fatnn_rs.TernaryConfig, str]] = {
    "default": (fatnn_rs.TernaryConfig(), "torch"),
    "rust": (_INT8_FIRST_LAST, "rust"),
}


@dataclass
class Cell:
    """Times of one candidate: a runtime, or a column of fatnn-rs.

    Attributes
    ----------
    milliseconds
        Median, minimum and quartiles of one call; None if the candidate failed.
    over
        Column of fatnn-rs → median over the rounds of the candidate's time divided by the
        column's. Above 1, the candidate is slower.
    variants
        Variant (memory format) → its median in milliseconds; empty if there is only one.
    reason
        Why there are no times; empty if there are.
    """

    milliseconds: dict[str, float] | None = None
    over: dict[str, float] = field(default_factory=dict)
    variants: dict[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass
class Row:
    """Results of one network.

    Attributes
    ----------
    network
        Name of the network.
    cells
        Name of a candidate → its times.
    codes_verified
        Column of fatnn-rs → number of codes compared with the eager model's.
    seconds
        Time of the whole measurement.
    """

    network: str
    cells: dict[str, Cell] = field(default_factory=dict)
    codes_verified: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def measure(name: str, rounds: int) -> Row:
    """Build a network and every candidate, check the results, and time them interleaved.

    Parameters
    ----------
    name
        Key of :data:`zoo.networks.ZOO`.
    rounds
        Number of rounds, at least 3. Every candidate runs once per round.
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
            except Exception as error:  # record it, and measure the other columns
                row.cells[column] = Cell(reason=describe_error(error))
                continue
            calls[column, ""] = partial(net, image)
        calls |= _peers(row, made.model, image, Path(folder))
        with torch.inference_mode():
            keyed = {str(number): call for number, call in enumerate(calls.values())}
            times = dict(zip(calls, interleaved(keyed, rounds).values(), strict=True))
    _add_cells(row, times)
    row.seconds = round(time.perf_counter() - start, 1)
    return row


def _peers(
    row: Row, model: torch.nn.Module, image: torch.Tensor, folder: Path
) -> dict[tuple[str, str], Callable[[], Any]]:
    """Build the other runtimes. A runtime that fails gets a cell with the reason."""
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


def _add_cells(row: Row, times: dict[tuple[str, str], list[float]]) -> None:
    """Add a cell per candidate, with the times of its fastest variant."""
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
