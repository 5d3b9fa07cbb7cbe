"""A saved network on NumPy arrays, without torch: :func:`load_numpy` and :class:`NumpyNetwork`.

The Rust engine runs the whole network in one call, float layers too, so the results are those of
the same file loaded with ``float_layers="rust"``, bit for bit. Nothing here imports torch.
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
from fatnn_rs.report import NotFused, Report, ReportRow, runs
from fatnn_rs.signature import arguments_from_json, bind_call

__all__ = ["NumpyNetwork", "load", "load_numpy", "read_report"]


class NumpyNetwork:
    """A network that runs in Rust as a whole. Made by :func:`load_numpy`.

    Attributes
    ----------
    inputs, outputs
        Name and shape at conversion of every array that goes in and comes out, in order. The number
        of images may be another, and so may sizes behind the channels, unless the model was
        captured for one size only.
    report
        What it runs: one row per node. Print it.
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
            The original model's arguments, with arrays for tensors: float32 of shape (images,
            channels, spatial axes), int64 ids of tokens, bool masks. What was no tensor at conversion has to be what it was then.

        Returns
        -------
        Any
            What the original model returns, with arrays for tensors: one float32 array (channels
            second, contiguous) for most models, else tuples, lists or dicts of them.

        Raises
        ------
        InputError
            Wrong number, type, dtype, rank, channels or size of inputs, NaN where a quantizer reads
            it, or a run that would cost more than the limits that the network was loaded with.
        MemoryError
            There is no memory for a run at these sizes.
        """
        names = [name for name, _ in self.inputs]
        inputs = bind_call(self._arguments, args, kwargs)
        arrays = [
            _checked(name, x, dtype)
            for name, x, dtype in zip(names, inputs, self._network.input_types, strict=True)
        ]
        results = self._network.run(arrays, [False] * len(arrays))
        values = {
            name: np.asarray(result, order="C")
            for (name, _), result in zip(self.outputs, results, strict=True)
        }
        return _rebuilt(self._structure, values)

    def __repr__(self) -> str:
        takes = ", ".join(f"{name} {list(shape)}" for name, shape in self.inputs)
        return f"NumpyNetwork({takes}; {self.report.layers_ternary} ternary layers, {len(self.report.rows)} nodes)"


def load_numpy(
    path: str | os.PathLike[str],
    *,
    max_bytes: int | None = _core.MAX_BYTES,
    max_macs: int | None = _core.MAX_MACS,
) -> NumpyNetwork:
    """Read a network that :func:`fatnn_rs.save` wrote, to run on NumPy arrays; torch is not needed.

    Parameters
    ----------
    path
        The file.
    max_bytes
        Most memory that packed weights and one run may take, by default 16 GiB; None: no bound.
        Checked from sizes alone, before anything is allocated: when the network is loaded, for the
        shapes it was converted at, and in every run, for the shapes it gets.
    max_macs
        Most multiply-accumulates per image, by default 10¹²; None: no bound.

    Returns
    -------
    NumpyNetwork

    Raises
    ------
    UnsupportedError
        Some nodes run only in torch; they are named.
    LimitError
        It would cost more than ``max_bytes`` or ``max_macs``; the node, the amount and the argument
        are named.
    FormatError
        Truncated, damaged, of another version, no fatnn-rs file, or a graph that is not
        well-formed.
    MemoryError
        There is no memory for its weights.
    OSError
        The file cannot be read.
    """
    bounds = checked_limits(max_bytes, max_macs)
    graph, file = _read(path)
    network = _core.Network(*file, None, *bounds)
    return NumpyNetwork(
        network, graph["outputs"], _report(graph, file, network), graph.get("arguments")
    )


def checked_limits(max_bytes: Any, max_macs: Any) -> tuple[int | None, int | None]:
    """Limits as the core takes them.

    Raises
    ------
    ConfigError
        One is neither None nor a whole number that is not negative.
    """
    bounds = []
    for name, value in (("max_bytes", max_bytes), ("max_macs", max_macs)):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 0
        if value is not None and not whole:
            raise ConfigError(
                f"{name}: expected a whole number that is not negative, or None, got {value!r}"
            )
        # The core counts in 64 bits; more is no bound.
        bounds.append(None if value is None or value >= 1 << 64 else int(value))
    return bounds[0], bounds[1]


def load(
    path: str | os.PathLike[str],
    float_layers: str = "rust",
    *,
    max_bytes: int | None = _core.MAX_BYTES,
    max_macs: int | None = _core.MAX_MACS,
) -> NumpyNetwork:
    """Stand in for ``fatnn_rs.load`` where torch is not installed: as :func:`load_numpy`.

    Raises
    ------
    UnsupportedError
        ``float_layers`` is not ``"rust"``, or some nodes run only in torch.
    """
    if float_layers != "rust":
        raise UnsupportedError(
            f"load: float_layers={float_layers!r} needs torch, which is not installed: pip install torch"
        )
    return load_numpy(path, max_bytes=max_bytes, max_macs=max_macs)


def read_report(path: str | os.PathLike[str]) -> Report:
    """Describe what a file holds, also where some of it runs only in torch.

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
        return Report(report.rows, (*report.notes, f"above the default limits: {error}"))
    except UnsupportedError as error:
        report = _report(graph, file, None, in_engine=False)
        return Report(report.rows, (*report.notes, f"needs torch to run: {error}"))
    return _report(graph, file, network)


#: A graph's text, its tensors, and the types of those that are codes.
_File = tuple[str, dict[str, npt.NDArray[Any]], dict[str, str]]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], _File]:
    """Graph of a file, and what the file holds."""
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
    """Describe a file's graph, and what was not fused in ``network``."""
    rows = tuple(
        ReportRow(
            name=row["layer"],
            op=row["op"],
            runs=runs(row["op"], in_engine),
            shape=row["shape"],
            macs=row["macs"],
            packed_bytes=row["packed_bytes"],
            note=row["note"],
        )
        for row in _core.graph_report(*file)
    )
    not_fused = () if network is None else tuple(NotFused(*found) for found in network.not_fused)
    return Report(rows, tuple(graph.get("notes", ())), not_fused)


def _checked(name: str, x: Any, dtype: str) -> npt.NDArray[Any]:
    """One input as a C-contiguous, aligned array of its type, copied where it is not one.

    Shapes are checked in Rust.
    """
    if not isinstance(x, np.ndarray):
        raise InputError(
            f"input {name!r}: expected a NumPy array, got {type(x).__name__}; convert it with numpy.asarray"
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
        )
    # Not `ascontiguousarray`, which takes elements between addresses as they are.
    return np.require(x, requirements=["C", "A", "E"])


def _rebuilt(structure: Any, values: dict[str, npt.NDArray[np.float32]]) -> Any:
    """Put arrays into the structure that the model returns; the engine has checked it."""
    kind, inner = next(iter(structure.items()))
    if kind == "value":
        return values[inner]
    if kind == "dict":
        return {key: _rebuilt(item, values) for key, item in inner.items()}
    if kind in ("dict_items", "ordered_dict"):
        pairs = [(key, _rebuilt(item, values)) for key, item in inner]
        return dict(pairs) if kind == "dict_items" else OrderedDict(pairs)
    if kind in ("list", "tuple"):
        items = [_rebuilt(item, values) for item in inner]
        return tuple(items) if kind == "tuple" else items
    return inner
