"""Input of the runtimes: the float model, its inputs, and ONNX files made at first use."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fatnn_rs.errors import UnsupportedError
from fatnn_rs.machine import Machine

__all__ = ["BenchTask"]


def _int8_sums_saturate() -> bool:
    """Whether int8 products are summed in 16 bits here: AVX2 or AVX-512 without VNNI."""
    flags = Machine.current().flags
    return "avx2" in flags and not {"avx_vnni", "avx512_vnni"} & set(flags)


@dataclass(frozen=True)
class BenchTask:
    """What a runtime is built from.

    Attributes
    ----------
    model
        Float model in eval mode, on the CPU; runtimes do not change it.
    inputs
        Its positional arguments.
    threads
        Number of threads.
    folder
        Directory for files; removed after the measurement.
    calibration
        More inputs, of the same shapes, for the ranges of int8 activations.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    threads: int
    folder: Path
    calibration: tuple[tuple[Any, ...], ...] = ()
    _failures: dict[str, Exception] = field(default_factory=dict, repr=False)

    @property
    def onnx(self) -> Path:
        """The model as ONNX, with fixed input shapes, which runtimes optimise best.

        Written by ``torch.onnx.export`` (based on ``torch.export``), which folds BatchNorm into
        convolutions.
        """
        return self._cached("float.onnx", self._export)

    @property
    def qdq(self) -> Path:
        """The model quantized by onnxruntime: static QDQ, uint8 activations, int8 weights.

        Weights have a scale per output channel. Ranges are the minimum and maximum for the inputs
        and the calibration inputs. On x86 processors without VNNI, weights keep seven bits: there,
        onnxruntime's 16-bit sums of two products would saturate, as its documentation says.
        """
        return self._cached("int8.onnx", self._quantize)

    def _cached(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return a file, made at first use; an error at first use is raised again."""
        path = self.folder / name
        if name in self._failures:
            raise self._failures[name]
        if not path.exists():
            try:
                with _ignore_deprecations(), torch.no_grad():
                    make(path)
            except Exception as error:
                self._failures[name] = error
                raise
        return path

    def _export(self, path: Path) -> None:
        torch.onnx.export(
            self.model,
            self.inputs,
            str(path),
            dynamo=True,
            verbose=False,
            external_data=False,
            optimize=True,
        )

    def _quantize(self, path: Path) -> None:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = self.folder / "prepared.onnx"
        # Shapes are fixed, so symbolic shape inference is not needed.
        quant_pre_process(str(self.onnx), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(path),
            _Calibration(
                self._feed(_input_names(prepared), given)
                for given in (self.inputs, *self.calibration)
            ),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=_int8_sums_saturate(),
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )

    def feed(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return input name → array.

        Raises
        ------
        UnsupportedError
            The ONNX file and the model have different numbers of inputs.
        """
        return self._feed(names, self.inputs)

    def _feed(self, names: Sequence[str], inputs: tuple[Any, ...]) -> dict[str, np.ndarray]:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if len(tensors) != len(names):
            raise UnsupportedError(
                f"the exported model takes {len(names)} inputs ({', '.join(names)}), the model "
                f"{len(tensors)} tensors"
            )
        return {
            name: np.ascontiguousarray(value.numpy())
            for name, value in zip(names, tensors, strict=True)
        }


class _Calibration:
    """Calibration data for onnxruntime."""

    def __init__(self, batches: Iterator[dict[str, np.ndarray]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def _input_names(path: Path) -> list[str]:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {value.name for value in graph.initializer}
    return [value.name for value in graph.input if value.name not in constants]


@contextmanager
def _ignore_deprecations() -> Iterator[None]:
    """Ignore deprecation warnings of the exporter and the quantizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
