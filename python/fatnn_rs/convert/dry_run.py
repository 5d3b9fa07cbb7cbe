"""Sizes of a graph from a file, at the shapes it was converted at: whether they fit, and what a run costs.

Every node runs on tensors without memory (torch's ``meta`` device), so that torch's own checks and the ops' decide what
fits, and nothing is allocated whatever a file asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fatnn_rs.convert.graph import Graph, Node, refs
from fatnn_rs.convert.ops_code import CODE_OPS, squeeze_to, unsqueeze_from
from fatnn_rs.convert.ops_float import FLOAT_OPS
from fatnn_rs.convert.ops_int8 import INT8_OPS
from fatnn_rs.errors import FormatError, LimitError
from fatnn_rs.ops import schema
from fatnn_rs.report import macs

__all__ = ["check_sizes"]

#: No value may have more elements: their bytes could not be counted in 64 bits.
_MAX_ELEMENTS = 1 << 48


def _meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _quantize(node: Node, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    a = node.attrs
    _require(x.dim() == a["dims"] + 2, f"{a['dims']} spatial dimensions expected, got the shape {list(x.shape)}")
    _require(x.shape[1] == a["channels"], f"{a['channels']} channels expected, got the shape {list(x.shape)}")
    return schema.quantize(x, [0.0] * len(tensors["steps"]), a["groups"])


def _conv(node: Node, tensors: dict[str, Tensor], codes: Tensor, residual: Tensor | None = None) -> Tensor:
    a, out = node.attrs, len(tensors["weight"])
    blob = torch.empty(1, dtype=torch.uint8, device="meta")
    window = (a["kernel"], a["stride"], a["padding"], a["dilation"])
    if a["dims"] == 0:
        _require(
            list(codes.shape[1:3]) == a["kernel"], f"a map of {a['kernel']} expected, got {list(codes.shape[1:3])}"
        )
    if node.op == "conv_codes":
        thresholds = _meta(tensors["thresholds"])
        made = schema.conv_codes(codes, blob, thresholds, out, *window, a["out_groups"])
        size = made.shape[1:3]
    else:
        scale, bias = (None if tensors.get(role) is None else _meta(tensors[role]) for role in ("scale", "bias"))
        if residual is not None:
            _require(residual.dim() == a["dims"] + 2, f"a residual of {a['dims']} dimensions and two expected")
            residual = unsqueeze_from(residual, a["dims"])
        made = schema.conv_float(codes, blob, scale, bias, residual, a["relu"], out, *window)
        size = made.shape[2:]
    _require(
        all(side == 1 for side in size[: 2 - a["dims"]]), f"{a['dims']} spatial dimensions expected, got {list(size)}"
    )
    return made if node.op == "conv_codes" else squeeze_to(made, a["dims"])


def _max_pool(node: Node, tensors: dict[str, Tensor], codes: Tensor) -> Tensor:
    a = node.attrs
    window = (a["kernel"], a["stride"], a["padding"], a["dilation"])
    return schema.max_pool_codes(codes, *window, a["ceil_mode"], "act" in a)


def _int8(node: Node, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    weight, a = tensors["weight"], node.attrs
    _require(x.dim() == weight.dim(), f"{weight.dim()} dimensions expected, got the shape {list(x.shape)}")
    channels = weight.shape[1] * a.get("groups", 1)
    _require(x.shape[1] == channels, f"{channels} channels expected, got the shape {list(x.shape)}")
    one = [1] * (4 - weight.dim())
    window = [one + a.get(key, []) for key in ("stride", "padding", "dilation")]
    window[1] = [0] * len(one) + a.get("padding", [])
    kernel = one + list(weight.shape[2:])
    scale, bias = _meta(tensors["scale"]), None if tensors.get("bias") is None else _meta(tensors["bias"])
    blob = torch.empty(1, dtype=torch.uint8, device="meta")
    return schema.conv_int8(x, blob, scale, bias, 1.0, len(weight), kernel, *window)


#: Attributes that have a number for every spatial axis.
_PER_AXIS = ("kernel", "stride", "padding", "dilation", "size")


def _check_float(node: Node, tensors: dict[str, Tensor], values: tuple[Tensor, ...]) -> None:
    """Check what torch's functions for meta tensors do not."""
    axes = 1 if node.op.endswith("1d") else 2
    if node.op.endswith(("1d", "2d")):
        for key in _PER_AXIS:
            _require(len(node.attrs.get(key, [0] * axes)) == axes, f"{key} must be {axes} numbers")
    weight = tensors.get("weight")
    ranks = {"conv1d": 3, "conv2d": 4, "linear": 2}
    if node.op in ranks and weight is not None:
        _require(weight.dim() == ranks[node.op], f"weight: unexpected shape {list(weight.shape)}")
    if node.op in ranks and weight is not None and "bias" in tensors:
        shape = list(tensors["bias"].shape)
        _require(shape == [len(weight)], f"a bias of {len(weight)} numbers expected, got the shape {shape}")
    if node.op == "batch_norm":
        for role, tensor in tensors.items():
            fits = list(tensor.shape) == [values[0].shape[1]]
            _require(fits, f"{role}: {values[0].shape[1]} numbers expected, got the shape {list(tensor.shape)}")
    if node.op == "prelu" and weight is not None:
        fits = weight.dim() == 1 and len(weight) in (1, values[0].shape[1])
        _require(fits, f"one slope, or {values[0].shape[1]}, expected, got the shape {list(weight.shape)}")


def _float(node: Node, tensors: dict[str, Tensor], *values: Tensor) -> Tensor:
    _check_float(node, tensors, values)
    held = {role: _meta(tensor) for role, tensor in tensors.items()}
    made: Tensor = FLOAT_OPS[node.op].bind(node, held)(*values)
    if FLOAT_OPS[node.op].kind in ("scalar", "channel"):
        _require(made.shape == values[0].shape, f"constants do not fit the shape {list(values[0].shape)}")
    return made


_RUN: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(FLOAT_OPS, _float),
    **dict.fromkeys(INT8_OPS, _int8),
    "quantize": _quantize,
    **dict.fromkeys(("conv_codes", "conv_float"), _conv),
    "max_pool_codes": _max_pool,
}


def _noted(node: Node, made: Tensor) -> bool:
    """Whether a node's noted shape, which says where it can run, is that of its result."""
    if node.op not in CODE_OPS or not CODE_OPS[node.op].makes_codes:
        return tuple(made.shape) == node.shape
    # Codes are noted as the values that they stand for, of as many spatial dimensions as those have.
    batch, *size, _ = made.shape
    rank = len(node.shape)
    return 2 <= rank <= 4 and node.shape[0] == batch and list(node.shape[2:]) == size[4 - rank :]


def _work(node: Node, tensors: dict[str, Tensor], made: Tensor, values: list[Tensor]) -> int:
    """Multiply-accumulates, or else other operations on an element."""
    weight = tensors.get("weight")
    shape = tuple(made.shape)
    if node.op == "conv_codes":
        # Codes are packed: pixels count, their bytes do not.
        shape = (math.prod(shape[:3]), len(tensors["weight"]))
    known = macs(node.op, shape, None if weight is None else tuple(weight.shape))
    if known:
        return known
    elements = made.numel()
    if "pool" in node.op:
        window = node.attrs.get("kernel")
        return elements * (math.prod(window) if window else 1) + sum(value.numel() for value in values)
    return elements + sum(value.numel() for value in values)


@torch.no_grad()
def check_sizes(graph: Graph, max_bytes: int | None, max_macs: int | None) -> None:
    """Check that a graph runs at the shapes it was converted at, and within limits.

    Raises
    ------
    FormatError
        A node cannot run on what it reads.
    LimitError
        A run would take more memory or work; the node, the amount and the argument are named.
    """
    last: dict[str, int] = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    kept = {ref.name for ref in refs(graph.outputs)}
    values: dict[str, Tensor] = {}
    live = sum(tensor.numel() * tensor.element_size() for tensor in graph.tensors.values())
    work, images = 0, 1
    for i, node in enumerate(graph.nodes):
        where = f"layer {node.layer!r}" if node.layer else f"node {node.name!r}"
        try:
            if node.op == "input":
                _require(math.prod(max(1, size) for size in node.shape) < _MAX_ELEMENTS, "too large")
                made = torch.empty(node.shape, dtype=getattr(torch, node.attrs["dtype"]), device="meta")
                images = max(1, node.shape[0]) if images == 1 and node.shape else images
                read: list[Tensor] = []
            else:
                read = [values[name] for name in node.inputs]
                tensors = {role: graph.tensors[name] for role, name in node.tensors.items()}
                made = _RUN[node.op](node, tensors, *read)
                work += _work(node, tensors, made, read)
            _require(_noted(node, made), f"a result of the shape {list(node.shape)} was noted, of another it is")
            _require(made.numel() < _MAX_ELEMENTS, f"a result of the shape {list(made.shape)} is too large")
        # Whatever torch and the ops find wrong with sizes, and numbers that are too large for either.
        except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            raise FormatError(
                f"{where} ({node.op}): it cannot run at the shapes that the network was converted at ({error}); get "
                "the file again, or convert and save the model again"
            ) from error
        values[node.name] = made
        live += made.numel() * made.element_size()
        _limit(where, "bytes", "max_bytes", live, max_bytes)
        _limit(where, "multiply-accumulates per image", "max_macs", work // images, max_macs)
        for name in {*node.inputs, node.name}:
            if last.get(name, i) == i and name not in kept:
                gone = values.pop(name)
                live -= gone.numel() * gone.element_size()


def _limit(where: str, unit: str, argument: str, needed: int, limit: int | None) -> None:
    if limit is not None and needed > limit:
        raise LimitError(
            f"{where}, with the nodes before it: {needed} {unit}, more than {argument} = {limit}; if that is intended, "
            f"load it with a larger {argument}"
        )
