"""Data sets of small images: kept in memory, augmented in batches with tensor operations.

A training batch depends only on the seed, the epoch and its index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from fatnn_rs.card import ImageInput
from fatnn_rs.train.sections import Augment

__all__ = ["WHOLE", "Batch", "ImageData", "ProcessShard", "generator", "permutation"]

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ProcessShard:
    """One process's part of the data: every ``world``-th image of a batch, from ``rank`` on."""

    rank: int = 0
    world: int = 1


#: All of the data, for a single process.
WHOLE = ProcessShard()


def permutation(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order of ``count`` images in an epoch."""
    return torch.randperm(count, generator=generator(seed, epoch, -1))


def generator(seed: int, epoch: int, batch: int) -> torch.Generator:
    """Make a separate generator per batch, so that no batch depends on earlier random draws."""
    mixed = 0
    for part in (seed, epoch, batch + 1):
        mixed = (mixed * 0x9E3779B97F4A7C15 + part + 0x7F4A7C15) & 0x7FFFFFFFFFFFFFFF
    return torch.Generator().manual_seed(mixed)


@dataclass(frozen=True)
class ImageData:
    """Images in memory.

    Attributes
    ----------
    train_x, test_x
        uint8 [N, C, H, W].
    train_y, test_y
        int64 [N].
    mean, std
        Per-channel statistics of the training pixels, scaled to [0, 1].
    class_names
        Name of each class.
    """

    name: str
    classes: int
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment
    class_names: tuple[str, ...]

    @property
    def image_input(self) -> ImageInput:
        """How a picture becomes an image: scaled and cropped to the size of the images."""
        channels, height, width = self.shape
        return ImageInput(channels, height, width, max(height, width), self.mean, self.std)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.train_x.shape
        return channels, height, width

    @property
    def train_count(self) -> int:
        """Training images."""
        return len(self.train_x)

    @property
    def test_count(self) -> int:
        """Test images."""
        return len(self.test_x)

    def subset(self, train: int | None, test: int | None) -> ImageData:
        """See :class:`Data`."""
        return replace(
            self,
            train_x=self.train_x[:train],
            train_y=self.train_y[:train],
            test_x=self.test_x[:test],
            test_y=self.test_y[:test],
        )

    def hold_out(self, images: int) -> ImageData:
        """See :class:`Data`."""
        order = permutation(self.train_count, 0, 0)
        test, train = order[:images], order[images:]
        return replace(
            self,
            train_x=self.train_x[train],
            train_y=self.train_y[train],
            test_x=self.train_x[test],
            test_y=self.train_y[test],
        )

    def train_batches(
        self, seed: int, epoch: int, batch_size: int, first: int, shard: ProcessShard
    ) -> Iterator[Batch]:
        """See :class:`Data`."""
        order = permutation(self.train_count, seed, epoch)
        flipped = self._alternating_flips(seed, epoch)
        for batch in range(first, self.train_count // batch_size):
            chosen = order[batch * batch_size :][:batch_size]
            x = self._augmented(
                self._normalize(self.train_x[chosen]),
                generator(seed, epoch, batch),
                None if flipped is None else flipped[chosen],
            )
            y = self.train_y[chosen]
            yield x[shard.rank :: shard.world], y[shard.rank :: shard.world]

    def test_batches(self, batch_size: int, shard: ProcessShard = WHOLE) -> Iterator[Batch]:
        """See :class:`Data`."""
        x, y = (part[shard.rank :: shard.world] for part in (self.test_x, self.test_y))
        for at in range(0, len(x), batch_size):
            yield self._normalize(x[at : at + batch_size]), y[at : at + batch_size]

    def _normalize(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (x.float() / 255.0 - mean) / std

    def _alternating_flips(self, seed: int, epoch: int) -> Tensor | None:
        """Return which training images are mirrored in this epoch; None: each at random."""
        if self.augment.flip != "alternating":
            return None
        first = torch.rand(self.train_count, generator=generator(seed, -1, -1)) < 0.5
        return first ^ bool(epoch % 2)

    def _augmented(
        self, x: Tensor, random: torch.Generator, mirrored: Tensor | None = None
    ) -> Tensor:
        """Crop, flip and cut out, with separate random numbers for each image.

        ``mirrored``, bool [n], replaces the random flips.
        """
        n, _, height, width = x.shape
        images, rows, columns = (
            torch.arange(n)[:, None, None],
            torch.arange(height),
            torch.arange(width),
        )
        pad = self.augment.crop
        if pad or self.augment.flip:
            dy, dx = torch.randint(0, 2 * pad + 1, (2, n, 1, 1), generator=random)
            flipped = torch.rand(n, 1, 1, generator=random) < (0.5 if self.augment.flip else 0.0)
            if mirrored is not None:
                flipped = mirrored.view(n, 1, 1)
            across = torch.where(flipped, width - 1 - columns, columns)
            mode = "reflect" if pad and self.augment.pad == "reflect" else "constant"
            padded = functional.pad(x, (pad, pad, pad, pad), mode).permute(0, 2, 3, 1)
            x = padded[images, rows[:, None] + dy, across + dx].permute(0, 3, 1, 2)
        side = self.augment.cutout
        if side:
            top, left = (
                torch.randint(0, size, (n, 1, 1), generator=random) - side // 2
                for size in (height, width)
            )
            in_rows = (rows[:, None] >= top) & (rows[:, None] < top + side)
            inside = in_rows & (columns >= left) & (columns < left + side)
            x = x.masked_fill(inside[:, None], 0.0)
        return x
