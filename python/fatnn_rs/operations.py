"""The core's table of operations: inputs, attributes, results and products. Needs no torch.

Nothing in this package repeats the table. A graph in memory may also hold operations that are not
in it (``torch``, and temporary ones of the conversion passes); these have no products and no codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fatnn_rs import _core

__all__ = ["OPERATIONS", "Operation", "form_of", "makes_codes", "products_of"]


@dataclass(frozen=True)
class Operation:
    """One operation of the table.

    Attributes
    ----------
    name
        Name in graphs and files.
    inputs
        Minimum and maximum number of inputs; a maximum of None means any number.
    attrs
        Name → (type, optional). Types: ``"int"``, ``"float"``, ``"bool"``, ``"str"``, or ``"list"``
        (of numbers).
    tensors
        Role → (allowed element types, required).
    reads_codes, makes_codes
        Whether the first input, and the result, are codes rather than floats.
    reads_plain
        Whether inputs may be integers or masks rather than floats.
    signature
        For instance ``"codes -> float"``.
    exactness
        ``"exact"``, ``"sum-order"`` or ``"transcendental"``: how far results may differ between
        implementations.
    products
        What a convolution or linear layer multiplies: ``"float"``, ``"int8"`` or ``"codes"``;
        ``"none"`` for other operations.
    form
        ``"scalar"``: the same function of every element; ``"channel"``: one function per channel;
        ``"pool"``: maximum over windows; ``"shape"``: only moves elements; ``"select"``: makes
        another map whose pixels are pixels of the input; ``"other"``.
    in_files
        Whether files may hold it.
    in_engine
        Whether the engine can run it, at least for some attributes and shapes.
    """

    name: str
    inputs: tuple[int, int | None]
    attrs: Mapping[str, tuple[str, bool]]
    tensors: Mapping[str, tuple[tuple[str, ...], bool]]
    reads_codes: bool
    reads_plain: bool
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
    """Return :attr:`Operation.products` of an operation."""
    row = OPERATIONS.get(op)
    return "none" if row is None else row.products


def form_of(op: str) -> str:
    """Return :attr:`Operation.form` of an operation."""
    row = OPERATIONS.get(op)
    return "other" if row is None else row.form


def makes_codes(op: str) -> bool:
    """Whether the result of an operation is codes."""
    row = OPERATIONS.get(op)
    return row is not None and row.makes_codes
