"""Ways out for wrong inputs of a network, as its messages name them. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["IMAGE", "shape_hint"]

#: What to do with the bytes of an image.
IMAGE = "; the bytes of an image must be scaled as in training, for example divided by 255"


def shape_hint(got: Sequence[int], wanted: Sequence[int], permute: str) -> str:
    """Say how to bring an input to a network's shape.

    Parameters
    ----------
    got
        Shape of the input.
    wanted
        Shape at conversion.
    permute
        Name of the method that permutes dimensions.
    """
    rank = len(wanted)
    images = rank >= 3
    last = images and len(got) >= rank - 1 and got[-1] == wanted[1]
    if len(got) == rank - 1 >= 1:
        first = got[0] == wanted[1]
        if last and not first:
            moved = (rank - 2, *range(rank - 2))
            return f"put the channels first and add the batch: x.{permute}{moved}[None]"
        return "add the batch dimension: x[None]"
    if len(got) == rank and last and got[1] != wanted[1]:
        moved = (0, rank - 1, *range(1, rank - 1))
        return f"the channels seem to be last, put them second: x.{permute}{moved}"
    return "give the input that the model was made for"
