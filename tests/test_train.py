"""Training by recipes, shortened: every recipe, resumption, several processes, errors, monitor."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fatnn_rs import ConfigError, FatnnError, FormatError, InputError, TernaryConfig, cli, prepare
from fatnn_rs.models.cifar_resnet import CifarResNet
from fatnn_rs.models.digits import DigitsNet
from fatnn_rs.train.data import DATASETS, ProcessShard, load_data
from fatnn_rs.train.loop import TrainOptions, train
from fatnn_rs.train.models import MODELS
from fatnn_rs.train.monitor import CodeMonitor, LayerState
from fatnn_rs.train.phase import _restore_batch_norms, _sync_batch_norms
from fatnn_rs.train.recipe import load_recipe, recipe_names
from fatnn_rs.train.run import read_state

TOY = ("float.epochs=1", "ternary.epochs=1", "float.warmup_epochs=0", "ternary.warmup_epochs=0")
SHORT = (
    *TOY,
    "batch_size=32",
    "train_images=64",
    "test_images=32",
    "quantize.calibration_images=32",
)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def run(
    tmp_path: Path, name: str, *settings: str, data: Path | None = None, **options: Any
) -> dict[str, Any]:
    recipe = load_recipe(name, settings)
    return train(
        recipe, TrainOptions(out=tmp_path, data=data, download=False, cpu=True, **options), quiet()
    )


def states(folder: Path, name: str = "ternary") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = read_state(folder / f"{name}.pt")["model"]
    return found


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def check(result: dict[str, Any], folder: Path) -> None:
    """A finished run, whose network in Rust computes what PyTorch does."""
    assert result["codes_total"] > 0
    assert result["codes_different"] == 0
    assert result["rust_accuracy"] == result["eager_accuracy"] == result["ternary_accuracy"]
    assert (folder / "net.safetensors").stat().st_size == result["file_bytes"]
    assert not (folder / "checkpoint.pt").exists()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines == result["log"]


SMALL = ("digits", "fashion-mnist", "cifar10-resnet20")
LARGE = ("cifar10-vgg-small", "cifar10-resnet18")


def long(*values: Any) -> Any:
    """A case that only `make test-long` runs; `make test` runs a shorter one of the same kind."""
    return pytest.param(*values, marks=pytest.mark.long)


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10-resnet20", *map(long, LARGE)])
def test_recipes_on_real_data(name: str, tmp_path: Path, data_folder: Path) -> None:
    small = (
        "batch_size=8",
        "train_images=16",
        "test_images=16",
        "quantize.calibration_images=16",
    ) * (name in LARGE)
    result = run(tmp_path, name, *SHORT, *small, data=data_folder)
    check(result, tmp_path)
    assert {line["phase"] for line in result["log"]} == {"float", "ternary"}


def test_the_recipe_on_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def fake(root: Path, train: bool, download: bool) -> Any:
        images = np.random.default_rng(int(train)).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
        return SimpleNamespace(data=images, targets=[i * 37 % 100 for i in range(64)])

    monkeypatch.setattr(datasets, "CIFAR100", fake)
    check(run(tmp_path, "cifar100-resnet20", *SHORT, data=tmp_path), tmp_path)
    assert states(tmp_path)["classifier.weight"].shape == (100, 64)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    make_pictures(folder)
    return folder


def make_pictures(folder: Path) -> None:
    """Three classes of three pictures each, to train on and to test on."""
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cat", "dog", "owl"):
            (folder / part / name).mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (40, 52, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")


@pytest.mark.parametrize(
    "name", ["imagenet-resnet18", long("imagenet-resnet34"), long("imagenet-resnet50")]
)
def test_recipes_on_folders_of_pictures(name: str, tmp_path: Path, pictures: Path) -> None:
    # Without the weights that torchvision would fetch, and without a teacher, which they would be.
    toy = (
        "pretrained=false",
        "image_size=32",
        "batch_size=4",
        "mixed_precision=null",
        "ternary.distill=0",
        "ternary.lr=1e-4",
    )
    result = run(tmp_path, name, "ternary.epochs=1", "ternary.warmup_epochs=0", *toy, data=pictures)
    check(result, tmp_path)
    assert "float_accuracy" not in result


def test_every_recipe_is_tested_here() -> None:
    imagenet = [f"imagenet-resnet{depth}" for depth in (18, 34, 50)]
    assert recipe_names() == sorted([*SMALL, *LARGE, "cifar100-resnet20", *imagenet])
    assert recipe_names() == [load_recipe(name) and name for name in recipe_names()]


@pytest.mark.parametrize("model", [long("torchvision:shufflenet_v2_x0_5"), "timm:resnet10t"])
def test_models_of_torchvision_and_timm(model: str, tmp_path: Path, pictures: Path) -> None:
    """One has operations that a file cannot hold: the run says so and succeeds."""
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
    result = run(tmp_path, "imagenet-resnet18", *settings, data=pictures)
    if "shufflenet" in model:
        assert "which a file cannot hold" in result["not_saved"]
        assert result["codes_different"] == 0 < result["codes_total"]
    else:
        check(result, tmp_path)


@pytest.mark.parametrize("family", ["ttq", "binary"])
def test_families_by_recipe(family: str, tmp_path: Path) -> None:
    result = run(tmp_path, "digits", *SHORT, f"quantize.weight={family}")
    if family == "ttq":
        assert "two different learned scales" in result["refused"]
        assert not (tmp_path / "net.safetensors").exists()
    else:
        check(result, tmp_path)


def test_bfloat16_and_adamw_and_steps_and_clipping(tmp_path: Path) -> None:
    extra = (
        "mixed_precision=bf16",
        "ternary.schedule=step",
        "ternary.milestones=[1]",
        "ternary.clip=1.0",
    )
    result = run(tmp_path, "digits", *SHORT, *extra, "ternary.epochs=2")
    check(result, tmp_path)
    assert [line["lr"] for line in result["log"][1:]] == pytest.approx([5e-4, 5e-4])


def test_a_float_model_alone_and_a_start_from_it(tmp_path: Path) -> None:
    recipe = load_recipe("digits", SHORT)
    first = train(recipe.float_only(), TrainOptions(out=tmp_path / "float", cpu=True), quiet())
    assert "ternary_accuracy" not in first
    both = run(tmp_path / "both", "digits", *SHORT)
    start = tmp_path / "float" / "float.pt"
    rest = run(tmp_path / "rest", "digits", *SHORT, float_from=start)
    # The float phase is the same, and so is what follows from it.
    assert equal(states(tmp_path / "float", "float"), states(tmp_path / "both", "float"))
    assert equal(states(tmp_path / "rest"), states(tmp_path / "both"))
    assert rest["float_accuracy"] == both["float_accuracy"]
    assert both == run(tmp_path / "both", "digits", *SHORT)  # is finished: nothing is trained again
    (tmp_path / "both" / "result.json").unlink()  # as if killed while it converted
    last = run(tmp_path / "both", "digits", *SHORT)
    assert last["log"] == both["log"]
    assert last["rust_accuracy"] == both["rust_accuracy"]
    bare = tmp_path / "bare.pt"
    torch.save(states(tmp_path / "float", "float"), bare)
    again = run(tmp_path / "bare", "digits", *SHORT, float_from=bare)
    assert again["ternary_accuracy"] == both["ternary_accuracy"]


RESUMED = (
    "train_images=256",
    "batch_size=16",
    "test_images=32",
    "float.epochs=2",
    "ternary.epochs=2",
)
RESUMED += ("float.warmup_epochs=0.5", "ternary.warmup_epochs=0.5")

#: A run that saves a checkpoint after every iteration, and kills itself after the given one.
SCRIPT = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from fatnn_rs.train.loop import TrainOptions, train
from fatnn_rs.train.recipe import load_recipe
from fatnn_rs.train.run import Run
left = int(sys.argv[3])
save = Run.save
def counted(self, name, state):
    global left
    save(self, name, state)
    left -= name == "checkpoint"
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
Run.save = counted
recipe = load_recipe("digits", sys.argv[2].split(";"))
train(recipe, TrainOptions(out=Path(sys.argv[1]), cpu=True, checkpoint_seconds=0.0))
"""


def resumable(folder: Path, checkpoints: int = -1, processes: int = 1) -> int:
    """Start a run, or go on with it; the exit code."""
    several = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "--no-python",
    ]
    launcher = [*several, sys.executable] if processes > 1 else []
    arguments = [
        sys.executable,
        *launcher,
        "-c",
        SCRIPT,
        str(folder),
        ";".join(RESUMED),
        str(checkpoints),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        arguments, stderr=subprocess.DEVNULL, env=env, timeout=150, check=False
    ).returncode


def killed_within(folder: Path, phase: str, checkpoints: int, processes: int = 1) -> None:
    """Start a run and let it be killed in the middle of an epoch of ``phase``."""
    assert resumable(folder, checkpoints, processes) == (-signal.SIGKILL if processes == 1 else 1)
    state = read_state(folder / "checkpoint.pt")
    assert (state["phase"], state["batch"]) == (phase, 5)


@pytest.mark.parametrize("processes", [1, long(2)])
def test_a_killed_run_ends_with_the_same_weights(processes: int, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert resumable(whole, processes=processes) == 0
    # An epoch has 16 steps, and a checkpoint after each.
    killed_within(broken, "float", 5, processes)
    killed_within(broken, "ternary", 16 - 5 + 16 + 5, processes)
    assert resumable(broken, processes=processes) == 0
    for name in ("float", "ternary"):
        assert equal(states(whole, name), states(broken, name)), name
    assert (whole / "net.safetensors").read_bytes() == (broken / "net.safetensors").read_bytes()
    assert (whole / "log.jsonl").read_bytes() == (broken / "log.jsonl").read_bytes()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Gradients are averaged, so weights agree up to float rounding: 1e-5 after 8 iterations.

    Without BatchNorm, which normalises by each process's own share on CPUs.
    """
    common = ["-m", "fatnn_rs", "train", "--config", "digits", "--cpu", "--threads", "1", "--json"]
    options = [
        "model=small-cnn",
        "model_options={norm: false, width: 4}",
        "batch_size=32",
        "train_images=128",
    ]
    options += [
        "float.epochs=1",
        "ternary.epochs=1",
        "ternary.optimizer=sgd",
        "float.optimizer=sgd",
    ]
    options += ["float.lr=0.05", "ternary.lr=0.05", "test_images=33"]
    options += ["float.warmup_epochs=0.5", "ternary.warmup_epochs=0.5"]
    common += [part for option in options for part in ("--set", option)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    several = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--no-python",
        sys.executable,
    ]
    figures = []
    for name, launcher in (("one", []), ("two", several)):
        arguments = [sys.executable, *launcher, *common, "--out", str(tmp_path / name)]
        done = subprocess.run(
            arguments, capture_output=True, text=True, env=env, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        (line,) = done.stdout.splitlines()  # one of the two speaks
        figures.append(json.loads(line))
    one, two = (states(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(
            two[key], value, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
    assert figures[0]["ternary_accuracy"] == figures[1]["ternary_accuracy"]


def test_batches_depend_on_seed_epoch_and_number_alone() -> None:
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


def test_augmentation_moves_flips_and_cuts() -> None:
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


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["train", *arguments]) == 1
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert text.startswith("fatnn: ")
    return text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["ternary.epoch=3"], "unknown key 'ternary.epoch'; did you mean 'epochs'?"),
        (["teernary={}"], "unknown key 'teernary'; did you mean 'ternary'?"),
        (["augment.zzz=1"], "unknown key 'augment.zzz'; known keys are crop, flip, cutout"),
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
        (["nonsense"], "expected key=value"),
        (
            ["model=cifar-resnet20"],
            "does not take the images of data set 'digits', 1x8x8 .*expected input",
        ),
        (["model_options={width: -1}"], "model 'digits' cannot be built: .*check model_options"),
        (["ternary.schedule=step"], "schedule 'step' needs milestones.*got 'step' with"),
        (["float.milestones=[3]"], "schedule 'step' needs milestones.*got 'cosine'"),
        (["ternary.warmup_epochs=24"], "warmup_epochs must be less than epochs, got 24 of 24"),
        (["float=null"], "ternary.distill: there is no trained float model to learn from"),
        (["mixed_precision=fp16"], "fp16 needs a GPU"),
        (["model.x=1"], "'model' is not a section"),
    ],
)
def test_errors_of_recipes(
    settings: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    arguments = [part for setting in settings for part in ("--set", setting)]
    text = error(capsys, "--cpu", "--config", "digits", "--out", str(tmp_path / "run"), *arguments)
    assert re.search(message, text), text


def test_errors_of_recipe_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", str(tmp_path / "run"))
    assert "give a .yaml file or one of cifar10-resnet18" in error(capsys, "--config", "nope", *out)
    assert "no such file" in error(capsys, "--config", str(tmp_path / "nope.yaml"), *out)
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [\n")
    assert "is not YAML" in error(capsys, "--config", str(broken), *out)
    broken.write_text("just words\n")
    assert "expected a mapping of options, got str" in error(capsys, "--config", str(broken), *out)
    broken.write_text("model: digits\nbatch_size: 32\n")
    assert "'data' is missing" in error(capsys, "--config", str(broken), *out)


def test_errors_of_data(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FATNN_DATA", raising=False)
    with pytest.raises(
        ConfigError, match=r"'cifar10': give its directory.*--data DIR or FATNN_DATA"
    ):
        run(tmp_path / "a", "cifar10-resnet20")
    with pytest.raises(
        InputError, match=r"'cifar10' is not in .*nothing.*give another --data, or --download"
    ):
        run(tmp_path / "b", "cifar10-resnet20", data=tmp_path / "nothing")
    with pytest.raises(InputError, match=r"expected .*nothing/train/CLASS/PICTURE"):
        run(tmp_path / "c", "imagenet-resnet18", data=tmp_path / "nothing")
    # A model of 1000 classes, as pretrained ones are, and data of three.
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
        run(tmp_path / "d", "imagenet-resnet18", *toy, data=pictures)
    odd = tmp_path / "odd"
    for part, names in (("train", "ab"), ("val", "ac")):
        for name in names:
            (odd / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(odd / part / name / "0.png")
    with pytest.raises(
        InputError, match=r"train has 2 classes and .*val 2; only in one of them: b, c"
    ):
        run(tmp_path / "e", "imagenet-resnet18", data=odd)
    with pytest.raises(ConfigError, match="crop and cutout are for small images"):
        run(tmp_path / "f", "imagenet-resnet18", "augment={crop: 4}", data=pictures)
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
    with pytest.raises(InputError, match=r"a picture cannot be read: .*cannot identify image file"):
        run(tmp_path / "g", "imagenet-resnet18", *toy, data=broken)
    assert set(DATASETS) == {
        "digits",
        "mnist",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "folder",
        "imagenet",
    }


def test_a_fetch_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def absent(root: Path, train: bool, download: bool) -> Any:
        if download:
            raise OSError("no route to host")
        raise RuntimeError("Dataset not found")

    monkeypatch.setattr(datasets, "CIFAR10", absent)
    with pytest.raises(InputError, match=r"the download failed \(no route to host\)"):
        load_data(load_recipe("cifar10-resnet20"), tmp_path, download=True)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        FatnnError, match=r"float phase: the loss became (nan|inf) in epoch 1, batch \d+; lower lr"
    ):
        run(tmp_path, "digits", *SHORT, "float.lr=1e30", "float.optimizer=sgd")
    assert not (tmp_path / "result.json").exists()


def test_errors_of_the_run_folder(tmp_path: Path) -> None:
    run(tmp_path / "a", "digits", *SHORT)
    with pytest.raises(
        ConfigError,
        match=r"holds a run with other settings \(recipe.ternary.epochs: 1 there, 2 now\)",
    ):
        run(tmp_path / "a", "digits", *SHORT, "ternary.epochs=2")
    with pytest.raises(ConfigError, match=r"seed: 0 there, 1 now"):
        run(tmp_path / "a", "digits", *SHORT, seed=1)
    run(tmp_path / "a", "digits", *SHORT, "description=other words")
    with pytest.raises(ConfigError, match="no float phase to train"):
        load_recipe("imagenet-resnet18").float_only()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "run.json").write_text("{")
    with pytest.raises(FormatError, match=r"run\.json does not describe a run"):
        run(tmp_path / "d", "digits", *SHORT)
    (tmp_path / "b.pt").write_bytes(b"nothing")
    with pytest.raises(FormatError, match=r"b\.pt: expected a PyTorch checkpoint"):
        run(tmp_path / "b", "digits", *SHORT, float_from=tmp_path / "b.pt")
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "c.pt")
    with pytest.raises(ConfigError, match=r"c\.pt does not fit the recipe's model"):
        run(tmp_path / "c", "digits", *SHORT, float_from=tmp_path / "c.pt")


def test_the_monitor_sees_layers_die() -> None:
    torch.manual_seed(0)
    x = torch.rand(16, 1, 8, 8)
    model = prepare(DigitsNet(), TernaryConfig(), x)
    monitor = CodeMonitor(model)
    first = monitor.look(x)
    assert len(first) == 9
    assert all(state.flips is None for state in first)
    assert model.training
    layer = monitor.layers["blocks.0.conv1"]
    codes = layer.weight_quant.codes(layer.weight)
    assert first[0].weight_zeros == pytest.approx(float((codes == 0).double().mean()))
    with torch.no_grad():
        layer.weight.neg_()
        layer.act_quant.alpha1.fill_(1e-6)
        monitor.layers["blocks.1.conv1"].act_quant.alpha1.fill_(1e6)
        monitor.layers["blocks.1.conv1"].act_quant.alpha2.fill_(1e6)
        monitor.layers["blocks.2.conv1"].weight_quant.alpha_neg.fill_(1e-6)
        monitor.layers["blocks.2.conv1"].weight_quant.alpha_pos.fill_(1e-6)
    second = {state.layer: state for state in monitor.look(x)}
    flipped = float((codes != 0).double().mean())
    assert second["blocks.0.conv1"].flips == pytest.approx(flipped)
    assert second["blocks.3.conv1"].flips == 0.0

    def warnings(name: str) -> str:
        return " ".join(second[name].warnings(0.98))

    assert "dying: 100% of the activation codes" in warnings("blocks.0.conv1")
    assert "stands still" in warnings("blocks.3.conv1")
    assert "dying: 100% of its weight codes are zero" in warnings("blocks.2.conv1")
    state = LayerState("a", 0.3, 0.1, 0.2, 0.99, {"act.alpha1": 2.0})
    assert [text.split(":")[0] for text in state.warnings(0.98)] == ["layer 'a' is saturated"]
    assert state.scalars() == {
        "a/weight_zeros": 0.3,
        "a/flips": 0.1,
        "a/act_zeros": 0.2,
        "a/saturation": 0.99,
        "a/step.act.alpha1": 2.0,
    }


def test_warnings_reach_the_console_and_the_log(tmp_path: Path) -> None:
    console = quiet()
    recipe = load_recipe("digits", [*SHORT, "monitor.dead=0.2"])
    result = train(recipe, TrainOptions(out=tmp_path, cpu=True), console)
    warned = result["log"][-1]["warnings"]
    assert warned
    assert isinstance(console.file, io.StringIO)
    assert "is dying" in console.file.getvalue()
    assert any((tmp_path / "tensorboard").rglob("events.out.*"))


def test_norms_of_all_processes_become_each_ones_own() -> None:
    class WithActivation(torch.nn.BatchNorm2d):
        """As timm's: torch's replacement would lose what it adds."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(super().forward(x))

    head = torch.nn.BatchNorm1d(10, track_running_stats=False)
    model = torch.nn.Sequential(DigitsNet(), torch.nn.Unflatten(1, (10, 1, 1)), WithActivation(10))
    model.extend([torch.nn.Flatten(), head])
    kinds = [type(module) for module in model.modules()]
    own = _sync_batch_norms(model)
    assert (
        sum(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
        == len(own)
        == 11
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_()
        for buffer in model.buffers():
            buffer.copy_(torch.rand(buffer.shape) * 9)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    _restore_batch_norms(model, own)
    assert [type(module) for module in model.modules()] == kinds
    assert model[4] is head
    assert equal(model.state_dict(), before)


def test_train_and_eval_from_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [part for setting in SHORT for part in ("--set", setting)]
    out = str(tmp_path / "run")
    threads = torch.get_num_threads()
    try:
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
    finally:
        torch.set_num_threads(threads)
