"""Every recipe trains, for an epoch or two, and its network computes what PyTorch does."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fatnn_rs import cli
from fatnn_rs.train.loop import TrainOptions, train
from fatnn_rs.train.recipe import load_recipe, recipe_names
from training import (
    SHORT,
    check_finished_run,
    long_case,
    make_pictures,
    same_tensors,
    saved_state,
    silent_console,
    train_recipe,
)

SHORT_RECIPES = ("digits", "fashion-mnist", "cifar10-resnet20", "cifar10-fast")


LONG_RECIPES = ("cifar10-vgg-small", "cifar10-resnet18")


@pytest.mark.parametrize(
    "name", ["fashion-mnist", "cifar10-resnet20", "cifar10-fast", *map(long_case, LONG_RECIPES)]
)
def test_recipe_trains_on_real_data(name: str, tmp_path: Path, data_folder: Path) -> None:
    small = (
        "batch_size=8",
        "train_images=16",
        "test_images=16",
        "quantize.calibration_images=16",
    ) * (name in LONG_RECIPES)
    result = train_recipe(tmp_path, name, *SHORT, *small, data=data_folder)
    check_finished_run(result, tmp_path)
    assert {line["phase"] for line in result["log"]} == {"float", "ternary"}


def test_a_phase_may_have_its_own_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fatnn_rs.train.phase import PhaseTrainer

    seen: list[tuple[str, int, int]] = []
    train_epoch = PhaseTrainer._train_epoch

    def watch(trainer: PhaseTrainer, *arguments: Any) -> None:
        sizes: list[int] = []
        hook = trainer.raw.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        train_epoch(trainer, *arguments)
        hook.remove()
        seen.append((trainer.name, trainer.batches, sizes[0]))

    monkeypatch.setattr(PhaseTrainer, "_train_epoch", watch)
    train_recipe(tmp_path, "digits", *SHORT, "ternary.batch_size=8")  # Of 64 images.
    assert seen == [("float", 2, 32), ("ternary", 8, 8)]


@pytest.mark.parametrize("name", ["cifar100-resnet20", long_case("cifar100-fast")])
def test_cifar100_recipe_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def fake(root: Path, train: bool, download: bool) -> Any:
        images = np.random.default_rng(int(train)).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
        names = [f"class {i}" for i in range(100)]
        return SimpleNamespace(
            data=images, targets=[i * 37 % 100 for i in range(64)], classes=names
        )

    monkeypatch.setattr(datasets, "CIFAR100", fake)
    check_finished_run(train_recipe(tmp_path, name, *SHORT, data=tmp_path), tmp_path)
    assert saved_state(tmp_path)["classifier.weight"].shape[0] == 100


@pytest.mark.parametrize(
    "name", ["imagenet-resnet18", long_case("imagenet-resnet34"), long_case("imagenet-resnet50")]
)
def test_imagenet_recipe_trains_on_a_directory_of_pictures(
    name: str, tmp_path: Path, pictures: Path
) -> None:
    # Pretrained weights, which would also be the teacher, would need a download.
    toy = (
        "pretrained=false",
        "image_size=32",
        "batch_size=4",
        "mixed_precision=null",
        "ternary.distill=0",
        "ternary.lr=1e-4",
    )
    result = train_recipe(
        tmp_path, name, "ternary.epochs=1", "ternary.warmup_epochs=0", *toy, data=pictures
    )
    check_finished_run(result, tmp_path)
    assert "float_accuracy" not in result


def test_this_file_tests_every_recipe() -> None:
    imagenet = [f"imagenet-resnet{depth}" for depth in (18, 34, 50)]
    cifar100 = ["cifar100-resnet20", "cifar100-fast"]
    assert recipe_names() == sorted([*SHORT_RECIPES, *LONG_RECIPES, *cifar100, *imagenet])
    assert all(load_recipe(name).ternary is not None for name in recipe_names())


@pytest.mark.parametrize("model", [long_case("torchvision:shufflenet_v2_x0_5"), "timm:resnet10t"])
def test_recipe_trains_models_of_torchvision_and_timm(
    model: str, tmp_path: Path, pictures: Path
) -> None:
    """ShuffleNet has operations that a file cannot hold; its run says so and succeeds."""
    toy = (
        f"model={model!r}",
        "pretrained=false",
        "image_size=32",
        "batch_size=4",
        "mixed_precision=null",
    )
    settings = (
        *toy,
        "ternary.distill=0",
        "ternary.epochs=1",
        "ternary.warmup_epochs=0",
        "ternary.lr=1e-4",
    )
    result = train_recipe(tmp_path, "imagenet-resnet18", *settings, data=pictures)
    if "shufflenet" in model:
        assert "which a file cannot hold" in result["not_saved"]
        assert result["codes_different"] == 0 < result["codes_total"]
    else:
        check_finished_run(result, tmp_path)


@pytest.mark.parametrize("family", ["ttq", "binary"])
def test_recipe_selects_the_weight_quantizer(family: str, tmp_path: Path) -> None:
    result = train_recipe(tmp_path, "digits", *SHORT, f"quantize.weight={family}")
    if family == "ttq":
        assert "two different learned scales" in result["refused"]
        assert not (tmp_path / "net.safetensors").exists()
    else:
        check_finished_run(result, tmp_path)


def test_bf16_adamw_step_schedule_and_gradient_clipping_train(tmp_path: Path) -> None:
    extra = (
        "mixed_precision=bf16",
        "ternary.schedule=step",
        "ternary.milestones=[1]",
        "ternary.clip=1.0",
    )
    result = train_recipe(tmp_path, "digits", *SHORT, *extra, "ternary.epochs=2")
    check_finished_run(result, tmp_path)
    assert [line["lr"] for line in result["log"][1:]] == pytest.approx([5e-4, 5e-4])


def test_ternary_phase_starts_from_a_separately_trained_float_model(tmp_path: Path) -> None:
    recipe = load_recipe("digits", SHORT)
    first = train(
        recipe.float_only(), TrainOptions(out=tmp_path / "float", cpu=True), silent_console()
    )
    assert "ternary_accuracy" not in first
    both = train_recipe(tmp_path / "both", "digits", *SHORT)
    start = tmp_path / "float" / "float.pt"
    rest = train_recipe(tmp_path / "rest", "digits", *SHORT, float_from=start)
    # Both the float phase and the ternary phase give the same weights.
    assert same_tensors(
        saved_state(tmp_path / "float", "float"), saved_state(tmp_path / "both", "float")
    )
    assert same_tensors(saved_state(tmp_path / "rest"), saved_state(tmp_path / "both"))
    assert rest["float_accuracy"] == both["float_accuracy"]
    # The run has finished, so nothing is trained again.
    assert both == train_recipe(tmp_path / "both", "digits", *SHORT)
    (tmp_path / "both" / "result.json").unlink()  # as if the run was killed during conversion
    last = train_recipe(tmp_path / "both", "digits", *SHORT)
    assert last["log"] == both["log"]
    assert last["rust_accuracy"] == both["rust_accuracy"]
    bare = tmp_path / "bare.pt"
    torch.save(saved_state(tmp_path / "float", "float"), bare)
    again = train_recipe(tmp_path / "bare", "digits", *SHORT, float_from=bare)
    assert again["ternary_accuracy"] == both["ternary_accuracy"]


@pytest.mark.usefixtures("restore_threads")
def test_train_eval_and_recipes_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [part for setting in SHORT for part in ("--set", setting)]
    out = str(tmp_path / "run")
    with pytest.raises(SystemExit) as done:
        cli.main(
            [
                "train",
                "--config",
                "digits",
                "--cpu",
                "--threads",
                "1",
                "--out",
                out,
                "--json",
                *settings,
            ]
        )
    assert done.value.code == 0
    trained = json.loads(capsys.readouterr().out)
    net = f"{out}/net.safetensors"
    with pytest.raises(SystemExit) as done:
        cli.main(["eval", net, "--config", "digits", "--json", *settings])
    assert done.value.code == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == trained["rust_accuracy"]
    images = tmp_path / "images"
    make_pictures(images)
    folder = ["--config", "imagenet-resnet18", "--data", str(images), "--set", "batch_size=4"]
    assert cli.main(["eval", net, *folder, "--set", "image_size=8"]) == 1
    assert capsys.readouterr().err.startswith("fatnn: ")
    with pytest.raises(SystemExit):
        cli.main(["recipes"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == recipe_names()
