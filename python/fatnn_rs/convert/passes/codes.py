"""Fuse convolution, per-channel float functions and quantizer into a convolution of codes.

Starting at each quantizer, walk up through its inputs while each value has one reader and each node
is a function of single elements, a max-pool or a flatten. If the walk ends at a ternary layer, the
chain becomes ``conv_codes``, whose thresholds are found by evaluating the chain
(:mod:`fatnn_rs.convert.thresholds`). Max-pools of the chain then run on codes.

A max-pool may move after later functions only if those never decrease, which is checked. A flatten
before a linear layer disappears: the layer runs as a convolution whose kernel covers the whole map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from fatnn_rs.convert.graph import Graph, Node
from fatnn_rs.convert.levels import ACT_LEVELS, coded_levels, codes_dtype
from fatnn_rs.convert.passes import maps
from fatnn_rs.convert.passes.edit import GraphEdit
from fatnn_rs.convert.thresholds import (
    NotANumberError,
    Thresholds,
    accumulator_range,
    integer_thresholds,
)
from fatnn_rs.convert.torch_ops import bind
from fatnn_rs.convert.torch_ops.floats import FLOAT_OPS
from fatnn_rs.errors import ConversionError
from fatnn_rs.operations import OPERATIONS, form_of
from fatnn_rs.quant import QUANTIZERS

__all__ = ["fuse_codes"]


@dataclass
class _Chain:
    """The nodes from a ternary layer to a quantizer.

    Attributes
    ----------
    root
        The ternary layer's integer convolution.
    steps
        The nodes in between, in execution order.
    """

    root: Node
    steps: list[Node] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Node]:
        """Return the steps of one kind."""
        return [step for step in self.steps if _kind(step) == kind]


def _kind(node: Node) -> str:
    # With one shared slope, prelu treats all channels alike.
    if node.op == "prelu" and node.attrs["shared"]:
        return "scalar"
    row = OPERATIONS.get(node.op)
    # Bits of torch's approximations depend on an element's position, so thresholds cannot match.
    return "other" if row is not None and row.exactness == "transcendental" else form_of(node.op)


def fuse_codes(graph: Graph) -> None:
    """Fuse each quantizer with the layer before it if possible; otherwise note the reason."""
    edit = GraphEdit(graph)
    for node in [node for node in graph.nodes if node.op == "act_quant"]:
        chain = _walk(edit, node)
        if isinstance(chain, Node):
            node.note = _why_float(edit, chain)
            continue
        problem = _check(graph, chain, node) or _fuse(edit, chain, node)
        if problem:
            node.note = problem
    edit.finish()


def _walk(edit: GraphEdit, quantizer: Node) -> _Chain | Node:
    """Return the chain above a quantizer, or the node at which the walk stopped."""
    nodes = edit.producers
    steps: list[Node] = []
    current = nodes[quantizer.inputs[0]]
    while True:
        if len(edit.readers[current.name]) > 1:
            return current
        if current.op == "ternary":
            return _Chain(current, steps[::-1])
        kind = _kind(current)
        if kind not in ("scalar", "channel", "pool", "shape", "select") or (
            kind == "select" and not maps.commutes_with_quantizer(edit.producers, current)
        ):
            return current
        steps.append(current)
        current = nodes[current.inputs[0]]


def _why_float(edit: GraphEdit, stopped: Node) -> str:
    if stopped.op == "input":
        return "reads the network's float input"
    readers = edit.readers[stopped.name]
    if len(readers) > 1:
        return f"the float value {stopped.name!r} has {len(readers)} readers"
    return f"reads the result of {stopped.attrs.get('target', stopped.op)} ({stopped.name!r})"


def _check(graph: Graph, chain: _Chain, quantizer: Node) -> str:
    """Return why a chain cannot run on codes, or an empty text."""
    shapes = [step.op for step in chain.of_kind("shape")]
    if shapes != ["reshape_like", "flatten_leading"] and shapes not in ([], ["flatten"]):
        return f"reshaped on the way ({', '.join(shapes)})"
    flattened = pooled = False
    for step in chain.steps:
        kind = _kind(step)
        if kind == "shape":
            flattened = not flattened or step.op != "flatten_leading"
            if step.op == "flatten" and (step.attrs["start"], step.attrs["end"]) != (1, -1):
                return "flattened over other dimensions than those after the batch"
        elif kind == "channel" and flattened:
            return f"{step.op} works on features of the flattened map, not on channels"
        elif kind == "pool":
            if flattened:
                return "pooled after flattening"
            pooled = True
        elif step.op == "depth_to_space":
            if step is not chain.steps[0]:
                return "channels become pixels on the way"
            if quantizer.attrs["groups"] % step.attrs["groups"]:
                return "the quantizer's groups are no part of the transposed layer's"
        if pooled and kind in ("scalar", "channel") and not _is_nondecreasing(graph, step):
            return f"{step.op} after the max-pool may decrease"
    return ""


def _is_nondecreasing(graph: Graph, node: Node) -> bool:
    row = FLOAT_OPS[node.op]
    return row.nondecreasing(
        node, {role: graph.tensors[name] for role, name in node.tensors.items()}
    )


def _monotone(graph: Graph, node: Node) -> bool:
    """Whether a step is monotone in every channel; rounded affine functions are."""
    return (
        FLOAT_OPS[node.op].affine
        or _kind(node) in ("pool", "shape", "select")
        or _is_nondecreasing(graph, node)
    )


def _function(graph: Graph, chain: _Chain, quantizer: Node) -> Callable[[Tensor], Tensor]:
    """Return the function from accumulators to levels, made of the eager model's functions."""
    stages = [bind(graph, step) for step in chain.steps if _kind(step) in ("scalar", "channel")]
    assert quantizer.call is not None
    stages.append(quantizer.call)

    def run(x: Tensor) -> Tensor:
        for stage in stages:
            x = stage(x)
        return x

    return run


#: Nondecreasing activation quantizers. Exact classes: a subclass may compute something else.
_MONOTONE = frozenset(quantizer for family in QUANTIZERS.values() for quantizer in family[1:])


def _fuse(edit: GraphEdit, chain: _Chain, quantizer: Node) -> str:
    """Replace a chain; return why its function has no thresholds, or an empty text."""
    graph, root, dims = edit.graph, chain.root, chain.root.attrs["dims"]
    weight = graph.tensors[root.tensors["weight"]]
    low, high = accumulator_range(weight, ACT_LEVELS[root.attrs["act"]])
    blocks = next((step for step in chain.steps if step.op == "depth_to_space"), None)
    if blocks is not None:
        low, high = maps.reduce_blocks(low, blocks, False), maps.reduce_blocks(high, blocks, True)
    levels = coded_levels(quantizer.attrs["act"])
    monotone = (
        all(_monotone(graph, step) for step in chain.steps) and type(quantizer.call) in _MONOTONE
    )
    try:
        found = integer_thresholds(
            _function(graph, chain, quantizer), low, high, dims, levels, monotone
        )
    except NotANumberError as error:
        names = ", ".join(
            dict.fromkeys(
                repr(step.layer or step.op) for step in chain.steps if step.layer != root.layer
            )
        )
        raise ConversionError(
            f"layer {root.layer!r}: {names} turn its results into NaN ({error}), which has no "
            "code; check their parameters and statistics (a variance of 0 or less, a huge weight)"
        ) from error
    if found is None:
        return "the float functions before the quantizer are not monotone in some channel"
    pixels = 1
    if blocks is not None:
        pixels = blocks.attrs["block"][0] * blocks.attrs["block"][1]
        found = Thresholds(
            maps.repeat_channels(found.values, blocks.attrs),
            maps.repeat_channels(found.flip, blocks.attrs),
        )
    made = [_conv_codes_node(edit, chain, quantizer, weight, found, pixels)]
    for step in chain.steps:
        if _kind(step) == "pool":
            made.append(_pool_node(edit, step, made[-1]))
        elif _kind(step) == "select":
            name = edit.unused_name(f"{step.name}_of_codes")
            made.append(maps.on_codes(step, made[-1], name))
    if any(step.op == "flatten" for step in chain.steps):
        _read_flattened(edit, quantizer, chain)
    del graph.tensors[root.tensors["weight"]]
    edit.replace((root, *chain.steps, quantizer), quantizer, made)
    return ""


def _conv_codes_node(
    edit: GraphEdit,
    chain: _Chain,
    quantizer: Node,
    weight: Tensor,
    found: Thresholds,
    pixels: int,
) -> Node:
    """Make the convolution to codes; each of the ``pixels`` of a block has its own groups."""
    graph, root = edit.graph, chain.root
    groups = quantizer.attrs["groups"] * pixels
    node = Node(
        edit.unused_name(f"{root.name}_to_codes"),
        "conv_codes",
        list(root.inputs),
        dict(root.attrs),
    )
    node.attrs["out_groups"] = groups
    node.layer, node.shape = root.layer, root.shape
    node.dtype = codes_dtype(quantizer.attrs["act"], weight.shape[0], groups)
    fused = [
        step.layer or step.op
        for step in chain.steps
        if step.layer != root.layer and _kind(step) not in ("shape", "select")
    ]
    node.note = f"thresholds hold {', '.join(fused)}" if fused else ""
    sign = 1 - 2 * found.flip.to(weight.dtype)
    node.tensors = {
        "weight": graph.add_tensor(
            f"{root.layer}.codes",
            weight * sign.view(-1, 1, 1, 1),
            graph.dtype(root, "weight"),
            own=True,
        ),
        "thresholds": graph.add_tensor(f"{root.layer}.thresholds", found.values, own=True),
    }
    return node


def _pool_node(edit: GraphEdit, step: Node, source: Node) -> Node:
    """Make a two-dimensional max-pool on codes."""
    one, zero = ([1], [0]) if step.op == "max_pool1d" else ([], [])
    attrs = {
        "kernel": one + step.attrs["kernel"],
        "stride": one + step.attrs["stride"],
        "padding": zero + step.attrs["padding"],
        "dilation": one + step.attrs["dilation"],
        "ceil_mode": step.attrs["ceil_mode"],
    }
    name = edit.unused_name(f"{step.name}_of_codes")
    return Node(
        name,
        "max_pool_codes",
        [source.name],
        attrs,
        layer=step.layer,
        shape=step.shape,
        dtype=source.dtype,
    )


def _read_flattened(edit: GraphEdit, quantizer: Node, chain: _Chain) -> None:
    """Make the linear layers after a flatten read the map, with a kernel that covers it."""
    flat = chain.steps.index(next(step for step in chain.steps if step.op == "flatten"))
    shape = chain.steps[flat - 1].shape if flat else chain.root.shape
    channels, window = shape[1], [1, *shape[2:]][-2:]
    graph = edit.graph
    for node in edit.readers[quantizer.name]:
        if node is not None and node.op == "ternary":
            weight = graph.tensors[node.tensors["weight"]]
            node.attrs = {**node.attrs, "kernel": window, "channels": channels}
            whole = weight.reshape(weight.shape[0], channels, *window)
            dtype = graph.dtype(node, "weight")
            name = graph.add_tensor(node.tensors["weight"], whole, dtype, own=True)
            node.tensors = {**node.tensors, "weight": name}
