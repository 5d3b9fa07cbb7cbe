"""The precision ladder: every precision that the core has, on the same layers and networks, in the same runs.

Run it from a checkout: ``make ladder``, or ``PYTHONPATH=benches python -m ladder --help``.
``docs/ladder.md`` says how it measures and what its columns mean. :mod:`.rungs` and :mod:`.shapes`
hold the rows that are compared, and :mod:`.plan` makes cases of them. :mod:`.command` runs each
case in its own process (:mod:`.worker`), which times a layer (:mod:`.layers`) or a network
(:mod:`.networks`). :mod:`.collect` turns seconds into figures; :mod:`.report` and :mod:`.plots`
show them. :mod:`.compare` compares two finished ladders.

To add a rung, a layer or a network: one row. To add an instruction set: nothing here, for cases
iterate the core's kernels.
"""

from __future__ import annotations

from ladder.rungs import RUNGS, Rung
from ladder.shapes import NETWORKS, SHAPES, Net, Shape

__all__ = ["NETWORKS", "RUNGS", "SHAPES", "Net", "Rung", "Shape"]
