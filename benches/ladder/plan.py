"""What a ladder consists of: its options, its cases, and which of them are measured already."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fatnn_rs import _core
from fatnn_rs.bench.peers import PEERS
from fatnn_rs.errors import ConfigError
from fatnn_rs.machine import Machine, usable_cpus
from ladder.measure import FEWEST_ROUNDS
from ladder.rungs import RUNGS
from ladder.shapes import NETWORKS, SHAPES

__all__ = ["NATIVE", "BenchCase", "LadderOptions", "State", "cases", "isas", "write"]

#: The tier without a cap.
NATIVE = "native"

#: Instruction sets as ``FATNN_ISA`` names them, best first. Every machine has the last.
_TIERS = ("avx512", "avx2", "neon", "scalar")


def isas() -> tuple[str, ...]:
    """Tiers of this machine: without a cap, then every one below the best, best first."""
    features = set(_core.cpu_info()["features_detected"])
    found = [tier for tier in _TIERS if tier in features or tier == "scalar"]
    return (NATIVE, *found[1:])


@dataclass(frozen=True)
class LadderOptions:
    """What to measure.

    Parameters
    ----------
    layers, networks, rungs, against
        Names of rows of :data:`.SHAPES`, :data:`.NETWORKS`, :data:`.RUNGS` and
        :data:`fatnn_rs.bench.PEERS`.
    batches, threads
        Every combination is measured; threads are one and all by default.
    isas
        Tiers out of :func:`isas`. Those with a cap are measured with the first batch and the first
        number of threads.
    rounds
        Turns of every candidate, in each process.
    processes
        Processes that measure each case, one after the other; their figures are put together.
    out
        Folder of what is measured; a ladder that was interrupted there goes on.

    Raises
    ------
    ConfigError
        An unknown name, a number that is too small, or nothing to do.
    """

    layers: Sequence[str] = tuple(SHAPES)
    networks: Sequence[str] = tuple(NETWORKS)
    rungs: Sequence[str] = tuple(RUNGS)
    batches: Sequence[int] = (1, 8)
    threads: Sequence[int] = ()
    isas: Sequence[str] = ()
    against: Sequence[str] = tuple(PEERS)
    rounds: int = 11
    processes: int = 3
    out: Path = Path("runs/ladder")

    def __post_init__(self) -> None:
        """Fill in what the machine decides, and validate before anything slow begins."""
        object.__setattr__(
            self, "threads", tuple(self.threads) or tuple(dict.fromkeys((1, usable_cpus())))
        )
        object.__setattr__(self, "isas", tuple(self.isas) or isas())
        known: dict[str, tuple[Sequence[str], Iterable[str]]] = {
            "layers": (self.layers, SHAPES),
            "networks": (self.networks, NETWORKS),
            "rungs": (self.rungs, RUNGS),
            "against": (self.against, PEERS),
            "isa": (self.isas, isas()),
        }
        for what, (names, rows) in known.items():
            for name in names:
                if name not in rows:
                    raise ConfigError(
                        f"{what}: unknown name {name!r}; known are: {', '.join(rows)}"
                    )
        if not self.layers and not self.networks:
            raise ConfigError("layers and networks: expected at least one of either")
        for what, values in (("rungs", self.rungs), ("batch", self.batches)):
            if not values:
                raise ConfigError(f"{what}: expected at least one value")
        for what, numbers, least in (
            ("batch", self.batches, 1),
            ("threads", self.threads, 1),
            ("rounds", (self.rounds,), FEWEST_ROUNDS),
            ("processes", (self.processes,), 1),
        ):
            for number in numbers:
                if number < least:
                    raise ConfigError(f"{what} must be at least {least}, got {number}")


@dataclass(frozen=True)
class BenchCase:
    """A unit of work: a layer or a network, with so many images and threads, below one tier.

    Attributes
    ----------
    kind
        ``"layer"`` or ``"network"``.
    name
        Of its row.
    batch, threads, isa
        What it is measured with.
    """

    kind: str
    name: str
    batch: int
    threads: int
    isa: str

    def __str__(self) -> str:
        return f"{self.name}, batch {self.batch}, threads {self.threads}, {self.isa}"

    @property
    def slug(self) -> str:
        """Name of a file."""
        return f"{self.kind}-{self.name}-b{self.batch}-t{self.threads}-{self.isa}"


def cases(options: LadderOptions) -> Iterator[BenchCase]:
    """Every case, in the order in which they are measured."""
    for isa in dict.fromkeys(options.isas):
        for kind, names in (("layer", options.layers), ("network", options.networks)):
            for name in dict.fromkeys(names):
                batches = (SHAPES[name].batches if kind == "layer" else ()) or tuple(
                    options.batches
                )
                every = [(batch, threads) for batch in batches for threads in options.threads]
                for batch, threads in every if isa == NATIVE else every[:1]:
                    yield BenchCase(kind, name, batch, threads, isa)


class State:
    """The folder of a ladder: one file for each process of each case, and networks that are ready to be loaded.

    Parameters
    ----------
    options
        What is measured.
    machine
        What it is measured on.
    """

    def __init__(self, options: LadderOptions, machine: Machine) -> None:
        self.options, self.machine = options, machine
        self.folder = options.out / "cases"
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, case: BenchCase, process: int) -> Path:
        """Return where a process of a case puts down what it found."""
        return self.folder / f"{case.slug}.{process}.json"

    def spec(self, case: BenchCase) -> dict[str, Any]:
        """Return all that decides a case's figures, as plain data; what was measured for another is measured again."""
        rows: Mapping[str, Any] = SHAPES if case.kind == "layer" else NETWORKS
        machine = self.machine
        spec = {
            "case": asdict(case),
            "row": asdict(rows[case.name]),
            "rungs": [
                name for name in self.options.rungs if case.isa == NATIVE or RUNGS[name].capped
            ],
            "against": list(self.options.against) if case.isa == NATIVE else [],
            "rounds": self.options.rounds,
            "machine": {
                name: getattr(machine, name)
                for name in ("cpu", "cpu_id", "cpus", "kernels", "versions", "commit")
            },
        }
        plain: dict[str, Any] = json.loads(json.dumps(spec))
        return plain

    def read(self, case: BenchCase, process: int) -> dict[str, Any] | None:
        """Return what a process of a case found; None where it has still to be measured."""
        try:
            found: dict[str, Any] = json.loads(self.path(case, process).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # never begun, or broken off by a full disk
            return None
        return found if found.get("spec") == self.spec(case) else None

    def units(self) -> list[tuple[BenchCase, int]]:
        """Every process of every case: first all cases once, so that a ladder soon has every figure."""
        every = list(cases(self.options))
        return [(case, process) for process in range(self.options.processes) for case in every]


def write(path: Path, data: Any) -> None:
    """Write JSON as a whole, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)
