"""Torch's threads, for work that is better done by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's operations in the calling thread alone.

    For thousands of small ones: each would wake all threads and wait for the last, which on a busy
    machine takes many times what it computes. Results do not depend on it: use it for elementwise
    functions and exact sums.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
