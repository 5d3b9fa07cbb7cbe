"""Make quantized layers, and replace the float layers by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fatnn_rs.config import LayerOptions, TernaryConfig
from fatnn_rs.contained import named_modules, replace
from fatnn_rs.errors import ConfigError
from fatnn_rs.nn.attention import attention_class
from fatnn_rs.nn.base import QuantizedLayer
from fatnn_rs.nn.int8 import INT8_QAT_MAPPING
from fatnn_rs.nn.layers import TERNARY_QAT_MAPPING
from fatnn_rs.nn.projections import (
    Int8Projection,
    TernaryProjection,
    is_transposed_linear,
    transposed_linear,
)
from fatnn_rs.nn.readers import expected_readers, reader_class
from fatnn_rs.nn.watch import StepsWatch
from fatnn_rs.swap.candidates import Candidate, Candidates
from fatnn_rs.swap.choose import Kind, Plan
from fatnn_rs.swap.execution_order import FloatRun

__all__ = ["replace_layers"]


def replace_layers(
    model: nn.Module,
    config: TernaryConfig,
    candidates: Candidates,
    plan: Plan,
    run: FloatRun | None,
) -> list[Callable[[], None]]:
    """Swap the chosen layers.

    Returns
    -------
    list of callable
        Call them in order to undo the swap.

    Raises
    ------
    ConfigError
        If a layer cannot be quantized; the message names it.
    """
    watch = StepsWatch()
    layers: dict[nn.Module, QuantizedLayer] = {}
    projections: list[tuple[nn.Module, str, QuantizedLayer]] = []
    for name, kind in plan.chosen.items():
        candidate = candidates.found[name]
        try:
            layer = _quantized(candidate, config.options_for(name), kind)
        except ConfigError as error:
            if repr(name) in str(error):
                raise
            raise ConfigError(f"layer {name!r}: {error}") from error
        layer.set_name(name)
        layer._watch = watch
        if candidate.projection:
            projections.append((candidate.module, candidate.projection, layer))
        else:
            layers[candidate.module] = layer
    modules = {module: name for name, module in named_modules(model)}
    readers = _readers(model, layers, candidates, run)
    undo = replace(model, layers)
    swapped: set[nn.Module] = set(layers.values())
    attentions = candidates.attentions.values()
    out_projections = {one for one in attentions if one.out_proj in swapped}
    for attention in {*(module for module, _, _ in projections), *out_projections}:
        attention.__class__ = attention_class(type(attention))
    for module, part, layer in projections:
        module._modules[part] = layer
    for module, read in readers.items():
        if module in modules and module not in layers:
            module.__class__ = reader_class(type(module))
            vars(module)["_read"] = tuple(layers[child] for child in read)
    return undo


def _quantized(candidate: Candidate, options: LayerOptions, kind: Kind) -> QuantizedLayer:
    module = candidate.module
    ternary: dict[str, Any] = {
        "quantizer": options.weight,
        "act": options.act,
        "act_quantizer": options.act_quantizer,
        "per_channel": options.per_channel,
        "act_range": options.act_range,
        "scale": kind.scale if options.scale is None else options.scale,
    }
    if candidate.projection:
        if kind.int8:
            return Int8Projection(module, candidate.projection)
        return TernaryProjection(module, candidate.projection, **ternary)
    if is_transposed_linear(module):
        return transposed_linear(module, kind.int8, **({} if kind.int8 else ternary))
    mapping = INT8_QAT_MAPPING if kind.int8 else TERNARY_QAT_MAPPING
    options_of_kind = {} if kind.int8 else ternary
    made: QuantizedLayer = mapping[candidate.torch_class].from_float(module, **options_of_kind)
    return made


def _readers(
    model: nn.Module,
    layers: dict[nn.Module, QuantizedLayer],
    candidates: Candidates,
    run: FloatRun | None,
) -> dict[nn.Module, list[nn.Module]]:
    """Find modules that multiply by layers' weights, from a run or from the modules' code."""
    if run is None:
        return expected_readers(model, layers)
    by_name = dict(named_modules(model))
    made: dict[nn.Module, list[nn.Module]] = {}
    for name, readers in run.read_by.items():
        module = candidates.found[name].module
        for reader in readers if module in layers else ():
            made.setdefault(by_name[reader], []).append(module)
    return made
