"""Benchmarks: a converted network against the fastest float and int8 runtimes of the same machine, in the same run.

:func:`bench` is the one entry point. The way of a measurement: :mod:`.api` checks the request, the
rows of :data:`.peers.PEERS` build what to compare with (from the ONNX files that :mod:`.export`
writes), :mod:`.timing` runs everything in turns, :mod:`.layers` times the network's own nodes, and
:mod:`.report` holds the figures together with :mod:`.machine`, the record of what they were
measured on. :mod:`.networks` and :mod:`.command` belong to the command line only. To add a peer:
one file in ``peers`` and one row in its table.
"""

from __future__ import annotations

from fatnn_rs.bench.api import bench
from fatnn_rs.bench.peers import PEERS
from fatnn_rs.bench.report import BenchReport

__all__ = ["PEERS", "BenchReport", "bench"]
