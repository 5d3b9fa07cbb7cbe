"""The torch ops pass opcheck for every type of codes, memory layout and rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional

from fatnn_rs.ops import OPS, prepack, prepack_int8
from op_inputs import int8_weights, layouts, ops, ternary_codes, two_bit_codes, two_bit_weights


def sample_calls() -> dict[str, tuple[object, ...]]:
    """Arguments of one valid call of every op."""
    x = torch.randn(2, 12, 6, 5, generator=torch.Generator().manual_seed(0))
    codes = ops.quantize(x, [0.2, 0.9], 2)
    weight = prepack(ternary_codes((8, 6, 3, 3)), 2, "half")
    window = ((3, 3), (2, 1), (1, 1), (1, 2))
    thresholds = torch.stack([torch.arange(-4, 4), torch.arange(-3, 5)]).int()
    scale, bias = torch.randn(8), torch.randn(8)
    residual = torch.randn(2, 8, 3, 3)
    return {
        "quantize": (x, [0.2, 0.9], 2),
        "pack_codes": (ternary_codes((2, 3, 70)), 2),
        "unpack_codes": (codes, 12, 2),
        "conv_acc": (codes, weight, 8, *window),
        "conv_codes": (codes, weight, thresholds, 8, *window, 4),
        "conv_float": (codes, weight, scale, bias, residual, True, 8, *window),
        "max_pool_codes": (codes, (3, 2), (2, 2), (1, 1), (1, 1), True),
        "conv_int8": (
            x,
            prepack_int8(int8_weights((8, 6, 3, 3)), 2),
            scale,
            bias,
            16.0,
            8,
            *window,
        ),
    }


def test_every_op_has_a_sample_call() -> None:
    assert set(sample_calls()) == set(OPS)


def two_bit_sample_calls() -> dict[str, tuple[object, ...]]:
    """Arguments of one valid call of every op on two-bit codes and weights."""
    found = sample_calls()
    x, window = found["quantize"][0], found["conv_acc"][3:]
    codes = ops.quantize(x, [0.2, 0.9, 1.3], 2)
    weight = prepack(two_bit_weights((8, 6, 3, 3)), 2, "uint2")
    rows = found["conv_codes"][2], torch.arange(3, 11).int()[None]
    thresholds = torch.cat(rows)  # type: ignore[arg-type]
    return {
        "quantize": (x, [0.2, 0.9, 1.3], 2),
        "pack_codes": (two_bit_codes((2, 3, 70)), 2, "two-bit"),
        "unpack_codes": (codes, 12, 2, "two-bit"),
        "conv_acc": (codes, weight, 8, *window),
        "conv_codes": (codes, weight, thresholds, *found["conv_codes"][3:]),
        "conv_float": (codes, weight, *found["conv_float"][2:]),
        "max_pool_codes": (codes, *found["max_pool_codes"][1:], "two-bit"),
    }


# opcheck itself reads .grad of tensors that are not leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("name", sorted(OPS))
def test_opcheck_accepts_ternary_codes(name: str) -> None:
    opcheck(getattr(ops, name).default, sample_calls()[name])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("name", sorted(set(OPS) - {"conv_int8"}))
def test_opcheck_accepts_two_bit_codes(name: str) -> None:
    opcheck(getattr(ops, name).default, two_bit_sample_calls()[name])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize(
    "layout", ["contiguous", "channels_last", "sliced", "requires_grad", "transposed"]
)
@pytest.mark.parametrize("name", ["quantize", "conv_float", "conv_int8"])
def test_opcheck_accepts_every_layout_of_float_tensors(name: str, layout: str) -> None:
    arguments = list(sample_calls()[name])
    place = {"quantize": 0, "conv_float": 4, "conv_int8": 0}[name]
    plain = getattr(ops, name)(*arguments)
    arguments[place] = layouts(arguments[place])[layout]  # type: ignore[arg-type]
    opcheck(getattr(ops, name).default, tuple(arguments))
    result = getattr(ops, name)(*arguments)
    assert torch.equal(result, plain)
    assert not result.requires_grad


def strided_layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values in memory that is not contiguous or starts at an offset."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    window = torch.zeros(*(size + 2 for size in x.shape), dtype=x.dtype)
    inner = window[tuple(slice(1, 1 + size) for size in x.shape)]
    inner.copy_(x)
    found = {"sliced": wide[..., ::2], "window": inner, "offset": torch.cat([x[:1], x])[1:]}
    found["transposed"] = x.transpose(0, -1).contiguous().transpose(0, -1)
    assert not any(found[name].is_contiguous() for name in ("sliced", "window", "transposed"))
    return found


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("layout", ["sliced", "window", "offset", "transposed"])
@pytest.mark.parametrize(
    "name", ["pack_codes", "unpack_codes", "conv_acc", "conv_codes", "conv_float", "max_pool_codes"]
)
def test_opcheck_accepts_every_layout_of_code_tensors(name: str, layout: str) -> None:
    arguments = list(sample_calls()[name])
    plain = getattr(ops, name)(*arguments)
    arguments[0] = strided_layouts(arguments[0])[layout]  # type: ignore[arg-type]
    if name == "conv_codes":
        arguments[2] = strided_layouts(arguments[2])[layout]  # type: ignore[arg-type]
    opcheck(getattr(ops, name).default, tuple(arguments))
    result = getattr(ops, name)(*arguments)
    assert torch.equal(result, plain)
    assert result.stride() == plain.stride()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("shape", [(3, 70), (2, 5, 9), (0, 4, 3, 3)])
def test_opcheck_accepts_two_to_four_dimensions(shape: tuple[int, ...]) -> None:
    for x in layouts(torch.randn(shape)).values():
        opcheck(ops.quantize.default, (x, [-0.4, 0.5], 1))
        opcheck(ops.quantize.default, (x, [-0.4, 0.5, 0.8], 1))
        kernel = [1, 1, *[2] * (x.dim() - 2)][-2:]
        weight = int8_weights((5, x.shape[1], *kernel))
        blob = prepack_int8(weight, linear=x.dim() == 2)
        opcheck(ops.conv_int8.default, (x, blob, torch.ones(5), None, 3.0, 5, kernel))
        codes = (x.detach() * 3.0).round().clamp(-127, 127)
        expected = functional.conv2d(
            codes.reshape(*x.shape[:2], *[1, 1, *x.shape[2:]][-2:]), weight.float()
        )
        assert torch.equal(
            ops.conv_int8(x, blob, torch.ones(5), None, 3.0, 5, kernel).flatten(),
            expected.flatten(),
        )
