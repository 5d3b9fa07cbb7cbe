"""scikit-learn's 1797 handwritten digits, 8x8, a fifth held out. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fatnn_rs.errors import UnsupportedError

__all__ = ["Digits", "load_digits"]


@dataclass(frozen=True)
class Digits:
    """Images, float32 [N, 1, 8, 8] in [0, 1], and labels, int64 [N]."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load_digits() -> Digits:
    """Return the data; the split is always the same (stratified).

    Raises
    ------
    UnsupportedError
        scikit-learn, which holds the data, is not installed.
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise UnsupportedError(
            "the digits come with scikit-learn, which is missing: pip install scikit-learn"
        ) from error
    images, labels = datasets.load_digits(return_X_y=True)
    parts = model_selection.train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    train_x, test_x = (
        torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) / 16 for part in parts[:2]
    )
    train_y, test_y = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    return Digits(train_x, train_y, test_x, test_y)
