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
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from fatnn_rs import _core
from fatnn_rs.ops.kernels import aligned_array, follow_torch_threads

__all__ = ["FAST", "channel_dots", "fused_steps", "runs_in_engine"]

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
        The codes, with gradients for ``x`` and ``alphas``, which have no gradients of their own.
        Infinities and NaN do not reach the gradients of ``alphas``. None if this call must use the
        quantizer's own formula: if :func:`runs_in_engine` is false, no gradient of a step is
        needed, or ``x`` has another dtype or memory format.
    """
    if not runs_in_engine(x) or x.dtype != torch.float32 or not x.numel():
        return None
    if not torch.is_grad_enabled() or not any(alpha.requires_grad for alpha in alphas):
        return None
    # Elsewhere, a copy for each call would cost what one pass saves.
    if not _dense(x) or x.is_neg() or x.data_ptr() % x.element_size():
        return None
    codes: Tensor = _Steps.apply(x, *alphas)
    return codes


def runs_in_engine(x: Tensor) -> bool:
    """Whether ``fast_convolutions`` is on, and ``x`` is a tensor whose memory can be read now.

    Not in ``torch.compile``, for fake tensors and subclasses, nor while a dispatch mode traces.
    """
    return (
        FAST.get()
        and not torch.compiler.is_compiling()
        and type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and not _get_current_dispatch_mode_stack()
    )


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or _channels_last(x)


def _channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _flat(x: Tensor) -> Any:
    """View a dense tensor's memory as a one-dimensional array, as :func:`aligned_array` does."""
    return aligned_array((x if x.is_contiguous() else x.permute(0, 2, 3, 1)).detach().view(-1))


def channel_dots(a: Tensor, b: Tensor) -> Tensor:
    """Return ``(a * b).sum((0, 2, 3))`` of two maps [N, C, H, W]: [C]."""
    maps = (a, b)
    if not a.numel() or any(x.dtype != torch.float32 for x in maps):
        return (a * b).sum((0, 2, 3))
    one, other = (
        _flat(x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)) for x in maps
    )
    return a.new_tensor(_core.channel_dots(one, other, a.shape[1]))


class _Steps(torch.autograd.Function):
    """Codes of learned steps; the gradient is that of the quantizer's formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *alphas: Tensor) -> Tensor:
        ctx.save_for_backward(x, *alphas)
        codes = torch.empty_like(x)
        follow_torch_threads()
        _core.quantize_steps(_flat(x), [float(alpha) for alpha in alphas], _flat(codes))
        return codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        x, *alphas = ctx.saved_tensors
        if not _dense(x):  # A hook on saved tensors may change the memory format.
            x = x.contiguous()
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
