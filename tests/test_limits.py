"""Limits: array layouts, memory, time, interrupts and floating-point modes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fatnn_rs as fatnn
from fatnn_rs import _core
from fatnn_rs.errors import ConfigError, InputError, LimitError
from fatnn_rs.ops import prepack, prepack_int8
from nets import ready

ops = torch.ops.fatnn_rs


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.Flatten(),
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("limits") / "net.safetensors"
    x = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    model = ready(small(), x, last="float")
    fatnn.save(fatnn.convert(model, x), path)
    return path


def misaligned(array: np.ndarray) -> np.ndarray:
    """Copy an array to an address that is not a multiple of its element size."""
    buffer = bytearray(array.nbytes + 1)
    view = np.frombuffer(buffer, array.dtype, array.size, offset=1).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def test_networks_take_arrays_of_every_layout_and_refuse_other_types(saved: Path) -> None:
    net, rust = fatnn.load_numpy(saved), fatnn.load(saved, float_layers="rust")
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)
    expected = net(x)
    wide = np.zeros((2, 6, 12, 12), np.float32)
    wide[:, ::2] = x
    others = {
        "misaligned": misaligned(x),
        "negative strides": x[::-1, :, ::-1][::-1, :, ::-1],
        "steps": wide[:, ::2],
        "fortran": np.asfortranarray(x),
        "read-only": np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
        "subclass": x.view(type("Sub", (np.ndarray,), {})),
    }
    for name, other in others.items():
        assert np.array_equal(net(other), expected), name
    tensor = torch.frombuffer(bytearray(b"." + x.tobytes()), dtype=torch.float32, offset=1).reshape(
        x.shape
    )
    assert tensor.data_ptr() % 4
    negative = (-torch.from_numpy(x) * 1j).conj().imag
    assert negative.is_neg()
    for given in (tensor, negative, torch.from_numpy(x).requires_grad_()):
        assert np.array_equal(rust(given).numpy(), expected)
    refused = [
        x.astype(">f4"),
        x.astype(np.float64),
        np.ma.masked_array(x, x > 0),
        np.float32(1),
        np.array(1, np.float32),
        np.zeros((2, 3, 12), np.float32),
        np.zeros((0, 3), np.float32),
        np.zeros((1, 3, 0, 2), np.float32),
        [1.0],
    ]
    for bad in refused:
        with pytest.raises(InputError):
            net(bad)


def test_empty_images_are_refused_and_empty_batches_run(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 4, 4)
    model = ready(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten()),
        x,
        first="float",
    )
    fatnn.save(fatnn.convert(model, x), tmp_path / "net")
    net = fatnn.load_numpy(tmp_path / "net")
    for shape in [(1, 3, 0, 2), (2, 3, 3, 0)]:
        with pytest.raises(InputError, match="smaller than the kernel"):
            net(np.ones(shape, np.float32))
    assert net(np.ones((0, 3, 4, 4), np.float32)).shape == (0, 64)


def test_core_refuses_arrays_of_wrong_layout_shape_or_dtype() -> None:
    codes = np.zeros((1, 4, 4, 16), np.uint8)
    weight = np.asarray(_core.prepack(np.ones((8, 12, 3, 3), np.int8), 1, "half"))
    window = ((1, 1), (0, 0), (1, 1))
    good = np.empty((1, 2, 2, 8), np.float32)
    scale = np.ones(8, np.float32)
    _core.conv_float(codes, weight, scale, None, None, False, *window, good)
    read_only = good.copy()
    read_only.flags.writeable = False
    shared = bytearray(good.nbytes)
    for out, arguments in [
        (misaligned(good), (codes, weight, scale)),
        (read_only, (codes, weight, scale)),
        (good, (codes, weight, misaligned(scale))),
        (good, (codes[:, ::-1], weight, scale)),
        (good[:, :1], (codes, weight, scale)),
        (np.empty((1, 4, 1, 8), np.float32), (codes, weight, scale)),
        (np.empty((2, 2, 2, 4), np.float32), (codes, weight, scale)),
        # Two arrays that share one buffer without a common base array.
        (
            np.frombuffer(shared, np.float32).reshape(good.shape),
            (codes, weight, np.frombuffer(shared, np.float32)[:8]),
        ),
        (good.astype(">f4"), (codes, weight, scale)),
        (good, (np.zeros((1, 4, 2, 32), np.uint8), weight, scale)),
    ]:
        with pytest.raises(InputError):
            _core.conv_float(*arguments, None, None, False, *window, out)
    for channels, groups in [(1 << 60, 1 << 60), ((1 << 64) - 1, 1)]:
        with pytest.raises(InputError):
            _core.packed_bytes(channels, groups)
        with pytest.raises(InputError):
            _core.unpack_codes(np.zeros((1, 0), np.uint8), channels, groups)
    assert _core.pack_codes(np.zeros((0, 5), np.int8)).shape == (0, _core.packed_bytes(5, 1))
    for pixels in (3, 1 << 40):
        with pytest.raises(InputError, match="channels: expected at least 1, got 0"):
            _core.pack_codes(np.zeros((pixels, 0), np.int8))


SQUARE = ([3, 3], [1, 1], [0, 0], [1, 1])


def _convolutions() -> dict[str, tuple[list[Tensor], object]]:
    blob = prepack(torch.ones(8, 12, 3, 3, dtype=torch.int8), 1, "half")
    codes = torch.zeros(1, 5, 5, 16, dtype=torch.uint8)
    steps = torch.zeros(2, 8, dtype=torch.int32)
    scale = torch.ones(8)
    int8 = prepack_int8(torch.ones(8, 12, 3, 3, dtype=torch.int8))
    x = torch.ones(1, 12, 5, 5)
    return {
        "conv_acc": ([codes, blob], lambda t, n, w: ops.conv_acc(*t, n, *w)),
        "conv_codes": ([codes, blob, steps], lambda t, n, w: ops.conv_codes(*t, n, *w)),
        "conv_float": (
            [codes, blob, scale, scale, torch.ones(1, 8, 3, 3)],
            lambda t, n, w: ops.conv_float(*t, False, n, *w),
        ),
        "conv_int8": ([x, int8, scale, scale], lambda t, n, w: ops.conv_int8(*t, 10.0, n, *w)),
    }


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation", "ignore:.*nested tensors")
@pytest.mark.parametrize("name", ["conv_acc", "conv_codes", "conv_float", "conv_int8"])
def test_convolutions_refuse_other_devices_layouts_and_sizes(name: str) -> None:
    tensors, call = _convolutions()[name]
    assert call(tensors, 8, SQUARE).device.type == "cpu"  # type: ignore[operator]
    for i, tensor in enumerate(tensors):
        strange = [tensor.to("meta"), tensor.to_sparse(), tensor.to(torch.complex64)]
        if tensor.dtype == torch.float32:
            strange.append(torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8))
            strange.append(torch.nested.nested_tensor([tensor]))
        for other in strange:
            with pytest.raises(InputError):
                call([*tensors[:i], other, *tensors[i + 1 :]], 8, SQUARE)  # type: ignore[operator]
    meta = [tensor.to("meta") for tensor in tensors]
    assert call(meta, 8, SQUARE).device.type == "meta"  # type: ignore[operator]
    for n, kernel in [
        (4, [3, 3]),
        (8, [1, 3]),
        (8, [3, 1]),
        (24, [3, 1]),
        (72, [1, 1]),
        (8, [9, 1]),
        (1 << 61, [3, 3]),
    ]:
        changed = [t if t.shape != (8,) else torch.ones(n if n < 99 else 8) for t in tensors]
        with pytest.raises(InputError):
            call(changed, n, (kernel, *SQUARE[1:]))  # type: ignore[operator]
    with pytest.raises((InputError, MemoryError)):
        call(tensors, 8, ([3, 3], [1, 1], [1 << 30, 1 << 30], [1, 1]))  # type: ignore[operator]


def test_kernel_argument_must_match_the_packed_weights() -> None:
    x, weight = torch.ones(1, 4, 6, 6), prepack_int8(torch.ones(2, 4, 3, 1, dtype=torch.int8))
    for kernel in ([1, 3], [3, 3], [1, 1]):
        with pytest.raises(InputError, match="kernel: expected"):
            ops.conv_int8(x, weight, torch.ones(2), None, 1.0, 2, kernel)
    assert ops.conv_int8(x, weight, torch.ones(2), None, 1.0, 2, [3, 1]).shape == (1, 2, 4, 6)


def test_ops_take_misaligned_tensors() -> None:
    values = torch.randn(2, 5, 3, 3)
    odd = torch.frombuffer(
        bytearray(b"." + values.numpy().tobytes()), dtype=torch.float32, offset=1
    ).reshape(2, 5, 3, 3)
    assert torch.equal(ops.quantize(odd, [-0.5, 0.5]), ops.quantize(values, [-0.5, 0.5]))


def test_bit_patterns_that_are_no_code_are_refused() -> None:
    bad = torch.zeros(1, 4, 4, 16, dtype=torch.uint8)
    bad[0, 2, 1, 0] = 1  # the bits of no code: z is set and p is not
    blob = prepack(torch.ones(8, 12, 3, 3, dtype=torch.int8), 1, "half")
    for call in (
        lambda: ops.conv_acc(bad, blob, 8, *SQUARE),
        lambda: ops.unpack_codes(bad, 12),
        lambda: ops.max_pool_codes(bad, [2, 2]),
    ):
        with pytest.raises(InputError, match="pixel 9"):
            call()


def test_load_enforces_max_bytes_and_max_macs(saved: Path) -> None:
    for load in (
        fatnn.load,
        fatnn.load_numpy,
        lambda path, **k: fatnn.load(path, float_layers="rust", **k),
    ):
        for limits, says in [
            ({"max_bytes": 100}, "max_bytes = 100"),
            ({"max_macs": 1000}, "max_macs = 1000"),
        ]:
            with pytest.raises(LimitError, match=says):
                load(saved, **limits)
        for wrong in (-1, 1.5, True, "1", float("nan")):
            with pytest.raises(ConfigError, match="max_bytes"):
                load(saved, max_bytes=wrong)
        load(saved, max_bytes=None, max_macs=None)
        load(saved, max_bytes=1 << 70)
    net = fatnn.load_numpy(saved, max_bytes=1 << 20)
    net(np.ones((1, 3, 12, 12), np.float32))
    with pytest.raises(InputError, match="max_bytes"):
        net(np.ones((1, 3, 700, 700), np.float32))
    rust = fatnn.load(saved, float_layers="rust", max_bytes=1 << 20)
    with pytest.raises(InputError, match="max_bytes"):
        rust(torch.ones(1, 3, 700, 700))


@pytest.mark.skipif(
    sys.platform != "linux", reason="limits the address space, which only Linux can"
)
def test_out_of_memory_raises_memory_error(saved: Path) -> None:
    script = """
        import resource, sys
        import numpy as np
        import fatnn_rs
        from fatnn_rs import _core

        net = fatnn_rs.load_numpy(sys.argv[1], max_bytes=None, max_macs=None)
        net(np.ones((1, 3, 12, 12), np.float32))
        x = np.ones((1, 3, 3000, 3000), np.float32)
        weight = np.ones((4096, 4096, 3, 3), np.int8)
        codes = np.zeros((1 << 22, 16), np.uint8)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), -1))
        for call in (
            lambda: net(x),
            lambda: _core.prepack(weight, 1, "half"),
            lambda: _core.unpack_codes(codes, 64),
        ):
            try:
                call()
            except MemoryError as error:
                assert str(error), "a message"
            else:
                raise SystemExit("no error")
        assert net(np.ones((1, 3, 12, 12), np.float32)).size
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(saved)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "FATNN_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_keyboard_interrupt_ends_a_run(tmp_path: Path, threads: int) -> None:
    rest = {"shape": [1, 64, 8, 8], "dtype": "float32", "layer": "", "note": ""}
    first = {"name": "n0", "op": "input", "inputs": [], "tensors": {}, **rest}
    first["attrs"] = {"fixed": [], "channel_dim": 1}
    attrs = {"stride": [1, 1], "padding": [3, 3], "dilation": [1, 1], "groups": 1, "layout": "any"}
    conv = {"op": "conv2d", "attrs": attrs, "tensors": {"weight": "w"}, **rest}
    nodes = [first, *({"name": f"n{i + 1}", "inputs": [f"n{i}"], **conv} for i in range(60))]
    graph = json.dumps({"nodes": nodes, "outputs": {"value": "n60"}, "notes": []})
    _core.save(tmp_path / "net", graph, {"w": np.zeros((64, 64, 7, 7), np.float32)})
    net = fatnn.load_numpy(tmp_path / "net", max_macs=None, max_bytes=None)
    array = np.ones((1, 64, 256, 256), np.float32)
    fatnn.set_num_threads(threads)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    # A shell starts background jobs with SIGINT ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        start = time.monotonic()
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            net(array)
        assert time.monotonic() - start < 30
    finally:
        timer.join()
        signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("restore_threads")
def test_flush_denormal_gives_the_same_result_on_any_thread_count(saved: Path) -> None:
    net = fatnn.load(saved, float_layers="rust")
    x = torch.randn(2, 3, 96, 96) * 1e-38
    seen: dict[bool, set[bytes]] = {}
    try:
        for flush in (False, True, False):
            if not torch.set_flush_denormal(flush):
                pytest.skip("this CPU cannot flush denormal numbers to zero")
            for threads in (1, 2, 3):
                fatnn.set_num_threads(threads)
                y = net(x)
                seen.setdefault(flush, set()).add(y.view(torch.int32).numpy().tobytes())
    finally:
        torch.set_flush_denormal(False)
    assert [len(found) for found in seen.values()] == [1, 1]
