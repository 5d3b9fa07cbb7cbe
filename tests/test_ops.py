"""The torch ops: values compared with torch, torch.compile and export, and errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fatnn_rs import InputError, _core
from fatnn_rs.convert.levels import weight_kind
from fatnn_rs.ops import packed_bytes, prepack, prepack_int8
from op_inputs import int8_weights, layouts, ops, ternary_codes, two_bit_codes, two_bit_weights

#: Type of the packed codes of each kind of activations, if not ternary.
CODE_TYPES = {"uint2": "two-bit", "binary": "binary"}


def count_reached(x: Tensor, *thresholds: float) -> Tensor:
    return sum((x >= threshold).to(torch.int8) for threshold in thresholds)


@settings(max_examples=60, deadline=None)
@given(
    spatial=st.lists(st.integers(1, 7), max_size=2),
    batch=st.integers(0, 3),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 70),
    seed=st.integers(0, 1 << 30),
)
def test_quantize_counts_the_thresholds_reached(
    spatial: list[int], batch: int, groups: int, per_group: int, seed: int
) -> None:
    channels = groups * per_group
    x = torch.randn(batch, channels, *spatial, generator=torch.Generator().manual_seed(seed))
    expected = (count_reached(x, -0.25, 0.5) - 1).movedim(1, -1)
    of_two_bits = count_reached(x, -0.25, 0.5, 0.75).movedim(1, -1)
    for given_x in layouts(x).values():
        codes = ops.quantize(given_x, [-0.25, 0.5], groups)
        assert (
            codes.shape[-1]
            == packed_bytes(channels, groups)
            == _core.packed_bytes(channels, groups)
        )
        assert torch.equal(
            ops.unpack_codes(codes, channels, groups).reshape(expected.shape), expected
        )
        codes = ops.quantize(given_x, [-0.25, 0.5, 0.75], groups)
        assert torch.equal(
            ops.unpack_codes(codes, channels, groups, "two-bit").reshape(expected.shape),
            of_two_bits,
        )


@settings(max_examples=60, deadline=None)
@given(
    pixels=st.integers(0, 9),
    groups=st.integers(1, 4),
    per_group=st.integers(1, 130),
    seed=st.integers(0, 1 << 30),
)
def test_unpack_codes_inverts_pack_codes(
    pixels: int, groups: int, per_group: int, seed: int
) -> None:
    codes = ternary_codes((pixels, groups * per_group), seed)
    assert torch.equal(
        ops.unpack_codes(ops.pack_codes(codes, groups), groups * per_group, groups), codes
    )
    codes = two_bit_codes((pixels, groups * per_group), seed)
    assert torch.equal(
        ops.unpack_codes(
            ops.pack_codes(codes, groups, "two-bit"), groups * per_group, groups, "two-bit"
        ),
        codes,
    )


def test_no_input_reaches_an_infinite_threshold() -> None:
    x = torch.tensor([[math.inf, 3.0, 0.1]])
    assert ops.unpack_codes(ops.quantize(x, [0.5, math.inf]), 3).tolist() == [[[[0, 0, -1]]]]
    assert ops.unpack_codes(ops.quantize(x, [0.5, 1.0, math.inf]), 3, 1, "two-bit").tolist() == [
        [[[2, 2, 0]]]
    ]


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 2),
    groups=st.integers(1, 3),
    cin=st.integers(1, 20),
    cout=st.integers(1, 20),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    act=st.sampled_from(["full", "half", "uint2", "binary"]),
    weights=st.sampled_from(["ternary", "binary", "two-bit"]),
    seed=st.integers(0, 1 << 30),
)
def test_convolutions_agree_with_torch(
    batch, groups, cin, cout, kernel, stride, padding, dilation, act, weights, seed
) -> None:  # type: ignore[no-untyped-def]
    weight = (two_bit_weights if weights == "two-bit" else ternary_codes)(
        (groups * cout, cin, *kernel), seed
    )
    if weights == "binary":
        weight = torch.where(weight == 0, 1, weight)
    codes = (two_bit_codes if act == "uint2" else ternary_codes)(
        (batch, 7, 6, groups * cin), seed + 1
    )
    if act == "binary":
        codes = codes.clamp(max=0)
    packed, blob = (
        ops.pack_codes(codes, groups, CODE_TYPES.get(act, "ternary")),
        prepack(weight, groups, act),
    )
    info = _core.packed_info(blob.numpy())
    assert info["act"] == act
    assert info["weights"] == weight_kind(weight)
    image = codes.permute(0, 3, 1, 2).float() + (1.0 if act in ("half", "binary") else 0.0)
    window = (stride, padding, dilation)
    acc = functional.conv2d(image, weight.float(), None, *window, groups)
    n = groups * cout
    result = ops.conv_acc(packed, blob, n, kernel, *window)
    assert torch.equal(result, acc.int())
    assert result.is_contiguous(memory_format=torch.channels_last)

    generator = torch.Generator().manual_seed(seed)
    for rows in (2, 3):
        thresholds = (
            torch.randint(-3, 4, (rows, n), dtype=torch.int32, generator=generator).sort(0).values
        )
        made = ops.conv_codes(packed, blob, thresholds, n, kernel, *window, groups)
        expected = sum((acc >= t.view(1, -1, 1, 1)).to(torch.int8) for t in thresholds) - int(
            rows == 2
        )
        assert torch.equal(
            ops.unpack_codes(made, n, groups, "two-bit" if rows == 3 else "ternary").permute(
                0, 3, 1, 2
            ),
            expected,
        )

    scale, residual = (
        torch.randn(n, generator=generator),
        torch.randn(acc.shape, generator=generator),
    )
    plain = ops.conv_float(packed, blob, None, None, None, False, n, kernel, *window)
    assert torch.equal(plain, acc)
    scaled = ops.conv_float(packed, blob, scale, None, residual, True, n, kernel, *window)
    assert torch.equal(scaled, torch.relu(acc * scale.view(-1, 1, 1) + residual))


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pad=st.booleans(),
    dilation=st.integers(1, 2),
    ceil_mode=st.booleans(),
    channels=st.integers(1, 70),
    groups=st.integers(1, 2),
    seed=st.integers(0, 1 << 30),
)
def test_max_pool_codes_agrees_with_torch(
    size, kernel, stride, pad, dilation, ceil_mode, channels, groups, seed
) -> None:  # type: ignore[no-untyped-def]
    padding = tuple(k // 2 if pad else 0 for k in kernel)
    if any(size[i] + 2 * padding[i] < dilation * (kernel[i] - 1) + 1 for i in range(2)):
        assume(False)  # the window does not fit
    window = (kernel, stride, padding, (dilation, dilation), ceil_mode)
    for code_type in ("ternary", "two-bit"):
        codes = (two_bit_codes if code_type == "two-bit" else ternary_codes)(
            (2, *size, groups * channels), seed
        )
        pooled = ops.max_pool_codes(ops.pack_codes(codes, groups, code_type), *window, code_type)
        expected = functional.max_pool2d(codes.permute(0, 3, 1, 2).float(), *window)
        found = ops.unpack_codes(pooled, groups * channels, groups, code_type)
        assert torch.equal(found.permute(0, 3, 1, 2).float(), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_ops_run_inside_torch_compile(backend: str, dynamic: bool) -> None:
    blob = prepack(ternary_codes((8, 12, 3, 3)), 1, "half")
    scale, bias = torch.randn(8), torch.randn(8)

    def run(x: Tensor) -> Tensor:
        codes = ops.max_pool_codes(ops.quantize(x * 2, [0.1, 0.7]), (2, 2), (2, 2))
        return ops.conv_float(codes, blob, scale, bias, None, True, 8, (3, 3), (1, 1), (1, 1)) + 1

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend=backend, dynamic=dynamic)
    for batch in (2, 3):
        x = torch.randn(batch, 12, 8, 8)
        assert torch.equal(compiled(x), run(x))


def test_ops_run_inside_torch_export() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ops.unpack_codes(ops.quantize(x, [0.0, 1.0]), 5)

    x = torch.randn(2, 5, 4, 4)
    program = torch.export.export(Model(), (x,))
    assert torch.equal(program.module()(x), Model()(x))


def call_conv_int8(**changed: object) -> Tensor:
    """Call ``conv_int8`` with valid arguments, except those in ``changed``."""
    arguments: dict[str, object] = {
        "x": torch.zeros(1, 4, 2, 2),
        "weight": prepack_int8(int8_weights((6, 4, 1, 1))),
        "scale": torch.ones(6),
        "bias": None,
        "inv_step": 1.0,
        "out_channels": 6,
        "kernel": (1, 1),
    }
    return ops.conv_int8(**{**arguments, **changed})


CODES = torch.zeros(1, 4, 4, 16, dtype=torch.uint8)


BLOB = prepack(ternary_codes((8, 12, 3, 3)), 1, "full")


SQUARE = ((3, 3), (1, 1), (0, 0), (1, 1))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: ops.quantize(torch.zeros(1, 4).double(), [0.0, 1.0]),
            "x: expected torch.float32, got torch.float64",
        ),
        (lambda: ops.quantize(torch.zeros(4), [0.0, 1.0]), "x: expected 2 or 3 or 4 dimensions"),
        (
            lambda: ops.quantize(torch.zeros(1, 4), [0.0, 1.0], 3),
            "groups: expected a divisor of the 4 channels, got 3",
        ),
        (lambda: ops.quantize(torch.zeros(1, 4), [0.0, 1.0], 0), "groups"),
        (lambda: ops.quantize(torch.full((1, 4), float("nan")), [0.0, 1.0]), "NaN"),
        (
            lambda: ops.quantize(torch.zeros(1, 4), [1.0, 0.0]),
            "thresholds: expected two or three numbers, none below",
        ),
        (lambda: ops.quantize(torch.zeros(1, 4), [0.0, 2.0, 1.0]), "none below the one before"),
        (
            lambda: ops.quantize(torch.zeros(1, 4), [0.0, math.nan]),
            "thresholds: expected two or three numbers",
        ),
        (
            lambda: ops.quantize(torch.zeros(1, 4), [0.0]),
            "thresholds: expected two or three numbers",
        ),
        (lambda: ops.pack_codes(torch.zeros(1, 4)), "codes: expected torch.int8"),
        (
            lambda: ops.pack_codes(torch.full((1, 4), 4, dtype=torch.int8), 1, "two-bit"),
            "codes 0, 1, 2 or 3, got 4",
        ),
        (
            lambda: ops.pack_codes(torch.full((1, 4), -1, dtype=torch.int8), 1, "two-bit"),
            "codes 0, 1, 2 or 3, got -1",
        ),
        (lambda: ops.pack_codes(torch.full((1, 4), 2, dtype=torch.int8)), "got 2"),
        (
            lambda: ops.pack_codes(torch.tensor([[-1, 1]], dtype=torch.int8), 1, "binary"),
            "codes: expected codes -1 or 0, got 1 at element 1",
        ),
        (
            lambda: ops.unpack_codes(CODES, 64, 1, "uint2"),
            'expected one of "ternary", "two-bit", "binary", got',
        ),
        (lambda: ops.max_pool_codes(CODES, (2, 2), code_type="full"), "code_type: expected one of"),
        (lambda: ops.unpack_codes(CODES, 65), "packed: expected 32 bytes a pixel"),
        (lambda: ops.unpack_codes(CODES, 0), "channels: expected at least 1, got 0"),
        (lambda: ops.conv_acc(CODES.float(), BLOB, 8, *SQUARE), "codes: expected torch.uint8"),
        (lambda: ops.conv_acc(CODES[0], BLOB, 8, *SQUARE), "codes: expected 4 dimensions"),
        (lambda: ops.conv_acc(CODES[..., :10], BLOB, 8, *SQUARE), "whole number of 16-byte words"),
        (
            lambda: ops.conv_acc(CODES, BLOB, 8, (3, 3), (0, 1)),
            "stride: expected two integers of at least 1",
        ),
        (
            lambda: ops.conv_acc(CODES, BLOB, 8, (3, 3), (1, 1), (-1, 0)),
            "padding: expected two integers of at least 0",
        ),
        (lambda: ops.conv_acc(CODES[:, :2], BLOB, 8, (3, 3)), "smaller than the kernel"),
        (
            lambda: ops.conv_acc(CODES, BLOB, 0, *SQUARE),
            "out_channels: expected 8, as the weights were packed, got 0",
        ),
        (
            lambda: ops.conv_acc(CODES, BLOB, 9, *SQUARE),
            "out_channels: expected 8, as the weights were packed, got 9",
        ),
        (
            lambda: ops.conv_acc(CODES, BLOB, 8, (2, 2)),
            r"kernel: expected \[3, 3\], as the weights were packed, got \[2, 2\]",
        ),
        (lambda: ops.conv_acc(CODES, BLOB[:-1], 8, *SQUARE), "pack the weights again"),
        (lambda: ops.conv_acc(CODES, torch.zeros(9, dtype=torch.uint8), 8, *SQUARE), "too short"),
        (
            lambda: ops.conv_acc(torch.zeros(1, 4, 4, 32, dtype=torch.uint8), BLOB, 8, *SQUARE),
            "bytes a pixel of the codes: expected",
        ),
        (
            lambda: ops.conv_codes(CODES, BLOB, torch.zeros(2, 7, dtype=torch.int32), 8, *SQUARE),
            r"thresholds: expected shape \(2, 8\), got \(2, 7\)",
        ),
        (
            lambda: ops.conv_codes(CODES, BLOB, torch.zeros(4, 8, dtype=torch.int32), 8, *SQUARE),
            r"thresholds: expected shape \(2, 8\), got \(4, 8\)",
        ),
        (
            lambda: ops.conv_codes(CODES, BLOB, torch.zeros(3, 7, dtype=torch.int32), 8, *SQUARE),
            r"thresholds: expected shape \(3, 8\), got \(3, 7\)",
        ),
        (
            lambda: ops.conv_codes(
                CODES, BLOB, -torch.arange(24, dtype=torch.int32).view(3, 8), 8, *SQUARE
            ),
            "thresholds: expected no decrease within a channel, got 0 and then -8 for channel 0",
        ),
        (
            lambda: ops.conv_codes(
                CODES, BLOB, torch.zeros(2, 8, dtype=torch.int32), 8, *SQUARE, 3
            ),
            "groups: expected a divisor of the 8 channels",
        ),
        (
            lambda: ops.conv_float(CODES, BLOB, None, torch.zeros(8), None, False, 8, *SQUARE),
            "bias: expected a scale with it",
        ),
        (
            lambda: ops.conv_float(CODES, BLOB, torch.zeros(9), None, None, False, 8, *SQUARE),
            r"scale: expected shape \(8,\)",
        ),
        (
            lambda: ops.conv_float(
                CODES, BLOB, None, None, torch.zeros(1, 8, 3, 2), False, 8, *SQUARE
            ),
            r"residual: expected shape \(1, 8, 2, 2\)",
        ),
        (
            lambda: ops.max_pool_codes(CODES, (2, 2), (1, 1), (2, 2)),
            "padding: expected at most half the kernel",
        ),
        (lambda: ops.max_pool_codes(CODES, (5, 5), (1, 1)), "smaller than the kernel"),
        (lambda: call_conv_int8(x=torch.zeros(1, 4, 2, 2).double()), "x: expected torch.float32"),
        (lambda: call_conv_int8(x=torch.zeros(4)), "x: expected 2 or 3 or 4 dimensions"),
        (lambda: call_conv_int8(x=torch.zeros(1, 5, 2, 2)), "channels of x: expected 4, got 5"),
        (lambda: call_conv_int8(x=torch.full((1, 4, 2, 2), float("nan"))), "NaN"),
        (lambda: call_conv_int8(weight=torch.zeros(6, 4, 1, 1)), "weight: expected torch.uint8"),
        (lambda: call_conv_int8(weight=torch.zeros(9, dtype=torch.uint8)), "too short"),
        (
            lambda: call_conv_int8(weight=BLOB),
            "expected weights for int8 activations, got ones for full activations and ternary",
        ),
        (
            lambda: call_conv_int8(out_channels=5, scale=torch.ones(5)),
            "out_channels: expected 6, as the weights were packed",
        ),
        (
            lambda: call_conv_int8(kernel=(2, 2)),
            r"kernel: expected \[1, 1\], as the weights were packed, got \[2, 2\]",
        ),
        (lambda: call_conv_int8(scale=torch.ones(5)), r"scale: expected shape \(6,\)"),
        (lambda: call_conv_int8(bias=torch.ones(5)), r"bias: expected shape \(6,\)"),
        (lambda: call_conv_int8(inv_step=0.0), "inv_step: expected a positive number, got 0.0"),
        (lambda: call_conv_int8(stride=(0, 1)), "stride: expected two integers of at least 1"),
        (lambda: call_conv_int8(kernel=(3, 3)), r"kernel: expected \[1, 1\]"),
        (lambda: call_conv_int8(out_channels=0), "out_channels: expected 6"),
        (
            lambda: prepack_int8(int8_weights((6, 4, 1, 1)), 4),
            "groups: expected a divisor of the 6 channels",
        ),
        (lambda: prepack_int8(int8_weights((6, 0, 1, 1))), "at least one value"),
        (lambda: prepack_int8(int8_weights((6, 4))), "weight: expected 4 dimensions"),
        (lambda: prepack_int8(torch.zeros(6, 4, 1, 1)), "weight: expected torch.int8"),
        (lambda: prepack(torch.zeros(4, 4, 1, 1)), "weight: expected torch.int8"),
        (lambda: prepack(ternary_codes((4, 4))), "weight: expected 4 dimensions"),
        (
            lambda: prepack(ternary_codes((4, 4, 1, 1)), 3),
            "groups: expected a divisor of the 4 channels",
        ),
        (lambda: prepack(ternary_codes((4, 0, 1, 1))), "at least one value"),
        (lambda: prepack(torch.full((1, 1, 1, 1), 2, dtype=torch.int8)), "got 2"),
        (
            lambda: prepack(torch.tensor([3, 0], dtype=torch.int8).view(1, 2, 1, 1)),
            "-3, -1, 1 or 3, got 0 at element 1",
        ),
        (
            lambda: prepack(ternary_codes((4, 4, 1, 1)), 1, "int4"),
            'act: expected "full", "half", "uint2" or "binary", got "int4"',
        ),
    ],
)
def test_wrong_arguments_are_refused(call, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=says):
        call()
