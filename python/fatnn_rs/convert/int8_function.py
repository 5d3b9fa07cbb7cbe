"""Functions of int8 values as tables, so that they have the same bits everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fatnn_rs.convert.scalar import SCALARS
from fatnn_rs.quant.values import Int8Value

__all__ = ["Int8Function", "lookup"]


def lookup(x: Tensor, table: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """Return the entries of a table for the codes of ``x``; NaN stays NaN.

    Parameters
    ----------
    x
        Results of :func:`fatnn_rs.quant.values.fake_quantize` with the same step and codes.
    table
        Float32, a result for each code from ``low`` to ``high``.
    step
        Shape [], float32.
    low, high
        As for ``fake_quantize``.
    """
    codes = torch.round(x * step.reciprocal()).clamp(low, high) - low
    found = table[codes.nan_to_num(0.0).int()]
    return torch.where(x.isnan(), x, found)


class _WithGradientOf(torch.autograd.Function):
    """The first argument, with the gradient of the second one."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, other: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


class Int8Function(nn.Module):
    """An elementwise function of values that an ``Int8Value`` has rounded.

    Torch evaluates a function such as SiLU by different formulas at different places of a tensor.
    So in eval mode every result is taken from a table: the function of all 256 codes, evaluated
    together. The gradient is the function's own. In training mode the function itself is faster.

    Parameters
    ----------
    value
        What has rounded the values. It is not a part of this module.
    op
        A key of :data:`fatnn_rs.convert.scalar.SCALARS`.
    attrs
        Its attributes.
    """

    def __init__(self, value: Int8Value, op: str, attrs: Mapping[str, float]) -> None:
        super().__init__()
        self._value = (value,)  # in a tuple, so that it is no submodule
        self.op, self.attrs = op, dict(attrs)

    @property
    def value(self) -> Int8Value:
        """What has rounded the values."""
        return self._value[0]

    def function(self, x: Tensor) -> Tensor:
        """Apply torch's function."""
        made: Tensor = SCALARS[self.op].function(x, *self.attrs.values())
        return made

    @torch.no_grad()
    def table(self) -> Tensor:
        """Return the function of every code: shape [256], float32."""
        step = self.value.used_step().detach()
        codes = torch.arange(self.value.low, self.value.high + 1, device=step.device)
        return self.function(codes.float() * step)

    def forward(self, x: Tensor) -> Tensor:
        """Return the function of rounded values; of any while they are recorded."""
        value = self.value
        if self.training or value.recorded is not None:
            return self.function(x)
        with torch.no_grad():
            found = lookup(x, self.table(), value.used_step(), value.low, value.high)
        if not torch.is_grad_enabled():
            return found
        made: Tensor = _WithGradientOf.apply(found, self.function(x))
        return made

    def extra_repr(self) -> str:
        """Name and attributes, for ``print(model)``."""
        attrs = "".join(f", {name}={value:g}" for name, value in self.attrs.items())
        return f"{self.op}{attrs}"
