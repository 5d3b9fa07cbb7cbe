"""Run a saved network on NumPy arrays, without torch: :func:`load_numpy`, :class:`NumpyNetwork`.

The Rust engine runs the whole network in one call, float layers included. Results equal those of
``fatnn_rs.load(path, float_layers="rust")`` bit for bit. This module does not import torch.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fatnn_rs import _core
from fatnn_rs.errors import ConfigError, FormatError, InputError, LimitError, UnsupportedError
from fatnn_rs.input_hints import IMAGE, shape_hint
from fatnn_rs.report import (
    NotFused,
    Report,
    ReportRow,
    engine_refusal,
    macs,
    missing_operations,
    runs,
)
from fatnn_rs.signature import arguments_from_json, bind_call

__all__ = ["NumpyNetwork", "load", "load_numpy", "read_report"]


class NumpyNetwork:
    """A network that runs entirely in Rust. Made by :func:`load_numpy`.

    Attributes
    ----------
    inputs, outputs
        Name and shape of every input and output array, in order, as at conversion. The batch size
        may differ in a call, and so may the spatial sizes, unless the model was captured for one
        size only.
    report
        One row per node of the graph. Print it.
    """

    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    report: Report

    def __init__(
        self, network: _core.Network, structure: Any, report: Report, arguments: Any = None
    ) -> None:
        self._network = network
        self._arguments = arguments_from_json(arguments, [name for name, _ in network.inputs])
        self._structure = structure
        self.inputs = tuple((name, tuple(shape)) for name, shape in network.inputs)
        self.outputs = tuple((name, tuple(shape)) for name, shape in network.outputs)
        self.report = report

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network.

        Parameters
        ----------
        *args, **kwargs
            The original model's arguments, with arrays in place of tensors: float32 of shape
            (batch, channels, spatial axes), int64 token ids, bool masks. Other arguments must have
            the values they had at conversion.

        Returns
        -------
        Any
            What the original model returns, with arrays in place of tensors: one float32 array
            (channels second, C-contiguous), or a tuple, list or dict of such arrays.

        Raises
        ------
        InputError
            Wrong number, type, dtype, rank, channels or size of inputs; NaN in a quantizer's input;
            or a run that would exceed the limits given to ``load_numpy``.
        MemoryError
            The memory of a run at these sizes cannot be allocated.
        """
        names = [name for name, _ in self.inputs]
        inputs = bind_call(self._arguments, args, kwargs)
        arrays = [
            _checked(name, x, dtype)
            for name, x, dtype in zip(names, inputs, self._network.input_types, strict=True)
        ]
        try:
            results = self._network.run(arrays, [False] * len(arrays))
        except InputError as error:
            raise self._with_way_out(error, arrays) from None
        values = {
            name: np.asarray(result, order="C")
            for (name, _), result in zip(self.outputs, results, strict=True)
        }
        return _fill_structure(self._structure, values)

    def _with_way_out(self, error: InputError, arrays: list[npt.NDArray[Any]]) -> InputError:
        """Name the input whose shape the engine refuses, and say how to mend it."""
        text = str(error)
        wrong = [
            (name, x.shape, shape)
            for (name, shape), x in zip(self.inputs, arrays, strict=True)
            if str(list(x.shape)) in text and list(x.shape) != list(shape)
        ]
        if not text.startswith("input of the network") or not wrong:
            return error
        name, got, wanted = wrong[0]
        way = shape_hint(got, wanted, "transpose")
        if "one shape only" in text:
            way = "give that shape, or convert the model again with example inputs of another"
        where = f"input {name!r}{text.removeprefix('input of the network')}"
        return InputError(f"{where}; {way}")

    def __repr__(self) -> str:
        takes = ", ".join(f"{name} {list(shape)}" for name, shape in self.inputs)
        layers, nodes = self.report.layers_ternary, len(self.report.rows)
        return f"NumpyNetwork({takes}; {layers} ternary layers, {nodes} nodes)"


def load_numpy(
    path: str | os.PathLike[str],
    *,
    max_bytes: int | None = _core.MAX_BYTES,
    max_macs: int | None = _core.MAX_MACS,
) -> NumpyNetwork:
    """Load a network that :func:`fatnn_rs.save` wrote, to run on NumPy arrays without torch.

    Parameters
    ----------
    path
        The file.
    max_bytes
        Limit in bytes on packed weights plus one run, by default 16 GiB; None: no limit. Checked
        before memory is allocated: at loading for the shapes at conversion, and in every run for
        the shapes it gets.
    max_macs
        Limit on multiply-accumulates per image, by default 10¹²; None: no limit.

    Returns
    -------
    NumpyNetwork

    Raises
    ------
    UnsupportedError
        Some nodes run only in torch; the message names them.
    LimitError
        ``max_bytes`` or ``max_macs`` would be exceeded; the message names node, amount and limit.
    FormatError
        The file is truncated, damaged, of another version or not a fatnn-rs file, or its graph is
        invalid.
    MemoryError
        The memory of the weights cannot be allocated.
    OSError
        The file cannot be read.
    """
    bounds = checked_limits(max_bytes, max_macs)
    graph, file = _read(path)
    try:
        network = _core.Network(*file, None, *bounds)
    except LimitError:
        raise
    except UnsupportedError as error:
        overview = _report(graph, file, None, in_engine=False).overview
        raise UnsupportedError(f"{error}. {overview}") from error
    return NumpyNetwork(
        network, graph["outputs"], _report(graph, file, network), graph.get("arguments")
    )


def checked_limits(max_bytes: Any, max_macs: Any) -> tuple[int | None, int | None]:
    """Validate both limits and return them as the core takes them.

    Raises
    ------
    ConfigError
        A limit is neither None nor a non-negative whole number.
    """
    bounds = []
    for name, value in (("max_bytes", max_bytes), ("max_macs", max_macs)):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 0
        if value is not None and not whole:
            raise ConfigError(
                f"{name}: expected a whole number that is not negative, or None, got {value!r}"
            )
        # The core counts in 64 bits, so a larger limit is no limit.
        bounds.append(None if value is None or value >= 1 << 64 else int(value))
    return bounds[0], bounds[1]


def load(
    path: str | os.PathLike[str],
    float_layers: str = "rust",
    *,
    max_bytes: int | None = _core.MAX_BYTES,
    max_macs: int | None = _core.MAX_MACS,
) -> NumpyNetwork:
    """Load a network like :func:`load_numpy`; ``fatnn_rs.load`` if torch is not installed.

    Raises
    ------
    UnsupportedError
        ``float_layers`` is not ``"rust"``, or some nodes run only in torch.
    """
    if float_layers != "rust":
        raise UnsupportedError(
            f"load: float_layers={float_layers!r} needs torch, which is not installed: "
            "pip install torch"
        )
    return load_numpy(path, max_bytes=max_bytes, max_macs=max_macs)


def read_report(path: str | os.PathLike[str]) -> Report:
    """Describe the network in a file, even if some of its nodes run only in torch.

    Raises
    ------
    FormatError, OSError
        As :func:`load_numpy`.
    """
    graph, file = _read(path)
    try:
        network = _core.Network(*file, None, _core.MAX_BYTES, _core.MAX_MACS)
    except LimitError as error:
        report = _report(graph, file, None)
        return report.with_notes([f"above the default limits: {error}"])
    except UnsupportedError as error:
        report = _report(graph, file, None, in_engine=False)
        return report.with_notes([f"needs torch to run: {error}"])
    return _report(graph, file, network)


#: A graph as JSON, its tensors by name, and the element types of the tensors that hold codes.
_File = tuple[str, dict[str, npt.NDArray[Any]], dict[str, str]]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], _File]:
    """Read a file: its parsed graph, and its raw content."""
    if Path(path).is_dir():
        raise IsADirectoryError(
            f"{os.fspath(path)!r} is a directory; give the file that fatnn_rs.save wrote"
        )
    file = _core.load(os.fspath(path))
    try:
        graph = json.loads(file[0])
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{os.fspath(path)!r}: the graph is not JSON ({error}); get the file again"
        ) from error
    if (
        not isinstance(graph, dict)
        or not isinstance(graph.get("nodes"), list)
        or "outputs" not in graph
    ):
        raise FormatError(
            f"{os.fspath(path)!r}: the graph has no nodes or no outputs; get the file again"
        )
    return graph, file


def _report(
    graph: dict[str, Any], file: _File, network: _core.Network | None, in_engine: bool = True
) -> Report:
    """Describe a file's graph, and the nodes that ``network`` did not fuse."""
    nodes = {node["name"]: node for node in graph["nodes"]}
    computed = [node for node in graph["nodes"] if node["op"] != "input"]
    reads = [[tuple(nodes[name]["shape"]) for name in node.get("inputs", ())] for node in computed]
    attrs = [node.get("attrs", {}) for node in computed]
    rows = []
    for row, given, shapes in zip(_core.graph_report(*file), attrs, reads, strict=True):
        where = runs(row["op"], in_engine)
        refused = engine_refusal(row["op"], json.dumps(given), shapes)
        rows.append(
            ReportRow(
                name=row["layer"],
                op=row["op"],
                runs=where,
                shape=row["shape"],
                macs=row["macs"] or macs(row["op"], row["shape"], None, shapes, given),
                packed_bytes=row["packed_bytes"],
                note=row["note"],
                rule="engine" if where == "torch" else "",
                reason=refused or "a part of the file needs torch" if where == "torch" else "",
            )
        )
    missing = missing_operations(
        (node["op"], json.dumps(given), shapes)
        for node, given, shapes in zip(computed, attrs, reads, strict=True)
    )
    not_fused = () if network is None else tuple(NotFused(*found) for found in network.not_fused)
    return Report(
        tuple(rows),
        tuple(graph.get("notes", ())),
        not_fused,
        segments=int(network is not None),
        missing=missing,
    )


def _checked(name: str, x: Any, dtype: str) -> npt.NDArray[Any]:
    """Validate one input and return it C-contiguous, aligned and in native byte order."""
    if not isinstance(x, np.ndarray):
        raise InputError(
            f"input {name!r}: expected a NumPy array, got {type(x).__name__}; "
            "convert it with numpy.asarray"
        )
    if type(x) is np.ndarray and x.dtype == dtype and x.flags.c_contiguous and x.flags.aligned:
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise InputError(
            f"input {name!r}: expected an array without a mask; fill it with .filled(...)"
        )
    if x.dtype != dtype:
        raise InputError(
            f"input {name!r}: expected {dtype}, got {x.dtype}; convert it with .astype({dtype!r})"
            f"{IMAGE if x.dtype == np.uint8 else ''}"
        )
    # Not `ascontiguousarray`, which leaves unaligned arrays unaligned.
    return np.require(x, requirements=["C", "A", "E"])


def _fill_structure(structure: Any, values: dict[str, npt.NDArray[np.float32]]) -> Any:
    """Put arrays into the model's output structure, which the core has validated."""
    kind, inner = next(iter(structure.items()))
    if kind == "value":
        return values[inner]
    if kind == "dict":
        return {key: _fill_structure(item, values) for key, item in inner.items()}
    if kind in ("dict_items", "ordered_dict"):
        pairs = [(key, _fill_structure(item, values)) for key, item in inner]
        return dict(pairs) if kind == "dict_items" else OrderedDict(pairs)
    if kind in ("list", "tuple"):
        items = [_fill_structure(item, values) for item in inner]
        return tuple(items) if kind == "tuple" else items
    return inner
