"""Rows of ``summary`` for a model: its layers, and what ``prepare`` would make of them."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from fatnn_rs import _core
from fatnn_rs.config import TernaryConfig, matches
from fatnn_rs.contained import named_modules
from fatnn_rs.convert.capture import copies, named_copies
from fatnn_rs.convert.summary import WEIGHT_BITS, SummaryRow, bits, kind_of_levels
from fatnn_rs.errors import ConfigError, FatnnError, InputError
from fatnn_rs.nn import QuantizedLayer, TernaryLayer
from fatnn_rs.nn.layers import TERNARY_QAT_MAPPING
from fatnn_rs.nn.notes import notes_of
from fatnn_rs.nn.projections import INPUT_PROJECTIONS, is_transposed_linear
from fatnn_rs.nn.subclass import weight_shape
from fatnn_rs.swap.candidates import WITHOUT_QUANTIZED, find_candidates
from fatnn_rs.swap.choose import choose
from fatnn_rs.swap.execution_order import find_execution_order, run_float

__all__ = ["model_rows"]

#: Name → module and ``""``. For a float projection inside ``nn.MultiheadAttention``: the attention
#: and the projection's name.
Layers = dict[str, tuple[nn.Module, str]]


#: An example as the user gave it, and its arguments by position and by keyword.
Example = tuple[Any, tuple[Any, ...], dict[str, Any]]


def model_rows(
    model: nn.Module, config: TernaryConfig | None, example: Example | None = None
) -> list[SummaryRow]:
    """Describe every layer of a model. Shapes are known if there is an example to run it with.

    Raises
    ------
    InputError
        If the model fails on the example.
    """
    layers = _layers(model)
    shapes = {} if example is None else _shapes(model, layers, *example[1:])
    prepared = any(isinstance(module, QuantizedLayer) for module, _ in layers.values())
    notes = notes_of(model) if prepared else _notes_of_plan(model, config, example)
    rows = []
    # Layers in the order of their first run, then those that did not run.
    for name in [*shapes, *(name for name in layers if name not in shapes)]:
        row = _row(name, *layers[name], shapes.get(name, ()), notes.get(name, ""))
        rows.append(row)
    return rows + [_other_row(model, name, notes[name]) for name in notes if name not in layers]


def _layers(model: nn.Module) -> Layers:
    found: Layers = {}
    for name, module in named_modules(model):
        kinds = (*TERNARY_QAT_MAPPING, *WITHOUT_QUANTIZED, QuantizedLayer)
        if isinstance(module, kinds) or is_transposed_linear(module):
            found[name] = (module, "")
        elif isinstance(module, nn.MultiheadAttention):
            for projection in INPUT_PROJECTIONS:
                if projection not in module._modules:
                    found[f"{name}.{projection}" if name else projection] = (module, projection)
    return found


def _shapes(
    model: nn.Module, layers: Layers, arguments: tuple[Any, ...], named: dict[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Run the model in eval mode; return the shapes of layers' results in execution order."""
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []

    def hook_for(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor):
                shapes.setdefault(name, tuple(first.shape))
                if name.endswith(INPUT_PROJECTIONS[-1]) and isinstance(
                    module, nn.MultiheadAttention
                ):
                    # A fused attention calls none of its projections.
                    shapes.setdefault(
                        f"{name.removesuffix(INPUT_PROJECTIONS[-1])}out_proj", tuple(first.shape)
                    )

        return hook

    training = {module: module.training for _, module in named_modules(model)}
    try:
        for name, (module, _) in layers.items():
            handles.append(module.register_forward_hook(hook_for(name)))
        for module in training:
            module.eval()
        try:
            model(*copies(arguments), **named_copies(named))
        except FatnnError:
            raise
        except Exception as error:  # the model may raise anything
            raise InputError(
                f"summary: {type(model).__name__} fails on the example inputs "
                f"({type(error).__name__}: {error}); give inputs that the model accepts"
            ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return shapes


def _notes_of_plan(
    model: nn.Module, config: TernaryConfig | None, example: Example | None
) -> dict[str, str]:
    """Return a note for every layer of a float model: what ``prepare`` would make of it."""
    given = TernaryConfig() if config is None else config
    try:
        candidates = find_candidates(model, given)
        run = None if example is None else run_float(model, candidates.found, example[0])
        order = find_execution_order(model, candidates.found, run)
        plan = choose(given, candidates.found, candidates.left_float, order)
    except ConfigError:
        if config is not None:
            raise
        return {}  # prepare would replace no layer
    notes = {name: f"stays float: {why}" for name, why in candidates.left_float.items()}
    notes |= {name: f"stays float: {why}" for name, why in plan.asked.items()}
    for name, kind in plan.chosen.items():
        options = given.options_for(name)
        ternary = f"becomes ternary: {options.weight} weights, {options.act} activations"
        notes[name] = "becomes int8" if kind.int8 else ternary
    for name in notes:
        if any(matches(pattern, name) for pattern in given.skip):
            notes[name] = "stays float: skip"
    return notes


def _row(name: str, module: Any, projection: str, shape: tuple[int, ...], note: str) -> SummaryRow:
    kind, act_bits, kernel = "float32", 32, "torch (float32)"
    if isinstance(module, QuantizedLayer):
        quantizer = module.act_quant
        kernel = "torch (float32, quantizers simulated)"
        kind, act_bits = "int8", 8
        if quantizer.saw_only_zeros:
            note = note or "has seen only zeros: its activation steps are a default"
        elif not quantizer.initialized:
            note = note or "its activation steps are not initialised yet"
    if isinstance(module, TernaryLayer):
        kind = kind_of_levels(len(module.weight_quant.levels))
        act_bits = bits(len(module.act_quant.levels or module.act_quant.half_levels))
    weight_shape = _weight_shape(module, projection)
    weights = math.prod(weight_shape)
    others = sum(p.numel() for key, p in module.named_parameters(recurse=False) if key != "weight")
    if projection:
        others = 0
    return SummaryRow(
        name=name,
        kind=type(module).__name__ + (f".{projection}" if projection else ""),
        shape=shape,
        weight_bits=WEIGHT_BITS[kind],
        act_bits=act_bits,
        macs=_macs(module, shape, weight_shape) if shape and weights else 0,
        bytes=_core.file_bytes(kind, weights) + 4 * others,
        kernel=kernel,
        weights=kind,
        note=note,
    )


def _macs(module: Any, shape: tuple[int, ...], weight: tuple[int, ...]) -> int:
    """Return the multiply-accumulates of a layer for a result of this shape."""
    if not isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return math.prod(shape) * math.prod(weight[1:])
    axes = len(module.kernel_size)
    padded = (
        size + 2 * padding - dilation * (kernel - 1) - 1 - more
        for size, padding, dilation, kernel, more in zip(
            shape[-axes:],
            cast("tuple[int, ...]", module.padding),
            module.dilation,
            module.kernel_size,
            module.output_padding,
            strict=True,
        )
    )
    pixels = (size // stride + 1 for size, stride in zip(padded, module.stride, strict=True))
    return math.prod(shape[: -axes - 1]) * math.prod(pixels) * math.prod(weight)


def _other_row(model: nn.Module, name: str, note: str) -> SummaryRow:
    """Describe a layer of no known class, such as one inside a scripted module."""
    module: Any = dict(named_modules(model)).get(name)
    parameters = () if module is None else module.parameters()
    return SummaryRow(
        name=name,
        kind=str(getattr(module, "original_name", type(module).__name__)),
        shape=(),
        weight_bits=32,
        act_bits=32,
        macs=0,
        bytes=4 * sum(parameter.numel() for parameter in parameters),
        kernel="torch (float32)",
        weights="float32",
        note=note,
    )


def _weight_shape(module: Any, projection: str) -> tuple[int, ...]:
    """Return the shape of a layer's weight, [out, ...]; (0,) if it has none."""
    if projection:
        packed = module.in_proj_weight
        own = (
            packed[: module.embed_dim]
            if packed is not None
            else getattr(module, f"{projection}_weight")
        )
        return tuple(own.shape)
    if isinstance(module, QuantizedLayer):
        with torch.no_grad():
            return tuple(module.latent_weight().shape)
    if is_transposed_linear(module):
        return tuple(module.weight.t().shape)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
        return tuple(weight_shape(module))  # without computing a parametrized weight
    weight = module._parameters.get("weight")
    return (0,) if weight is None or nn.parameter.is_lazy(weight) else tuple(weight.shape)
