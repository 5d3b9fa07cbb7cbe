"""Measure one layer on every rung; check every kernel's output first.

A rung of codes is timed on every kernel of its family's best instruction set, with two interfaces.
Codes to codes is the cost inside a network: packed codes in, integer thresholds after the sums,
packed codes out. Floats to floats can be compared with other runtimes: quantization comes first,
scale and bias follow the sums. Int8 and float32 layers read and write floats, as in our networks.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs import _core
from fatnn_rs.bench.candidates import use_threads
from fatnn_rs.bench.export import BenchTask
from fatnn_rs.bench.peers import arrays_of
from fatnn_rs.convert.api import convert_float
from fatnn_rs.convert.levels import coded_levels
from fatnn_rs.errors import ConversionError
from fatnn_rs.quant.int8 import LEVELS
from ladder.measure import CODES, FLOATS, CaseCalls, Progress, TimedCall
from ladder.rungs import RUNGS, WEIGHTS, Rung
from ladder.shapes import LayerShape

__all__ = ["measure"]

Array = npt.NDArray[Any]

#: Stride, padding and dilation.
Window = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

_LINE = 64
_NEVER = np.iinfo(np.int32).max


def measure(spec: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Measure one case; ``spec`` is the result of :meth:`.plan.Ladder.spec`."""
    shape, batch, threads = (
        LayerShape(**spec["row"]),
        spec["case"]["batch"],
        spec["case"]["threads"],
    )
    found = CaseCalls(shape.macs(batch))
    with tempfile.TemporaryDirectory(prefix="fatnn-ladder-") as folder, use_threads(threads):
        for done, name in enumerate(spec["rungs"]):
            progress(f"checking {name}", done, len(spec["rungs"]))
            rung = RUNGS[name]
            entries = _KINDS[rung.kind](name, rung, shape, batch)
            found.entries += entries
            if not entries:
                found.missing.append({"who": name, "reason": rung.why_missing()})
        model, x = _float_layer(shape, batch)
        with torch.inference_mode():
            wanted = list(arrays_of(model(x)))
        found.add_peers(
            spec["against"], BenchTask(model, (x,), threads, Path(folder)), wanted, progress
        )
        return found.timed(spec["rounds"], threads, progress)


def _float_layer(shape: LayerShape, batch: int) -> tuple[nn.Module, Tensor]:
    """Return the layer for the other runtimes, and its input in PyTorch's layout."""
    generator = torch.Generator().manual_seed(0)
    layer: nn.Module = nn.Linear(shape.channels, shape.out_channels)
    x = torch.randn(batch, shape.channels, generator=generator)
    if not shape.linear:
        layer = nn.Conv2d(
            shape.channels, shape.out_channels, shape.window, padding=shape.window // 2
        )
        x = torch.randn(batch, shape.channels, shape.size, shape.size, generator=generator)
    return nn.Sequential(layer).eval(), x


def _aligned(shape: tuple[int, ...], dtype: type[np.generic]) -> Array:
    """Return zeros that start at a cache line, as in a network."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def _copy(array: Array) -> Array:
    """Copy an array to the start of a cache line."""
    copy = _aligned(array.shape, array.dtype.type)
    copy[...] = array
    return copy


def _window(shape: LayerShape) -> Window:
    around = 0 if shape.linear else shape.window // 2
    return (1, 1), (around, around), (1, 1)


def _sums(x: Array, weight: Array, shape: LayerShape, dtype: torch.dtype) -> Array:
    """Convolve in PyTorch, channels last; exact if ``dtype`` holds every integer that occurs."""
    around = 0 if shape.linear else shape.window // 2
    images = torch.from_numpy(x).to(dtype).permute(0, 3, 1, 2)
    sums = functional.conv2d(images, torch.from_numpy(weight).to(dtype), padding=around)
    array: Array = sums.permute(0, 2, 3, 1).contiguous().numpy()
    return array


def _check(what: str, right: bool) -> None:
    if not right:
        raise ConversionError(f"{what} differs from the reference; nothing of this layer is timed")


def _steps(levels: tuple[int, ...], act: str, steps: list[float]) -> list[float]:
    """Return thresholds for code type ``act`` from steps between ``levels``; infinity: no level."""
    reached = [(level, step) for level, step in zip(levels[1:], steps, strict=True)]
    return [
        next((step for level, step in reached if level >= wanted), math.inf)
        for wanted in coded_levels(act)[1:]
    ]


def _quantize(x: Array, act: str, steps: list[float]) -> Callable[[], Array]:
    batch, height, width, channels = x.shape
    out = _aligned((batch, height, width, _core.packed_bytes(channels)), np.uint8)

    def run() -> Array:
        _core.quantize(x, batch, channels, height * width, True, steps, 1, out)
        return out

    return run


def _codes(name: str, rung: Rung, shape: LayerShape, batch: int) -> list[TimedCall]:
    """Return both interfaces of every kernel of a rung of codes."""
    kernels = rung.kernels()
    if not kernels:
        return []
    random = np.random.default_rng(0)
    size = (shape.out_channels, shape.channels, shape.window, shape.window)
    weight = random.choice(np.array(WEIGHTS[rung.weight], np.int8), size)
    levels = np.array(rung.levels, np.float32)
    x = _copy(random.choice(levels, (batch, shape.size, shape.size, shape.channels)))
    between = [(a + b) / 2 for a, b in zip(rung.levels, rung.levels[1:], strict=False)]
    quantize = _quantize(x, rung.act, _steps(rung.levels, rung.act, between))
    codes = _copy(quantize())
    expected = _sums(x, weight, shape, torch.float32).astype(np.int32)
    # Choose thresholds for which all output levels occur equally often, as the input levels do.
    shares = np.quantile(expected, [i / len(levels) for i in range(1, len(levels))]).round()
    cuts = _steps(rung.levels, rung.act, [float(cut) for cut in shares])
    never = [_NEVER if math.isinf(cut) else int(cut) for cut in cuts]
    thresholds = _copy(np.repeat(np.array(never, np.int32)[:, None], shape.out_channels, 1))
    expected_codes = _quantize(expected.astype(np.float32), rung.act, cuts)()
    scale, bias = (
        _copy(random.normal(size=shape.out_channels).astype(np.float32)) for _ in range(2)
    )
    window, entries = _window(shape), []
    for kernel in kernels:
        blob = _copy(np.asarray(_core.prepack(weight, 1, rung.act, kernel)))
        acc, floats = np.zeros_like(expected), _aligned(expected.shape, np.float32)
        codes_out = _aligned(expected_codes.shape, np.uint8)
        stride, padding, dilation = window
        _core.conv_acc(codes, blob, stride, padding, dilation, acc)
        _check(f"{kernel} on {name}: sums", np.array_equal(acc, expected))
        calls = _calls(
            codes, blob, (thresholds, scale, bias), window, (codes_out, floats), quantize
        )
        for call in calls.values():
            call()
        _check(f"{kernel} on {name}: codes", np.array_equal(codes_out, expected_codes))
        _check(
            f"{kernel} on {name}: floats",
            np.allclose(floats, expected * scale + bias, rtol=1e-5, atol=1e-3),
        )
        facts = {"weight_bytes": blob.nbytes}
        entries += [
            TimedCall(name, "rung", way, kernel, call, facts) for way, call in calls.items()
        ]
    return entries


def _calls(
    codes: Array,
    blob: Array,
    tails: tuple[Array, Array, Array],
    window: Window,
    outs: tuple[Array, Array],
    quantize: Callable[[], Array],
) -> dict[str, Callable[[], Any]]:
    """Return both interfaces of one kernel."""
    thresholds, scale, bias = tails
    stride, padding, dilation = window

    def to_codes() -> None:
        _core.conv_codes(codes, blob, thresholds, stride, padding, dilation, 1, outs[0])

    def to_floats() -> None:
        _core.conv_float(
            quantize(), blob, scale, bias, None, False, stride, padding, dilation, outs[1]
        )

    return {CODES: to_codes, FLOATS: to_floats}


def _int8(name: str, rung: Rung, shape: LayerShape, batch: int) -> list[TimedCall]:
    random = np.random.default_rng(0)
    size = (shape.out_channels, shape.channels, shape.window, shape.window)
    weight = random.integers(-LEVELS, LEVELS, size, np.int8, endpoint=True)
    x = _copy(
        random.normal(size=(batch, shape.size, shape.size, shape.channels)).astype(np.float32)
    )
    inv_step = float(np.float32(LEVELS / np.abs(x).max()))
    scale, bias = (
        _copy(random.normal(size=shape.out_channels).astype(np.float32)) for _ in range(2)
    )
    blob = _copy(np.asarray(_core.prepack_int8(weight, 1, shape.linear)))
    rounded = np.clip(np.round(x * np.float32(inv_step)), -LEVELS, LEVELS)
    expected = _sums(rounded, weight, shape, torch.float64)
    out, (stride, padding, dilation) = _aligned(expected.shape, np.float32), _window(shape)

    def call() -> None:
        _core.conv_int8(x, blob, scale, bias, inv_step, stride, padding, dilation, True, out)

    call()
    _check(f"int8 on {name}", np.allclose(out, expected * scale + bias, rtol=1e-5, atol=1e-2))
    kernel = _core.int8_kernel_for(shape.linear)
    return [TimedCall(name, "rung", FLOATS, kernel, call, {"weight_bytes": blob.nbytes})]


def _float32(name: str, rung: Rung, shape: LayerShape, batch: int) -> list[TimedCall]:
    model, x = _float_layer(shape, batch)
    net = convert_float(model, x)
    if len(net.segments) != 1:
        raise ConversionError(
            f"{name}: the engine does not run the layer; fatnn_rs.convert's report: {net.report}"
        )
    network = net.segments[0].network
    array = _copy(x.numpy() if shape.linear else x.permute(0, 2, 3, 1).contiguous().numpy())

    def call() -> Array:
        return network.run([array], [not shape.linear])[0]

    with torch.inference_mode():
        wanted = model(x)
    got = torch.from_numpy(call())
    _check(name, torch.allclose(got, wanted, rtol=1e-4, atol=1e-4))
    [(_, kernel, size)] = network.products
    return [TimedCall(name, "rung", FLOATS, kernel, call, {"weight_bytes": size})]


#: Kind of a rung → function that returns what to time.
_KINDS: dict[str, Callable[[str, Rung, LayerShape, int], list[TimedCall]]] = {
    "float32": _float32,
    "int8": _int8,
    "codes": _codes,
}
