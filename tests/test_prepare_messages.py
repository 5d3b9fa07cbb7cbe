"""Misuses of prepare and convert: each message names the layer, the reason and the way out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn

from fatnn_rs import (
    ConfigError,
    ConversionError,
    FatnnError,
    InputError,
    PrepareWarning,
    TernaryConfig,
    convert,
    param_groups,
    prepare,
    summary,
    verify,
)
from fatnn_rs.nn import TernaryConv2d, TernaryLinear, calibrate

ALL = TernaryConfig(first="ternary", last="ternary")
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def prepared() -> nn.Sequential:
    return prepare(mlp(), ALL, X).eval()


class Product(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.T


class Attention(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)[0]


def with_layer(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 3))


def patched() -> nn.Sequential:
    model = mlp()
    model[1].forward = lambda x: x  # type: ignore[method-assign,assignment]
    return model


def with_attribute_act_quant() -> nn.Sequential:
    class Named(nn.Linear):
        pass

    layer = Named(8, 8)
    layer.act_quant = nn.Identity()
    return with_layer(layer)


def with_nan_weight() -> nn.Sequential:
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    return model


MISUSES: dict[str, tuple[Callable[[], object], type[FatnnError], str]] = {
    "no module": (lambda: prepare([mlp()]), ConfigError, r"takes a torch.nn.Module, got list"),  # type: ignore[type-var]
    "a dict for options": (
        lambda: prepare(mlp(), {"first": "int8"}),
        ConfigError,
        "must be a TernaryConfig, got dict",
    ),  # type: ignore[arg-type]
    "twice": (
        lambda: prepare(prepared()),
        ConfigError,
        r"already holds quantized layers \('0'\).*only once.*calibrate",
    ),
    "another number of features": (
        lambda: prepare(mlp(), ALL, X[:, :5]),
        InputError,
        r"Sequential, on cpu, fails on a tensor \[4, 5\].*shapes.*give one batch as the model "
        r"takes it",
    ),
    "labels too": (
        lambda: prepare(mlp(), ALL, (X, X)),
        InputError,
        "does not take a tuple of 2.*without labels",
    ),
    "integers": (
        lambda: prepare(mlp(), ALL, X.long()),
        InputError,
        "fails on.*int64.*shape, dtype and device",
    ),
    "NaN": (
        lambda: prepare(mlp(), ALL, X * torch.nan),
        InputError,
        "layer '0'.*NaN.*check the data",
    ),
    "NaN in a weight": (
        lambda: prepare(with_nan_weight(), ALL, X),
        InputError,
        "layer '1'.*NaN.*layers before",
    ),
    "compiled": (
        lambda: prepare(torch.compile(mlp())),
        ConfigError,
        r"OptimizedModule.*prepare the model that it wraps \(_orig_mod\)",
    ),
    "averaged": (
        lambda: prepare(torch.optim.swa_utils.AveragedModel(mlp())),
        ConfigError,
        "AveragedModel, a copy.*prepare the model first and average it then",
    ),
    "lazy": (
        lambda: prepare(with_layer(nn.LazyLinear(8))),
        ConfigError,
        r"layer '1' \(LazyLinear\) has no shape.*example_inputs",
    ),
    "meta": (
        lambda: prepare(mlp().to("meta")),
        ConfigError,
        "layer '0' is on the meta device.*to_empty",
    ),
    "patched": (
        lambda: prepare(patched(), ALL, X),
        ConfigError,
        "layer '1': forward was replaced.*skip",
    ),
    "hooks of accelerate": (
        lambda: prepare(_hooked(), ALL, X),
        ConfigError,
        "layer '1': forward was replaced.*remove_hook_from_module",
    ),
    "scripted": (
        lambda: prepare(torch.jit.script(mlp())),
        ConfigError,
        "'0' is left float: torch.jit.script compiled it; script the model after training",
    ),
    "a misspelt name": (
        lambda: prepare(mlp(), TernaryConfig(skip=("l",))),
        ConfigError,
        "'l' matches no layer; the layers are: 0, 1, 3",
    ),
    "an override of a float layer": (
        lambda: prepare(mlp(), TernaryConfig(overrides={"0": {"act": "uint2"}})),
        ConfigError,
        r"'0' names only layers that do not become ternary: 0 \(first='float'\)",
    ),
    "nothing to quantize": (
        lambda: prepare(nn.Sequential(nn.GRU(8, 8))),
        ConfigError,
        "'0' is left float: there is no quantized GRU",
    ),
    "all skipped": (
        lambda: prepare(mlp(), TernaryConfig(skip=("re:.*",))),
        ConfigError,
        r"nothing is left to quantize: 0 \(skip\).*skip less",
    ),
    "a clash of names": (
        lambda: prepare(with_attribute_act_quant(), ALL),
        ConfigError,
        "layer '1'.*attribute 'act_quant' of its own.*rename it",
    ),
    "an own product, by hand": (
        lambda: TernaryLinear.from_float(Product(8, 8)),
        ConfigError,
        "forward of Product makes no.*leave the layer float",
    ),
    "another kind, by hand": (
        lambda: TernaryConv2d.from_float(nn.Linear(8, 8)),
        ConfigError,
        "takes a torch.nn.Conv2d, got.*Linear",
    ),
    "not calibrated": (
        lambda: prepare(mlp(), ALL).eval()(X),
        ConfigError,
        "layer '0'.*never initialised.*example_inputs",
    ),
    "not calibrated, converted": (
        lambda: convert(prepare(mlp(), ALL).eval(), X),
        ConversionError,
        "layer '0': its activation steps were never initialised.*calibrate",
    ),
    "float, converted": (
        lambda: convert(mlp().eval(), X),
        ConversionError,
        r"no ternary or int8 layer.*prepare\(model\)",
    ),
    "float, calibrated": (
        lambda: calibrate(mlp(), X),
        ConfigError,
        r"no ternary or int8 layer.*prepare\(model\)",
    ),
    "training, converted": (
        lambda: convert(prepared().train(), X),
        ConversionError,
        r"training mode; call model.eval\(\)",
    ),
    "another model, verified": (
        lambda: verify(prepared(), prepared(), X),
        ConversionError,
        "expected what fatnn_rs.convert returns, got Sequential",
    ),  # type: ignore[arg-type]
    "float16, converted": (
        lambda: convert(prepared().half(), X.half()),
        ConversionError,
        r"'0': weight is torch.float16.*model.float\(\)",
    ),
    "weight decay of all": (
        lambda: param_groups(mlp(), "all"),
        ConfigError,
        "weight_decay must be a finite number",
    ),  # type: ignore[arg-type]
    "a summary of a net without an example": (
        lambda: summary(convert(prepared(), X)),
        InputError,
        "example_inputs: expected a tensor",
    ),
    "diverged, converted": (
        lambda: convert(_diverged(), 10 * X),
        InputError,
        r"layer '3': input: element \d+ is NaN.*so does the model in torch: its module '0' "
        r"\(Linear\) is the first.*its parameters 3e\+38.*earlier checkpoint",
    ),
    "diverged between modules, converted": (
        lambda: convert(prepare(Divided(), ALL, X).eval(), torch.zeros(4, 8)),
        InputError,
        "layer 'last': input: element 0 is NaN.*an operation before its module 'last'",
    ),
    "NaN in the example, converted": (
        lambda: convert(prepared(), X * torch.nan),
        InputError,
        "layer '0': input: element 0 is NaN.*the example inputs hold NaN or infinity",
    ),
    "one layer in bfloat16": (
        lambda: convert(_with_bfloat16(), X),
        ConversionError,
        r"module '1': weight is torch.bfloat16; expected float32: call model.float\(\)",
    ),
    "one layer on the meta device, converted": (
        lambda: convert(_with_meta(), X),
        ConversionError,
        "module '1': weight is on the meta device.*to_empty",
    ),
    "one layer in training mode": (
        lambda: convert(_with_training(), X),
        ConversionError,
        r"module '2' is in training mode; call model.eval\(\)",
    ),
    "converted twice": (
        lambda: convert(convert(prepared(), X), X),
        ConversionError,
        "the model is a converted network already.*call it, save it",
    ),
    "converted parts only, converted": (
        lambda: convert(nn.Sequential(convert(prepared(), X)), X),
        ConversionError,
        "module '0' is a converted network already",
    ),
    "converted, prepared": (
        lambda: prepare(nn.Sequential(nn.Linear(8, 8), convert(prepared(), X)), ALL, X),
        ConfigError,
        "module '1' is a converted network.*prepare the float model",
    ),
    "converted, calibrated": (
        lambda: calibrate(convert(prepared(), X), X),
        ConfigError,
        "no ternary or int8 layer.*a converted network is not calibrated",
    ),
    "calibrated with no sample": (
        lambda: calibrate(prepared(), X[:0]),
        InputError,
        r"the batch is empty \(a tensor \[0, 8\].*give a batch with samples",
    ),
    "calibrated with nothing": (
        lambda: calibrate(prepared(), None),
        InputError,
        "expected one batch of real data.*got a NoneType; give torch tensors",
    ),
    "a summary with a misspelt name": (
        lambda: summary(mlp(), X, TernaryConfig(skip=("l",))),
        ConfigError,
        "matches no layer",
    ),
}


def _diverged() -> nn.Sequential:
    model = prepare(mlp(), TernaryConfig(first="float", last="ternary", skip=("1",)), X).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0] * 4) * 3e38)
    return model


class Divided(nn.Module):
    """Divides by its input, so it gives NaN for zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x) + x / x)
        return y


def _with_bfloat16() -> nn.Sequential:
    model = prepared()
    model[1].bfloat16()
    return model


def _with_meta() -> nn.Sequential:
    model = prepared()
    model[1].weight = nn.Parameter(model[1].weight.to("meta"))
    return model


def _with_training() -> nn.Sequential:
    model = prepared()
    model[2].train()
    return model


def _hooked() -> nn.Sequential:
    model = mlp()
    accelerate.hooks.add_hook_to_module(model[1], accelerate.hooks.ModelHook())
    return model


@pytest.mark.parametrize("misuse", MISUSES)
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"
)
def test_messages(misuse: str) -> None:
    call, error, says = MISUSES[misuse]
    with pytest.raises(error, match=says):
        call()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: nn.Sequential(nn.Linear(8, 8), *with_layer(Product(8, 8))),
            r"'2' \(the forward of Product makes no functional.linear",
        ),
        (lambda: Wrapped(), r"'1.inner.q_proj', .*Attention has a forward of its own"),
        (lambda: Paired(), r"'two' \(there is no quantized Bilinear\)"),
        (
            lambda: nn.Sequential(*mlp(), torch.jit.script(nn.Linear(3, 3))),
            "'4' .torch.jit.script compiled it",
        ),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"
)
def test_layers_that_stay_float_are_named_once(make: Callable[[], nn.Module], says: str) -> None:
    model = make()
    with pytest.warns(PrepareWarning, match=says) as seen:
        prepare(model, TernaryConfig(), X)
    assert len(seen) == 1
    assert "fatnn_rs.summary(model) lists every layer" in str(seen[0].message)
    rows = [row for row in summary(model).rows if row.note.startswith("stays float")]
    assert len(rows) > 2  # the first, the last, and that one


class Wrapped(nn.Sequential):
    """An attention with its own forward, called with three arguments."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 8), _Self(), nn.Linear(8, 8), nn.Linear(8, 3))


class _Self(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Attention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x, x, x)
        return y


class Paired(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Bilinear(8, 8, 8)
        self.mid, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        y: Tensor = self.last(self.mid(self.two(x, x)))
        return y


def test_wrapped_models_are_converted_for_what_they_wrap() -> None:
    model = prepared()
    expected = model(X)
    wrapped: list[Any] = [
        torch.compile(model),
        nn.DataParallel(model),
        torch.optim.swa_utils.AveragedModel(model),
        accelerate.Accelerator(cpu=True).prepare(copy.deepcopy(model)),
    ]
    for one in wrapped:
        one.eval()
        net = convert(one, X)
        assert torch.equal(net(X), expected)
        assert verify(one, net, X).identical


def test_frozen_layers_are_prepared_and_stay_frozen() -> None:
    model = mlp()
    model[1].requires_grad_(False)
    prepare(model, ALL, X)
    assert not model[1].weight.requires_grad
    model(X).sum().backward()
    assert model[1].weight.grad is None
