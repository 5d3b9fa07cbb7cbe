"""What a peer is built from: the float model, its inputs, and the ONNX files made of them on first use."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fatnn_rs.errors import UnsupportedError

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """One comparison.

    Attributes
    ----------
    model
        Float, in eval mode, on the CPU; peers do not change it.
    inputs
        Its positional arguments.
    threads
        For every peer.
    folder
        For files; removed after the measurement.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    threads: int
    folder: Path

    @cached_property
    def onnx(self) -> Path:
        """The model as ONNX with these inputs' shapes fixed, which is what runtimes optimise best.

        Written by ``torch.onnx.export`` (the exporter based on ``torch.export``), which folds BatchNorm into
        convolutions.
        """
        path = self.folder / "float.onnx"
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                self.model, self.inputs, str(path), dynamo=True, verbose=False, external_data=False, optimize=True
            )
        return path

    @cached_property
    def qdq(self) -> Path:
        """The same statically quantized by onnxruntime: QDQ, uint8 activations, int8 weights per output channel.

        Ranges are the least and greatest values for these inputs.
        """
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared, path = self.folder / "prepared.onnx", self.folder / "int8.onnx"
        with _quiet():
            quant_pre_process(str(self.onnx), str(prepared), skip_symbolic_shape=True)  # shapes are fixed
            quantization.quantize_static(
                str(prepared),
                str(path),
                _Calibration(self.feed(_input_names(prepared))),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
        return path

    def feed(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Input name → array.

        Raises
        ------
        UnsupportedError
            Where the ONNX file has another number of inputs than the model has tensors.
        """
        tensors = [value for value in self.inputs if isinstance(value, Tensor)]
        if len(tensors) != len(names):
            raise UnsupportedError(
                f"the exported model takes {len(names)} inputs ({', '.join(names)}), the model {len(tensors)} tensors"
            )
        return {name: np.ascontiguousarray(value.numpy()) for name, value in zip(names, tensors, strict=True)}


class _Calibration:
    """Gives one batch; onnxruntime asks for nothing but this method."""

    def __init__(self, feed: dict[str, np.ndarray]) -> None:
        self._batches = iter([feed])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def _input_names(path: Path) -> list[str]:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {value.name for value in graph.initializer}
    return [value.name for value in graph.input if value.name not in constants]


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore deprecations inside the exporter and the quantizer: the caller cannot act on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
