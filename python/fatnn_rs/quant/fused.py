"""Quantizers of activations in one pass over memory, for faster training on a CPU.

:func:`fatnn_rs.nn.mixed.fast_convolutions` switches them on. They compute the same float
operations as the quantizers' own formulas, so the codes are the same; sums in the gradients of
steps are added in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fatnn_rs import _core

__all__ = ["FAST", "fused_steps"]

#: Whether training uses the engine's kernels where it can.
FAST: ContextVar[bool] = ContextVar("fast_convolutions", default=False)


def fused_steps(x: Tensor, alphas: Sequence[Tensor]) -> Tensor | None:
    """Compute the codes of two or three learned steps after a ReLU, in the engine.

    Parameters
    ----------
    x
        Any shape.
    alphas
        Step reciprocals, shape [], as the quantizer uses them.

    Returns
    -------
    Tensor or None
        The codes, with gradients for ``x`` and ``alphas``. None if this call must use the
        quantizer's own formula: outside of training, outside of ``fast_convolutions``, on another
        device, for other dtypes and memory formats, and inside ``torch.compile``.
    """
    if not FAST.get() or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return None
    if x.device.type != "cpu" or x.dtype != torch.float32 or not x.numel():
        return None
    if not (_channels_last(x) or x.is_contiguous()) or x.is_neg() or x.data_ptr() % 4:
        return None
    codes: Tensor = _Steps.apply(x, *alphas)
    return codes


def _channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _flat(x: Tensor) -> Any:
    """View a tensor's memory as a one-dimensional array."""
    dense = x.detach()
    if _channels_last(dense) and not dense.is_contiguous():
        dense = dense.permute(0, 2, 3, 1)
    return dense.reshape(-1).numpy()


class _Steps(torch.autograd.Function):
    """Codes of learned steps; the gradient is that of the quantizer's formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *alphas: Tensor) -> Tensor:
        from fatnn_rs.ops.kernels import follow_torch_threads

        ctx.save_for_backward(x, *alphas)
        codes = torch.empty_like(x)
        follow_torch_threads()
        _core.quantize_steps(_flat(x), [float(alpha) for alpha in alphas], _flat(codes))
        return codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        x, *alphas = ctx.saved_tensors
        gradient = grads[0]
        if gradient.stride() != x.stride():
            gradient = torch.empty_like(x).copy_(gradient)
        to_x = torch.empty_like(x)
        to_alphas = _core.quantize_steps_gradient(
            _flat(x), [float(alpha) for alpha in alphas], _flat(gradient), _flat(to_x)
        )
        return to_x, *(
            alpha.new_tensor(value) for alpha, value in zip(alphas, to_alphas, strict=True)
        )
