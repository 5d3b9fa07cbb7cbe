"""The engine's operations as torch ops: ``torch.ops.fatnn_rs.*``.

| op | from | to |
| --- | --- | --- |
| ``quantize`` | float32 [N, C, …] | codes uint8 [N, H, W, B] |
| ``conv_codes`` | codes | codes, through two or three integer thresholds per output channel |
| ``conv_float`` | codes | float32 [N, n, OH, OW]: ``acc * scale + bias`` [+ residual] [ReLU] |
| ``conv_acc`` | codes | int32 [N, n, OH, OW]: the integer accumulators |
| ``max_pool_codes`` | codes | codes |
| ``conv_int8`` | float32 [N, C, …] | float32 [N, n, …]: ``acc * scale + bias`` in two roundings |
| ``pack_codes``, ``unpack_codes`` | int8 [..., C] | uint8 [..., B], and back |

Packed codes are ternary, two-bit or binary. The bytes do not say which: the writer and the reader
of codes must use the same type. Packed codes are channels last: H = W = 1 for [N, C], H = 1 for
[N, C, L]; B is :func:`packed_bytes`. All ops are inference only (outputs carry no gradient) and run
on the CPU. They accept any memory layout, copying if needed, and raise
:class:`fatnn_rs.InputError` for a wrong dtype, device, rank or size. They work under
``torch.compile`` and ``torch.export``: schemas and fake kernels are in
:mod:`fatnn_rs.ops.definitions`, the calls into Rust in :mod:`fatnn_rs.ops.kernels`.
"""

from __future__ import annotations

from fatnn_rs.ops.definitions import OPS
from fatnn_rs.ops.geometry import packed_bytes
from fatnn_rs.ops.kernels import prepack, prepack_int8

__all__ = ["OPS", "packed_bytes", "prepack", "prepack_int8"]
