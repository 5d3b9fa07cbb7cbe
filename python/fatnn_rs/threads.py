"""Run torch's small operations in one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to the calling thread inside a ``with`` block.

    Waking all threads for each of thousands of small operations costs more than computing them.
    Use it only for elementwise functions and exact sums: their results do not depend on threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
