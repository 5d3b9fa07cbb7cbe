"""``convert``: turn a trained model into a network that runs on codes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fatnn_rs.convert.arguments import describe_arguments, flatten_arguments
from fatnn_rs.convert.capture import capture, copies
from fatnn_rs.convert.checks import as_root, check_inputs, check_model, check_reached
from fatnn_rs.convert.engine import FLOAT_LAYERS
from fatnn_rs.convert.graph import Graph
from fatnn_rs.convert.lower import lower
from fatnn_rs.convert.network import TernaryNetwork
from fatnn_rs.convert.nonfinite import origin_of_nan
from fatnn_rs.convert.passes import run_passes
from fatnn_rs.convert.progress import Phases
from fatnn_rs.convert.quantize_values import quantize_values
from fatnn_rs.convert.size_ranges import Wanted, limit_sizes, wanted_sizes
from fatnn_rs.convert.trial import check_batches, check_outputs, check_sizes, check_values
from fatnn_rs.errors import ConfigError, InputError
from fatnn_rs.nn.layers import held_weights
from fatnn_rs.replica import unwrapped
from fatnn_rs.threads import one_thread

__all__ = ["VALUES", "convert", "convert_float"]

#: Types of the values between layers.
VALUES = ("float32", "int8")


@torch.no_grad()
def convert(
    model: nn.Module,
    example_inputs: Any,
    float_layers: str = "torch",
    *,
    dynamic_shapes: Any = None,
    progress: bool = False,
    values: str = "float32",
    calibration: Iterable[Any] | None = None,
) -> TernaryNetwork:
    """Convert a trained model with ternary layers into an inference-only network.

    The model's graph is captured and its weights are packed. Normalisations and activations between
    ternary layers become integer thresholds; others become float epilogues. Operations that the
    engine does not have stay in torch. The network gives the model's codes bit for bit;
    :func:`fatnn_rs.convert.verify` checks it.

    Parameters
    ----------
    model
        Prepared and trained, in eval mode, on the CPU. It is not changed and shares no memory with
        the result. A wrapper (``DistributedDataParallel``, ``torch.compile``, accelerate's,
        ``AveragedModel``) is unwrapped. Its forward must depend only on its arguments, without
        state or random numbers.
    example_inputs
        A tensor, a tuple of the model's positional arguments, or a dict of its arguments by name
        (needed for keyword-only ones). Batch and image sizes are dynamic unless the model needs
        fixed ones. Arguments may be lists, tuples, dicts, named tuples, dataclasses and classes
        that are registered with torch's pytree, of tensors and plain values; calls must have the
        structure of the example. Ranks, channels, dtypes and the values of arguments that are not
        tensors are fixed. Results are bit for bit the model's for inputs in the example's memory
        format (contiguous or channels last). In another format torch's float layers may sum in
        another order.
    float_layers
        What runs float convolutions, linear layers and means. ``"torch"`` gives the eager model's
        bits. ``"rust"`` needs fewer calls, usually one for the whole network, but sums may differ
        in the last place.
    dynamic_shapes
        Limits on sizes, as for ``torch.export``: a tuple with one entry per argument, or a dict by
        argument names. An entry is None or a dict from dimensions to ``torch.export.Dim(name,
        min=..., max=...)``, a number, or None for the example's size. Calls outside of a range
        are refused, and dimensions that share a Dim must have equal sizes. Other dimensions
        are dynamic if the model allows it. The ends of each range are compared with the model.
    progress
        Whether to show phases and their times on standard error.
    values
        Type of the values between layers: ``"float32"``, or ``"int8"`` to round them with
        :func:`fatnn_rs.quantize_values` before the conversion, without training. The network then
        computes what ``net.reference()`` computes, not what ``model`` does.
    calibration
        With ``values="int8"``: more batches for the steps, each in the form of ``example_inputs``.

    Returns
    -------
    TernaryNetwork
        The network; its ``report`` is printable.

    Raises
    ------
    ConversionError
        If the model has no ternary or int8 layer, is in training mode, has activation steps that
        were never initialised, holds NaN or infinity in weights, parameters or statistics, cannot
        be captured, or if the network gives other results than the model on the example.
    InputError
        If ``example_inputs`` hold no tensor, or bring NaN to a quantizer.
    ConfigError
        If ``float_layers`` or ``values`` is none of its names, ``dynamic_shapes`` do not match the
        arguments, or ``calibration`` is given for float values.
    """
    model = unwrapped(model)
    check_model(model)
    if not isinstance(values, str) or values not in VALUES:
        raise ConfigError(f"values must be one of {', '.join(map(repr, VALUES))}, got {values!r}")
    if calibration is not None and values == "float32":
        raise ConfigError('calibration: only values="int8" has steps to calibrate; leave it out')
    if not isinstance(float_layers, str) or float_layers not in FLOAT_LAYERS:
        raise ConfigError(
            f"float_layers must be one of {', '.join(map(repr, FLOAT_LAYERS))}, "
            f"got {float_layers!r}"
        )
    if values == "int8":
        model = quantize_values(model, example_inputs, calibration=calibration)
    net = _convert(model, example_inputs, float_layers, progress, dynamic_shapes)
    net.set_reference(model, keep=values == "int8")
    return net


@torch.no_grad()
def convert_float(model: nn.Module, example_inputs: Any) -> TernaryNetwork:
    """Convert a float model to a network that runs in float32, as a baseline for quantized ones.

    Parameters
    ----------
    model
        In eval mode, on the CPU. It is not changed.
    example_inputs
        As for :func:`convert`.

    Returns
    -------
    TernaryNetwork
        The network, with its float layers in Rust.

    Raises
    ------
    ConversionError, InputError
        As for :func:`convert`.
    """
    model = unwrapped(model)
    check_model(model, quantized=False)
    return _convert(model, example_inputs, "rust")


def _convert(
    model: nn.Module,
    example_inputs: Any,
    float_layers: str,
    progress: bool = False,
    dynamic_shapes: Any = None,
) -> TernaryNetwork:
    arguments, named = check_inputs("example_inputs", example_inputs, model)
    root, arguments, nested = flatten_arguments(as_root(model), arguments, named)
    sizes: Wanted = {}
    if dynamic_shapes is not None:
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        sizes = wanted_sizes(dynamic_shapes, nested or describe_arguments(root, arguments), tensors)
    # Tensors made in inference mode do not count writes into them.
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
                try:
                    net, results = _network(graph, "torch", arguments)
                except InputError as error:
                    if not (origin := origin_of_nan(root, arguments)):
                        raise
                    raise InputError(f"{error}; {origin}") from error
            with phases.phase("compare with the model"):
                check_outputs(results, captured.expected)
                check_values(root, net, arguments)
                check_batches(root, net, arguments)
                check_sizes(root, net, arguments)
                if sizes:
                    nested = limit_sizes(net, root, arguments, sizes, nested)
        if float_layers != "torch":
            del net  # free its weights before they are packed again
            with phases.phase("float layers in Rust"):
                net, _ = _network(graph, float_layers, arguments)
    net.keep_buffers(True)
    if nested is not None:
        net.take_arguments(nested)
    return net


def _network(
    graph: Graph, float_layers: str, arguments: tuple[Any, ...]
) -> tuple[TernaryNetwork, Any]:
    """Return a network that keeps no buffers, and its results for the example."""
    with one_thread():
        net = TernaryNetwork(graph, float_layers)
    net.keep_buffers(False)
    results = net.dry_run(copies(arguments))
    net.keep_buffers(False)  # the dry run may have made other segments
    return net, results
