"""Results of a benchmark: :class:`BenchReport`, which can be printed or written as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from fatnn_rs.bench.node_times import LayerRow
from fatnn_rs.bench.timing import Quartiles
from fatnn_rs.machine import AMX, Machine
from fatnn_rs.table import render

__all__ = ["ABSENT", "FAILED", "MEASURED", "NO_MODEL", "OURS", "BenchReport", "PeerRow"]

#: Name of the network's own row.
OURS = "fatnn"

#: States of a row.
MEASURED, ABSENT, FAILED, NO_MODEL = "measured", "absent", "failed", "not measured"


@dataclass(frozen=True)
class PeerRow:
    """One runtime; the first row of a report is the network itself.

    Attributes
    ----------
    name
        Name in ``against``.
    describe
        What was measured.
    state
        ``"measured"``, ``"absent"`` (not installed), ``"failed"`` (not built, or wrong output), or
        ``"not measured"`` (no float model was given).
    reason
        If there is no figure: why, and how to get one.
    milliseconds
        Time of one call.
    ratio
        Time divided by the network's time in the same round; above 1, the runtime is slower.
    variant
        The fastest variant, to which the figures belong.
    variants
        Median of every variant in milliseconds.
    details
        The runtime's choice of kernels.
    amx
        Whether it used AMX: ``"no"``, ``"yes"``, or ``"may"`` if the runtime does not say.
    error
        Largest difference from the float model's output, relative to its largest value. None for
        the network itself, which ``fatnn_rs.verify`` compares with its own model.
    build_seconds
        Time to export, quantize and compile, without files made for an earlier runtime.
    """

    name: str
    describe: str
    state: str
    reason: str = ""
    milliseconds: Quartiles | None = None
    ratio: Quartiles | None = None
    variant: str = ""
    variants: dict[str, float] | None = None
    details: str = ""
    amx: str = "no"
    error: float | None = None
    build_seconds: float | None = None


@dataclass(frozen=True)
class BenchReport:
    """Figures of one network with one set of inputs. Print it, or use ``to_json()``.

    Attributes
    ----------
    network
        Its label, or the number of its ternary layers.
    shapes
        Shapes of the input tensors.
    threads, rounds
        Number of threads and of rounds.
    macs, macs_ternary
        Multiply-accumulates of one call, and those of them that are on codes.
    rows
        The network first, then the runtimes in the requested order.
    layers
        The network's nodes, timed separately.
    machine
        The machine.
    codes_verified
        How many codes were compared with the eager model's; all were equal. None: not compared.
    """

    network: str
    shapes: tuple[tuple[int, ...], ...]
    threads: int
    rounds: int
    macs: int
    macs_ternary: int
    rows: tuple[PeerRow, ...]
    layers: tuple[LayerRow, ...]
    machine: Machine
    codes_verified: int | None = None

    def row(self, name: str) -> PeerRow:
        """Return the row of a runtime.

        Raises
        ------
        KeyError
            There is no such row.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of runtimes that were faster than the network."""
        return tuple(
            row.name for row in self.rows if row.ratio is not None and row.ratio.median < 1
        )

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of runtimes that are installed but failed."""
        return tuple(row.name for row in self.rows if row.state == FAILED)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain dictionaries and lists."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {**plain, "losses": list(self.losses), "failed": list(self.failed)}

    def to_json(self) -> str:
        """Return all fields as JSON."""
        return json.dumps(self.as_dict(), indent=2)

    def __str__(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        share = f", {self.macs_ternary / self.macs:.1%} of them ternary" if self.macs else ""
        return "\n".join(
            [
                f"{self.network}: input {shapes}, {threads}, {self.macs:,} MACs{share}; medians of "
                f"{self.rounds} interleaved rounds",
                "",
                self._peers(),
                "",
                *self._notes(),
                "",
                "times per node, measured separately, one node at a time:",
                self._layers(),
                "",
                *self.machine.lines(),
            ]
        )

    def _peers(self) -> str:
        cells = []
        for row in self.rows:
            name = f"{row.name} ({row.variant})" if row.variant else row.name
            if row.milliseconds is None:
                cells.append([name, row.state, "", "", "", "", ""])
                continue
            times, ratio = row.milliseconds, row.ratio
            cells.append(
                [
                    name,
                    f"{times.median:.3f}",
                    f"{times.minimum:.3f}",
                    f"{times.lower:.3f}-{times.upper:.3f}",
                    ""
                    if ratio is None
                    else f"{ratio.median:.2f}x ({ratio.lower:.2f}-{ratio.upper:.2f})",
                    row.amx,
                    "" if row.error is None else f"{row.error:.1e}",
                ]
            )
        head = ["", "median ms", "min", "quartiles", f"time / {OURS}", "AMX", "error"]
        return render(head, cells, right=(1, 2, 3, 4, 6))

    def _notes(self) -> list[str]:
        notes = [f"{row.name}: {row.state}: {row.reason}" for row in self.rows if row.reason]
        for row in self.rows:
            if row.variants is not None and len(row.variants) > 1:
                every = ", ".join(f"{name} {value:.3f} ms" for name, value in row.variants.items())
                notes.append(f"{row.name}: {every}")
            if row.details:
                notes.append(f"{row.name}: {row.details}")
        for name in self.losses:
            ratio = self.row(name).ratio
            assert ratio is not None
            notes.append(f"where we lose: {name} takes {ratio.median:.2f} of {OURS}'s time")
        if not self.losses and any(row.ratio is not None for row in self.rows):
            notes.append("where we lose: nowhere among these runtimes")
        if self.codes_verified is not None:
            notes.append(f"exact: 0 of {self.codes_verified:,} codes differ from the eager model's")
        load = self.machine.load
        if load is not None and load > self.machine.cpus:
            notes.append(
                f"busy: {load:.1f} processes wanted {self.machine.cpus} processors in the minute "
                "before; the times are unreliable: measure again on an idle machine"
            )
        if AMX in self.machine.flags:
            cap = self.machine.environment.get("ONEDNN_MAX_CPU_ISA")
            says = f"is {cap}" if cap else "is not set"
            notes.append(
                f"AMX: this processor has int8 matrix tiles. ONEDNN_MAX_CPU_ISA {says}: it limits "
                "torch and openvino (AVX512_CORE_VNNI: no AMX), but not onnxruntime"
            )
        return notes

    def _layers(self) -> str:
        cells = [
            [
                layer.name,
                layer.op,
                layer.runs,
                f"{layer.milliseconds:.3f}",
                f"{layer.share:.1%}",
                f"{layer.gmacs:.0f}" if layer.macs else "",
            ]
            for layer in self.layers
        ]
        total = sum(layer.milliseconds for layer in self.layers)
        cells.append(["sum", "", "", f"{total:.3f}", "", ""])
        return render(
            ["node", "op", "runs", "median ms", "share", "GMAC/s"], cells, right=(3, 4, 5)
        )
