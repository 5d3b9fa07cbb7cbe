"""The engine's operations as torch ops: ``torch.ops.fatnn_rs.*``.

| op | from | to |
| --- | --- | --- |
| ``quantize`` | float32 [N, C, …] | codes uint8 [N, H, W, B] |
| ``conv_codes`` | codes | codes, through two or three integer thresholds per output channel |
| ``conv_float`` | codes | float32 [N, n, OH, OW]: ``acc * scale + bias`` [+ residual] [ReLU] |
| ``conv_acc`` | codes | int32 [N, n, OH, OW]: the integer accumulators |
| ``max_pool_codes`` | codes | codes |
| ``conv_int8`` | float32 [N, C, …] | float32 [N, n, …]: 8-bit codes inside, ``acc * scale + bias`` in two roundings |
| ``pack_codes``, ``unpack_codes`` | int8 [..., C] | uint8 [..., B], and back |

Codes are ternary, two-bit or binary, which the bytes do not say: whoever makes codes and whoever
reads them must agree on their type. Codes are channels last: H = W = 1 for [N, C], H = 1 for [N, C,
L]; B is :func:`packed_bytes`. All ops are inference only (their outputs carry no gradient), run on
the CPU, accept any memory layout (what is not contiguous as wanted is copied), and raise
:class:`fatnn_rs.InputError` for tensors of the wrong dtype, device, rank or size. Schemas and fake
kernels are in :mod:`fatnn_rs.ops.schema`, so that the ops work under ``torch.compile`` and
``torch.export``; the calls into Rust are in :mod:`fatnn_rs.ops.kernels`.
"""

from __future__ import annotations

from fatnn_rs.ops.geometry import packed_bytes
from fatnn_rs.ops.kernels import prepack, prepack_int8
from fatnn_rs.ops.schema import OPS

__all__ = ["OPS", "packed_bytes", "prepack", "prepack_int8"]
