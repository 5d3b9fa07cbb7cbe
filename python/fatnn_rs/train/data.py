"""Data sets by name: :data:`DATASETS`.

Small images are kept in memory and augmented in batches with tensor operations, which costs little
on a CPU. Image folders go through torchvision's decoders and transforms in worker processes.

A training batch depends only on the seed, the epoch and its index: not on the number of processes
or workers, nor on where training was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from fatnn_rs.card import ImageInput
from fatnn_rs.errors import ConfigError, InputError, UnsupportedError
from fatnn_rs.machine import usable_cpus
from fatnn_rs.pictures import read_picture
from fatnn_rs.train.image_data import WHOLE, Batch, ImageData, ProcessShard, generator, permutation
from fatnn_rs.train.recipe import Recipe

__all__ = ["DATASETS", "Data", "FolderData", "ImageData", "ProcessShard", "load_data"]


class Data(Protocol):
    """The interface of a data set."""

    @property
    def name(self) -> str:
        """Name in the recipe."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        ...

    @property
    def image_input(self) -> ImageInput:
        """How a picture becomes an image."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        ...

    @property
    def train_count(self) -> int:
        """Number of training images."""
        ...

    @property
    def test_count(self) -> int:
        """Number of test images."""
        ...

    def subset(self, train: int | None, test: int | None) -> Data:
        """Return a data set with only so many training and test images; None: all."""
        ...

    def train_batches(
        self, seed: int, epoch: int, batch_size: int, first: int, shard: ProcessShard
    ) -> Iterator[Batch]:
        """Yield this process's part of the batches ``first, first + 1, ...`` of an epoch.

        Images are float32 [n, C, H, W], labels int64 [n]. An incomplete last batch is dropped.
        """
        ...

    def hold_out(self, images: int) -> Data:
        """Return a data set that tests on so many training images and trains on the others."""
        ...

    def test_batches(self, batch_size: int, shard: ProcessShard = ...) -> Iterator[Batch]:
        """Yield this process's part of the test images, in a fixed order, not augmented."""
        ...


def _even_indices(count: int, wanted: int) -> list[int]:
    """Return up to ``wanted`` indices at an even stride, because folders are sorted by class."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]


class _SeededDataset(torch.utils.data.Dataset[Batch]):
    """A data set whose random transforms depend only on the seed, the epoch and the image."""

    def __init__(self, inner: Any, seed: int, epoch: int) -> None:
        self.inner, self.seed, self.epoch = inner, seed, epoch

    def __getitem__(self, index: int) -> Batch:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator(self.seed, self.epoch, index).initial_seed()))
            x, y = self.inner[index]
        return x, torch.tensor(y)


@dataclass(frozen=True)
class FolderData:
    """Image folders, ``train/CLASS/*`` and ``val/CLASS/*``, as for ImageNet.

    Attributes
    ----------
    train, test
        torchvision data sets, transforms included.
    workers
        Number of processes that read and transform.
    """

    name: str
    class_names: tuple[str, ...]
    train: Any
    test: Any
    size: int
    workers: int

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_input(self) -> ImageInput:
        """How a picture becomes an image: as the transforms of test images do it."""
        return ImageInput(3, self.size, self.size, _resize(self.size), *_IMAGENET)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return 3, self.size, self.size

    @property
    def train_count(self) -> int:
        """Training images."""
        return len(self.train)

    @property
    def test_count(self) -> int:
        """Test images."""
        return len(self.test)

    def subset(self, train: int | None, test: int | None) -> FolderData:
        """See :class:`Data`."""
        some = [
            data if n is None else torch.utils.data.Subset(data, _even_indices(len(data), n))
            for data, n in ((self.train, train), (self.test, test))
        ]
        return replace(self, train=some[0], test=some[1])

    def hold_out(self, images: int) -> FolderData:
        """See :class:`Data`."""
        raise ConfigError(
            f"holdout is for data sets of small images, not for {self.name!r}; set holdout=0, and "
            "give a directory whose val/ has the images to test on"
        )

    def _load(self, data: Any, indices: list[list[int]]) -> Iterator[Batch]:
        loader = torch.utils.data.DataLoader(data, batch_sampler=indices, num_workers=self.workers)
        try:
            yield from loader
        except Exception as error:  # An error in a worker has its traceback as message.
            last = [line for line in str(error).splitlines() if line.strip()][-1:]
            reason = "".join(last).removeprefix("fatnn_rs.errors.InputError: ")
            raise InputError(
                f"data set {self.name!r}: a picture cannot be read: {reason}; replace or remove it"
            ) from error

    def train_batches(
        self, seed: int, epoch: int, batch_size: int, first: int, shard: ProcessShard
    ) -> Iterator[Batch]:
        """See :class:`Data`."""
        order = permutation(self.train_count, seed, epoch).tolist()
        batches = [
            order[batch * batch_size :][:batch_size][shard.rank :: shard.world]
            for batch in range(first, self.train_count // batch_size)
        ]
        yield from self._load(_SeededDataset(self.train, seed, epoch), batches)

    def test_batches(self, batch_size: int, shard: ProcessShard = WHOLE) -> Iterator[Batch]:
        """See :class:`Data`."""
        # Shuffled, because the first images of a folder are all of one class.
        order = permutation(self.test_count, 0, 0)[shard.rank :: shard.world].tolist()
        yield from self._load(
            self.test, [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
        )


def _import_torchvision() -> Any:
    try:
        import torchvision
    except ImportError as error:
        raise UnsupportedError(
            "this data set is read by torchvision, which is missing: pip install 'fatnn-rs[train]'"
        ) from error
    return torchvision


def _digits(recipe: Recipe, folder: Path | None, download: bool) -> Data:
    from fatnn_rs.train.digits import load_digits

    digits = load_digits()
    train_x, test_x = ((x * 255.0).round().to(torch.uint8) for x in (digits.train_x, digits.test_x))
    return ImageData(
        "digits",
        10,
        *(train_x, digits.train_y, test_x, digits.test_y),
        *((0.0,), (1.0,)),
        recipe.augment,
        tuple("0123456789"),
    )


def _in_memory(
    class_name: str, classes: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Recipe, Path | None, bool], Data]:
    """Return a reader for one of torchvision's data sets of small images."""

    def read(recipe: Recipe, folder: Path | None, download: bool) -> Data:
        folder = _require_folder(recipe.data, folder)
        cls = getattr(_import_torchvision().datasets, class_name)
        parts = [_open(recipe.data, cls, folder, train, download) for train in (True, False)]
        (train_x, train_y), (test_x, test_y) = map(_tensors, parts)
        return ImageData(
            recipe.data,
            classes,
            *(train_x, train_y, test_x, test_y),
            *(mean, std),
            recipe.augment,
            tuple(parts[0].classes),
        )

    return read


def _tensors(data: Any) -> Batch:
    """Return images as [N, C, H, W], and labels."""
    x = torch.as_tensor(data.data)
    x = x[:, None] if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()
    return x, torch.as_tensor(data.targets)


def _require_folder(name: str, folder: Path | None) -> Path:
    if folder is None:
        raise ConfigError(
            f"data set {name!r}: give its directory, existing or new, with --data DIR or FATNN_DATA"
        )
    return folder


def _open(name: str, cls: Any, folder: Path, train: bool, download: bool) -> Any:
    """Read the data set if it is there; otherwise download it if allowed."""
    try:
        return cls(folder, train=train, download=False)
    except RuntimeError as absent:
        if not download:
            raise InputError(
                f"data set {name!r} is not in {folder} ({absent}); give another --data, or "
                "--download"
            ) from absent
    except Exception as error:  # the readers raise anything for damaged files
        raise InputError(
            f"data set {name!r}: the files in {folder} are damaged "
            f"({type(error).__name__}: {error}); replace them"
        ) from error
    try:
        return cls(folder, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"data set {name!r} is not in {folder}, and the download failed ({error}); put "
            f"torchvision's files for {cls.__name__} there, or give another --data"
        ) from error


def _folder(recipe: Recipe, folder: Path | None, download: bool) -> Data:
    folder = _require_folder(recipe.data, folder)
    datasets = _import_torchvision().datasets
    from torchvision.transforms import v2

    if recipe.augment.crop or recipe.augment.cutout:
        raise ConfigError(
            "augment: crop and cutout are for small images; pictures of data set "
            f"{recipe.data!r} are cropped at random sizes anyway; set both to 0"
        )
    if recipe.augment.flip == "alternating":
        raise ConfigError(
            "augment.flip: 'alternating' is for small images in memory; use true for data set "
            f"{recipe.data!r}"
        )
    size = recipe.image_size
    mean, std = _IMAGENET
    tail = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([*mean], [*std])]
    flip = [v2.RandomHorizontalFlip()] if recipe.augment.flip else []
    train = v2.Compose([v2.RandomResizedCrop(size, antialias=True), *flip, *tail])
    test = v2.Compose([v2.Resize(_resize(size), antialias=True), v2.CenterCrop(size), *tail])
    found: list[Any] = []
    for part, transform in (("train", train), ("val", test)):
        try:
            found.append(datasets.ImageFolder(folder / part, transform, loader=_read_colours))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(
                f"data set {recipe.data!r}: expected {folder / part}/CLASS/PICTURE ({error}); give "
                "--data the folder that holds train and val"
            ) from error
    names = [data.classes for data in found]
    if names[0] != names[1]:
        odd = sorted(set(names[0]) ^ set(names[1]))
        raise InputError(
            f"data set {recipe.data!r}: {folder}/train has {len(names[0])} classes and "
            f"{folder}/val {len(names[1])}; only in one of them: {', '.join(odd[:5])}; "
            "give both the same CLASS folders"
        )
    workers = min(8, usable_cpus())
    return FolderData(recipe.data, tuple(names[0]), found[0], found[1], size, workers)


def _read_colours(path: str) -> Any:
    """Read a picture as a card's network does: see :mod:`fatnn_rs.pictures`."""
    return read_picture(path, 3)


def _resize(size: int) -> int:
    """Return the shorter side before the crop, as torchvision's references choose it."""
    return round(size / 0.875)


_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CIFAR100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)

#: Name in a recipe → reader, called with (recipe, folder, whether to download).
DATASETS: dict[str, Callable[[Recipe, Path | None, bool], Data]] = {
    "digits": _digits,
    "mnist": _in_memory("MNIST", 10, (0.1307,), (0.3081,)),
    "fashion-mnist": _in_memory("FashionMNIST", 10, (0.2860,), (0.3530,)),
    "cifar10": _in_memory("CIFAR10", 10, *_CIFAR10),
    "cifar100": _in_memory("CIFAR100", 100, *_CIFAR100),
    "folder": _folder,
    "imagenet": _folder,
}


def load_data(recipe: Recipe, folder: Path | None, download: bool = True) -> Data:
    """Read the data set of a recipe.

    Parameters
    ----------
    recipe
        Gives the data set's name and the augmentation of training images.
    folder
        Directory of torchvision's files, or of the image folders.
    download
        Whether torchvision may download missing data.

    Raises
    ------
    ConfigError
        Unknown name, no folder given though one is needed, fewer images than a batch, or options
        that the data set does not have.
    InputError
        The data are missing and cannot be downloaded.
    UnsupportedError
        A library that reads them is missing.
    """
    reader = DATASETS.get(recipe.data)
    if reader is None:
        raise ConfigError(f"data set {recipe.data!r} is unknown; known are {', '.join(DATASETS)}")
    data = reader(recipe, folder, download)
    if bad := [one for one in data.class_names if not one.isprintable()]:
        raise InputError(
            f"data set {data.name!r}: the class name {bad[0]!r} has characters that cannot be "
            "printed; rename its directory"
        )
    small, border = min(data.shape[1:]), recipe.augment.crop
    if recipe.augment.pad == "reflect" and border >= small:
        raise ConfigError(
            f"augment.crop={border}: a reflected border must be smaller than the images, which "
            f"have {small} pixels; lower it, or set augment.pad=zero"
        )
    if recipe.holdout >= data.train_count:
        raise ConfigError(
            f"holdout={recipe.holdout} leaves none of the {data.train_count} training images of "
            f"{data.name!r} to train on; lower it"
        )
    if recipe.holdout:
        data = data.hold_out(recipe.holdout)
    data = data.subset(recipe.train_images, recipe.test_images)
    for option, size in recipe.batch_sizes().items():
        if data.train_count < size:
            raise ConfigError(
                f"data set {data.name!r} has {data.train_count} training images, fewer than "
                f"{option}={size}; lower {option}"
            )
    return data
