"""The torch ops: values compared with torch, contracts by opcheck, tracing, and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional

from fatnn_rs import InputError, _core
from fatnn_rs.convert.levels import weight_kind
from fatnn_rs.ops import OPS, packed_bytes, prepack, prepack_int8

ops = torch.ops.fatnn_rs

#: Types of codes, by what activations stand for.
CODE_TYPES = {"uint2": "two-bit", "binary": "binary"}


def codes_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randint(
        -1, 2, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed)
    )


def levels_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Activations of two bits."""
    return torch.randint(
        0, 4, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed)
    )


def two_bit_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Weights of two bits."""
    weight = 2 * levels_of(shape, seed) - 3
    weight.view(-1)[0] = 3  # else they might be ternary
    return weight


def int8_of(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(
        -127, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(0)
    )


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values in several memory layouts."""
    wide = torch.zeros(x.shape[0], 2 * x.shape[1], *x.shape[2:])
    wide[:, ::2] = x
    found = {"contiguous": x, "sliced": wide[:, ::2], "requires_grad": x.clone().requires_grad_()}
    if x.dim() == 4:
        found["channels_last"] = x.contiguous(memory_format=torch.channels_last)
        found["transposed"] = x.transpose(2, 3).contiguous().transpose(2, 3)
    if x.dim() == 3:
        found["channels_last"] = x.transpose(1, 2).contiguous().transpose(1, 2)
    return found


def samples() -> dict[str, tuple[object, ...]]:
    """One call of every op; the arguments in front of the last ones are tensors."""
    x = torch.randn(2, 12, 6, 5, generator=torch.Generator().manual_seed(0))
    codes = ops.quantize(x, [0.2, 0.9], 2)
    weight = prepack(codes_of((8, 6, 3, 3)), 2, "half")
    window = ((3, 3), (2, 1), (1, 1), (1, 2))
    thresholds = torch.stack([torch.arange(-4, 4), torch.arange(-3, 5)]).int()
    scale, bias = torch.randn(8), torch.randn(8)
    residual = torch.randn(2, 8, 3, 3)
    return {
        "quantize": (x, [0.2, 0.9], 2),
        "pack_codes": (codes_of((2, 3, 70)), 2),
        "unpack_codes": (codes, 12, 2),
        "conv_acc": (codes, weight, 8, *window),
        "conv_codes": (codes, weight, thresholds, 8, *window, 4),
        "conv_float": (codes, weight, scale, bias, residual, True, 8, *window),
        "max_pool_codes": (codes, (3, 2), (2, 2), (1, 1), (1, 1), True),
        "conv_int8": (x, prepack_int8(int8_of((8, 6, 3, 3)), 2), scale, bias, 16.0, 8, *window),
    }


def test_every_op_has_a_sample() -> None:
    assert set(samples()) == set(OPS)


def two_bit_samples() -> dict[str, tuple[object, ...]]:
    """The same of codes of two bits, and weights of two bits."""
    found = samples()
    x, window = found["quantize"][0], found["conv_acc"][3:]
    codes = ops.quantize(x, [0.2, 0.9, 1.3], 2)
    weight = prepack(two_bit_of((8, 6, 3, 3)), 2, "uint2")
    thresholds = torch.cat([found["conv_codes"][2], torch.arange(3, 11).int()[None]])  # type: ignore[list-item]
    return {
        "quantize": (x, [0.2, 0.9, 1.3], 2),
        "pack_codes": (levels_of((2, 3, 70)), 2, "two-bit"),
        "unpack_codes": (codes, 12, 2, "two-bit"),
        "conv_acc": (codes, weight, 8, *window),
        "conv_codes": (codes, weight, thresholds, *found["conv_codes"][3:]),
        "conv_float": (codes, weight, *found["conv_float"][2:]),
        "max_pool_codes": (codes, *found["max_pool_codes"][1:], "two-bit"),
    }


# opcheck itself reads .grad of tensors that are not leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("name", sorted(OPS))
def test_opcheck(name: str) -> None:
    opcheck(getattr(ops, name).default, samples()[name])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("name", sorted(set(OPS) - {"conv_int8"}))
def test_opcheck_of_two_bits(name: str) -> None:
    opcheck(getattr(ops, name).default, two_bit_samples()[name])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize(
    "layout", ["contiguous", "channels_last", "sliced", "requires_grad", "transposed"]
)
@pytest.mark.parametrize("name", ["quantize", "conv_float", "conv_int8"])
def test_opcheck_layouts(name: str, layout: str) -> None:
    arguments = list(samples()[name])
    place = {"quantize": 0, "conv_float": 4, "conv_int8": 0}[name]
    plain = getattr(ops, name)(*arguments)
    arguments[place] = layouts(arguments[place])[layout]  # type: ignore[arg-type]
    opcheck(getattr(ops, name).default, tuple(arguments))
    result = getattr(ops, name)(*arguments)
    assert torch.equal(result, plain)
    assert not result.requires_grad


def integer_layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values, without a gradient, in memory that is not contiguous."""
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
def test_opcheck_layouts_of_codes(name: str, layout: str) -> None:
    arguments = list(samples()[name])
    plain = getattr(ops, name)(*arguments)
    arguments[0] = integer_layouts(arguments[0])[layout]  # type: ignore[arg-type]
    if name == "conv_codes":
        arguments[2] = integer_layouts(arguments[2])[layout]  # type: ignore[arg-type]
    opcheck(getattr(ops, name).default, tuple(arguments))
    result = getattr(ops, name)(*arguments)
    assert torch.equal(result, plain)
    assert result.stride() == plain.stride()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("shape", [(3, 70), (2, 5, 9), (0, 4, 3, 3)])
def test_opcheck_ranks(shape: tuple[int, ...]) -> None:
    for x in layouts(torch.randn(shape)).values():
        opcheck(ops.quantize.default, (x, [-0.4, 0.5], 1))
        opcheck(ops.quantize.default, (x, [-0.4, 0.5, 0.8], 1))
        kernel = [1, 1, *[2] * (x.dim() - 2)][-2:]
        weight = int8_of((5, x.shape[1], *kernel))
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


def levels(x: Tensor, *thresholds: float) -> Tensor:
    return sum((x >= threshold).to(torch.int8) for threshold in thresholds)


@settings(max_examples=60, deadline=None)
@given(
    spatial=st.lists(st.integers(1, 7), max_size=2),
    batch=st.integers(0, 3),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 70),
    seed=st.integers(0, 1 << 30),
)
def test_quantize(spatial: list[int], batch: int, groups: int, per_group: int, seed: int) -> None:
    channels = groups * per_group
    x = torch.randn(batch, channels, *spatial, generator=torch.Generator().manual_seed(seed))
    expected = (levels(x, -0.25, 0.5) - 1).movedim(1, -1)
    of_two_bits = levels(x, -0.25, 0.5, 0.75).movedim(1, -1)
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
def test_pack_and_unpack(pixels: int, groups: int, per_group: int, seed: int) -> None:
    codes = codes_of((pixels, groups * per_group), seed)
    assert torch.equal(
        ops.unpack_codes(ops.pack_codes(codes, groups), groups * per_group, groups), codes
    )
    codes = levels_of((pixels, groups * per_group), seed)
    assert torch.equal(
        ops.unpack_codes(
            ops.pack_codes(codes, groups, "two-bit"), groups * per_group, groups, "two-bit"
        ),
        codes,
    )


def test_nothing_reaches_infinity() -> None:
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
def test_convolutions(
    batch, groups, cin, cout, kernel, stride, padding, dilation, act, weights, seed
) -> None:  # type: ignore[no-untyped-def]
    weight = (two_bit_of if weights == "two-bit" else codes_of)((groups * cout, cin, *kernel), seed)
    if weights == "binary":
        weight = torch.where(weight == 0, 1, weight)
    codes = (levels_of if act == "uint2" else codes_of)((batch, 7, 6, groups * cin), seed + 1)
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
def test_max_pool(size, kernel, stride, pad, dilation, ceil_mode, channels, groups, seed) -> None:  # type: ignore[no-untyped-def]
    padding = tuple(k // 2 if pad else 0 for k in kernel)
    if any(size[i] + 2 * padding[i] < dilation * (kernel[i] - 1) + 1 for i in range(2)):
        return
    window = (kernel, stride, padding, (dilation, dilation), ceil_mode)
    for code_type in ("ternary", "two-bit"):
        codes = (levels_of if code_type == "two-bit" else codes_of)(
            (2, *size, groups * channels), seed
        )
        pooled = ops.max_pool_codes(ops.pack_codes(codes, groups, code_type), *window, code_type)
        expected = functional.max_pool2d(codes.permute(0, 3, 1, 2).float(), *window)
        found = ops.unpack_codes(pooled, groups * channels, groups, code_type)
        assert torch.equal(found.permute(0, 3, 1, 2).float(), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_under_compile(backend: str, dynamic: bool) -> None:
    blob = prepack(codes_of((8, 12, 3, 3)), 1, "half")
    scale, bias = torch.randn(8), torch.randn(8)

    def run(x: Tensor) -> Tensor:
        codes = ops.max_pool_codes(ops.quantize(x * 2, [0.1, 0.7]), (2, 2), (2, 2))
        return ops.conv_float(codes, blob, scale, bias, None, True, 8, (3, 3), (1, 1), (1, 1)) + 1

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend=backend, dynamic=dynamic)
    for batch in (2, 3):
        x = torch.randn(batch, 12, 8, 8)
        assert torch.equal(compiled(x), run(x))


def test_under_export() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ops.unpack_codes(ops.quantize(x, [0.0, 1.0]), 5)

    x = torch.randn(2, 5, 4, 4)
    program = torch.export.export(Model(), (x,))
    assert torch.equal(program.module()(x), Model()(x))


def int8(**changed: object) -> Tensor:
    """A sound call of ``conv_int8`` but for what is changed."""
    arguments: dict[str, object] = {
        "x": torch.zeros(1, 4, 2, 2),
        "weight": prepack_int8(int8_of((6, 4, 1, 1))),
        "scale": torch.ones(6),
        "bias": None,
        "inv_step": 1.0,
        "out_channels": 6,
        "kernel": (1, 1),
    }
    return ops.conv_int8(**{**arguments, **changed})


CODES = torch.zeros(1, 4, 4, 16, dtype=torch.uint8)
BLOB = prepack(codes_of((8, 12, 3, 3)), 1, "full")
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
        (lambda: int8(x=torch.zeros(1, 4, 2, 2).double()), "x: expected torch.float32"),
        (lambda: int8(x=torch.zeros(4)), "x: expected 2 or 3 or 4 dimensions"),
        (lambda: int8(x=torch.zeros(1, 5, 2, 2)), "channels of x: expected 4, got 5"),
        (lambda: int8(x=torch.full((1, 4, 2, 2), float("nan"))), "NaN"),
        (lambda: int8(weight=torch.zeros(6, 4, 1, 1)), "weight: expected torch.uint8"),
        (lambda: int8(weight=torch.zeros(9, dtype=torch.uint8)), "too short"),
        (
            lambda: int8(weight=BLOB),
            "expected weights for int8 activations, got ones for full activations and ternary",
        ),
        (
            lambda: int8(out_channels=5, scale=torch.ones(5)),
            "out_channels: expected 6, as the weights were packed",
        ),
        (
            lambda: int8(kernel=(2, 2)),
            r"kernel: expected \[1, 1\], as the weights were packed, got \[2, 2\]",
        ),
        (lambda: int8(scale=torch.ones(5)), r"scale: expected shape \(6,\)"),
        (lambda: int8(bias=torch.ones(5)), r"bias: expected shape \(6,\)"),
        (lambda: int8(inv_step=0.0), "inv_step: expected a positive number, got 0.0"),
        (lambda: int8(stride=(0, 1)), "stride: expected two integers of at least 1"),
        (lambda: int8(kernel=(3, 3)), r"kernel: expected \[1, 1\]"),
        (lambda: int8(out_channels=0), "out_channels: expected 6"),
        (
            lambda: prepack_int8(int8_of((6, 4, 1, 1)), 4),
            "groups: expected a divisor of the 6 channels",
        ),
        (lambda: prepack_int8(int8_of((6, 0, 1, 1))), "at least one value"),
        (lambda: prepack_int8(int8_of((6, 4))), "weight: expected 4 dimensions"),
        (lambda: prepack_int8(torch.zeros(6, 4, 1, 1)), "weight: expected torch.int8"),
        (lambda: prepack(torch.zeros(4, 4, 1, 1)), "weight: expected torch.int8"),
        (lambda: prepack(codes_of((4, 4))), "weight: expected 4 dimensions"),
        (
            lambda: prepack(codes_of((4, 4, 1, 1)), 3),
            "groups: expected a divisor of the 4 channels",
        ),
        (lambda: prepack(codes_of((4, 0, 1, 1))), "at least one value"),
        (lambda: prepack(torch.full((1, 1, 1, 1), 2, dtype=torch.int8)), "got 2"),
        (
            lambda: prepack(torch.tensor([3, 0], dtype=torch.int8).view(1, 2, 1, 1)),
            "-3, -1, 1 or 3, got 0 at element 1",
        ),
        (
            lambda: prepack(codes_of((4, 4, 1, 1)), 1, "int4"),
            'act: expected "full", "half", "uint2" or "binary", got "int4"',
        ),
    ],
)
def test_refuses(call, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=says):
        call()
