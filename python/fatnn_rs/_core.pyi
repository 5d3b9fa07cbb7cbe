"""The Rust core. Private: use `fatnn_rs.ops` and `fatnn_rs.convert`."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CODE_TYPES",
    "FORMAT_VERSION",
    "MAX_BYTES",
    "MAX_MACS",
    "Network",
    "__version__",
    "channel_dots",
    "check_graph",
    "conv_acc",
    "conv_codes",
    "conv_float",
    "conv_int8",
    "cpu_info",
    "engine_refusal",
    "file_bytes",
    "get_num_threads",
    "graph_report",
    "int8_kernel_for",
    "kernel_for",
    "kernels_for",
    "load",
    "macs",
    "max_pool_codes",
    "ops",
    "pack_codes",
    "packed_bytes",
    "packed_info",
    "packed_shape",
    "prepack",
    "prepack_int8",
    "quantize",
    "quantize_steps",
    "quantize_steps_gradient",
    "save",
    "set_default_threads",
    "set_num_threads",
    "shapes_in_every_run",
    "sub_pixel",
    "unpack_codes",
]

__version__: str
CODE_TYPES: list[str]
FORMAT_VERSION: int
MAX_BYTES: int
MAX_MACS: int

def cpu_info() -> dict[str, Any]: ...
def int8_kernel_for(linear: bool, depthwise: bool = False) -> str: ...
def kernel_for(
    out_channels: int,
    reduction: int,
    linear: bool,
    act: str = "half",
    weights: str = "ternary",
    taps: int = 1,
) -> str: ...
def set_num_threads(threads: int) -> None: ...
def set_default_threads(threads: int) -> None: ...
def get_num_threads() -> int: ...
def packed_bytes(channels: int, groups: int = 1) -> int: ...
def quantize(
    x: NDArray[np.float32],
    batch: int,
    channels: int,
    pixels: int,
    channels_last: bool,
    thresholds: Sequence[float],
    groups: int,
    out: NDArray[np.uint8],
) -> None: ...
def quantize_steps(
    x: NDArray[np.float32], alphas: Sequence[float], codes: NDArray[np.float32]
) -> None: ...
def quantize_steps_gradient(
    x: NDArray[np.float32],
    alphas: Sequence[float],
    gradient: NDArray[np.float32],
    to_x: NDArray[np.float32],
) -> list[float]: ...
def channel_dots(a: NDArray[np.float32], b: NDArray[np.float32], channels: int) -> list[float]: ...
def pack_codes(
    codes: NDArray[np.int8], groups: int = 1, code_type: str = "ternary"
) -> NDArray[np.uint8]: ...
def unpack_codes(
    packed: NDArray[np.uint8], channels: int, groups: int = 1, code_type: str = "ternary"
) -> NDArray[np.int8]: ...
def kernels_for(
    weight: NDArray[np.int8], act: str, weights: str | None = None
) -> list[dict[str, Any]]: ...
def prepack(
    weight: NDArray[np.int8],
    groups: int,
    act: str,
    kernel: str | None = None,
    weights: str | None = None,
) -> NDArray[np.uint8]: ...
def packed_info(weight: NDArray[np.uint8]) -> dict[str, Any]: ...
def packed_shape(weight: NDArray[np.uint8], int8: bool) -> tuple[int, tuple[int, int]]: ...
def conv_codes(
    codes: NDArray[np.uint8],
    weight: NDArray[np.uint8],
    thresholds: NDArray[np.int32],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_groups: int,
    out: NDArray[np.uint8],
) -> None: ...
def conv_float(
    codes: NDArray[np.uint8],
    weight: NDArray[np.uint8],
    scale: NDArray[np.float32] | None,
    bias: NDArray[np.float32] | None,
    residual: NDArray[np.float32] | None,
    relu: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out: NDArray[np.float32],
) -> None: ...
def conv_acc(
    codes: NDArray[np.uint8],
    weight: NDArray[np.uint8],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out: NDArray[np.int32],
) -> None: ...
def max_pool_codes(
    codes: NDArray[np.uint8],
    channels: int,
    groups: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    code_type: str,
    out: NDArray[np.uint8],
) -> None: ...
def prepack_int8(weight: NDArray[np.int8], groups: int, linear: bool) -> NDArray[np.uint8]: ...
def conv_int8(
    x: NDArray[np.float32],
    weight: NDArray[np.uint8],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    inv_step: float,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    channels_last: bool,
    out: NDArray[np.float32],
) -> None: ...
def save(
    path: str | PathLike[str],
    graph: str,
    tensors: dict[str, NDArray[Any]],
    dtypes: dict[str, str] | None = None,
) -> None: ...
def load(
    path: str | PathLike[str],
    check: bool = False,
    max_bytes: int | None = None,
    max_macs: int | None = None,
) -> tuple[str, dict[str, NDArray[Any]], dict[str, str]]: ...
def file_bytes(dtype: str, elements: int) -> int: ...
def ops() -> list[dict[str, Any]]: ...
def check_graph(
    graph: str,
    tensors: dict[str, NDArray[Any]],
    dtypes: dict[str, str] | None = None,
    max_bytes: int | None = None,
    max_macs: int | None = None,
) -> None: ...
def engine_refusal(op: str, attrs: str, shapes: Sequence[Sequence[int]]) -> str | None: ...
def shapes_in_every_run(
    graph: str, tensors: Mapping[str, Sequence[int]]
) -> dict[str, list[int]]: ...
def macs(
    op: str,
    shape: Sequence[int],
    weight: Sequence[int] | None = None,
    read: Sequence[int] | None = None,
    input_products: int | None = None,
) -> int: ...
def sub_pixel(
    weight: NDArray[np.int8],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[NDArray[np.int8], list[int], list[int], list[int]]: ...
def graph_report(
    graph: str, tensors: dict[str, NDArray[Any]], dtypes: dict[str, str] | None = None
) -> list[dict[str, Any]]: ...

@final
class Network:
    def __new__(
        cls,
        graph: str,
        tensors: dict[str, NDArray[Any]],
        dtypes: dict[str, str] | None = None,
        family: str | None = None,
        max_bytes: int | None = None,
        max_macs: int | None = None,
    ) -> Network: ...
    @staticmethod
    def load(
        path: str | PathLike[str], max_bytes: int | None = ..., max_macs: int | None = ...
    ) -> Network: ...
    @property
    def inputs(self) -> list[tuple[str, list[int]]]: ...
    @property
    def input_types(self) -> list[str]: ...
    @property
    def outputs(self) -> list[tuple[str, list[int]]]: ...
    @property
    def products(self) -> list[tuple[str, str, int]]: ...
    @property
    def not_fused(self) -> list[tuple[str, str, str]]: ...
    @property
    def buffer_bytes(self) -> int: ...
    def drop_buffers(self) -> None: ...
    def run(
        self, inputs: Sequence[NDArray[Any]], channels_last: Sequence[bool]
    ) -> list[NDArray[np.float32]]: ...
    def run_observed(
        self, inputs: Sequence[NDArray[Any]], channels_last: Sequence[bool]
    ) -> tuple[list[NDArray[np.float32]], list[tuple[str, int, NDArray[np.uint8] | None]]]: ...
