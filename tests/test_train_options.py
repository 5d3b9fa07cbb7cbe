"""Options of recipes for short training: update rules, learning rates, augmentation, statistics."""

from __future__ import annotations

import copy
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fatnn_rs
from fatnn_rs import ConfigError
from fatnn_rs.models.cifar_fast import CifarFast, whiten_
from fatnn_rs.models.digits import DigitsNet
from fatnn_rs.train import phase as training
from fatnn_rs.train.data import ProcessShard, load_data
from fatnn_rs.train.optimizer import MatrixMomentum, build_optimizer, orthogonalize
from fatnn_rs.train.phase import PhaseTrainer, _schedule
from fatnn_rs.train.recipe import load_recipe
from fatnn_rs.train.sections import Phase
from training import SHORT, check_finished_run, saved_state, train_recipe


def digits_data(*settings: str):  # type: ignore[no-untyped-def]
    return load_data(load_recipe("digits", settings), None)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("float.optimizer=lion", "float.optimizer: .*'muon' or 'normalized-sgd', got 'lion'"),
        ("float.lr_biases=0", "float.lr_biases: .*greater than 0, got 0"),
        ("ternary.lr_steps=-1", "ternary.lr_steps: .*greater than 0, got -1"),
        ("float.lr_last=none", "float.lr_last: .*got 'none'"),
        ("float={epochs: 1, lr: 1, momentum_others: 0.5}", "momentum_others is for 'muon'.*'sgd'"),
        ("float={epochs: 1, lr: 1, optimizer: muon, momentum_others: 1}", "less than 1, got 1"),
        ("float={epochs: 1, lr: 1, optimizer: adamw, renormalize: true}", "renormalize is for"),
        ("float.schedule=lineal", "float.schedule: .*'linear'.*got 'lineal'"),
        ("float.norm_images=-1", "float.norm_images: .*greater than or equal to 0"),
        ("ternary.freeze_epochs=-1", "ternary.freeze_epochs: .*greater than or equal to 0"),
        ("ternary={epochs: 2, lr: 1, freeze_epochs: 2}", "freeze_epochs must be less.*2 of 2"),
        ("float={epochs: 2, lr: 1, freeze_epochs: 1}", "only the ternary phase has codes"),
        ("ternary={epochs: 2, lr: 1, distill_epochs: [0, 1]}", "is .0, 1., but distill is 0"),
        ("ternary.distill_epochs=[3, 3]", "start < stop <= epochs, got .3, 3. of"),
        ("ternary.distill_epochs=[0, 1000]", "start < stop <= epochs, got .0, 1000. of"),
        ("ternary.distill_epochs=[-1, 2]", "start < stop <= epochs, got .-1, 2. of"),
        ("ternary.distill_epochs=[1]", "ternary.distill_epochs"),
        ("ternary.distill_epochs=[0.5, 2]", "ternary.distill_epochs"),
        ("augment={crop: 1, pad: edge}", "augment.pad: .*'zero' or 'reflect', got 'edge'"),
        ("augment.flip=sometimes", "augment.flip.*got 'sometimes'"),
        ("whiten_images=-5", "whiten_images: .*got -5"),
        ("float.epochs=true", "float.epochs: expected a number, got True"),
        ("float.lr=false", "float.lr: expected a number, got False"),
        ("float.clip=true", "float.clip: expected a number, got True"),
        ("holdout=true", "holdout: expected a number, got True"),
        ("float={epochs: 3, lr: 1, schedule: step, milestones: [true, 2]}", "expected a number"),
        ("ternary.distill_epochs=[0, true]", "distill_epochs: expected a number"),
        ("holdout=-1", "holdout: .*got -1"),
        ("fast_convolutions=7", "fast_convolutions: .*got 7"),
    ],
)
def test_wrong_values_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("digits", [setting])
    assert re.search(message, str(caught.value)), str(caught.value)


def test_options_that_exclude_each_other_are_refused(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(ConfigError, match="compiled models do not use them; set compile=false"):
        load_recipe("digits", ["fast_convolutions=true", "compile=true"])
    with pytest.raises(ConfigError, match=r"holdout=1437 leaves none of the 1437 training images"):
        digits_data("holdout=1437")
    for setting, message in (
        ("augment={flip: alternating}", "'alternating' is for small images in memory"),
        ("holdout=2", "holdout is for data sets of small images, not for 'imagenet'"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_recipe(tmp_path / setting[:4], "imagenet-resnet18", setting, data=pictures)
    with pytest.raises(ConfigError, match=r"whitening needs .* 2 x 9 output channels"):
        train_recipe(tmp_path / "b", "digits", *SHORT, "whiten_images=32")


def test_held_out_images_are_training_images_that_are_not_trained_on() -> None:
    whole, split = digits_data(), digits_data("holdout=200")
    assert (split.train_count, split.test_count) == (whole.train_count - 200, 200)
    both = torch.cat([split.train_x, split.test_x])

    def ordered(images: torch.Tensor) -> list[list[int]]:
        return sorted(images.flatten(1).tolist())

    assert ordered(both) == ordered(whole.train_x)
    assert len(split.test_y.unique()) == 10
    assert torch.equal(split.test_x, digits_data("holdout=200").test_x)


def test_alternating_flips_show_every_image_both_ways_in_two_epochs() -> None:
    data = digits_data("augment={flip: alternating}")
    order = {}
    for epoch in (4, 5):
        seen = {}
        for x, _ in data.train_batches(3, epoch, 1437, 0, ProcessShard()):
            for image in x:
                seen[tuple(torch.minimum(image, image.flip(-1)).flatten().tolist())] = image
        order[epoch] = seen
    assert order[4].keys() == order[5].keys()
    symmetric = sum(torch.equal(image, image.flip(-1)) for image in order[4].values())
    flipped = sum(torch.equal(order[4][key], order[5][key].flip(-1)) for key in order[4])
    assert flipped == len(order[4])
    assert symmetric < 10
    first = data._alternating_flips(3, 4)
    assert 0.4 < float(first.float().mean()) < 0.6
    assert torch.equal(first, data._alternating_flips(3, 6))


def test_crops_of_reflected_images_hold_no_padding() -> None:
    x = torch.arange(1.0, 2 * 36 + 1).view(2, 1, 6, 6)
    data = digits_data("augment={crop: 2, pad: reflect}")
    wide = torch.nn.functional.pad(x, (2, 2, 2, 2), "reflect")
    crops = data._augmented(x.repeat(8, 1, 1, 1), torch.Generator().manual_seed(0))
    assert bool((crops > 0).all())
    for number, image in enumerate(crops):
        windows = [wide[number % 2, :, i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
        assert sum(bool(torch.equal(image, window)) for window in windows) == 1


def test_rule_sgd_is_torchs_sgd_with_nesterov_momentum() -> None:
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(5, 7))
    theirs = nn.Parameter(ours.detach().clone())
    options = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01}
    a = MatrixMomentum([{"params": [ours], **options}])
    b = torch.optim.SGD([theirs], nesterov=True, **options)
    for _ in range(4):
        ours.grad = torch.randn(5, 7)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs)


def test_muon_orthogonalizes_as_torchs_muon() -> None:
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(12, 3, 2, 4).to(memory_format=torch.channels_last))
    theirs = nn.Parameter(ours.detach().reshape(12, 24).clone())
    a = MatrixMomentum(
        [{"params": [ours], "lr": 0.1, "momentum": 0.6, "rule": "muon", "weight_decay": 0.1}]
    )
    b = torch.optim.Muon([theirs], lr=0.1, momentum=0.6, ns_steps=3, weight_decay=0.1)
    for _ in range(3):
        gradient = torch.randn(12, 3, 2, 4)
        # torch's momentum is a running mean: scaled by 1 - momentum, which the rule ignores.
        ours.grad, theirs.grad = gradient, gradient.reshape(12, 24)
        a.step()
        b.step()
    assert (ours.detach().reshape(12, 24) - theirs.detach()).abs().max() < 0.02  # theirs: bfloat16
    wide, tall = orthogonalize(torch.randn(20, 30), 10), orthogonalize(torch.randn(30, 20), 10)
    for matrix in (wide, tall):
        values = torch.linalg.svdvals(matrix)
        assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    assert bool((orthogonalize(torch.zeros(3, 4), 3) == 0).all())


def test_normalized_sgd_moves_every_filter_by_the_learning_rate() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 2, 3, 3))
    group = {"params": [weight], "lr": 0.05, "rule": "normalized-sgd", "renormalize": True}
    optimizer = MatrixMomentum([group])
    weight.grad = torch.randn(6, 2, 3, 3) * torch.logspace(-3, 3, 6).view(-1, 1, 1, 1)
    start = weight.detach() * 6**0.5 / weight.detach().norm()
    optimizer.step()
    moved = (weight.detach() - start).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved, torch.full((6,), 0.05), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "last"),
    [
        ({"values": "int8"}, {"classifier.weight"}),
        (
            {"weight": "sttn", "last": "ternary"},
            {"classifier.weight", "classifier.weight_quant.offset"},
        ),
    ],
)
def test_groups_of_int8_values_and_of_second_weights(
    config: dict[str, Any], last: set[str]
) -> None:
    model = DigitsNet(width=8)
    model = fatnn_rs.prepare(model, fatnn_rs.TernaryConfig(**config), torch.rand(4, 1, 8, 8))
    made = build_optimizer(Phase(epochs=4, optimizer="muon", lr=0.1, lr_last=0.4), model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    members = {g["name"]: {names[id(p)] for p in g["params"]} for g in made.param_groups}
    assert members["last"] == last
    assert not any("step" in name for name in members["biases"])
    assert sum(map(len, members.values())) == len(names)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon", "normalized-sgd"])
def test_groups_have_their_own_learning_rates(optimizer: str) -> None:
    model = DigitsNet(width=8)
    fatnn_rs.prepare(model, example_inputs=torch.rand(4, 1, 8, 8))
    rates = {"lr": 0.1, "lr_biases": 0.2, "lr_steps": 0.3, "lr_last": 0.4}
    phase = Phase(epochs=4, optimizer=optimizer, schedule="linear", weight_decay=0.01, **rates)
    made = build_optimizer(phase, model)
    groups = {group["name"]: group for group in made.param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "weights": 0.1, "biases": 0.2, "steps": 0.3, "last": 0.4,
    }  # fmt: skip
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    members = {key: {names[id(p)] for p in group["params"]} for key, group in groups.items()}
    assert members["last"] == {"classifier.weight"}
    assert all("quant" in name or "scale" in name for name in members["steps"])
    assert not any("quant" in name for name in members["biases"])
    assert sum(map(len, members.values())) == len(names)
    assert [groups[name]["weight_decay"] for name in ("steps", "biases")] == [0.0, 0.0]
    assert groups["weights"]["weight_decay"] == 0.01
    schedule = _schedule(phase, made, 2)
    seen = []
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(8):
        seen.append(groups["weights"]["lr"] / rates["lr"])
        made.step()
        schedule.step()
    assert seen == pytest.approx([1 - k / 8 for k in range(8)])
    assert made.param_groups[0]["lr"] == pytest.approx(0.0)


def test_statistics_of_batch_norm_are_estimated_after_the_last_epoch(tmp_path: Path) -> None:
    settings = (
        *SHORT,
        "float.norm_images=64",
        "ternary=null",
        "augment={}",
        "mixed_precision=null",
    )
    train_recipe(tmp_path, "digits", *settings)
    recipe = load_recipe("digits", settings)
    data = load_data(recipe, None)
    model = DigitsNet()
    model.load_state_dict(saved_state(tmp_path, "float"))
    found = copy.deepcopy(model.stem[1].running_mean)
    batches = [x for x, _ in data.train_batches(0, 0, 32, 0, ProcessShard())]
    with torch.no_grad():
        stem = model.stem[0](torch.cat(batches[:2]))
    torch.testing.assert_close(found, stem.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_whitened_outputs_have_unit_variance_and_both_signs() -> None:
    torch.manual_seed(0)
    images = torch.randn(64, 3, 8, 8).cumsum(3).cumsum(2) + 1.0
    conv = nn.Conv2d(3, 24, 2)
    whiten_(conv, images, epsilon=0.0)
    assert not conv.weight.requires_grad
    assert conv.bias is not None
    assert conv.bias.requires_grad
    out = conv(images).detach().permute(1, 0, 2, 3).flatten(1).double()
    torch.testing.assert_close(out[:12], -out[12:])
    moments = out[:12] @ out[:12].T / out.shape[1]
    torch.testing.assert_close(moments, torch.eye(12).double(), rtol=0, atol=1e-2)
    with pytest.raises(ConfigError, match=r"2 x 12 output channels .* got 16 outputs"):
        whiten_(nn.Conv2d(3, 16, 2), images)


@pytest.mark.parametrize("weight", ["fatnn", "sttn", "twn"])
@pytest.mark.parametrize("optimizer", ["adamw", "normalized-sgd"])
def test_no_code_flips_while_weights_are_frozen(
    weight: str, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, torch.Tensor]] = []
    end_of_epoch = PhaseTrainer._end_of_epoch

    def watch(trainer: PhaseTrainer, *arguments: Any) -> None:
        end_of_epoch(trainer, *arguments)
        if trainer.name == "ternary":
            states.append({key: p.detach().clone() for key, p in trainer.raw.named_parameters()})
            ternary.update(
                f"{name}.{key}"
                for name, layer in trainer.monitor.layers.items()
                for key, _ in layer.named_parameters()
                if key == "weight" or key.startswith("weight_quant")
            )

    ternary: set[str] = set()
    monkeypatch.setattr(PhaseTrainer, "_end_of_epoch", watch)
    frozen = f"{{epochs: 4, lr: 0.05, optimizer: {optimizer}, weight_decay: 0.1, freeze_epochs: 2}}"
    settings = (f"ternary={frozen}", f"quantize.weight={weight}")
    result = train_recipe(tmp_path, "digits", *SHORT, *settings)
    assert len(states) == 4
    assert ternary < states[0].keys()
    changed = [
        {key for key, value in after.items() if not torch.equal(value, before[key])}
        for before, after in pairwise(states)
    ]
    assert ternary <= changed[0]
    assert not (changed[1] | changed[2]) & ternary
    assert changed[2] == states[0].keys() - ternary
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    *_, last = log
    assert not any("stands still" in warning for warning in last["warnings"])
    assert not any(key.endswith("/flips") for key in last["layers"])
    assert any(key.endswith("/flips") for key in log[-3]["layers"])
    check_finished_run(result, tmp_path)


def test_distillation_in_some_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    divergence, train_epoch = training._divergence, PhaseTrainer._train_epoch
    epochs: list[int] = []
    epoch = 0

    def start(trainer: PhaseTrainer, *arguments: Any) -> None:
        nonlocal epoch
        epoch = trainer.epoch
        train_epoch(trainer, *arguments)

    def watch(*arguments: Any) -> torch.Tensor:
        epochs.append(epoch)
        return divergence(*arguments)

    monkeypatch.setattr(PhaseTrainer, "_train_epoch", start)
    monkeypatch.setattr(training, "_divergence", watch)
    ternary = "ternary={epochs: 4, lr: 0.01, distill: 0.5, distill_epochs: [1, 3]}"
    train_recipe(tmp_path, "digits", *SHORT, ternary)
    assert set(epochs) == {1, 2}
    assert epochs.count(1) == epochs.count(2)


def test_the_codes_of_a_computed_weight_are_frozen() -> None:
    from fatnn_rs.nn.layers import TernaryConv2d

    layer = TernaryConv2d(4, 4, 3)
    torch.nn.utils.parametrizations.weight_norm(layer)
    names = {id(parameter): name for name, parameter in layer.named_parameters()}
    frozen = {names[id(parameter)] for parameter in layer.code_parameters()}
    assert frozen == {
        "weight_quant.alpha_neg",
        "weight_quant.alpha_pos",
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    }
    assert set(names.values()) - frozen == {
        "bias", "scale", "act_quant.alpha1", "act_quant.alpha2",
    }  # fmt: skip


def test_short_training_options_run_together(tmp_path: Path) -> None:
    options = (
        "mixed_precision=bf16",
        "fast_convolutions=true",
        "augment={crop: 1, pad: reflect, flip: alternating}",
        "float={epochs: 1, lr: 0.1, optimizer: muon, renormalize: true, lr_last: 0.1}",
        "ternary={epochs: 2, lr: 0.01, optimizer: normalized-sgd, norm_images: 64}",
        "holdout=100",
    )
    check_finished_run(train_recipe(tmp_path / "a", "digits", *SHORT, *options), tmp_path / "a")


def test_cifar_fast_takes_widths_classes_and_trained_norms() -> None:
    model = CifarFast(classes=100, width=1.5)
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == [
        24, 96, 96, 384, 384, 384, 384,
    ]  # fmt: skip
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 100)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(norm.weight.requires_grad for norm in norms)
    assert all(norm.bias.requires_grad for norm in norms)
    trained = CifarFast(norm_weight=True)
    assert all(p.requires_grad for p in trained.parameters())
    # The first convolution of a block starts as the identity on its inputs.
    x = torch.randn(1, 24, 5, 5)
    assert torch.equal(trained.blocks[1](x)[:, :24], x)
    for width in (0, True, "wide", float("nan")):
        with pytest.raises(ConfigError, match=r"width must be a number of at least 0\.125"):
            CifarFast(width=width)  # type: ignore[arg-type]
