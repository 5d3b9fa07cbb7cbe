"""The plan of a ladder: its options, its cases, and which results exist already."""

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
from ladder.measure import MIN_ROUNDS
from ladder.rungs import RUNGS
from ladder.shapes import NETWORKS, SHAPES

__all__ = [
    "NATIVE",
    "BenchCase",
    "Ladder",
    "LadderOptions",
    "available_isas",
    "cases",
    "write_json",
]

#: The best instruction set, without a cap by ``FATNN_ISA``.
NATIVE = "native"

#: Instruction sets as ``FATNN_ISA`` names them, best first. Every machine has the last one.
_TIERS = ("avx512", "avx2", "neon", "scalar")


def available_isas() -> tuple[str, ...]:
    """Return this machine's instruction sets: the uncapped one, then each below the best."""
    features = set(_core.cpu_info()["features_detected"])
    found = [tier for tier in _TIERS if tier in features or tier == "scalar"]
    return (NATIVE, *found[1:])


@dataclass(frozen=True)
class LadderOptions:
    """What to measure.

    Parameters
    ----------
    layers, networks, rungs, against
        Keys of :data:`.SHAPES`, :data:`.NETWORKS`, :data:`.RUNGS` and
        :data:`fatnn_rs.bench.PEERS`.
    batches, threads
        Batch sizes and thread counts; every combination is measured. Threads default to one, and
        all CPUs.
    isas
        Instruction sets from :func:`available_isas`. Capped ones are measured only with the first
        batch size and thread count.
    rounds
        Rounds in each process.
    processes
        Processes per case, one after the other; their figures are combined.
    out
        Directory of the ladder; an interrupted ladder is resumed.

    Raises
    ------
    ConfigError
        An unknown name, a number that is too small, or nothing to measure.
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
        """Fill in the defaults of this machine, and validate."""
        object.__setattr__(
            self, "threads", tuple(self.threads) or tuple(dict.fromkeys((1, usable_cpus())))
        )
        object.__setattr__(self, "isas", tuple(self.isas) or available_isas())
        known: dict[str, tuple[Sequence[str], Iterable[str]]] = {
            "layers": (self.layers, SHAPES),
            "networks": (self.networks, NETWORKS),
            "rungs": (self.rungs, RUNGS),
            "against": (self.against, PEERS),
            "isa": (self.isas, available_isas()),
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
            ("rounds", (self.rounds,), MIN_ROUNDS),
            ("processes", (self.processes,), 1),
        ):
            for number in numbers:
                if number < least:
                    raise ConfigError(f"{what} must be at least {least}, got {number}")


@dataclass(frozen=True)
class BenchCase:
    """One measurement: a layer or network, with a batch size, threads and an instruction set.

    Attributes
    ----------
    kind
        ``"layer"`` or ``"network"``.
    name
        Key of :data:`.SHAPES` or :data:`.NETWORKS`.
    batch, threads, isa
        Batch size, number of threads and instruction set.
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
        """Name for files."""
        return f"{self.kind}-{self.name}-b{self.batch}-t{self.threads}-{self.isa}"


def cases(options: LadderOptions) -> Iterator[BenchCase]:
    """Yield every case in the order of measurement."""
    for isa in dict.fromkeys(options.isas):
        for kind, names in (("layer", options.layers), ("network", options.networks)):
            for name in dict.fromkeys(names):
                batches = (SHAPES[name].batches if kind == "layer" else ()) or tuple(
                    options.batches
                )
                every = [(batch, threads) for batch in batches for threads in options.threads]
                for batch, threads in every if isa == NATIVE else every[:1]:
                    yield BenchCase(kind, name, batch, threads, isa)


class Ladder:
    """The directory of a ladder: a result file per process and case, and converted networks.

    Parameters
    ----------
    options
        What is measured.
    machine
        The machine it is measured on.
    """

    def __init__(self, options: LadderOptions, machine: Machine) -> None:
        self.options, self.machine = options, machine
        self.folder = options.out / "cases"
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, case: BenchCase, process: int) -> Path:
        """Return the path of the results of a process."""
        return self.folder / f"{case.slug}.{process}.json"

    def spec(self, case: BenchCase) -> dict[str, Any]:
        """Return all settings that affect a case's figures, as plain data.

        Results with another spec are measured again.
        """
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
        """Return the results of a process; None if they are missing or outdated."""
        try:
            found: dict[str, Any] = json.loads(self.path(case, process).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # Missing, or incomplete because of a full disk.
            return None
        return found if found.get("spec") == self.spec(case) else None

    def case_processes(self) -> list[tuple[BenchCase, int]]:
        """Return every process of every case; first one process of each, for early figures."""
        every = list(cases(self.options))
        return [(case, process) for process in range(self.options.processes) for case in every]


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    os.replace(new, path)
