"""The precision ladder: every precision of the core, timed on the same layers and networks.

Run it from a checkout: ``make ladder``, or ``PYTHONPATH=benches python -m ladder --help``.
``docs/ladder.md`` explains the method and the columns. A rung is one precision on one kernel family
(:mod:`.rungs`). :mod:`.plan` lists the cases: layers and networks (:mod:`.shapes`) to measure.
:mod:`.command` runs each case in its own process (:mod:`.worker`), which times a layer
(:mod:`.layers`) or a network (:mod:`.networks`). :mod:`.collect` turns seconds into figures;
:mod:`.report` and :mod:`.plots` show them. :mod:`.compare` compares two finished ladders.

To add a rung, a layer or a network, add an entry to its table. New instruction sets need no change,
because cases iterate the core's kernels.
"""

from __future__ import annotations

from ladder.rungs import RUNGS, Rung
from ladder.shapes import NETWORKS, SHAPES, LadderNetwork, LayerShape

__all__ = ["NETWORKS", "RUNGS", "SHAPES", "LadderNetwork", "LayerShape", "Rung"]
