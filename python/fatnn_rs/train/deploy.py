"""Convert a trained model, compare it with the result, and measure the result's accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import fatnn_rs
from fatnn_rs.errors import ConversionError, UnsupportedError
from fatnn_rs.nn import TernaryLayer
from fatnn_rs.nn.layers import held_weights
from fatnn_rs.train.data import Data

__all__ = ["deploy"]

_BATCH = 250


def deploy(
    model: nn.Module, data: Data, path: Path, verify_images: int | None = None
) -> dict[str, Any]:
    """Convert, save and load a model, and compare it with the eager model on the test images.

    Parameters
    ----------
    model
        A trained model in eval mode, on the CPU.
    data
        Data set whose test images are used.
    path
        File to write the converted network to.
    verify_images
        Number of images on which every code is compared; None: all. Predicted classes are always
        compared on all images.

    Returns
    -------
    dict
        ``rust_accuracy``, ``eager_accuracy``, ``codes_total``, ``codes_different`` and
        ``file_bytes``. If parts of the network run Python code, which a file cannot hold,
        ``not_saved`` with the reason replaces ``file_bytes``. If ``convert`` refuses the quantizer
        family, the dict holds only ``refused``, with the reason.

    Raises
    ------
    ConversionError
        A code, or the predicted class of an image, differs between PyTorch and Rust.
    """
    reasons = {
        layer.weight_quant.refused for layer in model.modules() if isinstance(layer, TernaryLayer)
    }
    if reasons - {""}:
        return {"refused": max(reasons)}
    example = next(iter(data.test_batches(2)))[0]
    net = fatnn_rs.convert(model, example)
    kept: dict[str, Any]
    try:
        fatnn_rs.save(net, path)
        net = fatnn_rs.load(path)
        kept = {"file_bytes": path.stat().st_size}
    except UnsupportedError as error:
        kept = {"not_saved": str(error)}
    seen = total = different = 0
    eager_right = rust_right = 0
    with torch.no_grad(), held_weights(model):
        for x, y in data.test_batches(_BATCH):
            if verify_images is None or seen < verify_images:
                report = fatnn_rs.verify(model, net, x)
                total, different = total + report.codes_total, different + report.codes_different
            eager, rust = model(x).argmax(1), net(x).argmax(1)
            if not torch.equal(eager, rust):
                raise ConversionError(
                    f"{path}: {int((eager != rust).sum())} of {len(x)} images are classified "
                    "differently in Rust and in PyTorch; fatnn_rs.verify(model, net, images) shows "
                    "where"
                )
            eager_right += int((eager == y).sum())
            rust_right += int((rust == y).sum())
            seen += len(x)
    if different:
        raise ConversionError(
            f"{path}: {different} of {total} codes differ between PyTorch and Rust; "
            "fatnn_rs.verify(model, net, images) shows where"
        )
    return {
        "eager_accuracy": eager_right / seen,
        "rust_accuracy": rust_right / seen,
        "codes_total": total,
        "codes_different": different,
        **kept,
    }
