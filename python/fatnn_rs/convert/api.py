"""``convert``: from a trained model to a network that runs on codes."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from fatnn_rs.convert.capture import capture, copies
from fatnn_rs.convert.checks import as_root, check_inputs, check_model, check_reached
from fatnn_rs.convert.engine import FLOAT_LAYERS
from fatnn_rs.convert.graph import Graph
from fatnn_rs.convert.lower import lower
from fatnn_rs.convert.network import TernaryNetwork
from fatnn_rs.convert.passes import run_passes
from fatnn_rs.convert.progress import Phases
from fatnn_rs.convert.trial import check_batches, check_outputs, check_sizes, check_values
from fatnn_rs.errors import ConfigError
from fatnn_rs.nn.layers import held_weights
from fatnn_rs.replica import unwrapped
from fatnn_rs.threads import one_thread

__all__ = ["convert", "convert_float"]


@torch.no_grad()
def convert(
    model: nn.Module, example_inputs: Any, float_layers: str = "torch", *, progress: bool = False
) -> TernaryNetwork:
    """Convert a trained model with ternary layers into an inference-only network.

    The graph is captured; batch normalisations and activations between ternary layers become
    integer thresholds, others a float epilogue; weights are packed. What cannot be captured as a
    known layer, or is not ternary, stays in torch between the fused parts. The network gives the
    model's codes bit for bit: :func:`fatnn_rs.convert.verify` shows it.

    Parameters
    ----------
    model
        In eval mode, on the CPU, prepared and trained; a wrapper (``DistributedDataParallel``,
        ``torch.compile``, accelerate's, ``AveragedModel``) stands for what it wraps. It is not
        changed, and shares nothing with the result. Its forward must be a function of its
        arguments, without state or chance.
    example_inputs
        A tensor, or a tuple of the model's positional arguments. Batch and image sizes stay free
        where the model leaves them free; ranks, channels and dtypes are fixed, and so is the value
        of what is no tensor. Results are the model's bit for bit for inputs in the example's memory
        format (contiguous or channels last): in another one torch's own float layers may sum in
        another order, in the network as in the model.
    float_layers
        Who runs float convolutions, linear layers and means: ``"torch"`` gives the eager model's
        bits; ``"rust"`` saves calls (usually the whole network is one), and their sums may differ
        in the last place.

    progress
        Whether to show phases and their times on standard error.

    Returns
    -------
    TernaryNetwork
        With a printable ``report``.

    Raises
    ------
    ConversionError
        No ternary layer in the model; training mode; steps never initialised; NaN or infinity in
        weights, parameters or statistics, or in what a layer makes of them; a model that can be
        captured in neither way, or whose network gives other results on the example.
    InputError
        ``example_inputs`` hold no tensor, or NaN reaches a quantizer from them.
    ConfigError
        ``float_layers`` is neither.
    """
    model = unwrapped(model)
    check_model(model)
    if not isinstance(float_layers, str) or float_layers not in FLOAT_LAYERS:
        raise ConfigError(
            f"float_layers must be one of {', '.join(map(repr, FLOAT_LAYERS))}, got {float_layers!r}"
        )
    return _convert(model, example_inputs, float_layers, progress)


@torch.no_grad()
def convert_float(model: nn.Module, example_inputs: Any) -> TernaryNetwork:
    """Convert a float model to a network that the engine runs in float32: what quantized ones are compared with.

    Parameters
    ----------
    model
        In eval mode, on the CPU. It is not changed.
    example_inputs
        As for :func:`convert`.

    Raises
    ------
    ConversionError, InputError
        As :func:`convert`.
    """
    model = unwrapped(model)
    check_model(model, quantized=False)
    return _convert(model, example_inputs, "rust")


def _convert(
    model: nn.Module, example_inputs: Any, float_layers: str, progress: bool = False
) -> TernaryNetwork:
    arguments = check_inputs("example_inputs", example_inputs)
    root = as_root(model)
    # Tensors made in inference mode do not count what is written into them.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        Phases(progress) as phases,
    ):
        with contextlib.ExitStack() as held:
            with phases.phase("quantize weights"):
                held.enter_context(held_weights(root))
            with phases.phase("capture"):
                captured = capture(root, arguments)
                captured.notes += check_reached(captured.graph, root)
            with phases.phase("lower"), one_thread():
                graph = lower(captured)
            with phases.phase("thresholds"), one_thread():
                run_passes(graph)
            with phases.phase("pack weights"):
                net, results = _network(graph, "torch", arguments)
            with phases.phase("compare with the model"):
                check_outputs(results, captured.expected)
                check_values(root, net, arguments)
                check_batches(root, net, arguments)
                check_sizes(root, net, arguments)
        if float_layers != "torch":
            del net  # before its weights are packed once more
            with phases.phase("float layers in Rust"):
                net, _ = _network(graph, float_layers, arguments)
    net.keep_buffers(True)
    return net


def _network(
    graph: Graph, float_layers: str, arguments: tuple[Any, ...]
) -> tuple[TernaryNetwork, Any]:
    """Return a network that keeps no buffers, and what it makes of the example."""
    with one_thread():
        net = TernaryNetwork(graph, float_layers)
    net.keep_buffers(False)
    results = net.dry_run(copies(arguments))
    net.keep_buffers(False)  # segments may be others now
    return net, results
