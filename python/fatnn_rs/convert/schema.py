"""What a graph in a file must look like. Everything is checked before anything is built from it.

The JSON of a graph::

    {"nodes": [{"name": "conv1", "op": "conv_codes", "inputs": ["x_codes"], "layer": "layer1.0.conv1",
                "shape": [1, 64, 56, 56], "attrs": {"stride": [1, 1], ...}, "tensors": {"weight": "conv1.codes"},
                "note": "..."}, ...],
     "outputs": {"value": "fc"},
     "notes": ["..."],
     "arguments": [{"name": "x", "tensor": true, "positional": true, "keyword": true}, ...]}

Nodes stand in the order they run; a node reads only what stands before it. ``outputs`` is a value, ``{"list": [...]}``,
``{"tuple": [...]}``, ``{"dict": {...}}``, ``{"constant": ...}``, ``{"ordered_dict": [[key, ...], ...]}`` or, for a dict
whose keys are not in the alphabet's order, ``{"dict_items": [[key, ...], ...]}``. ``arguments`` describe the call
(:mod:`fatnn_rs.signature`), and are absent where every argument is a tensor that is called as its input. Attributes
and tensors are those of the rows in
:mod:`fatnn_rs.convert.ops_float`, :mod:`fatnn_rs.convert.ops_int8` and :mod:`fatnn_rs.convert.ops_code`.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fatnn_rs.convert.graph import Graph, Node, Ref
from fatnn_rs.convert.levels import WEIGHT_LEVELS, act_of, coded_levels, is_two_bit
from fatnn_rs.convert.ops_code import ACT_ATTR, CODE_OPS
from fatnn_rs.convert.ops_float import FLOAT_OPS, FloatOp
from fatnn_rs.convert.ops_int8 import INT8_OPS
from fatnn_rs.convert.structure import Container, ordered_dict
from fatnn_rs.convert.thresholds import NEVER
from fatnn_rs.errors import FormatError
from fatnn_rs.signature import Argument, argument_to_json, arguments_from_json

__all__ = ["graph_from_json", "graph_to_json"]

_INPUT_ATTRS: dict[str, type] = {"dtype": str, "fixed": list, "channel_dim": int}
_LIMIT = 1 << 31
_MAX_FLOAT = torch.finfo(torch.float32).max
#: Most axes behind the channels of a value, and most dimensions of any.
_MAX_RANK = 32

#: Operations that read and make floats.
_VALUE_OPS: dict[str, FloatOp] = {**FLOAT_OPS, **INT8_OPS}


def _outputs_to_json(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"value": value.name}
    if isinstance(value, Container):
        if value.kind is not OrderedDict or not all(isinstance(key, str) for key in value.keys or ()):
            raise TypeError(value.kind.__name__)
        return {
            "ordered_dict": [
                [key, _outputs_to_json(item)] for key, item in zip(value.keys or (), value.items, strict=True)
            ]
        }
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        if list(value) == sorted(value):
            return {"dict": {key: _outputs_to_json(item) for key, item in value.items()}}
        return {"dict_items": [[key, _outputs_to_json(item)] for key, item in value.items()]}
    for kind, name in ((tuple, "tuple"), (list, "list")):
        if type(value) is kind:
            return {name: [_outputs_to_json(item) for item in value]}
    if _is_plain(value):
        return {"constant": value}
    raise TypeError(type(value).__name__)


def graph_to_json(graph: Graph) -> dict[str, Any]:
    """Everything of a graph but its tensors.

    Raises
    ------
    TypeError
        Where the outputs are a structure that JSON cannot hold, naming its type.
    """
    nodes = [
        {
            "name": node.name,
            "op": node.op,
            "inputs": node.inputs,
            "attrs": node.attrs,
            "tensors": node.tensors,
            "layer": node.layer,
            "shape": list(node.shape),
            "note": node.note,
        }
        for node in graph.nodes
    ]
    made = {"nodes": nodes, "outputs": _outputs_to_json(graph.outputs), "notes": graph.notes}
    plain_call = tuple(Argument(node.name) for node in graph.nodes if node.op == "input")
    if graph.arguments not in ((), plain_call):
        made["arguments"] = [argument_to_json(argument) for argument in graph.arguments]
    return made


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, str)) or (type(value) is float and math.isfinite(value))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise FormatError(f"{message}; the file was not written by fatnn_rs.save, or by another version of it")


def _typed(value: Any, kind: type) -> bool:
    """Whether a JSON value has the type an attribute wants; lists are lists of integers."""
    if kind is list:
        return isinstance(value, list) and all(type(item) is int and abs(item) < _LIMIT for item in value)
    if kind is float:
        # Everything is computed in float32, which the engine's constants must fit.
        return type(value) in (int, float) and abs(value) <= _MAX_FLOAT
    if kind is int:
        return type(value) is int and abs(value) < _LIMIT
    return type(value) is kind


def _text(value: Any) -> bool:
    """Whether a JSON value is text that can be printed: surrogates alone cannot."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _parse_node(data: Any, position: int) -> Node:
    _require(isinstance(data, dict), f"node {position}: expected an object, got {type(data).__name__}")
    fields: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "name": ("a string", lambda v: _text(v) and bool(v)),
        "op": ("a string", _text),
        "inputs": ("a list of strings", lambda v: isinstance(v, list) and all(map(_text, v))),
        "attrs": ("an object", lambda v: isinstance(v, dict)),
        "tensors": (
            "an object of strings",
            lambda v: isinstance(v, dict) and all(map(_text, v.values())),
        ),
        "layer": ("a string", _text),
        "shape": ("a list of integers", lambda v: _typed(v, list) and all(i >= 0 for i in v)),
        "note": ("a string", _text),
    }
    for key, (what, holds) in fields.items():
        _require(key in data and holds(data[key]), f"node {position} ({data.get('name')!r}): {key!r} must be {what}")
    _require(set(data) == set(fields), f"node {position}: unknown fields {sorted(set(data) - set(fields))}")
    return Node(**{**data, "shape": tuple(data["shape"])})


def _check_attrs(node: Node, wanted: Mapping[str, type]) -> None:
    where = f"node {node.name!r} ({node.op})"
    _require(
        set(node.attrs) == set(wanted), f"{where}: expected the attributes {sorted(wanted)}, got {sorted(node.attrs)}"
    )
    for key, kind in wanted.items():
        _require(
            _typed(node.attrs[key], kind),
            f"{where}: attribute {key!r} must be {kind.__name__}, got {node.attrs[key]!r}",
        )


#: Attributes of float and int8 operations that are never below a number.
_LEAST = {"kernel": 1, "stride": 1, "dilation": 1, "padding": 0, "size": 0, "groups": 1, "trailing": 0}


def _check_ranges(node: Node) -> None:
    where = f"node {node.name!r} ({node.op})"
    for key, least in _LEAST.items():
        value = node.attrs.get(key)
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        _require(all(n >= least for n in numbers), f"{where}: {key} must be at least {least}, got {value}")
    _require(node.attrs.get("trailing", 0) <= _MAX_RANK, f"{where}: trailing is out of range")
    _require(node.attrs.get("eps", 0) >= 0, f"{where}: eps must not be negative")


def _check_tensors(node: Node, wanted: Mapping[str, tuple[torch.dtype, bool]], tensors: Mapping[str, Tensor]) -> None:
    where = f"node {node.name!r} ({node.op})"
    for role, name in node.tensors.items():
        _require(role in wanted, f"{where}: unknown tensor role {role!r}")
        _require(name in tensors, f"{where}: tensor {name!r} is missing")
        dtype = wanted[role][0]
        _require(tensors[name].dtype == dtype, f"{where}: tensor {name!r} must be {dtype}, got {tensors[name].dtype}")
    for role, (_, needed) in wanted.items():
        _require(not needed or role in node.tensors, f"{where}: tensor role {role!r} is missing")


def _check_layout(node: Node) -> None:
    layout = node.attrs.get("layout", "any")
    known = layout in ("any", "contiguous", "channels_last")
    order = isinstance(layout, str) and re.fullmatch(r"order:\d+(,\d+)*", layout) is not None
    _require(known or order, f"node {node.name!r}: unknown layout {layout!r}")


#: Value → None for float, or (channels, groups, what they are) of codes: ``"ternary"``, ``"two-bit"``, or ``"binary"``,
#: which are ternary ones as well.
Kind = tuple[int, int, str]
Kinds = dict[str, "Kind | None"]


def _shown(kind: Kind | None) -> str:
    if kind is None:
        return "floats"
    channels, groups, what = kind
    return f"{what} codes of {(channels, groups)} (channels, groups)"


#: Kind of activations → what their codes are.
_CODES = {"full": "ternary", "half": "ternary", "uint2": "two-bit", "binary": "binary"}


def _check_inputs(node: Node, kinds: Kinds) -> None:
    where = f"node {node.name!r} ({node.op})"
    for name in node.inputs:
        _require(name in kinds, f"{where}: reads {name!r}, which no node before it makes")
    if node.op in CODE_OPS:
        row = CODE_OPS[node.op]
        least, most = row.inputs
        _require(least <= len(node.inputs) <= most, f"{where}: reads {len(node.inputs)} values")
        _require(
            (kinds[node.inputs[0]] is not None) == row.takes_codes, f"{where}: reads codes where it must not, or not"
        )
        rest = node.inputs[1:]
    else:
        count = _VALUE_OPS[node.op].inputs
        _require(
            len(node.inputs) == count if count is not None else bool(node.inputs),
            f"{where}: reads {len(node.inputs)} values",
        )
        rest = node.inputs
    _require(all(kinds[name] is None for name in rest), f"{where}: reads codes where it needs floats")


def _check_conv(node: Node, tensors: Mapping[str, Tensor], source: Kind | None) -> None:
    where, a = f"node {node.name!r} ({node.op})", node.attrs
    weight = tensors[node.tensors["weight"]]
    _require(
        weight.dim() == 4 and weight.numel() > 0, f"{where}: weight must have 4 dimensions, got {tuple(weight.shape)}"
    )
    n, per_group, *window = weight.shape
    groups = a["groups"]
    _require(a["dims"] in (0, 1, 2), f"{where}: dims must be 0, 1 or 2")
    _require(groups >= 1 and n % groups == 0 and per_group * groups == a["channels"], f"{where}: groups do not fit")
    _check_act(node, "uint2", "binary")
    wanted = (a["channels"], groups, _CODES[act_of(a)])
    fits = source == wanted or (wanted[2] == "ternary" and source == (*wanted[:2], "binary"))
    _require(fits, f"{where}: reads {_shown(source)}, wants {_shown(wanted)}")
    _require(a["kernel"] == window, f"{where}: kernel {a['kernel']} and weight {tuple(weight.shape)} disagree")
    levels = WEIGHT_LEVELS[is_two_bit(weight)]
    holds = torch.isin(weight, torch.tensor(levels, dtype=weight.dtype, device="cpu"))
    _require(bool(holds.all()), f"{where}: weight holds values outside {', '.join(map(str, levels))}")
    for role in ("scale", "bias", "thresholds"):
        if role in node.tensors:
            shapes = [(2, n), (3, n)] if role == "thresholds" else [(n,)]
            got = tuple(tensors[node.tensors[role]].shape)
            _require(got in shapes, f"{where}: {role} must have shape {' or '.join(map(str, shapes))}, got {got}")
    if "thresholds" in node.tensors:
        rising = tensors[node.tensors["thresholds"]].long().diff(dim=0) >= 0
        _require(bool(rising.all()), f"{where}: thresholds must not fall")
    _require("bias" not in node.tensors or "scale" in node.tensors, f"{where}: a bias needs a scale")


def _check_int8(node: Node, tensors: Mapping[str, Tensor]) -> None:
    where, a = f"node {node.name!r} ({node.op})", node.attrs
    weight = tensors[node.tensors["weight"]]
    dims = {"linear_int8": 0, "conv1d_int8": 1, "conv2d_int8": 2}[node.op]
    _require(
        weight.dim() == 2 + dims and weight.numel() > 0,
        f"{where}: weight must have {2 + dims} dimensions, got {tuple(weight.shape)}",
    )
    _require(bool((weight > -128).all()), f"{where}: weight holds -128, which no code is")
    for role, shape in (("scale", (len(weight),)), ("bias", (len(weight),)), ("inv_step", (1,))):
        if role in node.tensors:
            got = tuple(tensors[node.tensors[role]].shape)
            _require(got == shape, f"{where}: {role} must have shape {shape}, got {got}")
    inverse = float(tensors[node.tensors["inv_step"]].reshape(()))
    _require(0 < inverse < math.inf, f"{where}: inv_step must be positive and finite, got {inverse}")
    if dims:
        _require(a["groups"] >= 1 and len(weight) % a["groups"] == 0, f"{where}: groups do not fit")
        for key, least in (("stride", 1), ("dilation", 1), ("padding", 0)):
            _require(
                len(a[key]) == dims and min(a[key]) >= least,
                f"{where}: {key} must be {dims} integers >= {least}, got {a[key]}",
            )


def _check_window(node: Node) -> None:
    where = f"node {node.name!r} ({node.op})"
    for key, least in (("kernel", 1), ("stride", 1), ("dilation", 1), ("padding", 0)):
        values = node.attrs[key]
        _require(
            len(values) == 2 and min(values) >= least, f"{where}: {key} must be two integers >= {least}, got {values}"
        )


def _check_act(node: Node, *known: str) -> None:
    act = node.attrs.get("act", "uint2")
    where = f"node {node.name!r} ({node.op})"
    _require(act in known, f"{where}: unknown activations {act!r}")
    _require("act" not in node.attrs or node.attrs.get("half_range", True), f"{where}: {act!r} has no full range")


def _code_kind(node: Node, kinds: Kinds, tensors: Mapping[str, Tensor]) -> Kind | None:
    """Check an operation on codes; the kind of the codes it makes."""
    where, a = f"node {node.name!r} ({node.op})", node.attrs
    if node.op == "quantize":
        _check_act(node, "uint2", "binary")
        steps, count = tensors[node.tensors["steps"]], len(coded_levels(act_of(a))) - 1
        _require(tuple(steps.shape) == (count,), f"{where}: steps must have shape ({count},)")
        _require(bool((steps[:-1] <= steps[1:]).all()), f"{where}: steps must not fall, got {steps.tolist()}")
        _require(
            a["groups"] >= 1 and a["channels"] >= 1 and a["channels"] % a["groups"] == 0, f"{where}: groups do not fit"
        )
        binary = act_of(a) == "binary"
        _require(not binary or float(steps[1]) == math.inf, f"{where}: steps of binary codes must end with infinity")
        return a["channels"], a["groups"], _CODES[act_of(a)]
    _check_window(node)
    source = kinds[node.inputs[0]]
    if node.op == "max_pool_codes":
        _check_act(node, "uint2")
        fits = source is not None and (source[2] == "two-bit") == ("act" in a)
        _require(fits, f"{where}: reads codes of another kind")
        return source
    _check_conv(node, tensors, source)
    if node.op == "conv_float":
        return None
    n, thresholds = tensors[node.tensors["weight"]].shape[0], tensors[node.tensors["thresholds"]]
    _require(a["out_groups"] >= 1 and n % a["out_groups"] == 0, f"{where}: out_groups do not fit")
    never_one = bool((thresholds[-1] == NEVER).all())
    return n, a["out_groups"], "two-bit" if len(thresholds) == 3 else "binary" if never_one else "ternary"


def _check_node(node: Node, kinds: Kinds, tensors: Mapping[str, Tensor]) -> None:
    _require(node.name not in kinds, f"node {node.name!r}: its name is not unique")
    if node.op == "input":
        also = {"batch": list, "layout": str}
        _check_attrs(node, {**_INPUT_ATTRS, **{key: kind for key, kind in also.items() if key in node.attrs}})
        _check_layout(node)
        batch = node.attrs.get("batch", [0, 0, 1])
        _require(
            len(batch) == 3 and min(batch) >= 0 and batch[2] > 0 and (bool(node.shape) or "batch" not in node.attrs),
            f"node {node.name!r}: batch must be a least, a most and a factor",
        )
        _require(
            isinstance(getattr(torch, node.attrs["dtype"], None), torch.dtype), f"node {node.name!r}: unknown dtype"
        )
        _require(
            0 <= node.attrs["channel_dim"] < max(1, len(node.shape)), f"node {node.name!r}: channel_dim out of range"
        )
        _require(all(0 <= d < len(node.shape) for d in node.attrs["fixed"]), f"node {node.name!r}: fixed out of range")
        _require(not node.inputs and not node.tensors, f"node {node.name!r}: an input reads nothing")
        kinds[node.name] = None
        return
    _require(node.op in _VALUE_OPS or node.op in CODE_OPS, f"node {node.name!r}: unknown op {node.op!r}")
    _check_inputs(node, kinds)
    _check_layout(node)
    _require(len(node.shape) <= _MAX_RANK, f"node {node.name!r}: shape has {len(node.shape)} dimensions")
    if node.op in _VALUE_OPS:
        row = _VALUE_OPS[node.op]
        _check_attrs(node, row.attrs)
        if node.op not in INT8_OPS:  # those have a check of their own
            _check_ranges(node)
        dtypes = dict.fromkeys(row.tensors, torch.float32) | ({"weight": torch.int8} if node.op in INT8_OPS else {})
        _check_tensors(node, {role: (dtypes[role], needed) for role, needed in row.tensors.items()}, tensors)
        if node.op in INT8_OPS:
            _check_int8(node, tensors)
        kinds[node.name] = None
    else:
        code = CODE_OPS[node.op]
        _check_attrs(node, {**code.attrs, **(ACT_ATTR if "act" in node.attrs else {})})
        _check_tensors(node, code.tensors, tensors)
        kinds[node.name] = _code_kind(node, kinds, tensors)


def _outputs_from_json(data: Any, kinds: Kinds) -> Any:
    _require(isinstance(data, dict) and len(data) == 1, "outputs: expected an object with one key")
    kind, value = next(iter(data.items()))
    if kind == "value":
        _require(isinstance(value, str) and value in kinds, f"outputs: {value!r} is no value of the graph")
        _require(kinds[value] is None, f"outputs: {value!r} is codes")
        return Ref(value)
    if kind == "constant":
        _require(_is_plain(value), "outputs: a constant must be plain")
        return value
    if kind == "dict":
        _require(isinstance(value, dict), "outputs: 'dict' must hold an object")
        return {key: _outputs_from_json(item, kinds) for key, item in value.items()}
    if kind in ("dict_items", "ordered_dict"):
        pairs = isinstance(value, list) and all(
            isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in value
        )
        _require(pairs, f"outputs: {kind!r} must hold pairs of a key and an item")
        made = {key: _outputs_from_json(item, kinds) for key, item in value}
        return made if kind == "dict_items" else ordered_dict(made)
    _require(kind in ("list", "tuple") and isinstance(value, list), f"outputs: unknown structure {kind!r}")
    items = [_outputs_from_json(item, kinds) for item in value]
    return tuple(items) if kind == "tuple" else items


def graph_from_json(data: Any, tensors: Mapping[str, Tensor]) -> Graph:
    """Build a graph from a file's JSON and tensors.

    Raises
    ------
    FormatError
        Naming the first thing that is not as the schema wants it.
    """
    _require(isinstance(data, dict), "the graph must be an object")
    _require(
        set(data) - {"arguments"} == {"nodes", "outputs", "notes"},
        f"the graph must hold nodes, outputs, notes; got {sorted(data)}",
    )
    _require(isinstance(data["nodes"], list) and bool(data["nodes"]), "nodes must be a list that is not empty")
    _require(
        isinstance(data["notes"], list) and all(map(_text, data["notes"])),
        "notes must be a list of strings",
    )
    kinds: Kinds = {}
    nodes = [_parse_node(item, position) for position, item in enumerate(data["nodes"])]
    for node in nodes:
        _check_node(node, kinds, tensors)
    named = {name for node in nodes for name in node.tensors.values()}
    _require(named == set(tensors), f"tensors that no node names: {sorted(set(tensors) - named)[:5]}")
    outputs = _outputs_from_json(data["outputs"], kinds)
    inputs = [node.name for node in nodes if node.op == "input"]
    arguments = arguments_from_json(data.get("arguments"), inputs)
    return Graph(nodes, dict(tensors), outputs, list(data["notes"]), arguments)
