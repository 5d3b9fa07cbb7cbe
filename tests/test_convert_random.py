"""Conversion of random networks: not one code and not one output bit may differ."""

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


#: Kind of pool → from the number of dimensions to the module.
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
    """One layer with its BatchNorm, activation and pooling, and whether a shortcut spans it."""

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
    """``after(body(x) + x)``, with a projection where the shapes differ."""

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


class Spread(nn.Module):
    """``body(x) + its own mean over the pixels``, or ``+ a parameter`` of one value per channel."""

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


def layer(stage: Stage, dims: int, inner: int, outer: int, groups: int) -> nn.Module:
    if dims == 0:
        return nn.Linear(inner, outer, bias=stage.bias)
    return CONVS[dims](
        inner, outer, stage.kernel, stage.stride, stage.padding, stage.dilation, groups, stage.bias
    )


def build(stages: list[Stage], dims: int, channels: int) -> nn.Module:
    """Stack the stages; channels are multiples of both neighbours' groups."""
    blocks: list[nn.Module] = []
    inner = channels
    for index, stage in enumerate(stages):
        groups = stage.groups if dims and inner % stage.groups == 0 else 1
        following = stages[index + 1].groups if index + 1 < len(stages) else 1
        outer = stage.channels * groups * following
        body: list[nn.Module] = [layer(stage, dims, inner, outer, groups)]
        if stage.norm:
            body.append(NORMS[dims](outer))
        if stage.broadcast != "none":
            body = [Spread(nn.Sequential(*body), stage.broadcast, outer, dims)]
        after: list[nn.Module] = [ACTIVATIONS[stage.activation]()]
        if stage.pool != "none" and dims:
            after.append(POOLS[stage.pool](dims))
        if stage.shortcut:
            project: nn.Module = nn.Identity()
            if (
                inner != outer
                or stage.stride > 1
                or (dims and 2 * stage.padding != stage.dilation * (stage.kernel - 1))
            ):
                project = nn.Sequential(
                    layer(stage, dims, inner, outer, 1 if not dims else groups), NORMS[dims](outer)
                )
            blocks.append(
                Shortcut(nn.Sequential(*body), nn.Sequential(*after), project, stage.groups == 2)
            )
        else:
            blocks.append(nn.Sequential(*body, *after))
        inner = outer
    return nn.Sequential(*blocks, nn.Flatten(), nn.LazyLinear(3))


def check(
    stages: list[Stage], dims: int, channels: int, size: int, seed: int, **options: str
) -> None:
    torch.manual_seed(seed)
    model = build(stages, dims, channels)
    x = image(3, channels, *([size + 1, size][:dims]), seed=seed)
    try:
        model(x)
    except (RuntimeError, ValueError):
        assume(False)  # the kernels do not fit the map, or BatchNorm had a single value
    inputs = tuple(image(batch, *x.shape[1:], seed=seed + batch) for batch in (1, 4))
    model = ready(model, x, seed, **options)
    net = exact(model, x, inputs)
    empty = x[:0]
    assert net(empty).shape == (0, 3)
    if dims == 2:
        last = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(net(last), model(x))


SETTINGS = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(SETTINGS, max_examples=100)

#: What the first layer becomes (the last one is quantized like those between), and the quantizers.
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


@SETTINGS
@given(
    stages=st.lists(STAGES, min_size=1, max_size=4),
    channels=st.integers(1, 6),
    size=st.integers(4, 11),
    seed=st.integers(0, 1 << 20),
    options=OPTIONS,
)
def test_two_dimensions(
    stages: list[Stage], channels: int, size: int, seed: int, options: dict[str, str]
) -> None:
    check(stages, 2, channels, size, seed, **options)


@pytest.mark.long
@LONG
@given(
    stages=st.lists(STAGES, min_size=1, max_size=4),
    channels=st.integers(1, 6),
    size=st.integers(4, 11),
    seed=st.integers(0, 1 << 20),
    options=OPTIONS,
)
def test_two_dimensions_at_length(
    stages: list[Stage], channels: int, size: int, seed: int, options: dict[str, str]
) -> None:
    check(stages, 2, channels, size, seed, **options)


@SETTINGS
@given(
    stages=st.lists(STAGES, min_size=1, max_size=4),
    channels=st.integers(1, 6),
    size=st.integers(6, 20),
    seed=st.integers(0, 1 << 20),
    options=OPTIONS,
)
def test_one_dimension(
    stages: list[Stage], channels: int, size: int, seed: int, options: dict[str, str]
) -> None:
    check(stages, 1, channels, size, seed, **options)


@pytest.mark.long
@LONG
@given(
    stages=st.lists(STAGES, min_size=1, max_size=4),
    channels=st.integers(1, 6),
    size=st.integers(6, 20),
    seed=st.integers(0, 1 << 20),
    options=OPTIONS,
)
def test_one_dimension_at_length(
    stages: list[Stage], channels: int, size: int, seed: int, options: dict[str, str]
) -> None:
    check(stages, 1, channels, size, seed, **options)


@SETTINGS
@given(
    stages=st.lists(STAGES, min_size=1, max_size=4),
    channels=st.integers(1, 140),
    seed=st.integers(0, 1 << 20),
    options=OPTIONS,
)
def test_linear(stages: list[Stage], channels: int, seed: int, options: dict[str, str]) -> None:
    check(stages, 0, channels, 0, seed, **options)


@pytest.mark.long
@LONG
@given(
    stages=st.lists(STAGES, min_size=1, max_size=4),
    channels=st.integers(1, 140),
    seed=st.integers(0, 1 << 20),
    options=OPTIONS,
)
def test_linear_at_length(
    stages: list[Stage], channels: int, seed: int, options: dict[str, str]
) -> None:
    check(stages, 0, channels, 0, seed, **options)


#: Weights and activations of three levels, and of four.
LEVELS = [("fatnn", "ternary"), ("dorefa", "uint2")]


@pytest.mark.parametrize(("weight", "act"), LEVELS)
@pytest.mark.parametrize("dims", [0, 1, 2])
def test_wide_layers_bisect(
    dims: int, weight: str, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thresholds found by bisection and samples are those found by trying every integer."""
    from fatnn_rs.convert import thresholds

    stage = Stage(3, 3, 1, 1, 1, 1, False, True, "relu", "none", False)
    torch.manual_seed(0)
    model = build([stage, stage, stage], dims, 70)
    x = image(3, 70, *([7, 6][:dims]))
    model(x)
    model = ready(model, x, weight=weight, act=act)
    monkeypatch.setattr(thresholds, "EXHAUSTIVE_IF_MONOTONE", thresholds.EXHAUSTIVE)
    everywhere = convert(model, x)
    monkeypatch.setattr(thresholds, "EXHAUSTIVE_IF_MONOTONE", 0)
    bisected = exact(model, x)
    for name, tensor in everywhere.graph.tensors.items():
        assert torch.equal(tensor, bisected.graph.tensors[name])


@pytest.mark.parametrize("pool", ["none", "max ceil", "average ceil"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("weight", "act"), LEVELS)
def test_wide_layers(weight: str, act: str, bias: bool, pool: str) -> None:
    """Enough outputs and products for every kernel, also the one for wide layers."""
    stages = [
        Stage(144, 3, 1, 1, 1, 1, bias, True, "relu", pool, True),
        Stage(130, 3, 1, 1, 1, 1, bias, True, "hardtanh", "none", False),
        Stage(160, 1, 1, 0, 1, 1, bias, True, "relu", "none", True),
        Stage(128, 3, 2, 1, 1, 2, bias, True, "relu", "none", False),
    ]
    torch.manual_seed(3)
    check(stages, 2, 64, 7, 3, weight=weight, act=act)
