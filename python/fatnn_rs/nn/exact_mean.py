"""A mean whose bits do not depend on the order of additions."""

from __future__ import annotations

import math

from torch import Tensor, nn

from fatnn_rs.quant.arithmetic import accumulation_dtype

__all__ = ["ExactMean", "exact_mean"]


def exact_mean(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    """Return the mean over ``dims``, summed in float64, divided and then rounded once.

    The sum of multiples of a step (:mod:`fatnn_rs.quant.values`) is exact in float64, so it is the
    sum of their codes times the step, in any order. The engine's means are rounded in the same way.
    """
    wide = x.to(accumulation_dtype(x))
    count = math.prod([x.shape[dim] for dim in dims])
    return (wide.sum(dims, keepdim) / count).to(x.dtype)


class ExactMean(nn.Module):
    """Mean over some dimensions, of values that an ``Int8Value`` has rounded.

    Parameters
    ----------
    dims
        The dimensions; at least one.
    keepdim
        Whether to keep them with size 1.
    """

    def __init__(self, dims: list[int], keepdim: bool) -> None:
        super().__init__()
        self.dims, self.keepdim = list(dims), keepdim

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean; see :func:`exact_mean`."""
        return exact_mean(x, self.dims, self.keepdim)

    def extra_repr(self) -> str:
        """Dimensions, for ``print(model)``."""
        return f"dims={self.dims}, keepdim={self.keepdim}"
