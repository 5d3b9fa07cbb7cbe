"""Random networks convert exactly: no code and no output bit differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fatnn_rs import config
from fatnn_rs.convert import convert
from fatnn_rs.quant import QUANTIZERS
from nets import exact, image, ready

ACTIVATIONS: dict[str, Any] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.4, 0.8),
    "leaky": lambda: nn.LeakyReLU(0.3),
    "prelu": nn.PReLU,
}


#: Name of a pool → function from the number of spatial dimensions to the module.
POOLS: dict[str, Any] = {
    "max": lambda dims: MAX[dims](2, 1),
    "max ceil": lambda dims: MAX[dims](3, 2, 1, ceil_mode=True),
    "max dilated": lambda dims: MAX[dims](2, 2, dilation=2, ceil_mode=True),
    "average": lambda dims: AVERAGE[dims](2, 1),
    "average ceil": lambda dims: AVERAGE[dims](3, 2, 1, ceil_mode=True, count_include_pad=False),
    "adaptive": lambda dims: ADAPTIVE[dims](3),
    "adaptive one": lambda dims: ADAPTIVE[dims](1),
}


@dataclass(frozen=True)
class Stage:
    """One layer with optional BatchNorm, broadcast addition, shortcut, activation and pooling."""

    channels: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    groups: int
    bias: bool
    norm: bool
    activation: str
    pool: str
    shortcut: bool
    broadcast: str = "none"


STAGES = st.builds(
    Stage,
    channels=st.integers(1, 5),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 3),
    bias=st.booleans(),
    norm=st.sampled_from([True, True, True, False]),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    pool=st.sampled_from(["none", "none", *sorted(POOLS)]),
    shortcut=st.booleans(),
    broadcast=st.sampled_from(["none"] * 6 + ["mean", "scalar"]),
)


class Shortcut(nn.Module):
    """``after(body(x) + project(x))``; ``project`` is the identity if the shapes agree."""

    def __init__(
        self, body: nn.Module, after: nn.Module, project: nn.Module, in_place: bool
    ) -> None:
        super().__init__()
        self.body, self.after, self.project, self.in_place = body, after, project, in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.in_place:
            y += self.project(x)
        else:
            y = self.project(x) + y
        return self.after(y)


CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d}
NORMS: dict[int, Any] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
MAX: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d}
AVERAGE: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d}
ADAPTIVE: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}


class AddBroadcast(nn.Module):
    """``y + y.mean(pixels)`` or ``y + parameter`` with one value per channel, ``y = body(x)``."""

    def __init__(self, body: nn.Module, kind: str, channels: int, dims: int) -> None:
        super().__init__()
        self.body, self.kind = body, kind
        self.value = nn.Parameter(torch.randn(1, channels, *([1] * dims)))
        self.dims = tuple(range(2, 2 + dims))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.kind == "mean" and self.dims:
            return y + y.mean(self.dims, keepdim=True)
        return y + self.value


def layer(stage: Stage, dims: int, in_channels: int, out_channels: int, groups: int) -> nn.Module:
    if dims == 0:
        return nn.Linear(in_channels, out_channels, bias=stage.bias)
    return CONVS[dims](
        in_channels,
        out_channels,
        stage.kernel,
        stage.stride,
        stage.padding,
        stage.dilation,
        groups,
        stage.bias,
    )


def build_model(stages: list[Stage], dims: int, channels: int) -> nn.Module:
    """Stack the stages; channels are multiples of the groups on both sides."""
    blocks: list[nn.Module] = []
    in_channels = channels
    for index, stage in enumerate(stages):
        groups = stage.groups if dims and in_channels % stage.groups == 0 else 1
        next_groups = stages[index + 1].groups if index + 1 < len(stages) else 1
        out_channels = stage.channels * groups * next_groups
        body: list[nn.Module] = [layer(stage, dims, in_channels, out_channels, groups)]
        if stage.norm:
            body.append(NORMS[dims](out_channels))
        if stage.broadcast != "none":
            body = [AddBroadcast(nn.Sequential(*body), stage.broadcast, out_channels, dims)]
        after: list[nn.Module] = [ACTIVATIONS[stage.activation]()]
        if stage.pool != "none" and dims:
            after.append(POOLS[stage.pool](dims))
        if stage.shortcut:
            project: nn.Module = nn.Identity()
            if (
                in_channels != out_channels
                or stage.stride > 1
                or (dims and 2 * stage.padding != stage.dilation * (stage.kernel - 1))
            ):
                project = nn.Sequential(
                    layer(stage, dims, in_channels, out_channels, 1 if not dims else groups),
                    NORMS[dims](out_channels),
                )
            blocks.append(
                Shortcut(nn.Sequential(*body), nn.Sequential(*after), project, stage.groups == 2)
            )
        else:
            blocks.append(nn.Sequential(*body, *after))
        in_channels = out_channels
    return nn.Sequential(*blocks, nn.Flatten(), nn.LazyLinear(3))


def check_conversion(
    stages: list[Stage], dims: int, channels: int, size: int, seed: int, **options: str
) -> None:
    torch.manual_seed(seed)
    model = build_model(stages, dims, channels)
    x = image(3, channels, *([size + 1, size][:dims]), seed=seed)
    try:
        model(x)
    except (RuntimeError, ValueError):
        assume(False)  # a kernel larger than its input, or a BatchNorm with one value per channel
    inputs = tuple(image(batch, *x.shape[1:], seed=seed + batch) for batch in (1, 4))
    model = ready(model, x, seed, **options)
    net = exact(model, x, inputs)
    empty = x[:0]
    assert net(empty).shape == (0, 3)
    if dims == 2:
        last = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(net(last), model(x))


SHORT = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(SHORT, max_examples=100)

#: Options of ``TernaryConfig``; the last layer is always ternary.
OPTIONS = st.fixed_dictionaries(
    {
        "first": st.sampled_from(["ternary", "int8"]),
        "weight": st.sampled_from(
            [name for name, family in QUANTIZERS.items() if not family.weight.refused]
        ),
        "act": st.sampled_from(config._ACT),
        "act_quantizer": st.sampled_from([None, "fatnn", "lsq", "dorefa"]),
        "depthwise": st.sampled_from(["ternary", "int8"]),
    }
)


@SHORT
@given(
    stages=st.lists(STAGES, min_size=1, max_size=4),
    channels=st.integers(1, 6),
    size=st.integers(4, 11),
    seed=st.integers(0, 1 << 20),
    options=OPTIONS,
)
def test_random_2d_networks_convert_exactly(
    stages: list[Stage], channels: int, size: int, seed: int, options: dict[str, str]
) -> None:
    check_conversion(stages, 2, channels, size, seed, **options)


@pytest.mark.long
@LONG
@given(
    stages=st.lists(STAGES, min_size=1, max_size=4),
    channels=st.integers(1, 6),
    size=st.integers(4, 11),
    seed=st.integers(0, 1 << 20),
    options=OPTIONS,
)
def test_many_random_2d_networks_convert_exactly(
    stages: list[Stage], channels: int, size: int, seed: int, options: dict[str, str]
) -> None:
    check_conversion(stages, 2, channels, size, seed, **options)


@SHORT
@given(
    stages=st.lists(STAGES, min_size=1, max_size=4),
    channels=st.integers(1, 6),
    size=st.integers(6, 20),
    seed=st.integers(0, 1 << 20),
    options=OPTIONS,
)
def test_random_1d_networks_convert_exactly(
    stages: list[Stage], channels: int, size: int, seed: int, options: dict[str, str]
) -> None:
    check_conversion(stages, 1, channels, size, seed, **options)


@pytest.mark.long
@LONG
@given(
    stages=st.lists(STAGES, min_size=1, max_size=4),
    channels=st.integers(1, 6),
    size=st.integers(6, 20),
    seed=st.integers(0, 1 << 20),
    options=OPTIONS,
)
def test_many_random_1d_networks_convert_exactly(
    stages: list[Stage], channels: int, size: int, seed: int, options: dict[str, str]
) -> None:
    check_conversion(stages, 1, channels, size, seed, **options)


@SHORT
@given(
    stages=st.lists(STAGES, min_size=1, max_size=4),
    channels=st.integers(1, 140),
    seed=st.integers(0, 1 << 20),
    options=OPTIONS,
)
def test_random_linear_networks_convert_exactly(
    stages: list[Stage], channels: int, seed: int, options: dict[str, str]
) -> None:
    check_conversion(stages, 0, channels, 0, seed, **options)


@pytest.mark.long
@LONG
@given(
    stages=st.lists(STAGES, min_size=1, max_size=4),
    channels=st.integers(1, 140),
    seed=st.integers(0, 1 << 20),
    options=OPTIONS,
)
def test_many_random_linear_networks_convert_exactly(
    stages: list[Stage], channels: int, seed: int, options: dict[str, str]
) -> None:
    check_conversion(stages, 0, channels, 0, seed, **options)


#: Quantizers with three levels, and with four.
LEVELS = [("fatnn", "ternary"), ("dorefa", "uint2")]


@pytest.mark.parametrize(("weight", "act"), LEVELS)
@pytest.mark.parametrize("dims", [0, 1, 2])
def test_thresholds_found_by_bisection_equal_exhaustive_ones(
    dims: int, weight: str, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fatnn_rs.convert import thresholds

    stage = Stage(3, 3, 1, 1, 1, 1, False, True, "relu", "none", False)
    torch.manual_seed(0)
    model = build_model([stage, stage, stage], dims, 70)
    x = image(3, 70, *([7, 6][:dims]))
    model(x)
    model = ready(model, x, weight=weight, act=act)
    monkeypatch.setattr(thresholds, "EXHAUSTIVE_IF_MONOTONE", thresholds.EXHAUSTIVE)
    exhaustive = convert(model, x)
    monkeypatch.setattr(thresholds, "EXHAUSTIVE_IF_MONOTONE", 0)
    bisected = exact(model, x)
    assert any("thresholds" in node.tensors for node in bisected.graph.nodes)
    assert exhaustive.graph.tensors.keys() == bisected.graph.tensors.keys()
    for name, tensor in exhaustive.graph.tensors.items():
        assert torch.equal(tensor, bisected.graph.tensors[name])


@pytest.mark.parametrize("pool", ["none", "max ceil", "average ceil"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("weight", "act"), LEVELS)
def test_wide_layers_convert_exactly(weight: str, act: str, bias: bool, pool: str) -> None:
    """The layers are large enough for any kernel, also for the matrix kernel."""
    stages = [
        Stage(144, 3, 1, 1, 1, 1, bias, True, "relu", pool, True),
        Stage(130, 3, 1, 1, 1, 1, bias, True, "hardtanh", "none", False),
        Stage(160, 1, 1, 0, 1, 1, bias, True, "relu", "none", True),
        Stage(128, 3, 2, 1, 1, 2, bias, True, "relu", "none", False),
    ]
    torch.manual_seed(3)
    check_conversion(stages, 2, 64, 7, 3, weight=weight, act=act)
