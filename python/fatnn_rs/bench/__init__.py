"""Benchmarks: a converted network against float and int8 runtimes on the same machine.

:func:`bench` is the entry point. :mod:`.measure` validates the request, the runtimes of
:data:`.peers.PEERS` are built from the ONNX files of :mod:`.export`, :mod:`.timing` runs everything
in turns, and :mod:`.node_times` times the network's nodes. :mod:`.results` holds the figures.
:mod:`.networks` and :mod:`.command` serve the command line. To add a runtime, add a file to
``peers`` and an entry to its table.
"""

from __future__ import annotations

from fatnn_rs.bench.measure import bench
from fatnn_rs.bench.peers import PEERS
from fatnn_rs.bench.results import BenchReport

__all__ = ["PEERS", "BenchReport", "bench"]
