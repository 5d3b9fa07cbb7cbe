"""The core's table of operations: what each reads, makes and multiplies. Needs no torch.

Nothing in this package repeats what the table says. A graph in memory may also hold operations that
are not in it (``torch``, and those that only the passes of a conversion know): they multiply
nothing and make no codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fatnn_rs import _core

__all__ = ["OPERATIONS", "Operation", "form_of", "makes_codes", "products_of"]


@dataclass(frozen=True)
class Operation:
    """One row of the table.

    Attributes
    ----------
    name
        In graphs and files.
    inputs
        Least and greatest number of values that it reads; None for any.
    attrs
        Name → type (``"int"``, ``"float"``, ``"bool"``, ``"str"``, or ``"list"`` of numbers), and
        whether it may be absent.
    tensors
        Role → types that the tensor may have, and whether it must be there.
    reads_codes, makes_codes
        Whether the first value that it reads, and its result, are codes; others are floats.
    signature
        ``"codes -> float"`` and the like.
    exactness
        ``"exact"``, ``"sum-order"`` or ``"transcendental"``: how far results depend on who computes
        them.
    products
        ``"none"``, ``"float"``, ``"int8"`` or ``"codes"``: what it multiplies, if it is a
        convolution or linear layer.
    form
        ``"scalar"``: the same function of every element; ``"channel"``: one function per channel;
        ``"pool"``: maximum over windows; ``"shape"``: moves elements only; ``"select"``:
        makes another map of pixels, each as it was; ``"other"``.
    in_files
        Whether files hold it.
    in_engine
        Whether the engine has it, for some attributes and shapes at least.
    """

    name: str
    inputs: tuple[int, int | None]
    attrs: Mapping[str, tuple[str, bool]]
    tensors: Mapping[str, tuple[tuple[str, ...], bool]]
    reads_codes: bool
    makes_codes: bool
    signature: str
    exactness: str
    products: str
    form: str
    in_files: bool
    in_engine: bool


#: Every operation, by name.
OPERATIONS: dict[str, Operation] = {row["name"]: Operation(**row) for row in _core.ops()}


def products_of(op: str) -> str:
    """Return what an operation multiplies: see :attr:`Operation.products`."""
    row = OPERATIONS.get(op)
    return "none" if row is None else row.products


def form_of(op: str) -> str:
    """Return how an operation treats the elements of what it reads: see :attr:`Operation.form`."""
    row = OPERATIONS.get(op)
    return "other" if row is None else row.form


def makes_codes(op: str) -> bool:
    """Whether an operation's result is codes."""
    row = OPERATIONS.get(op)
    return row is not None and row.makes_codes
