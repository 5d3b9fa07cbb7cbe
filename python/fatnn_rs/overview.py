"""The first paragraph of a report, and the results of a profile. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fatnn_rs.report import Report

__all__ = ["FloatLayers", "LayerTime", "Profile", "counted", "deployment", "overview"]

#: Maximum number of names that the paragraph lists with their counts.
MAX_SHOWN = 6


@dataclass(frozen=True)
class LayerTime:
    """Times of a ternary or int8 layer.

    Attributes
    ----------
    layer
        Name of the layer.
    seconds
        Time of its node in the network.
    torch_seconds
        Time of torch's float32 convolution or linear layer with the same sizes.
    """

    layer: str
    seconds: float
    torch_seconds: float

    @property
    def factor(self) -> float:
        """Time of the layer divided by that of torch; above 1, torch is faster."""
        return self.seconds / self.torch_seconds if self.torch_seconds else float("inf")


@dataclass(frozen=True)
class FloatLayers:
    """What ``float_layers="rust"`` would change.

    Attributes
    ----------
    seconds, rust_seconds
        Time of one run of the network as it is, and with ``float_layers="rust"``.
    codes, codes_different
        Number of codes that ternary layers read, and number of codes that differ.
    max_abs_diff
        Largest absolute difference between outputs.
    """

    seconds: float
    rust_seconds: float
    codes: int
    codes_different: int
    max_abs_diff: float

    def __str__(self) -> str:
        factor = self.rust_seconds / self.seconds if self.seconds else float("inf")
        return (
            f"float_layers='rust' takes {factor:.2f} times as long ({self.rust_seconds * 1e3:.3g} "
            f"instead of {self.seconds * 1e3:.3g} ms); {self.codes_different:,} of {self.codes:,} "
            f"codes differ, outputs by at most {self.max_abs_diff:.2g}"
        )


@dataclass(frozen=True)
class Profile:
    """Results of a network's ``profile``.

    Attributes
    ----------
    layers
        Ternary and int8 layers, in order.
    how
        How they were measured.
    float_layers
        What ``float_layers="rust"`` would change; None if that was not measured.
    """

    layers: tuple[LayerTime, ...]
    how: str
    float_layers: FloatLayers | None = None

    @property
    def slower(self) -> tuple[LayerTime, ...]:
        """Layers that take longer than in torch float32, the slowest first."""
        found = [layer for layer in self.layers if layer.factor > 1]
        return tuple(sorted(found, key=lambda layer: -layer.factor))

    def __str__(self) -> str:
        slow = ", ".join(f"{one.layer} ({one.factor:.2f} times)" for one in self.slower)
        lines = [
            f"slower than torch float32: {slow or 'no layer'} (of {len(self.layers)}; {self.how})"
        ]
        if self.float_layers is not None:
            lines.append(str(self.float_layers))
        return "\n".join(lines)


def counted(counts: Mapping[str, int], shown: int = MAX_SHOWN) -> str:
    """Return counts as text, the most frequent names first."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    more = f" and {len(ranked) - shown} more kinds" if len(ranked) > shown else ""
    return ", ".join(f"{name} ({count})" for name, count in ranked[:shown]) + more


def deployment(report: Report) -> str:
    """Return sentences: can the network be saved, can it run without torch, and if not, why."""
    if report.refused:
        return f"It cannot be converted: {report.refused}"
    missing = counted(report.missing, len(report.missing))
    if report.outputs:
        return f"It cannot be saved: the model returns a {report.outputs}, which no file holds."
    if report.unsaveable:
        return (
            "It cannot be saved, nor run without torch: a file does not hold what the model calls "
            f"here, and the engine lacks {missing}."
        )
    if missing:
        return f"It can be saved, but not run without torch: the engine lacks {missing}."
    return "It can be saved, and runs without torch."


def overview(report: Report) -> str:
    """Return the first paragraph of a report.

    It states the shares of multiply-accumulates, the segments and what cuts them, and
    :func:`deployment`.
    """
    total = report.macs_total
    if total:
        shares = (report.macs_ternary, report.macs_int8, report.macs_float)
        ternary, int8, floats = (f"{share / total:.1%}" for share in shares)
        first = f"{total:,} MACs: {ternary} ternary, {int8} int8, {floats} float."
    else:
        first = "It multiplies nothing."
    if report.refused:
        return f"{first} {deployment(report)}"
    plural = "segment runs" if report.segments == 1 else "segments run"
    cuts = f", cut by {counted(report.cuts)}" if report.cuts else ""
    return f"{first} {report.segments} {plural} in the engine{cuts}. {deployment(report)}"
