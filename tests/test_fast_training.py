"""Training on the engine's kernels: the same values as without them, in every setting."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import fatnn_rs
from fatnn_rs import FatnnError
from fatnn_rs.nn.layers import TernaryConv2d, TernaryLinear
from fatnn_rs.nn.mixed import fast_convolutions
from fatnn_rs.quant.fatnn import FatnnActivation, FatnnUint2
from training import SHORT, train_recipe


@pytest.mark.parametrize(
    ("weight", "act"),
    [("fatnn", "ternary"), ("fatnn", "uint2"), ("lsq", "ternary"), ("binary", "binary"),
     ("dorefa", "uint2"), ("ttq", "ternary"), ("sttn", "ternary")],
)  # fmt: skip
@pytest.mark.parametrize("signed", [False, True])
def test_fast_convolutions_give_the_same_sums_and_gradients(
    weight: str, act: str, signed: bool
) -> None:
    if signed and act == "uint2":
        pytest.skip("uint2 has no signed range")
    torch.manual_seed(0)
    x = torch.randn(3, 6, 9, 7)
    model = nn.Sequential(
        nn.Conv2d(6, 8, 1),  # the first and the last layer stay float
        nn.Hardtanh(-2.0, 2.0) if signed else nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=(2, 1), groups=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 2, dilation=2, padding_mode="circular", padding=1),
        nn.Conv2d(8, 2, 1),
    )
    config = fatnn_rs.TernaryConfig(weight=weight, act=act, depthwise="ternary")
    fatnn_rs.prepare(model, config, example_inputs=x)
    found = {}
    for fast in (False, True):
        for autocast in (False, True):
            copied = copy.deepcopy(model).train()
            with fast_convolutions(fast):
                y = copied[:2](x)
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    y = copied[2:5](y)
                out = copied[5](y)
            out.square().sum().backward()
            gradients = {name: p.grad for name, p in copied.named_parameters()}
            found[fast, autocast] = y.detach(), gradients
    # Gradients of steps and scales are sums of terms of both signs, so that the error of bfloat16
    # does not shrink with the sum.
    for autocast, tolerance, least in ((False, 1e-5, 0.0), (True, 0.02, 5e-4)):
        (fast, ours), (slow, torchs) = found[True, autocast], found[False, autocast]
        assert torch.equal(fast, slow)
        for name, other in torchs.items():
            if other is not None:
                one = ours[name]
                assert one is not None, name
                assert (one - other).norm() <= tolerance * other.norm() + least, name


def _as_view(x: torch.Tensor, kind: str) -> torch.Tensor:
    """Return ``x`` in another place in memory."""
    if kind == "channels last":
        return x.to(memory_format=torch.channels_last)
    if kind == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if kind == "between elements":
        bytes_of = torch.zeros(x.numel() * 4 + 1, dtype=torch.uint8)
        made = torch.frombuffer(bytes_of.numpy(), dtype=torch.float32, offset=1, count=x.numel())
        return made.view(x.shape).copy_(x)
    return x


@pytest.mark.parametrize("kind", ["", "channels last", "transposed", "between elements"])
@pytest.mark.parametrize("quantizer", [FatnnActivation, FatnnUint2])
def test_fused_quantizers_equal_their_formula(
    quantizer: type[FatnnActivation] | type[FatnnUint2], kind: str
) -> None:
    torch.manual_seed(0)
    made = quantizer()
    made(torch.rand(64).mul_(3.0))  # initialises the steps
    with torch.no_grad():
        for i, alpha in enumerate(made.parameters()):
            alpha.mul_(1.0 + 0.3 * i)
    edge = float(1.0 / made.alpha1.detach())
    x = torch.rand(3, 8, 21, 17).mul_(6.0).sub_(1.0)
    special = [0.0, -0.0, edge, edge / 2, 0.5 / edge, 1e-40]
    x.view(-1)[: len(special)] = torch.tensor(special)
    gradient = torch.randn(x.shape)
    found = []
    for fast in (False, True):
        leaf = _as_view(x.clone(), kind).requires_grad_()
        made.zero_grad()
        with fast_convolutions(fast):
            codes = made(leaf)
        codes.backward(gradient)
        assert leaf.grad is not None
        steps = torch.stack([alpha.grad for alpha in made.parameters()])
        found.append((codes.detach(), leaf.grad, steps))
        assert ("Steps" in type(codes.grad_fn).__name__) == (fast and kind in ("", "channels last"))
    (codes, to_x, to_steps), (fused, fused_to_x, fused_to_steps) = found
    assert torch.equal(codes, fused)
    assert not torch.signbit(fused).any()
    assert torch.equal(to_x, fused_to_x)
    torch.testing.assert_close(to_steps, fused_to_steps, rtol=1e-4, atol=1e-3)
    # Not above: the formula's gradient of a step multiplies infinity by 0.
    ends = torch.tensor([float("nan"), float("inf"), -float("inf")], requires_grad=True)
    with fast_convolutions():
        codes = made(ends)
    assert codes[0].isnan()
    assert codes[1:].tolist() == [made.levels[-1], 0.0]
    codes.sum().backward()
    assert ends.grad is not None
    assert ends.grad.tolist() == [0.0, 0.0, 0.0]


def test_fast_convolutions_pass_nan_on(tmp_path: Path) -> None:
    model = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(3)])
    x = torch.rand(2, 3, 4, 4)
    fatnn_rs.prepare(model, fatnn_rs.TernaryConfig(depthwise="ternary"), example_inputs=x)
    broken = x.clone()
    broken[0, 0, 0, 0] = torch.nan
    with fast_convolutions():
        assert model(broken).isnan().any()
        with torch.no_grad():
            model[1].weight[0] = torch.nan
        assert model(x).isnan().any()
    options = ("float=null", "ternary.distill=0", "fast_convolutions=true")
    diverging = ("ternary.optimizer=sgd", "ternary.lr=1e30")
    with pytest.raises(FatnnError, match="the loss became nan"):
        train_recipe(tmp_path, "digits", *SHORT[2:], *options, *diverging)


def _conv(**options: Any) -> TernaryConv2d:
    torch.manual_seed(0)
    layer = TernaryConv2d(8, 6, 3, padding=1, **options)
    layer(torch.rand(2, 8, 6, 5))  # initialises the steps
    return layer


def _linear() -> TernaryLinear:
    layer = TernaryLinear(8, 8)
    layer(torch.rand(4, 8))
    return layer


@pytest.mark.parametrize("act", ["ternary", "binary"])
def test_the_first_batch_decides_the_range_of_a_fast_layer(act: str) -> None:
    torch.manual_seed(0)
    layer = TernaryConv2d(8, 6, 3, act=act)
    x = torch.randn(2, 8, 6, 5)  # signed
    copied = copy.deepcopy(layer)
    with fast_convolutions():
        first, second = copied(x), copied(x)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer(x), second)


def test_outputs_of_fast_layers_may_be_changed_in_place() -> None:
    x = torch.rand(2, 8, 6, 5)
    for layer in (_conv(bias=False), _conv(bias=False, scale=False)):
        expected = torch.relu(layer(x) + 1.0)
        with fast_convolutions():
            y = layer(x)
            y += 1.0
            y = nn.ReLU(inplace=True)(y)
        assert torch.equal(expected, y)
        y.sum().backward()


def test_fused_gradients_survive_hooks_on_saved_tensors() -> None:
    made = FatnnActivation()
    made(torch.rand(64))
    x = torch.rand(4, 5, 6, 7, requires_grad=True)
    made(x).sum().backward()
    assert x.grad is not None
    expected, x.grad = x.grad, None

    def transposed(t: torch.Tensor) -> torch.Tensor:
        return t.mT if t.dim() else t

    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: transposed(t.detach()).contiguous(), transposed
    )
    with fast_convolutions(), hooks:
        made(x).sum().backward()
    assert torch.equal(x.grad, expected)


def test_fused_gradients_take_every_gradient() -> None:
    made = FatnnActivation()
    made(torch.rand(64))
    x = torch.rand(4, 5, requires_grad=True)
    ones = torch.ones(4, 5)
    odd = _as_view(ones, "between elements")
    for gradient, sign in ((torch._neg_view(ones), -1), (odd, 1), (ones[:1].expand(4, 5), 1)):
        made(x).backward(ones * sign)
        assert x.grad is not None
        expected, x.grad = x.grad, None
        with fast_convolutions():
            made(x).backward(gradient)
        assert torch.equal(x.grad, expected)
        x.grad = None


@pytest.mark.parametrize("reentrant", [False, True])
def test_fast_layers_in_checkpoints(reentrant: bool) -> None:
    layer, x = _conv(), torch.rand(2, 8, 6, 5, requires_grad=True)
    found = []
    for part in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        layer.zero_grad()
        x.grad = None
        with fast_convolutions():
            part(x).sum().backward()
        assert x.grad is not None
        assert layer.weight.grad is not None
        found.append((x.grad, layer.weight.grad))
    assert all(map(torch.equal, *found))


def test_fast_layers_can_be_traced() -> None:
    for layer, x in ((_linear(), torch.rand(4, 8)), (_conv(), torch.rand(2, 8, 6, 5))):
        with fast_convolutions():
            traced = make_fx(layer)(x)
        assert torch.equal(traced(x), layer(x))


def test_inputs_of_frozen_steps_may_be_changed_afterwards() -> None:
    layer = _linear()
    layer.act_quant.requires_grad_(False)
    leaf = torch.rand(4, 8, requires_grad=True)
    with fast_convolutions():
        x = leaf * 1.0
        y = layer(x)
        x.relu_()
        y.sum().backward()
    assert leaf.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_gradients_of_small_scales_stay_finite(dtype: torch.dtype) -> None:
    layer, x = _conv(), torch.rand(2, 8, 6, 5, requires_grad=True)
    scale = layer.learned_scale
    assert scale is not None
    with torch.no_grad():
        scale.fill_(1e-3)
    with fast_convolutions(), torch.autocast("cpu", dtype):
        y = layer(x)
    y.backward(torch.full_like(y, 1e5))
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_wrong_numbers_of_channels_are_refused_in_fast_layers() -> None:
    for layer in (_conv(), TernaryConv2d(8, 6, 3, groups=2)):
        layer(torch.rand(2, 8, 6, 5))
        for channels in (4, 7, 9, 16):
            with fast_convolutions(), torch.no_grad(), pytest.raises(RuntimeError, match="chan"):
                layer(torch.rand(2, channels, 6, 5))


def test_gradients_of_doubles_stay_doubles() -> None:
    layer = _conv().double()
    found = []
    for fast in (False, True):
        x = torch.linspace(0.0, 2.0, 240).double().view(1, 8, 6, 5).requires_grad_()
        layer.zero_grad()
        with fast_convolutions(fast):
            layer(x).square().sum().backward()
        assert x.grad is not None
        assert layer.weight.grad is not None
        found.append((x.grad, layer.weight.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-13, atol=1e-13)


def test_the_gradient_of_a_scale_before_a_batch_norm_is_not_lost_in_bfloat16() -> None:
    """BatchNorm divides by the deviation, so it is nearly 0, and Adam would follow any error."""
    layer, x = _conv(), torch.rand(8, 8, 6, 5)
    assert layer.learned_scale is not None
    with torch.no_grad():
        layer.learned_scale.mul_(100.0)  # BatchNorm's epsilon matters less
    norm, target = nn.BatchNorm2d(6), torch.randn(8, 6, 6, 5)
    found = []
    for fast in (False, True):
        layer.zero_grad()
        with fast_convolutions(fast), torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        (norm(y) * target).sum().backward()
        assert layer.learned_scale.grad is not None
        found.append(layer.learned_scale.grad)
    assert found[0].abs().max() < 1e-3
    torch.testing.assert_close(found[0], found[1], rtol=0.0, atol=1e-4)
