"""Int8 values between layers: exact, placed by rules, calibrated, saved and loaded."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import fatnn_rs as fatnn
from fatnn_rs.errors import ConfigError, ConversionError, InputError
from nets import ResNet, isa_caps, ops_of, ready
from value_nets import IMAGE, Squeeze, Stem, converted

WHOLE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 64),
    "resnet50": (lambda: torchvision.models.resnet50(num_classes=10), 64),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), 64),
    "mobilenet_v3": (lambda: torchvision.models.mobilenet_v3_small(num_classes=10), 64),
    "efficientnet_b0": (lambda: torchvision.models.efficientnet_b0(num_classes=10), 64),
    "densenet121": (lambda: torchvision.models.densenet121(num_classes=10), 64),
    "googlenet": (
        lambda: torchvision.models.googlenet(num_classes=10, aux_logits=False, init_weights=False),
        64,
    ),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10), 64),
    "seresnet18": (lambda: timm.create_model("seresnet18", num_classes=10), 64),
    "resnet10t": (lambda: timm.create_model("resnet10t", num_classes=10), 64),
    "convnext": (lambda: timm.create_model("convnext_atto", num_classes=10), 64),
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=10),
        64,
    ),
}


#: Networks of different kinds; the others are long tests.
QUICK = ("resnet18", "mobilenet_v2", "seresnet18", "vit")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in WHOLE]
)
def test_network_equals_its_reference_and_keeps_the_models_state(name: str) -> None:
    torch.manual_seed(0)
    build, size = WHOLE[name]
    x = torch.randn(2, 3, size, size)
    model = ready(build(), x, first="int8", last="int8")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    net = converted(model, x)
    reference = net.reference()
    added = set(reference.state_dict()) - set(before)
    assert set(before) <= set(reference.state_dict())
    assert all(key.startswith("int8_values.") for key in added)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
        assert torch.equal(value, reference.state_dict()[key])
        assert value.data_ptr() != reference.state_dict()[key].data_ptr()
    assert fatnn.verify(reference, net, torch.randn(3, 3, size, size)).identical


class Branches(nn.Module):
    """Branches on a size, so torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Stem()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.scale = nn.Parameter(torch.ones(4))
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor, offset: Tensor | None = None) -> dict[str, Tensor]:
        y = self.block(x).flatten(2).transpose(1, 2)
        if y.shape[1] > 3:
            y = y + self.attention(y, y, y)[0] * self.scale
        return {"y": self.last(y if offset is None else y + offset)}


@pytest.mark.parametrize("skip", [(), ("attention",)])
def test_models_that_only_export_captures_keep_their_names(skip: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    model = ready(Branches(), x, skip=skip)
    assert any("torch.export" in note for note in fatnn.convert(model, x).report.notes)
    net = converted(model, x)
    reference = net.reference()
    added = set(reference.state_dict()) - set(model.state_dict())
    assert all(key.startswith("int8_values.") for key in added)
    assert set(model.state_dict()) <= set(reference.state_dict())
    assert reference(x).keys() == {"y"}
    offset = torch.randn(4)
    net = converted(model, (x, offset))
    assert fatnn.verify(net.reference(), net, {"x": x, "offset": offset * 2}).identical


def test_sizes_that_a_capture_is_not_for_are_refused() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    model = ready(Branches(), x)
    net = converted(model, x)
    for other in (copy.deepcopy(net.reference()), net):
        assert other(torch.randn(5, 3, 32, 32))["y"].shape[0] == 5
        with pytest.raises(InputError, match="32"):
            other(torch.randn(2, 3, 8, 32))  # would take the other branch in the model


def test_more_batches_widen_the_steps() -> None:
    torch.manual_seed(0)
    x = torch.randn(IMAGE)
    model = ready(Stem(), x, first="float")
    alone = fatnn.quantize_values(model, x)
    more = fatnn.quantize_values(model, x, calibration=[x, (x * 5,)])
    steps = [m.int8_values.stem_2.step for m in (alone, more)]
    assert steps[1] > 2 * steps[0]
    net = converted(model, x, calibration=iter([x * 5]))
    assert net.reference().int8_values.stem_2.step == pytest.approx(steps[1], rel=0.3)


@pytest.mark.parametrize("build", [ResNet, Squeeze])
def test_saved_network_gives_the_same_bits_without_torch_on_every_isa(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    net = converted(ready(build(), x, first="int8", last="int8"), x)
    assert len(net.segments) == 1
    assert {row.runs for row in net.report.rows if row.op == "fake_quantize"} == {
        "rust float -> float"
    }
    fatnn.save(net, tmp_path / "net")
    loaded = fatnn.load(tmp_path / "net")
    assert fatnn.verify(net.reference(), loaded, x).identical
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import sys, numpy as np, fatnn_rs; assert 'torch' not in sys.modules;"
        "net = fatnn_rs.load_numpy(sys.argv[1]);"
        "np.save(sys.argv[3], net(np.load(sys.argv[2])))"
    )
    paths = [str(tmp_path / name) for name in ("net", "x.npy", "out.npy")]
    for isa in isa_caps():
        env = {**os.environ, "FATNN_ISA": isa} if isa else dict(os.environ)
        subprocess.run([sys.executable, "-c", code, *paths], env=env, check=True)
        assert np.array_equal(np.load(tmp_path / "out.npy"), net(x).numpy())
    with pytest.raises(ConfigError, match="has no reference"):
        loaded.reference()


def test_verify_counts_values_that_differ() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    model = ready(ResNet(), x)
    net = converted(model, x)
    reference = net.reference()
    value = reference.get_submodule("int8_values.layers_2_relu_1")
    value.set_step(value.step * 1.01)
    report = fatnn.verify(reference, net, x)
    row = next(row for row in report.rows if row.layer == "int8_values.layers_2_relu_1")
    assert 0 < row.different < row.codes == 12 * 2 * 4 * 4
    assert row.behind_residual
    assert report.codes_different == row.different
    assert not report.identical
    with pytest.raises(ConversionError, match=r"int8_values\.stem_2.*net\.reference\(\)"):
        fatnn.verify(model, net, x)


def test_trained_from_prepare_with_int8_values() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    model = ResNet()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = fatnn.TernaryConfig(values="int8", first="int8", last="int8")
    prepared = fatnn.prepare(model.train(), config, x)
    assert prepared.training
    assert type(model.layers[0].conv1) is nn.Conv2d
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    step = prepared.int8_values.stem_2.log2_step
    groups = fatnn.param_groups(prepared, 1e-4)
    assert any(step is p for p in groups[1]["params"])
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    losses, first = [], float(step.detach())
    weights = {key: p.detach().clone() for key, p in prepared.named_parameters()}
    for _ in range(12):
        loss = functional.cross_entropy(prepared(x), y)
        optimizer.zero_grad()
        loss.backward()
        assert [key for key, p in prepared.named_parameters() if p.grad is None] == []
        optimizer.step()
        losses.append(float(loss.detach()))
    for key, p in prepared.named_parameters():
        assert not torch.equal(p, weights[key]), key
    assert losses[-1] < 0.9 * losses[0]
    assert float(step.detach()) != first
    net = fatnn.convert(prepared.eval(), x)
    assert net.reference() is prepared
    assert fatnn.verify(prepared, net, torch.randn(4, 3, 32, 32)).identical
    report = fatnn.explain(model.eval(), x, config)
    assert "fake_quantize" in [row.op for row in report.rows]


def test_state_without_int8_values_loads_and_resets_the_steps() -> None:
    torch.manual_seed(0)
    x = torch.randn(IMAGE)
    floats = Squeeze().state_dict()
    prepared = ready(Squeeze(), x)
    reference = fatnn.quantize_values(prepared, x)
    for state in (prepared.state_dict(), floats):
        expected = fatnn.quantize_values(prepared, x)
        expected.load_state_dict(reference.state_dict(), strict=True)
        assert torch.equal(expected(x), reference(x))
        expected.load_state_dict(state, strict=True)
        with pytest.raises(ConfigError, match="never initialised"):
            expected(x)
        fatnn.nn.calibrate(expected, x)
        net = fatnn.convert(expected, x)
        assert fatnn.verify(expected, net, x).identical
    del state["up.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*up\.bias"):
        reference.load_state_dict(state, strict=True)


def test_copies_pickles_and_compiled_modules_compute_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(IMAGE)
    reference = fatnn.quantize_values(ready(Squeeze(), x), x)
    torch.save(reference, tmp_path / "module.pt")
    loaded = torch.load(tmp_path / "module.pt", weights_only=False)
    compiled = torch.compile(copy.deepcopy(reference), backend="eager", fullgraph=True)
    for other in (copy.deepcopy(reference), loaded, compiled):
        assert torch.equal(other(x), reference(x))
    compiled.train()(x * 2)
    assert not torch.equal(compiled.eval()(x), reference(x))  # other BatchNorm statistics


class TakesFlag(nn.Module):
    """An argument that is not a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        return self.body(x) + x if flag else self.body(x)


class Random(nn.Module):
    """Two results for the same inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + torch.rand(4)


def test_wrong_uses_are_refused_with_the_way_out() -> None:
    x, image = torch.randn(2, 4), torch.randn(IMAGE)
    model = ready(Stem(), image)
    with pytest.raises(ConfigError, match="values must be one of 'float32', 'int8', got 'int4'"):
        fatnn.convert(model, image, values="int4")
    with pytest.raises(ConfigError, match="values must be 'float32' or 'int8', got 8"):
        fatnn.TernaryConfig(values=8)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="calibration: only values="):
        fatnn.convert(model, image, calibration=[image])
    with pytest.raises(ConfigError, match=r"write \[batch\]"):
        fatnn.convert(model, image, values="int8", calibration=image)
    with pytest.raises(ConfigError, match="quantized already"):
        fatnn.quantize_values(fatnn.quantize_values(model, image), image)
    with pytest.raises(ConfigError, match="quantized already"):
        fatnn.convert(fatnn.quantize_values(model, image), image, values="int8")
    with pytest.raises(ConversionError, match="prepare returns another module"):
        fatnn.quantize_values(Stem(), image)
    with pytest.raises(ConversionError, match="arguments that are not tensors"):
        fatnn.quantize_values(ready(TakesFlag(), x), (x, True))
    with pytest.raises(ConversionError, match="draws random numbers"):
        fatnn.quantize_values(ready(Random(), x), x)
    with pytest.raises(InputError, match="NaN"):
        fatnn.quantize_values(model, image * float("nan"))
    ends = {"first": "ternary", "last": "ternary"}
    float_model, config = Random(), fatnn.TernaryConfig(values="int8", **ends)
    before = dict(float_model.named_modules())
    with pytest.raises(ConfigError, match="needs example_inputs"):
        fatnn.prepare(float_model, fatnn.TernaryConfig(values="int8"))
    with pytest.raises(ConversionError, match="draws random numbers"):
        fatnn.prepare(float_model, config, x)
    assert dict(float_model.named_modules()) == before


def test_reference_without_int8_values_is_the_model() -> None:
    x = torch.randn(IMAGE)
    model = ready(Stem(), x)
    net = fatnn.convert(model, x)
    assert net.reference() is model
    assert "fake_quantize" not in ops_of(net)
    assert not list(net.parameters())
