"""The ops' real kernels: the only place where tensors are passed to Rust, as NumPy views.

Each kernel runs the fake kernel, which checks the arguments and allocates the output, then calls
``fatnn_rs._core`` with views of the tensors' memory. A tensor in another layout than Rust expects
is copied first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fatnn_rs import _core
from fatnn_rs.errors import InputError
from fatnn_rs.ops import definitions
from fatnn_rs.ops.arguments import check_groups, check_tensor
from fatnn_rs.ops.geometry import WORD_BYTES, WORD_CODES

__all__ = ["aligned_array", "follow_torch_threads", "prepack", "prepack_int8"]


def follow_torch_threads() -> None:
    """Use torch's number of threads, unless ``set_num_threads`` or the environment set another."""
    _core.set_default_threads(torch.get_num_threads())


def aligned_array(tensor: Tensor) -> Any:
    """View a dense CPU tensor's memory as a NumPy array, or copy it if no array can be a view.

    Copies are needed for tensors that start between elements (:func:`torch.frombuffer` with an
    offset) and for conjugated or negated views.
    """
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.data_ptr() % tensor.element_size():
        tensor = tensor.clone(memory_format=torch.preserve_format)
    return tensor.numpy()


def _view(tensor: Tensor) -> Any:
    """View the tensor's memory as a C-contiguous NumPy array."""
    return aligned_array(tensor.contiguous())


def _check_packed(op: str, weight: Tensor, out_channels: int, kernel: Sequence[int]) -> None:
    """Check the op's numbers against the packed weights, which only the real kernel can read.

    Raises
    ------
    InputError
        The weights were packed for another number of channels or another kernel size.
    """
    check_tensor(op, "weight", weight, torch.uint8, (1,))
    if weight.device.type != "cpu":
        raise InputError(
            f"fatnn_rs::{op}: weight: expected a tensor on the CPU, got one on {weight.device}"
        )
    channels, size = _core.packed_shape(_view(weight), op == "conv_int8")
    for name, expected, got in (
        ("out_channels", channels, out_channels),
        ("kernel", list(size), list(kernel)),
    ):
        if expected != got:
            raise InputError(
                f"fatnn_rs::{op}: {name}: expected {expected}, as the weights were packed, got "
                f"{got}; pack the weights that the convolution has"
            )


def _allocate(fake: Callable[..., Tensor], *args: Any) -> Tensor:
    """Run an op's fake kernel: check the arguments and allocate the output.

    Raises
    ------
    MemoryError
        The output cannot be allocated.
    """
    try:
        return fake(*args)
    except RuntimeError as error:  # From torch's allocator, or because sizes overflow.
        raise MemoryError(
            f"fatnn_rs::{fake.__name__}: no memory for the output: {error}"
        ) from error


def _optional(tensor: Tensor | None) -> Any:
    return None if tensor is None else _view(tensor)


def _pixels_last(x: Tensor) -> tuple[Any, bool]:
    """Return ``x`` [N, C, …] as an array, copied if needed, and whether it is channels last."""
    x = x.detach()
    if x.is_contiguous():
        return aligned_array(x), x.dim() == 2
    return aligned_array(x.movedim(1, -1).contiguous()), True


def _quantize(x: Tensor, thresholds: Sequence[float], groups: int = 1) -> Tensor:
    out = _allocate(definitions.quantize, x, thresholds, groups)
    if out.numel():
        array, channels_last = _pixels_last(x)
        pixels = out.shape[1] * out.shape[2]
        follow_torch_threads()
        _core.quantize(
            array,
            x.shape[0],
            x.shape[1],
            pixels,
            channels_last,
            list(thresholds),
            groups,
            out.numpy(),
        )
    return out


def _pack_codes(codes: Tensor, groups: int = 1, code_type: str = "ternary") -> Tensor:
    out = _allocate(definitions.pack_codes, codes, groups, code_type)
    if not out.numel():
        return out
    packed = _core.pack_codes(_view(codes).reshape(-1, codes.shape[-1]), groups, code_type)
    return torch.from_numpy(packed).reshape(out.shape)


def _unpack_codes(
    packed: Tensor, channels: int, groups: int = 1, code_type: str = "ternary"
) -> Tensor:
    out = _allocate(definitions.unpack_codes, packed, channels, groups, code_type)
    if not out.numel():
        return out
    codes = _core.unpack_codes(
        _view(packed).reshape(-1, packed.shape[-1]), channels, groups, code_type
    )
    return torch.from_numpy(codes).reshape(out.shape)


def _pair(value: Sequence[int]) -> tuple[int, int]:
    return value[0], value[1]


def _conv_acc(
    codes: Tensor,
    weight: Tensor,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    _check_packed("conv_acc", weight, out_channels, kernel)
    out = _allocate(
        definitions.conv_acc, codes, weight, out_channels, kernel, stride, padding, dilation
    )
    if out.numel():
        follow_torch_threads()
        _core.conv_acc(
            _view(codes),
            _view(weight),
            _pair(stride),
            _pair(padding),
            _pair(dilation),
            out.permute(0, 2, 3, 1).numpy(),
        )
    return out


def _conv_codes(
    codes: Tensor,
    weight: Tensor,
    thresholds: Tensor,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    out_groups: int = 1,
) -> Tensor:
    _check_packed("conv_codes", weight, out_channels, kernel)
    window = (kernel, stride, padding, dilation)
    out = _allocate(
        definitions.conv_codes, codes, weight, thresholds, out_channels, *window, out_groups
    )
    if out.numel():
        follow_torch_threads()
        _core.conv_codes(
            _view(codes),
            _view(weight),
            _view(thresholds),
            _pair(stride),
            _pair(padding),
            _pair(dilation),
            out_groups,
            out.numpy(),
        )
    return out


def _conv_float(
    codes: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    _check_packed("conv_float", weight, out_channels, kernel)
    window = (kernel, stride, padding, dilation)
    out = _allocate(
        definitions.conv_float, codes, weight, scale, bias, residual, relu, out_channels, *window
    )
    if out.numel():
        follow_torch_threads()
        _core.conv_float(
            _view(codes),
            _view(weight),
            _optional(scale),
            _optional(bias),
            None if residual is None else _view(residual.permute(0, 2, 3, 1)),
            relu,
            _pair(stride),
            _pair(padding),
            _pair(dilation),
            out.permute(0, 2, 3, 1).numpy(),
        )
    return out


def _conv_int8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    inv_step: float,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    _check_packed("conv_int8", weight, out_channels, kernel)
    window = (kernel, stride, padding, dilation)
    out = _allocate(definitions.conv_int8, x, weight, scale, bias, inv_step, out_channels, *window)
    if out.numel():
        array, channels_last = _pixels_last(x)
        # The core takes four axes: insert missing spatial axes before the existing ones.
        gap = tuple(range(1, 5 - x.dim())) if channels_last else tuple(range(2, 6 - x.dim()))
        follow_torch_threads()
        _core.conv_int8(
            np.expand_dims(array, gap),
            _view(weight),
            _view(scale),
            _optional(bias),
            inv_step,
            _pair(stride),
            _pair(padding),
            _pair(dilation),
            channels_last,
            np.expand_dims(out.movedim(1, -1).numpy(), tuple(range(1, 5 - x.dim()))),
        )
    return out


def _max_pool_codes(
    codes: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
    code_type: str = "ternary",
) -> Tensor:
    out = _allocate(
        definitions.max_pool_codes, codes, kernel, stride, padding, dilation, ceil_mode, code_type
    )
    if out.numel():
        # Pool all bits of all words: unused bits stay zero.
        channels = codes.shape[3] // WORD_BYTES * WORD_CODES
        follow_torch_threads()
        _core.max_pool_codes(
            _view(codes),
            channels,
            1,
            _pair(kernel),
            _pair(stride),
            _pair(padding),
            _pair(dilation),
            code_type,
            out.numpy(),
        )
    return out


def _check_weight(op: str, weight: Tensor, groups: int) -> None:
    """Check that ``weight`` is a convolution's int8 weight; errors name ``op``."""
    check_tensor(op, "weight", weight, torch.int8, (4,))
    if weight.device.type != "cpu":
        raise InputError(
            f"fatnn_rs.ops.{op}: weight: expected a tensor on the CPU, got one on {weight.device}"
        )
    check_groups(op, weight.shape[0], groups)
    if not weight.numel():
        raise InputError(
            f"fatnn_rs.ops.{op}: weight: expected at least one value, got shape "
            f"{tuple(weight.shape)}"
        )


def prepack(
    weight: Tensor, groups: int = 1, act: str = "full", weights: str | None = None
) -> Tensor:
    """Pack weights for this machine's kernels. Do not save the result: it fits only this CPU.

    Parameters
    ----------
    weight
        int8 [n, channels / groups, KH, KW], values in {-1, 0, +1}; or two-bit values in {-3, -1,
        +1, +3}, which take twice the work.
    groups
        Groups of the convolution; divides n.
    act
        Levels of the activations: ``"full"``: {-1, 0, +1}; ``"half"``: {0, 1, 2}, with the same
        codes as ``"full"``; ``"uint2"``: {0, 1, 2, 3}, in two-bit codes; ``"binary"``: {0, 1}, with
        the codes -1 and 0.
    weights
        Type of the weights: ``"ternary"``, ``"binary"`` ({-1, +1}) or ``"two-bit"``; other values
        are refused. None: the type with the least work that fits the values.

    Returns
    -------
    Tensor
        uint8, one dimension.

    Raises
    ------
    InputError
        Wrong dtype, device, rank, groups or values; sums that float32 cannot hold; an unknown
        ``act`` or ``weights``.
    """
    for name, what, value in (
        ("act", "activations", act),
        ("weights", "weights", "" if weights is None else weights),
    ):
        if not isinstance(value, str) or not value.isascii():
            raise InputError(
                f"prepack: {name}: expected the name of a kind of {what}, got {value!a}"
            )
    _check_weight("prepack", weight, groups)
    blob = _core.prepack(_view(weight), groups, act, None, weights)
    return torch.from_numpy(np.asarray(blob, dtype=np.uint8))


def prepack_int8(weight: Tensor, groups: int = 1, linear: bool = False) -> Tensor:
    """Pack int8 weights for ``conv_int8`` on this machine. Do not save the result.

    Parameters
    ----------
    weight
        int8 [n, channels / groups, KH, KW].
    groups
        Groups of the convolution; divides n.
    linear
        Whether it is a linear layer, with a 1x1 kernel.

    Returns
    -------
    Tensor
        uint8, one dimension.

    Raises
    ------
    InputError
        Wrong dtype, device, rank, groups or values.
    """
    _check_weight("prepack_int8", weight, groups)
    return torch.from_numpy(
        np.asarray(_core.prepack_int8(_view(weight), groups, linear), dtype=np.uint8)
    )


#: Name in :data:`fatnn_rs.ops.definitions.OPS` → real kernel.
KERNELS: dict[str, Callable[..., Tensor]] = {
    "quantize": _quantize,
    "pack_codes": _pack_codes,
    "unpack_codes": _unpack_codes,
    "conv_acc": _conv_acc,
    "conv_codes": _conv_codes,
    "conv_float": _conv_float,
    "conv_int8": _conv_int8,
    "max_pool_codes": _max_pool_codes,
}

for _name, _kernel in KERNELS.items():
    # Registered for every device, so that a tensor on another device fails in our check, which
    # names it, and not because of a missing kernel.
    definitions.LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    # The key above does not cover nested tensors.
    for _key in ("NestedTensorCPU", "NestedTensorCUDA"):
        definitions.LIBRARY.impl(_name, _kernel, _key)
    # Inference only: outputs carry no gradient.
    definitions.LIBRARY.impl(_name, torch.library.fallthrough_kernel, "Autograd")
