"""Errors of recipes, of diverging runs and of run directories."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fatnn_rs import ConfigError, FatnnError, FormatError, cli
from fatnn_rs.train.recipe import load_recipe
from training import (
    SHORT,
    train_recipe,
)


def error_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["train", *arguments]) == 1
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert text.startswith("fatnn: ")
    return text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["ternary.epoch=3"], "unknown key 'ternary.epoch'; did you mean 'epochs'?"),
        (["teernary={}"], "unknown key 'teernary'; did you mean 'ternary'?"),
        (["augment.zzz=1"], "unknown key 'augment.zzz'; known keys are crop, pad, flip, cutout"),
        (["ternary.epochs=zero"], "ternary.epochs: .*got 'zero'"),
        (["ternary.lr=-1"], "ternary.lr: .*greater than 0, got -1"),
        (["quantize.weight=nope"], "weight must be 'fatnn' or .*got 'nope'"),
        (["float.distill=0.5"], "only the ternary phase has a teacher"),
        (["float=null", "ternary=null"], "a recipe needs a phase"),
        (["batch_size=null"], "batch_size"),
        (
            ["model=nope"],
            "model 'nope' is unknown; known are digits, .*torchvision:NAME and timm:NAME",
        ),
        (["model='torchvision:nope'"], "torchvision:nope.*list_models"),
        (["model='timm:nope'"], "timm:nope.*list_models"),
        (["model_options={depth: 3}"], "unexpected keyword argument 'depth'.*model_options"),
        (["pretrained=true"], "has no pretrained weights"),
        (["data=nope"], "data set 'nope' is unknown; known are digits"),
        (["batch_size=5000"], "1437 training images, fewer than batch_size=5000"),
        (
            ["ternary.batch_size=5000"],
            "1437 training images, fewer than ternary.batch_size=5000; lower ternary.batch_size",
        ),
        (["nonsense"], "expected key=value"),
        (
            ["model=cifar-resnet20"],
            "does not take the images of data set 'digits', 1x8x8 .*expected input",
        ),
        (["model_options={width: -1}"], "model 'digits' cannot be built: .*check model_options"),
        (["ternary.schedule=step"], "schedule 'step' needs milestones.*got 'step' with"),
        (["float.milestones=[3]"], "schedule 'step' needs milestones.*got 'cosine'"),
        (
            ["float.schedule=step", "float.milestones=[.nan]"],
            r"milestones must be finite and above 0, got \[nan\]",
        ),
        (["float.schedule=step", "float.milestones=[-1]"], "milestones must be finite and above 0"),
        (
            ["augment.crop=8", "augment.pad=reflect"],
            "augment.crop=8: a reflected border must be smaller than the images, which have 8",
        ),
        (["ternary.warmup_epochs=24"], "warmup_epochs must be less than epochs, got 24 of 24"),
        (["float=null"], "ternary.distill: there is no trained float model to learn from"),
        (["mixed_precision=fp16"], "fp16 needs a GPU"),
        (["model.x=1"], "'model' is not a section"),
    ],
)
def test_wrong_recipe_settings_print_one_error(
    settings: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    arguments = [part for setting in settings for part in ("--set", setting)]
    text = error_line(
        capsys, "--cpu", "--config", "digits", "--out", str(tmp_path / "run"), *arguments
    )
    assert re.search(message, text), text


def test_wrong_recipe_files_print_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "run"))
    assert "give a .yaml file or one of cifar10-fast, cifar10-resnet18" in error_line(
        capsys, "--config", "nope", *out
    )
    assert "no such file" in error_line(capsys, "--config", str(tmp_path / "nope.yaml"), *out)
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [\n")
    assert "is not YAML" in error_line(capsys, "--config", str(broken), *out)
    broken.write_text("just words\n")
    assert "expected a mapping of options, got str" in error_line(
        capsys, "--config", str(broken), *out
    )
    broken.write_text("model: digits\nbatch_size: 32\n")
    assert "'data' is missing" in error_line(capsys, "--config", str(broken), *out)


def test_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        FatnnError, match=r"float phase: the loss became (nan|inf) in epoch 1, batch \d+; lower lr"
    ):
        train_recipe(tmp_path, "digits", *SHORT, "float.lr=1e30", "float.optimizer=sgd")
    assert not (tmp_path / "result.json").exists()


def test_wrong_run_directories_and_checkpoints_raise(tmp_path: Path) -> None:
    train_recipe(tmp_path / "a", "digits", *SHORT)
    with pytest.raises(
        ConfigError,
        match=r"holds a run with other settings \(recipe.ternary.epochs: 1 there, 2 now\)",
    ):
        train_recipe(tmp_path / "a", "digits", *SHORT, "ternary.epochs=2")
    with pytest.raises(ConfigError, match=r"seed: 0 there, 1 now"):
        train_recipe(tmp_path / "a", "digits", *SHORT, seed=1)
    train_recipe(tmp_path / "a", "digits", *SHORT, "description=other words")
    with pytest.raises(ConfigError, match="no float phase to train"):
        load_recipe("imagenet-resnet18").float_only()
    # Settings that the data do not fit claim no directory.
    with pytest.raises(ConfigError, match=r"augment\.crop=9"):
        train_recipe(tmp_path / "e", "digits", *SHORT, "augment.crop=9", "augment.pad=reflect")
    train_recipe(tmp_path / "e", "digits", *SHORT)
    (tmp_path / "e" / "result.json").write_text("{")
    with pytest.raises(FormatError, match=r"result\.json does not hold the result of a run"):
        train_recipe(tmp_path / "e", "digits", *SHORT)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "run.json").write_text("{")
    with pytest.raises(FormatError, match=r"run\.json does not describe a run"):
        train_recipe(tmp_path / "d", "digits", *SHORT)
    (tmp_path / "b.pt").write_bytes(b"nothing")
    with pytest.raises(FormatError, match=r"b\.pt: expected a PyTorch checkpoint"):
        train_recipe(tmp_path / "b", "digits", *SHORT, float_from=tmp_path / "b.pt")
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "c.pt")
    with pytest.raises(ConfigError, match=r"c\.pt does not fit the recipe's model"):
        train_recipe(tmp_path / "c", "digits", *SHORT, float_from=tmp_path / "c.pt")
