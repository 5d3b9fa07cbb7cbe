"""The precision ladder: every precision that the core has, on the same layers and networks, in the same runs.

``fatnn ladder`` is its command; ``docs/ladder.md`` says how it measures and what its columns mean. The way of a
figure: :mod:`.rungs` and :mod:`.shapes` hold the rows that are compared, :mod:`.plan` makes cells of them,
:mod:`.command` runs each cell in a process of its own (:mod:`.cell`), which measures a layer (:mod:`.layers`) or a
network (:mod:`.networks`) and puts down seconds; :mod:`.collect` makes figures of seconds, :mod:`.targets` compares
them with what was aimed at, and :mod:`.report` and :mod:`.plots` show them. :mod:`.agree` compares two finished
ladders.

To add a rung, a layer or a network: one row. To add an instruction set: nothing here, for cells iterate the core's
kernels.
"""

from __future__ import annotations

from fatnn_rs.bench.ladder.rungs import RUNGS, Rung
from fatnn_rs.bench.ladder.shapes import NETWORKS, SHAPES, Net, Shape

__all__ = ["NETWORKS", "RUNGS", "SHAPES", "Net", "Rung", "Shape"]
