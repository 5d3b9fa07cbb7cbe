"""The zoo: many float architectures, each measured as it is, in other runtimes, and converted.

:mod:`.networks` lists them, :mod:`.measure` times one in a process of its own, :mod:`.report` holds
the table, and ``python -m zoo`` goes over all. Not part of the package.
"""

from __future__ import annotations

from zoo.networks import ZOO

__all__ = ["ZOO"]
