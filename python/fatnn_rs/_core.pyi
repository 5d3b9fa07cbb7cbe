"""The Rust core; private: `fatnn_rs.ops` and `fatnn_rs.convert` are its callers."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FORMAT_VERSION",
    "__version__",
    "cpu_info",
    "set_num_threads",
    "set_default_threads",
    "get_num_threads",
    "packed_bytes",
    "quantize",
    "pack_codes",
    "unpack_codes",
    "prepack",
    "packed_info",
    "conv_codes",
    "conv_float",
    "conv_acc",
    "max_pool_codes",
    "save",
    "load",
]

__version__: str
FORMAT_VERSION: int

def cpu_info() -> dict[str, Any]: ...
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
    low: float,
    high: float,
    groups: int,
    out: NDArray[np.uint8],
) -> None: ...
def pack_codes(codes: NDArray[np.int8], groups: int = 1) -> NDArray[np.uint8]: ...
def unpack_codes(packed: NDArray[np.uint8], channels: int, groups: int = 1) -> NDArray[np.int8]: ...
def prepack(weight: NDArray[np.int8], groups: int, half_range: bool) -> NDArray[np.uint8]: ...
def packed_info(weight: NDArray[np.uint8]) -> dict[str, Any]: ...
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
    out: NDArray[np.uint8],
) -> None: ...
def save(path: str | PathLike[str], graph: str, tensors: dict[str, NDArray[Any]]) -> None: ...
def load(path: str | PathLike[str]) -> tuple[str, dict[str, NDArray[Any]]]: ...
