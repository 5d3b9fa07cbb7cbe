"""One file for a network: safetensors with the graph as JSON in its metadata. No pickle, no code.

Only what every machine understands is written: ternary weights five to a byte (two-bit ones four,
binary ones eight), int8 weights, thresholds, scales, float tensors. Layouts that belong to one
CPU's kernels are derived when a network is built from the file. Rust writes and reads the bytes,
and checks them (version, checksum) and the graph.
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
        Where to; an existing file is replaced.

    Raises
    ------
    ConversionError
        ``net`` is no converted network.
    UnsupportedError
        Some of its nodes run the model's own Python; they are named.
    OSError
        The file cannot be written.
    """
    if not isinstance(net, TernaryNetwork):
        raise ConversionError(
            f"save: expected what fatnn_rs.convert returns, got {type(net).__name__}; convert the model first"
        )
    graph = net.graph
    foreign = [
        f"{node.layer or node.name} ({node.attrs['target']})"
        for node in graph.nodes
        if node.op == "torch"
    ]
    if foreign:
        raise UnsupportedError(
            f"save: {', '.join(foreign)} run Python code of the model, which a file cannot hold; replace them by "
            "layers that convert knows (net.report shows what runs in torch), or keep using the network in memory"
        )
    try:
        text = json.dumps(
            graph_to_json(graph), sort_keys=True, separators=(",", ":"), allow_nan=False
        )
    except TypeError as error:
        raise UnsupportedError(
            f"save: the model returns a {error}, which a file cannot hold; return tensors in tuples, lists or dicts "
            "with string keys"
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
        Most memory that weights and one run may take, by default 16 GiB; None: no bound. Checked
        from sizes alone, before anything is allocated: here for the shapes that the network was
        converted at, and in every run, for the parts that run in Rust, for the shapes they get.
    max_macs
        Most multiply-accumulates per image, by default 10¹²; None: no bound.

    Returns
    -------
    TernaryNetwork

    Raises
    ------
    FormatError
        Truncated, damaged, of another version, no fatnn-rs file, or a graph that is not
        well-formed.
    LimitError
        It would cost more than ``max_bytes`` or ``max_macs``; the node, the amount and the argument
        are named.
    MemoryError
        There is no memory for its weights.
    OSError
        The file cannot be read.
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
    except InputError as error:  # weights that cannot be packed: here they are the file's
        raise FormatError(f"{os.fspath(path)!r}: {error}; get the file again") from error
