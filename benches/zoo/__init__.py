"""The zoo: time many architectures in PyTorch, in other runtimes, and converted to fatnn-rs.

:mod:`.networks` lists the architectures, :mod:`.measure` times one of them in its own process,
:mod:`.report` makes the table, and ``python -m zoo`` runs them all. It is not part of the wheel.
"""

from __future__ import annotations

from zoo.networks import ZOO

__all__ = ["ZOO"]
