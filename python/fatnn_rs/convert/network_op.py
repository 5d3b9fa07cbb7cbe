"""A whole converted network as one operator of torch, for ``torch.compile`` and ``torch.export``.

``torch.ops.fatnn_rs.network(file, inputs, key)`` runs the network that is registered under ``key``.
A compiled model holds its network in memory, so ``file`` is None. An exported program has to hold
it: ``file`` is then the network's file as a uint8 tensor, and a new process loads it once.

Tracing the nodes one by one would let the compiler fuse and reorder float operations. As one
operator, the network gives the same bits as a plain call, at the same speed.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fatnn_rs.convert.graph import Graph, refs
from fatnn_rs.convert.shapes import run_time_shapes
from fatnn_rs.convert.structure import fill
from fatnn_rs.errors import InputError
from fatnn_rs.ops.definitions import LIBRARY

if TYPE_CHECKING:
    from fatnn_rs.convert.network import TernaryNetwork

__all__ = ["ExportableNetwork", "file_bytes", "network_of_bytes", "output_names", "register"]

LIBRARY.define("network(Tensor? file, Tensor[] inputs, str key) -> Tensor[]")

#: Networks in memory by their key.
_NETWORKS: weakref.WeakValueDictionary[str, TernaryNetwork] = weakref.WeakValueDictionary()

#: Networks of exported programs from another process: loaded once, kept for the process's life.
_LOADED: dict[str, TernaryNetwork] = {}


def register(network: TernaryNetwork, key: str) -> None:
    """Let the operator find a network by its key while the network lives."""
    _NETWORKS[key] = network


def output_names(graph: Graph) -> list[str]:
    """Return the names of the values that a graph returns, each once."""
    return list(dict.fromkeys(ref.name for ref in refs(graph.outputs)))


def file_bytes(network: TernaryNetwork) -> Tensor:
    """Return what :func:`fatnn_rs.save` writes, as a uint8 tensor.

    Raises
    ------
    UnsupportedError
        If nodes run the model's own Python, which a file cannot hold.
    """
    from fatnn_rs.convert.file import save

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "network")
        save(network, path)
        return torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.uint8)


def network_of_bytes(
    file: Tensor, float_layers: str, limits: tuple[int | None, int | None]
) -> TernaryNetwork:
    """Load a network from the bytes that :func:`file_bytes` made.

    Raises
    ------
    FormatError
        If the bytes are not such a file.
    """
    from fatnn_rs.convert.file import load

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "network")
        Path(path).write_bytes(file.numpy().tobytes())
        return load(path, float_layers, max_bytes=limits[0], max_macs=limits[1])


def _network_of(file: Tensor | None, key: str) -> TernaryNetwork:
    """Return the network of a key; load it if this process does not have it."""
    network = _NETWORKS.get(key) or _LOADED.get(key)
    if network is None:
        if file is None:
            raise InputError(
                "fatnn_rs::network: the compiled network is gone; keep a reference to the network, "
                "or export net.exportable(), which holds it"
            )
        network = network_of_bytes(file, key.partition(":")[0], (None, None))
        _LOADED[key] = network
    return network


def _run(file: Tensor | None, inputs: Sequence[Tensor], key: str) -> list[Tensor]:
    """Run a network; the results are contiguous and share no memory with anything."""
    network = _network_of(file, key)
    network.check(inputs)
    taken = {x.untyped_storage().data_ptr() for x in inputs}
    results = []
    for value in network.run_tensors(list(inputs)):
        result = value.contiguous()
        if result.untyped_storage().data_ptr() in taken:
            result = result.clone()
        taken.add(result.untyped_storage().data_ptr())
        results.append(result)
    return results


def _fake(file: Tensor | None, inputs: Sequence[Tensor], key: str) -> list[Tensor]:
    """Return empty results of the right shapes and dtypes.

    If all sizes are fixed, the network runs once. Otherwise the core's shape rules say which output
    sizes equal a size of the inputs; other dynamic sizes (such as half of one) get new symbols.
    """
    network = _NETWORKS.get(key) or _LOADED.get(key)
    if network is None:  # a program from another process; its file has no data while it is traced
        raise InputError(
            "fatnn_rs::network: this process has not run the exported network yet, so its shapes "
            "are unknown; run the program once before tracing it again"
        )
    network.check(inputs)
    shapes = [tuple(x.shape) for x in inputs]
    if all(type(size) is int for shape in shapes for size in shape):
        found = _metadata_of_results(network, shapes)
        return [inputs[0].new_empty(shape, dtype=dtype) for shape, dtype in found]
    nodes = [node for node in network.graph.nodes if node.op == "input"]
    dtypes = [dtype for _, dtype in _metadata_of_results(network, [node.shape for node in nodes])]
    symbolic = run_time_shapes(network.graph)
    known: dict[int, Any] = {}
    for node, shape in zip(nodes, shapes, strict=True):
        known.update(zip(symbolic[node.name], shape, strict=True))
    made = []
    for name, dtype in zip(output_names(network.graph), dtypes, strict=True):
        sizes = []
        for size in symbolic[name]:
            if size < 0 and size not in known:
                known[size] = torch.library.get_ctx().new_dynamic_size()
            sizes.append(known[size] if size < 0 else size)
        made.append(inputs[0].new_empty(sizes, dtype=dtype))
    return made


def _metadata_of_results(
    network: TernaryNetwork, shapes: Sequence[tuple[int, ...]]
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Return the shapes and dtypes of the results for inputs of these shapes, from one run."""
    nodes = [node for node in network.graph.nodes if node.op == "input"]
    with unset_fake_temporarily(), torch.no_grad():
        generator = torch.Generator("cpu").manual_seed(0)
        inputs = []
        for node, shape in zip(nodes, shapes, strict=True):
            values = torch.rand(shape, generator=generator, device="cpu")
            inputs.append(values.to(getattr(torch, str(node.dtype))))
        return [(tuple(value.shape), value.dtype) for value in network.run_tensors(inputs)]


# A pickled network is a call of this function: see ``TernaryNetwork.__reduce_ex__``.
torch.serialization.add_safe_globals([network_of_bytes])

LIBRARY.impl("network", _run, "CPU")
torch.library.register_fake("fatnn_rs::network", _fake, lib=LIBRARY)


class ExportableNetwork(nn.Module):
    """A converted network that ``torch.export`` takes: made by ``net.exportable()``.

    The program holds the network's file as the buffer ``file``. Python that runs the program has to
    import ``fatnn_rs``, which registers the operator.
    """

    file: Tensor

    def __init__(self, network: TernaryNetwork) -> None:
        super().__init__()
        self.register_buffer("file", file_bytes(network))
        self._network = (network,)  # in a tuple, so that it is no submodule
        register(network, f"{network.float_layers}:{network.key}")
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network; as :meth:`TernaryNetwork.forward`."""
        return self._network[0].run_as_op(args, kwargs, self.file)


def fill_outputs(graph: Graph, results: Sequence[Tensor]) -> Any:
    """Build what a graph returns from its values in the order of :func:`output_names`."""
    values = dict(zip(output_names(graph), results, strict=True))
    return fill(
        graph.outputs, lambda leaf: values[leaf.name] if hasattr(leaf, "name") else leaf, build=True
    )
