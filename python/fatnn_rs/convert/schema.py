"""Convert a graph to the JSON in a file and back. The core checks a file when it reads it.

The JSON of a graph::

    {"nodes": [{"name": "conv1", "op": "conv_codes", "inputs": ["x_codes"],
                "layer": "layer1.0.conv1", "shape": [1, 64, 56, 56],
                "dtype": {"codes": "ternary", "channels": 64, "groups": 1},
                "attrs": {"stride": [1, 1], "act": "half", ...},
                "tensors": {"weight": "conv1.codes"}, "note": "..."},
               ...],
     "outputs": {"value": "fc"},
     "notes": ["..."],
     "arguments": [{"name": "x", "tensor": true, "positional": true, "keyword": true}, ...],
     "strides": {"fc.weight": [1, 10]}}

Nodes are in execution order, so a node reads only earlier ones. ``outputs`` is a value,
``{"list": [...]}``, ``{"tuple": [...]}``, ``{"dict": {...}}``, ``{"constant": ...}``,
``{"ordered_dict": [[key, ...], ...]}``, or ``{"dict_items": [[key, ...], ...]}`` for a dict whose
keys are not sorted. ``arguments`` describes the call (:mod:`fatnn_rs.signature`); it is absent if
every argument is a tensor named like its input. ``strides`` has the strides, in elements, of the
tensors that are not row-major in the model; in the file, all are. The table of operations
(:mod:`fatnn_rs.operations`) defines attributes and tensors.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fatnn_rs.convert.graph import Graph, Node, Ref
from fatnn_rs.convert.memory_format import row_major, with_strides
from fatnn_rs.convert.structure import Container, ordered_dict
from fatnn_rs.errors import FormatError
from fatnn_rs.signature import Argument, argument_to_json, arguments_from_json

__all__ = ["graph_from_json", "graph_to_json"]


def _outputs_to_json(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"value": value.name}
    if isinstance(value, Container):
        # Subclasses, such as Hugging Face's ModelOutput, are loaded as OrderedDict.
        if not issubclass(value.kind, OrderedDict) or not all(
            isinstance(key, str) for key in value.keys or ()
        ):
            raise TypeError(value.kind.__name__)
        return {
            "ordered_dict": [
                [key, _outputs_to_json(item)]
                for key, item in zip(value.keys or (), value.items, strict=True)
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
    """Return everything in a graph except its tensors.

    Raises
    ------
    TypeError
        If JSON cannot hold the structure of the outputs; the message is its type.
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
            "dtype": node.dtype,
            "note": node.note,
        }
        for node in graph.nodes
    ]
    made = {"nodes": nodes, "outputs": _outputs_to_json(graph.outputs), "notes": graph.notes}
    plain_call = tuple(Argument(node.name) for node in graph.nodes if node.op == "input")
    if graph.arguments not in ((), plain_call):
        made["arguments"] = [argument_to_json(argument) for argument in graph.arguments]
    strides = {
        name: list(tensor.stride())
        for name, tensor in graph.tensors.items()
        if tensor.stride() != row_major(tensor.shape)
    }
    if strides:
        made["strides"] = strides
    return made


def _is_plain(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, (bool, int, str))
        or (type(value) is float and math.isfinite(value))
    )


def _node(data: Mapping[str, Any]) -> Node:
    return Node(**{**data, "shape": tuple(data["shape"])})


def _outputs_from_json(data: Any) -> Any:
    kind, value = next(iter(data.items()))
    if kind == "value":
        return Ref(value)
    if kind == "constant":
        return value
    if kind == "dict":
        return {key: _outputs_from_json(item) for key, item in value.items()}
    if kind in ("dict_items", "ordered_dict"):
        made = {key: _outputs_from_json(item) for key, item in value}
        return made if kind == "dict_items" else ordered_dict(made)
    items = [_outputs_from_json(item) for item in value]
    return tuple(items) if kind == "tuple" else items


def graph_from_json(data: Any, tensors: Mapping[str, Tensor], dtypes: Mapping[str, str]) -> Graph:
    """Build a graph from a file's JSON and tensors with their types, which the core has checked.

    Raises
    ------
    FormatError
        If the arguments do not match the inputs, or strides do not fit their tensor.
    """
    nodes = [_node(item) for item in data["nodes"]]
    inputs = [node.name for node in nodes if node.op == "input"]
    arguments = arguments_from_json(data.get("arguments"), inputs)
    outputs = _outputs_from_json(data["outputs"])
    strided = dict(tensors)
    for name, strides in data.get("strides", {}).items():
        made = with_strides(tensors[name], strides)
        if made is None:
            raise FormatError(
                f"strides: {strides} do not fit {name!r} of shape {list(tensors[name].shape)}; get "
                "the file again"
            )
        strided[name] = made
    return Graph(nodes, strided, outputs, list(data["notes"]), arguments, dtypes=dict(dtypes))
