"""scikit-learn's 8x8 digits: the data, and one training loop for the float and the ternary network.

1797 images come with scikit-learn, so nothing is downloaded. A fifth is held out (stratified, the same split for every
seed) and used for nothing but the reported accuracy: the last epoch's network counts, never the best one's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs.errors import ConfigError, UnsupportedError
from fatnn_rs.prepare import param_groups

__all__ = ["Digits", "Epoch", "accuracy", "fit", "load_digits"]


@dataclass(frozen=True)
class Digits:
    """Images float32 [N, 1, 8, 8] in [0, 1], labels int64 [N]."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Epoch:
    """Figures of one epoch of training."""

    epoch: int
    loss: float
    test_accuracy: float


def load_digits(split_seed: int = 0) -> Digits:
    """Return the data, split once and for all.

    Raises
    ------
    UnsupportedError
        Where scikit-learn, which holds the data, is not installed.
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise UnsupportedError(
            "the digits come with scikit-learn, which is missing: pip install scikit-learn"
        ) from error
    images, labels = datasets.load_digits(return_X_y=True)
    parts = model_selection.train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=split_seed)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) / 16 for part in parts[:2])
    train_y, test_y = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    return Digits(train_x, train_y, test_x, test_y)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images that ``model`` (in its present mode) classifies as ``y``."""
    return float((model(x).argmax(1) == y).float().mean())


def fit(
    model: nn.Module,
    data: Digits,
    *,
    epochs: int,
    lr: float,
    seed: int,
    teacher: nn.Module | None = None,
    batch_size: int = 96,
    weight_decay: float = 1e-4,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train in place: Adam, one-cycle schedule, images shifted by up to a pixel, smoothed labels or a teacher.

    Parameters
    ----------
    model
        Float or prepared; left in eval mode.
    data
        The digits.
    epochs, lr, batch_size, weight_decay
        As usual; ``lr`` is the schedule's peak. Step sizes, BatchNorm and biases get no weight decay.
    seed
        Of order and shifts.
    teacher
        A trained network whose soft answers are learned besides the labels (distillation), or None.
    on_epoch
        Called after every epoch.

    Returns
    -------
    list of Epoch

    Raises
    ------
    ConfigError
        Where fewer than two batches would be seen.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(data.train_x)
    steps = epochs * (count // batch_size)
    if steps < 2:
        raise ConfigError(f"{epochs} epochs of {count} images in batches of {batch_size} are too few steps to train")
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=max(0.2, 2 / steps))
    padded = functional.pad(data.train_x, (1, 1, 1, 1))
    history: list[Epoch] = []
    for epoch in range(epochs):
        model.train()
        total = 0.0
        order = torch.randperm(count, generator=generator)[: count // batch_size * batch_size]
        for chosen in order.view(-1, batch_size):
            x = _shifted(padded[chosen], generator)
            logits = model(x)
            loss = functional.cross_entropy(logits, data.train_y[chosen], label_smoothing=0.1)
            if teacher is not None:
                with torch.no_grad():
                    soft = teacher(x).softmax(1)
                loss = 0.5 * loss + 0.5 * functional.cross_entropy(logits, soft)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        model.eval()
        history.append(Epoch(epoch + 1, total * epochs / steps, accuracy(model, data.test_x, data.test_y)))
        if on_epoch is not None:
            on_epoch(history[-1])
    return history


def _shifted(padded: Tensor, generator: torch.Generator) -> Tensor:
    """Cut an 8x8 window out of every padded image [N, 1, 10, 10] at its own random place."""
    n = len(padded)
    rows, columns = torch.randint(0, 3, (2, n, 1, 1), generator=generator)
    span = torch.arange(8)
    return padded[torch.arange(n)[:, None, None], 0, rows + span[:, None], columns + span].unsqueeze(1)
