"""The sizes for which a captured graph is the model's, kept in the module made of the graph."""

from __future__ import annotations

from torch import Tensor, nn

from fatnn_rs.convert.capture import SizeRange
from fatnn_rs.errors import InputError

__all__ = ["InputSizes"]


class InputSizes(nn.Module):
    """Refuses an input of other sizes than ``torch.export`` followed the model's branches for.

    Parameters
    ----------
    name
        Name of the input.
    fixed
        Dimension → its only size.
    batch
        Allowed sizes of the first dimension; None if it is in ``fixed`` or may be any.
    """

    def __init__(self, name: str, fixed: dict[int, int], batch: SizeRange | None) -> None:
        super().__init__()
        self.name, self.fixed, self.batch = name, dict(fixed), batch

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``.

        Raises
        ------
        InputError
            If its sizes are not among those.
        """
        for dim, size in self.fixed.items():
            if x.shape[dim] != size:
                raise InputError(
                    f"input {self.name!r}: expected size {size} in dimension {dim}, got shape "
                    f"{list(x.shape)}: the model branches on sizes, and its graph was captured for "
                    "this one; capture it again with example inputs of that size"
                )
        if self.batch is not None:
            low, high, multiple = self.batch.min, self.batch.max, self.batch.multiple
            count = x.shape[0]
            if count < low or (high is not None and count > high) or count % multiple:
                raise InputError(
                    f"input {self.name!r}: expected a batch of at least {low}"
                    f"{'' if high is None else f' and at most {high}'}, a multiple of {multiple}, "
                    f"got {count}: the model branches on its size; capture it again with example "
                    "inputs of that batch"
                )
        return x

    def extra_repr(self) -> str:
        """Name, sizes and batch, for ``print(model)``."""
        return f"{self.name}, {self.fixed}, {self.batch}"
