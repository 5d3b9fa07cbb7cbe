"""One file for a network: safetensors with the graph as JSON in its metadata. No pickle, no code.

The file is the same for every machine: ternary weights five to a byte (two-bit weights four, binary
weights eight), int8 weights, thresholds, scales and float tensors. Layouts for one CPU's kernels
are made when a network is built from the file. Rust writes, reads and checks the file (version,
checksum, graph).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch

from fatnn_rs import _core
from fatnn_rs.convert.network import TernaryNetwork
from fatnn_rs.convert.schema import graph_from_json, graph_to_json
from fatnn_rs.errors import ConversionError, FormatError, InputError, UnsupportedError
from fatnn_rs.numpy_network import checked_limits
from fatnn_rs.ops.kernels import aligned_array

__all__ = ["load", "save"]


def save(net: TernaryNetwork, path: str | os.PathLike[str]) -> None:
    """Write a converted network to one file. The same network always gives the same bytes.

    Parameters
    ----------
    net
        What :func:`fatnn_rs.convert.convert` or :func:`load` returned.
    path
        The file to write; an existing file is replaced.

    Raises
    ------
    ConversionError
        If ``net`` is not a converted network.
    UnsupportedError
        If nodes run the model's own Python; the message names them.
    OSError
        If the file cannot be written.
    """
    if not isinstance(net, TernaryNetwork):
        raise ConversionError(
            f"save: expected what fatnn_rs.convert returns, got {type(net).__name__}; convert the "
            "model first"
        )
    if Path(path).is_dir():
        raise IsADirectoryError(
            f"{os.fspath(path)!r} is a directory; give the name of a file in it, as "
            f"{os.path.join(path, 'net.safetensors')!r}"
        )
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(
            f"save: the directory {os.fspath(Path(path).parent)!r} does not exist; create it first"
        )
    graph = net.graph
    foreign = [
        f"{node.layer or node.name} ({node.attrs['target']})"
        for node in graph.nodes
        if node.op == "torch"
    ]
    if foreign:
        raise UnsupportedError(
            f"save: {', '.join(foreign)} run Python code of the model, which a file cannot hold; "
            "replace them by layers that convert knows (net.report shows what runs in torch), or "
            f"keep using the network in memory. {net.report.overview}"
        )
    try:
        text = json.dumps(
            graph_to_json(graph), sort_keys=True, separators=(",", ":"), allow_nan=False
        )
    except TypeError as error:
        raise UnsupportedError(
            f"save: the model returns a {error}, which a file cannot hold; return tensors in "
            "tuples, lists or dicts with string keys"
        ) from None
    arrays = {
        name: np.asarray(aligned_array(tensor), order="C") for name, tensor in graph.tensors.items()
    }
    _core.save(os.fspath(path), text, arrays, graph.dtypes)


def load(
    path: str | os.PathLike[str],
    float_layers: str = "torch",
    *,
    max_bytes: int | None = _core.MAX_BYTES,
    max_macs: int | None = _core.MAX_MACS,
) -> TernaryNetwork:
    """Read a network that :func:`save` wrote, on any machine.

    Parameters
    ----------
    path
        The file.
    float_layers
        As for :func:`fatnn_rs.convert.convert`.
    max_bytes
        Limit on the memory for weights and one run; by default 16 GiB; None for no limit. It is
        checked from sizes before anything is allocated: here for the example's shapes, and in every
        run for the shapes of the parts that run in Rust.
    max_macs
        Limit on multiply-accumulates per image; by default 10¹²; None for no limit.

    Returns
    -------
    TernaryNetwork

    Raises
    ------
    FormatError
        If the file is truncated, damaged, of another version or no fatnn-rs file, or if its graph
        is not well-formed.
    LimitError
        If it would cost more than ``max_bytes`` or ``max_macs``; the message names the node, the
        amount and the argument.
    MemoryError
        If there is no memory for its weights.
    OSError
        If the file cannot be read.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(
            f"{os.fspath(path)!r} is a directory; give the file that fatnn_rs.save wrote"
        )
    bounds = checked_limits(max_bytes, max_macs)
    text, arrays, dtypes = _core.load(os.fspath(path), True, *bounds)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    graph = graph_from_json(json.loads(text), tensors, dtypes)
    graph.limits = bounds
    try:
        return TernaryNetwork(graph, float_layers)
    except InputError as error:  # weights that cannot be packed come from the file
        raise FormatError(f"{os.fspath(path)!r}: {error}; get the file again") from error
