"""Interpolation, transposed convolutions, pixel shuffles, norms and pools of maps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import fatnn_rs as fatnn
from nets import exact, ops_of, ready


class Between(nn.Module):
    """Ternary convolutions with the tested operation between them."""

    def __init__(self, call: Any, dims: int, channels: int = 16, out: int = 16) -> None:
        super().__init__()
        conv = nn.Conv1d if dims == 1 else nn.Conv2d
        self.first, self.last = conv(3, channels, 3, padding=1), conv(out, 4, 1)
        self.call = call
        self.kernel = nn.Parameter(torch.randn(channels, 2, *[3] * dims) * 0.2)

    def forward(self, x: Tensor) -> Any:
        y = self.first(x).relu()
        y = self.call(y) if isinstance(self.call, nn.Module) else self.call(self, y, x)
        return self.last(y)


def to(size: Any, **how: Any) -> Any:
    return lambda m, y, x: functional.interpolate(y, size=size, **how)


def by(factor: Any, **how: Any) -> Any:
    return lambda m, y, x: functional.interpolate(y, scale_factor=factor, **how)


def like(mode: str, **how: Any) -> Any:
    """Interpolate a pooled map to the size of the input."""

    def call(m: Any, y: Tensor, x: Tensor) -> Tensor:
        small = functional.max_pool2d(y, 2)
        return functional.interpolate(small, size=x.shape[-2:], mode=mode, **how)

    return call


def like_each(m: Any, y: Tensor, x: Tensor) -> Tensor:
    small = functional.max_pool2d(y, 2)
    return functional.interpolate(small, size=(x.size(2), x.size(3)), mode="nearest")


EXACT, SUM = True, False
#: Operation, whether it always has torch's bits, spatial axes, the call, channels after it.
CASES: list[tuple[str, bool, int, Any, int]] = [
    ("interpolate_nearest", EXACT, 2, nn.Upsample(scale_factor=2), 16),
    ("interpolate_nearest", EXACT, 2, nn.UpsamplingNearest2d(size=(11, 4)), 16),
    ("interpolate_nearest", EXACT, 2, to((3, 30), mode="nearest-exact"), 16),
    ("interpolate_nearest", EXACT, 2, by((0.6, 3.7)), 16),
    ("interpolate_nearest", EXACT, 2, by(1.3, recompute_scale_factor=True), 16),
    ("interpolate_nearest", EXACT, 2, by(1.3, mode="nearest-exact"), 16),
    ("interpolate_nearest", EXACT, 2, like("nearest"), 16),
    ("interpolate_nearest", EXACT, 2, like_each, 16),
    ("interpolate_nearest", EXACT, 1, nn.Upsample(scale_factor=1.3), 16),
    ("interpolate_nearest", EXACT, 1, to(17), 16),
    ("interpolate_linear", SUM, 2, nn.Upsample(scale_factor=2, mode="bilinear"), 16),
    ("interpolate_linear", SUM, 2, nn.UpsamplingBilinear2d(scale_factor=2), 16),
    ("interpolate_linear", SUM, 2, by((1.7, 0.4), mode="bilinear"), 16),
    ("interpolate_linear", SUM, 2, like("bilinear", align_corners=True), 16),
    ("interpolate_linear", SUM, 2, to((1, 90), mode="bilinear", align_corners=True), 16),
    ("interpolate_linear", SUM, 1, by(2.5, mode="linear"), 16),
    ("interpolate_filter", SUM, 2, to((7, 19), mode="bicubic"), 16),
    ("interpolate_filter", SUM, 2, to((5, 3), mode="bicubic", align_corners=True), 16),
    ("interpolate_filter", SUM, 2, nn.Upsample(scale_factor=1.7, mode="bicubic"), 16),
    ("interpolate_filter", SUM, 2, like("bicubic"), 16),
    ("interpolate_filter", SUM, 2, like("bilinear", antialias=True), 16),
    ("interpolate_filter", SUM, 2, to((3, 30), mode="bilinear", antialias=True), 16),
    ("interpolate_filter", SUM, 2, by((0.4, 0.7), mode="bicubic", antialias=True), 16),
    ("adaptive_avg_pool2d", SUM, 2, to((3, 5), mode="area"), 16),
    ("depth_to_space", EXACT, 2, nn.PixelShuffle(2), 4),
    ("conv_transpose2d", SUM, 2, lambda m, y, x: functional.conv_transpose2d(y, m.kernel), 2),
    (
        "conv_transpose2d",
        SUM,
        2,
        lambda m, y, x: functional.conv_transpose2d(
            y, m.kernel, None, (2, 3), 2, (1, 0), 4, (1, 2)
        ).relu(),
        8,
    ),
    (
        "conv_transpose1d",
        SUM,
        1,
        lambda m, y, x: functional.conv_transpose1d(y, m.kernel, stride=2, output_padding=1),
        2,
    ),
    ("instance_norm", SUM, 2, nn.InstanceNorm2d(16), 16),
    ("instance_norm", SUM, 2, nn.InstanceNorm2d(16, affine=True), 16),
    ("instance_norm", SUM, 1, nn.InstanceNorm1d(16, affine=True, eps=1e-3), 16),
    ("channel_bias", SUM, 2, nn.InstanceNorm2d(16, affine=True, track_running_stats=True), 16),
    ("instance_norm", SUM, 2, lambda m, y, x: functional.instance_norm(y, eps=0.1), 16),
    ("adaptive_max_pool2d", EXACT, 2, nn.AdaptiveMaxPool2d((3, None)), 16),
    ("adaptive_max_pool1d", EXACT, 1, nn.AdaptiveMaxPool1d(6), 16),
    ("adaptive_avg_pool2d", SUM, 2, nn.AdaptiveAvgPool2d(6), 16),
    ("adaptive_avg_pool2d", SUM, 2, nn.AdaptiveAvgPool2d((2, 3)), 16),
    ("avg_pool2d", SUM, 2, nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), 16),
]

RUN = """
import sys, numpy as np, fatnn_rs
folder = sys.argv[1]
for i in range(int(sys.argv[2])):
    net = fatnn_rs.load_numpy(f"{folder}/{i}.net")
    np.save(f"{folder}/{i}-{sys.argv[3]}.npy", net(np.load(f"{folder}/{i}.npy")))
"""


def everywhere(folder: Path, count: int) -> list[list[np.ndarray[Any, Any]]]:
    """Run files without torch, with every instruction set and several numbers of threads."""
    found = []
    for isa, threads in (("scalar", "1"), ("avx2", "1"), ("", "1"), ("", "3")):
        env = {**os.environ, "FATNN_NUM_THREADS": threads, **({"FATNN_ISA": isa} if isa else {})}
        name = f"{isa}-{threads}"
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(folder), str(count), name],
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found.append([np.load(folder / f"{i}-{name}.npy") for i in range(count)])
    return found


def test_torch_bits_by_default_and_files_close_to_it_on_every_instruction_set(
    tmp_path: Path,
) -> None:
    wanted = []
    for i, (op, _, dims, call, out) in enumerate(CASES):
        torch.manual_seed(i)
        x = torch.randn(2, 3, 9, 7) if dims == 2 else torch.randn(2, 3, 13)
        model = ready(Between(call, dims, out=out), x)
        larger = torch.randn(3, 3, 12, 11) if dims == 2 else torch.randn(1, 3, 20)
        net = exact(model, x, (larger,))
        names = [name.removesuffix("_codes") for name in ops_of(net)]
        assert op in names, (op, names)
        assert "torch" not in names
        wanted.append(model(x).detach().numpy())
        fatnn.save(net, tmp_path / f"{i}.net")
        np.save(tmp_path / f"{i}.npy", x.numpy())
    runs = everywhere(tmp_path, len(CASES))
    for i, (op, always, _, _, _) in enumerate(CASES):
        results = [run[i] for run in runs]
        if always:
            for result in results:
                np.testing.assert_array_equal(result, wanted[i], err_msg=op)
        # The next layer quantizes, so a sum that differs in the last place may have another code.
        close = [np.isclose(result, wanted[i], rtol=2e-5, atol=2e-5).mean() for result in results]
        assert min(close) > 0.97, (op, close)


class Float(nn.Module):
    """One float operation after a ternary layer; its result is the output."""

    def __init__(self, dims: int, channels: int, call: Any) -> None:
        super().__init__()
        self.first = (nn.Conv1d if dims == 1 else nn.Conv2d)(3, channels, 1)
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.first(x))


def numpy_run(model: nn.Module, x: Tensor, path: Path) -> tuple[Tensor, Tensor]:
    """Return the engine's outputs without torch, and the model's outputs."""
    net = exact(ready(model, x), x)
    fatnn.save(net, path)
    return torch.from_numpy(fatnn.load_numpy(path)(x.numpy())), model(x).detach()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_linear_interpolation_is_within_the_rounding_of_its_weights(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    draw = data.draw
    dims, corners = draw(st.sampled_from([1, 2])), draw(st.booleans())
    shape = [draw(st.integers(1, 70)) for _ in range(dims)]
    size = [draw(st.integers(1, 150)) for _ in range(dims)]
    mode = "linear" if dims == 1 else "bilinear"
    call = nn.Upsample(size, mode=mode, align_corners=corners)
    x = torch.randn(1, 3, *shape)
    model = Float(dims, draw(st.sampled_from([1, 3, 8])), call)
    made, wanted = numpy_run(model, x, tmp_path_factory.mktemp("linear") / "net")
    # Positions between pixels are float32 numbers up to the map's size. Each rounding of a position
    # changes a weight by at most its last place.
    most = model.first(x).detach().abs().max()
    bound = most * 2.0**-22 * (4 + sum(shape))
    assert float((made - wanted).abs().max()) <= float(bound)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_filtered_interpolation_is_within_the_rounding_of_its_weights(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    draw = data.draw
    mode, antialias = draw(st.sampled_from([("bicubic", 0), ("bicubic", 1), ("bilinear", 1)]))
    # torch's antialiased kernel misreads maps of one column.
    shape, size = ([draw(st.integers(2, n)) for _ in range(2)] for n in (60, 90))
    how = {"mode": mode, "antialias": bool(antialias), "align_corners": draw(st.booleans())}
    model = Float(2, draw(st.sampled_from([1, 3, 8])), lambda x: functional.interpolate(x, **how))
    how["size"] = size
    x = torch.randn(1, 3, *shape)
    made, wanted = numpy_run(model, x, tmp_path_factory.mktemp("filter") / "net")
    # As for linear interpolation. The slope of a cubic weight is at most 1.5, and a pixel has four
    # weights; a wider filter has more, smaller ones.
    most = model.first(x).detach().abs().max()
    bound = most * 2.0**-22 * (8 + 6 * sum(shape))
    assert float((made - wanted).abs().max()) <= float(bound)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_transposed_float_convolutions_without_torch(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    dims, layer = data.draw(transposed(8, 4))
    x = torch.randn(2, 3, *[data.draw(st.integers(1, 6)) for _ in range(dims)])
    model = nn.Sequential(Float(dims, 8, layer), nn.ReLU())
    try:
        if not model(x).numel():
            return
    except RuntimeError:  # the result is empty
        return
    config = {"skip": ("0.call",)}
    net = exact(ready(model, x, **config), x)
    path = tmp_path_factory.mktemp("transposed") / "net"
    fatnn.save(net, path)
    made = fatnn.load_numpy(path)(x.numpy())
    np.testing.assert_allclose(made, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@st.composite
def transposed(draw: st.DrawFn, channels: int, out: int) -> tuple[int, nn.Module]:
    """Number of spatial axes, and a transposed convolution over them."""
    dims = draw(st.sampled_from([1, 2]))
    each = [
        (k, s, draw(st.integers(0, k)), draw(st.integers(0, max(s, d) - 1)), d)
        for k, s, d in (
            (draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2)))
            for _ in range(dims)
        )
    ]
    kernel, stride, padding, more, dilation = zip(*each, strict=True)
    kind = nn.ConvTranspose1d if dims == 1 else nn.ConvTranspose2d
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    bias = draw(st.booleans())
    return dims, kind(
        channels, out, kernel, stride, padding, more, groups, bias=bias, dilation=dilation
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_quantized_transposed_convolutions_are_exact(data: st.DataObject) -> None:
    draw = data.draw
    dims, layer = draw(transposed(16, 8))
    norm, conv = (nn.BatchNorm1d, nn.Conv1d) if dims == 1 else (nn.BatchNorm2d, nn.Conv2d)
    after: list[nn.Module] = [norm(8)] if draw(st.booleans()) else []
    after += draw(st.sampled_from([[], [nn.ReLU()], [nn.PReLU(8)], [nn.Hardtanh()]]))
    if draw(st.booleans()):
        after.append(nn.Upsample(scale_factor=2))
    model = nn.Sequential(
        conv(3, 16, 1),
        nn.ReLU(),
        layer,
        *after,
        conv(8, 8, 1, groups=draw(st.sampled_from([1, 2]))),
    )
    sizes = [[draw(st.integers(2, 7)) for _ in range(dims)] for _ in range(2)]
    inputs = [torch.randn(2, 3, *size) for size in sizes]
    try:
        if not all(model(x).numel() for x in inputs):
            return
    except RuntimeError:  # the result is empty
        return
    config = {
        "weight": draw(st.sampled_from(["fatnn", "twn", "lsq", "binary"])),
        "act": draw(st.sampled_from(["ternary", "uint2", "binary"])),
        "depthwise": draw(st.sampled_from(["ternary", "int8"])),
        **draw(st.sampled_from([{}, {"first": "int8", "last": "int8"}])),
    }
    net = exact(ready(model, inputs[0], **config), inputs[0], tuple(inputs[1:]))
    assert "torch" not in ops_of(net)


def test_transposed_layer_and_nearest_interpolation_are_fused_into_thresholds() -> None:
    layer = nn.ConvTranspose2d(16, 32, 4, 2, 1)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        layer,
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(32, 4, 1),
    )
    x = torch.randn(1, 3, 6, 5)
    net = exact(ready(model, x), x, (torch.randn(2, 3, 9, 8),))
    assert ops_of(net)[2:6] == [
        "conv_codes",
        "depth_to_space_codes",
        "interpolate_nearest_codes",
        "conv_float",
    ]
    # MACs of the layer itself, without the zero taps of the ordinary convolution.
    row = next(row for row in net.report.rows if row.name == "2" and row.op == "conv_codes")
    assert row.macs == 6 * 5 * 16 * 32 * 4 * 4
    rows = {row.name: row.macs for row in fatnn.summary(model, x).rows}
    assert rows["2"] == row.macs
    assert {row.name: row.macs for row in fatnn.summary(net, x).rows} == rows


def test_quantizer_moves_before_a_nearest_interpolation_without_other_readers() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Any:
            y = (self.a(x) + self.b(x).sigmoid()).relu()
            return self.c(functional.interpolate(y, scale_factor=2))

    x = torch.randn(1, 3, 6, 5)
    names = ops_of(exact(ready(Sum(), x), x))
    assert names.index("interpolate_nearest_codes") == len(names) - names[::-1].index("quantize")


class Skip(nn.Module):
    """Two levels of a pyramid, whose sizes are taken from each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.side, self.out = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        b, side = self.b(functional.max_pool2d(a, 3, 1, 1)).relu(), self.side(a)
        up = functional.interpolate(b, size=side.shape[2:])
        return functional.interpolate(self.out(side + up), size=x.size()[-2:], mode="nearest-exact")


def test_interpolation_to_another_tensors_size_works_for_every_size() -> None:
    x = torch.randn(1, 3, 21, 18)
    net = exact(ready(Skip(), x), x, (torch.randn(2, 3, 33, 16), torch.randn(1, 3, 5, 6)))
    assert net.graph.node("x").attrs["fixed"] == []
    taken = [node.inputs[1] for node in net.graph.nodes if node.op == "interpolate_nearest"]
    # Another value: the layer's own sum would have a second reader.
    assert taken == [name for name in taken if name != "side"]


def test_computed_sizes_fix_the_input_size() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            size = (x.shape[2] * 2 + 1, x.shape[3])
            return functional.interpolate(self.a(x), size=size)

    x = torch.randn(1, 3, 6, 5)
    net = exact(ready(Twice(), x), x, (torch.randn(3, 3, 6, 5),))
    assert "torch" not in ops_of(net)
    with pytest.raises(fatnn.InputError, match="one shape only"):
        net(torch.randn(1, 3, 7, 5))


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("factor", [1.1, 1.3, 2.1, 2.4, (1.1, 2.1)])
def test_factors_near_1_and_2_depend_on_the_memory_format(
    factor: float, channels: int, quantized: bool, tmp_path: Path
) -> None:
    """Torch ignores a factor near 1 or 2 for small outputs, and for many channels last."""
    call = nn.Upsample(scale_factor=factor)
    model = Between(call, 2, channels, channels) if quantized else Float(2, channels, call)
    formats = (torch.contiguous_format, torch.channels_last)
    ready(model, torch.randn(1, 3, 6, 7))
    sizes = ((2, 3), (9, 5), (3, 140), (127, 2), (9, 120))
    for i, order in enumerate(formats):
        inputs = [torch.randn(1, 3, *size).contiguous(memory_format=order) for size in sizes]
        net = exact(model, inputs[0], tuple(inputs[1:]))
        row = next(row for row in net.report.rows if row.op.startswith("interpolate_nearest"))
        assert row.runs != "torch"
        fatnn.save(net, tmp_path / f"{i}")
        if quantized:
            continue
        for x in inputs:
            made = fatnn.load_numpy(tmp_path / f"{i}")(x.numpy())
            np.testing.assert_array_equal(made, model(x).detach().numpy())
