"""Batches and augmentation of the training data, and errors of missing or wrong data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fatnn_rs import ConfigError, InputError
from fatnn_rs.models.cifar_resnet import CifarResNet
from fatnn_rs.train.data import DATASETS, ProcessShard, load_data
from fatnn_rs.train.models import MODELS
from fatnn_rs.train.recipe import load_recipe
from training import (
    train_recipe,
)


def test_batches_depend_only_on_seed_epoch_and_number() -> None:
    data = load_data(load_recipe("digits", ["augment={crop: 1, flip: true, cutout: 3}"]), None)
    whole = list(data.train_batches(5, 2, 96, 0, ProcessShard()))
    assert len(whole) == data.train_count // 96
    later = list(data.train_batches(5, 2, 96, 9, ProcessShard()))
    for (x, y), (again_x, again_y) in zip(whole[9:], later, strict=True):
        assert torch.equal(x, again_x)
        assert torch.equal(y, again_y)
    shares = [list(data.train_batches(5, 2, 96, 0, ProcessShard(rank, 3))) for rank in range(3)]
    for number, (x, y) in enumerate(whole):
        for rank in range(3):
            assert torch.equal(shares[rank][number][0], x[rank::3])
            assert torch.equal(shares[rank][number][1], y[rank::3])
    other = list(data.train_batches(5, 3, 96, 0, ProcessShard()))
    assert not torch.equal(whole[0][0], other[0][0])
    labels = torch.cat(
        [y for share in range(2) for _, y in data.test_batches(100, ProcessShard(share, 2))]
    )
    assert sorted(labels.tolist()) == sorted(
        y for _, part in data.test_batches(77) for y in part.tolist()
    )


def test_augmentation_flips_crops_and_cuts_out() -> None:
    plain = load_data(load_recipe("digits", ["augment={}"]), None)
    x = torch.arange(1.0, 4 * 36 + 1).view(4, 1, 6, 6)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(plain._augmented(x, generator), x)
    flips = load_data(load_recipe("digits", ["augment={flip: true}"]), None)
    seen = flips._augmented(x.repeat(8, 1, 1, 1), generator)
    kinds = [bool(torch.equal(a, b)) for a, b in zip(seen, x.repeat(8, 1, 1, 1), strict=True)]
    assert 0 < sum(kinds) < 32
    for image, original, same in zip(seen, x.repeat(8, 1, 1, 1), kinds, strict=True):
        assert same or torch.equal(image, original.flip(-1))
    crops = load_data(load_recipe("digits", ["augment={crop: 1}"]), None)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    for image, wide in zip(crops._augmented(x, generator), padded, strict=True):
        windows = [wide[:, i : i + 6, j : j + 6] for i in range(3) for j in range(3)]
        assert sum(bool(torch.equal(image, window)) for window in windows) == 1
    cuts = load_data(load_recipe("digits", ["augment={cutout: 3}"]), None)
    gone = (cuts._augmented(x, generator) == 0).sum((1, 2, 3))
    assert bool(((gone >= 1) & (gone <= 9)).all())


def test_missing_or_wrong_data_raises(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FATNN_DATA", raising=False)
    with pytest.raises(
        ConfigError, match=r"'cifar10': give its directory.*--data DIR or FATNN_DATA"
    ):
        train_recipe(tmp_path / "a", "cifar10-resnet20")
    with pytest.raises(
        InputError, match=r"'cifar10' is not in .*nothing.*give another --data, or --download"
    ):
        train_recipe(tmp_path / "b", "cifar10-resnet20", data=tmp_path / "nothing")
    with pytest.raises(InputError, match=r"expected .*nothing/train/CLASS/PICTURE"):
        train_recipe(tmp_path / "c", "imagenet-resnet18", data=tmp_path / "nothing")
    # A model with 1000 classes, as pretrained ones have, and data with three.
    monkeypatch.setitem(MODELS, "of-1000", lambda classes: CifarResNet(8, 1000))
    toy = (
        "model=of-1000",
        "pretrained=false",
        "batch_size=4",
        "image_size=32",
        "ternary.distill=0",
    )
    with pytest.raises(
        ConfigError, match=r"gives 1000 outputs, but data set 'imagenet' has 3 classes"
    ):
        train_recipe(tmp_path / "d", "imagenet-resnet18", *toy, data=pictures)
    odd = tmp_path / "odd"
    for part, names in (("train", "ab"), ("val", "ac")):
        for name in names:
            (odd / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(odd / part / name / "0.png")
    with pytest.raises(
        InputError, match=r"train has 2 classes and .*val 2; only in one of them: b, c"
    ):
        train_recipe(tmp_path / "e", "imagenet-resnet18", data=odd)
    with pytest.raises(ConfigError, match="crop and cutout are for small images"):
        train_recipe(tmp_path / "f", "imagenet-resnet18", "augment={crop: 4}", data=pictures)
    broken = tmp_path / "broken"
    shutil.copytree(pictures, broken)
    (broken / "train" / "cat" / "0.png").write_bytes(b"no picture")
    toy = (
        "pretrained=false",
        "image_size=32",
        "batch_size=9",
        "mixed_precision=null",
        "ternary.distill=0",
    )
    with pytest.raises(InputError, match=r"a picture cannot be read: .*0\.png: not a picture"):
        train_recipe(tmp_path / "g", "imagenet-resnet18", *toy, data=broken)
    unprintable = tmp_path / "unprintable"
    shutil.copytree(pictures, unprintable)
    for part in ("train", "val"):
        (unprintable / part / "cat").rename(unprintable / part / "c\u00a0t")
    with pytest.raises(InputError, match=r"class name 'c\\xa0t' has characters.*rename its"):
        train_recipe(tmp_path / "h", "imagenet-resnet18", *toy, data=unprintable)
    for content in (b"", b"\x00\x00\x08\x03\x00"):
        raw = tmp_path / "damaged" / "FashionMNIST" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        for part in ("train", "t10k"):
            for kind in ("images-idx3", "labels-idx1"):
                (raw / f"{part}-{kind}-ubyte").write_bytes(content)
        with pytest.raises(InputError, match=r"'fashion-mnist': the files in .* are damaged"):
            load_data(load_recipe("fashion-mnist"), tmp_path / "damaged", download=False)
    assert set(DATASETS) == {
        "digits",
        "mnist",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "folder",
        "imagenet",
    }


def test_failed_download_raises_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    def absent(root: Path, train: bool, download: bool) -> Any:
        if download:
            raise OSError("no route to host")
        raise RuntimeError("Dataset not found")

    monkeypatch.setattr(datasets, "CIFAR10", absent)
    with pytest.raises(InputError, match=r"the download failed \(no route to host\)"):
        load_data(load_recipe("cifar10-resnet20"), tmp_path, download=True)
