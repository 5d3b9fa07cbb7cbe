"""``explain``: report what ``prepare`` and ``convert`` would do with a model, before training."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fatnn_rs.config import TernaryConfig
from fatnn_rs.convert.api import convert
from fatnn_rs.convert.capture import copies
from fatnn_rs.convert.checks import as_root, check_inputs, quantized_layers
from fatnn_rs.convert.flops import count_macs
from fatnn_rs.errors import ConfigError, FatnnError, PrepareWarning
from fatnn_rs.nn import Int8Layer, QuantizedLayer, TernaryLayer
from fatnn_rs.prepare import prepare
from fatnn_rs.replica import replica_with_parameters, unwrapped
from fatnn_rs.report import Report, ReportRow, packed_weight_bytes

__all__ = ["explain"]


@torch.inference_mode(False)
@torch.no_grad()
def explain(
    model: nn.Module,
    example_inputs: Any,
    config: TernaryConfig | None = None,
    float_layers: str = "torch",
) -> Report:
    """Report what :func:`fatnn_rs.prepare` and :func:`fatnn_rs.convert` would do with a model.

    No training is needed: the model's structure decides which layers become ternary or int8, what
    stays in torch and why, and what can be saved. Only codes and thresholds change with training.
    Everything runs on a copy. The model, its hooks and the random number generators of torch, NumPy
    and Python are not changed.

    Parameters
    ----------
    model
        A float or prepared model on the CPU, in training or eval mode.
    example_inputs
        A tensor, or a tuple of the model's positional arguments.
    config
        As for :func:`fatnn_rs.prepare`; ignored for prepared models.
    float_layers
        As for :func:`fatnn_rs.convert`.

    Returns
    -------
    Report
        The ``report`` of the converted network. If the model cannot be converted, ``refused`` says
        why, and the rows describe the layers that run on the example.

    Raises
    ------
    ConfigError
        If ``model`` is not a module, or ``config`` is not a :class:`fatnn_rs.TernaryConfig`.
    InputError
        If ``example_inputs`` hold no tensor.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"explain takes a torch.nn.Module, got {type(model).__name__}")
    if config is not None and not isinstance(config, TernaryConfig):
        raise ConfigError(f"config must be a TernaryConfig, got {type(config).__name__}")
    arguments, named = check_inputs("example_inputs", example_inputs, unwrapped(model))
    given = copies((example_inputs,))[0]
    notes: list[str] = []
    with _preserve_rng_state():
        copied = replica_with_parameters(unwrapped(model)).eval()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if not quantized_layers(copied):
                    copied = prepare(copied, config, given)
            notes = [str(w.message) for w in caught if issubclass(w.category, PrepareWarning)]
            report = convert(copied, given, float_layers).report
        except FatnnError as error:
            report = _report_of_refused(copied, copies(arguments), named, str(error))
    return report.with_notes(notes)


@contextmanager
def _preserve_rng_state() -> Iterator[None]:
    """Restore the state of all random number generators at exit."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _report_of_refused(
    model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], why: str
) -> Report:
    """Report on a model that cannot be converted: the layers that run on the example."""
    root = as_root(model)
    rows: list[ReportRow] = []
    handles = []

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            rows.append(_row(name, module, output))

        return hook

    for name, module in root.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            handles.append(module.register_forward_hook(hook_for(name)))
    notes = []
    try:
        total = count_macs(lambda: root(*arguments, **named))
        if rest := max(0, total - sum(row.macs for row in rows)):
            note = "products outside convolutions and linear layers"
            rows.append(ReportRow("others", "others", "torch", (), rest, 0, note))
    except Exception as error:  # any error of the model
        notes.append(f"the model fails on the example inputs ({type(error).__name__}: {error})")
    finally:
        for handle in handles:
            handle.remove()
    return Report(tuple(rows), tuple(notes), refused=why)


def _row(name: str, module: Any, output: Any) -> ReportRow:
    weight, shape = module.weight, tuple(output.shape) if isinstance(output, Tensor) else ()
    count = output.numel() if isinstance(output, Tensor) else 0
    op, kind = "conv" if weight.dim() > 2 else "linear", ""
    if isinstance(module, TernaryLayer):
        op, kind = "conv_float", "ternary"
    elif isinstance(module, Int8Layer):
        op, kind = "linear_int8" if weight.dim() == 2 else f"conv{weight.dim() - 2}d_int8", "int8"
    return ReportRow(
        name=name,
        op=op,
        runs="torch",
        shape=shape,
        macs=count * weight[0].numel(),
        packed_bytes=packed_weight_bytes(op, tuple(weight.shape), kind),
        note="" if isinstance(module, QuantizedLayer) else "stays float",
    )
