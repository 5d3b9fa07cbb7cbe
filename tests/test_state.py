"""State of quantizers in copies, averaged models, casts, checkpoints and compiled graphs."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, update_bn

from fatnn_rs import ConfigError, ConversionError, TernaryConfig, prepare, summary
from fatnn_rs.convert import convert, verify
from fatnn_rs.nn import TernaryLinear, calibrate
from fatnn_rs.quant import ActivationQuantizer, FatnnActivation
from fatnn_rs.quant.base import InputQuantizer

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
CONFIGS = [
    TernaryConfig(first="int8", last="int8"),
    TernaryConfig(act="binary"),
    TernaryConfig(act="uint2", weight="dorefa"),
    TernaryConfig(weight="lsq", overrides={"2": {"scale": True}}),
    TernaryConfig(weight="sttn"),
]


def net(seed: int = 0) -> nn.Sequential:
    """Linear layers after a ReLU (half range) and without one (full range)."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm1d(8)
    return nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8, bias=False), norm, nn.ReLU(), nn.Linear(8, 8),
        nn.Linear(8, 8),
        nn.Linear(8, 3),
    )  # fmt: skip


def quantizers(model: nn.Module) -> Iterator[InputQuantizer]:
    return (module for module in model.modules() if isinstance(module, InputQuantizer))


def quantizer_states(model: nn.Module) -> list[tuple[bool, Any]]:
    return [(one.initialized, getattr(one, "half_range", None)) for one in quantizers(model)]


def flag_buffers(model: nn.Module) -> list[Tensor]:
    return [tensor for name, tensor in model.named_buffers() if name.endswith("_flag")]


AVERAGED_MODELS: dict[str, Callable[[nn.Module], Any]] = {
    "swa": AveragedModel,
    "swa with buffers": lambda m: AveragedModel(m, use_buffers=True),
    "ema": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True),
    "ema, one by one": lambda m: AveragedModel(m, avg_fn=get_ema_avg_fn(0.999), use_buffers=True),
    "ema without buffers": lambda m: AveragedModel(m, avg_fn=get_ema_avg_fn(0.999)),
    "timm 2": ModelEmaV2,
    "timm 3": ModelEmaV3,
    "timm 3, one by one": lambda m: ModelEmaV3(m, foreach=False),
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("kind", AVERAGED_MODELS)
def test_averaged_models_take_the_quantizer_state_of_the_model(
    kind: str, early: bool, config: TernaryConfig
) -> None:
    model = prepare(net(), config)
    if not early:
        model(X)
    average = AVERAGED_MODELS[kind](model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
        average.update_parameters(model) if isinstance(average, AveragedModel) else average.update(
            model
        )
    averaged = average.module
    assert all(initialized for initialized, _ in quantizer_states(model))
    assert quantizer_states(averaged) == quantizer_states(model)
    averaged.eval()(X)
    before = {name: value.clone() for name, value in averaged.named_parameters()}
    update_bn([X], averaged)
    assert all(torch.equal(value, before[name]) for name, value in averaged.named_parameters())
    # Casts, copies and files keep the state.
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        cast = copy.deepcopy(averaged).to(dtype).eval()
        assert quantizer_states(cast) == quantizer_states(model)
        cast(X.to(dtype))
    assert quantizer_states(pickle.loads(pickle.dumps(averaged))) == quantizer_states(model)
    file = io.BytesIO()
    torch.save(averaged.state_dict(), file)
    file.seek(0)
    for assign in (False, True):
        loaded = prepare(net(1), config)
        file.seek(0)
        loaded.load_state_dict(torch.load(file), assign=assign)
        assert torch.equal(loaded.eval()(X), averaged.eval()(X))


def test_quantizer_state_lives_in_float_buffers() -> None:
    config = TernaryConfig(first="ternary")
    full = prepare(net(), config, X).eval()
    half = prepare(net(), config, X.abs()).eval()
    assert quantizer_states(full) != quantizer_states(half)
    assert all(flag.is_floating_point() for flag in flag_buffers(full))
    target = prepare(net(1), config).eval()
    for source in (full, half, full):
        for one, other in zip(
            target.state_dict().values(), source.state_dict().values(), strict=True
        ):
            one.data.copy_(
                other
            )  # through .data, as some averaging code does: the version counter does not change
        assert torch.equal(target(X), source(X))
    other = prepare(net(1), config).eval()
    assert torch.equal(torch.func.functional_call(other, dict(half.state_dict()), (X,)), half(X))
    meta = prepare(net(1), config).to("meta")
    meta.to_empty(device="cpu").load_state_dict(half.state_dict())
    assert torch.equal(meta.eval()(X), half(X))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("assign", [False, True])
def test_older_checkpoints_with_bool_flags_load(assign: bool, config: TernaryConfig) -> None:
    source = prepare(net(), config, X).eval()
    old = {
        key: value > 0 if key.endswith("_flag") else value
        for key, value in source.state_dict().items()
    }
    target = prepare(net(1), config)
    target.load_state_dict({key: value.clone() for key, value in old.items()}, assign=assign)
    assert all(flag.is_floating_point() for flag in flag_buffers(target))
    assert torch.equal(target.eval()(X), source(X))
    fresh = prepare(net(), config)
    none = {
        key: value > 0 if key.endswith("_flag") else value
        for key, value in fresh.state_dict().items()
    }
    target.load_state_dict(none)
    assert not any(initialized for initialized, _ in quantizer_states(target))
    quantizer = FatnnActivation()
    quantizer(torch.tensor([-1.0, 1.0]))
    quantizer._buffers["initialized_flag"] = torch.tensor(
        True
    )  # as in a module that an earlier version pickled
    quantizer._buffers["half_range_flag"] = torch.tensor(False)
    quantizer.__dict__.update(_initialized=True, _half_range=False)
    for name in ("_last_initialized", "_last_range", "_flag_cache"):
        del quantizer.__dict__[name]
    again = pickle.loads(pickle.dumps(quantizer))
    assert again.initialized
    assert not again.half_range
    assert all(flag.is_floating_point() for flag in flag_buffers(again))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("train", [False, True])
def test_compiled_and_exported_models_give_the_same_results(
    train: bool, config: TernaryConfig
) -> None:
    torch._dynamo.reset()
    model = prepare(net(), config, X).train(train)
    expected = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        y, wanted = compiled(X), expected(X)
        assert torch.equal(y, wanted)
    if train:
        y.square().sum().backward()
        wanted.square().sum().backward()
        for one, other in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
    else:
        exported = torch.export.export(model, (X,)).module()
        assert torch.equal(exported(X), expected(X))


def test_compiled_model_reads_range_and_initialisation_from_the_buffers() -> None:
    torch._dynamo.reset()
    config = TernaryConfig(first="ternary")
    model, other = prepare(net(), config, X).eval(), prepare(net(), config, X.abs()).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(X)
    for one, new in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        one.copy_(new)
    assert torch.equal(compiled(X), other(X))
    torch._dynamo.reset()
    model = prepare(net())
    average = AveragedModel(model)
    model(X)
    average.update_parameters(model)
    assert torch.equal(
        torch.compile(average.eval(), fullgraph=True, backend="aot_eager")(X), model.eval()(X)
    )


class SharedLayerSeesZeros(nn.Module):
    """The first call of the shared layer ``b`` sees only zeros."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        h = torch.zeros_like(y)
        for _ in range(2):
            h = torch.relu(self.b(h) + y)
        z: Tensor = self.c(h)
        return z


FAMILIES = [
    {"weight": weight, "act": act, "first": first}
    for weight in ("fatnn", "lsq", "dorefa", "twn", "sttn")
    for act in ("ternary", "uint2", "binary")
    for first in ("float", "int8")
]


@pytest.mark.parametrize("options", FAMILIES)
def test_shared_layer_whose_first_call_sees_zeros_initialises_later(
    options: dict[str, Any],
) -> None:
    model = prepare(SharedLayerSeesZeros(), TernaryConfig(last="int8", **options))
    parameters = list(model.parameters())
    model(X).sum().backward()
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in parameters)
    assert all(initialized for initialized, _ in quantizer_states(model))
    assert verify(model.eval(), convert(model, X), X).codes_different == 0


class BranchStartsAsZero(nn.Module):
    """The residual branch starts as zero, and layer ``c`` reads it before the addition."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.head = (
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )
        self.norm, self.after = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        z: Tensor = self.head(y + self.after(self.c(self.norm(self.b(y)))))
        return z


@pytest.mark.parametrize("act", ["ternary", "uint2", "binary"])
def test_layer_that_has_seen_only_zeros_initialises_in_training(act: str) -> None:
    model = prepare(BranchStartsAsZero(), TernaryConfig(act=act), X)
    assert not model.c.act_quant.initialized
    assert bool((model.after.running_var == 1).all())  # zeros have no statistics
    assert bool(torch.isfinite(model.eval()(X)).all())
    net = convert(model, X)
    assert any(
        "seen only zeros, so its activation steps are a default: c" in n for n in net.report.notes
    )
    assert verify(model, net, X).codes_different == 0
    note = next(row.note for row in summary(model).rows if row.name == "c")
    assert note.startswith("has seen only zeros")
    optimizer = torch.optim.SGD(model.train().parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    assert model.c.act_quant.initialized
    assert verify(model.eval(), convert(model, X), X).codes_different == 0


def test_uninitialised_quantizer_takes_only_zeros_in_eval_mode() -> None:
    quantizer = FatnnActivation().eval()
    assert quantizer(torch.zeros(3)).tolist() == [0, 0, 0]
    with pytest.raises(ConfigError, match="never initialised"):
        quantizer(torch.tensor([0.0, 1e-3]))
    x = torch.zeros(3, requires_grad=True)
    FatnnActivation()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [
        1,
        1,
        1,
    ]  # the gradient can move the layer's inputs away from zero


def test_uninitialised_layers_are_refused_only_if_they_run() -> None:
    class Auxiliary(BranchStartsAsZero):
        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.head(self.b(torch.relu(self.a(x))))
            return z

    model = prepare(Auxiliary())
    model(X)
    assert quantizer_states(model) == [(True, True), (False, True)]
    assert verify(model.eval(), convert(model, X), X).codes_different == 0
    with pytest.raises(
        ConversionError, match=r"layer 'b': its activation steps were never initialised"
    ):
        convert(prepare(Auxiliary()).eval(), X)
    by_hand = nn.Sequential(nn.Linear(8, 8), TernaryLinear(8, 8)).eval()
    with pytest.raises(
        ConversionError, match=r"layer '1': its activation steps were never initialised"
    ):
        convert(by_hand, X)


@pytest.mark.parametrize(
    "config", [*CONFIGS, TernaryConfig(weight="twn"), TernaryConfig(weight="ttq")]
)
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_float_weights_load_into_a_prepared_model(
    assign: bool, strict: bool, config: TernaryConfig
) -> None:
    source = net(5)
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    floats = {key: value.clone() for key, value in source.state_dict().items()}
    expected = prepare(source, config)
    for example in (None, X):
        model = prepare(net(), config, example)
        held = {id(parameter) for parameter in model.parameters()}
        result = model.load_state_dict(
            {k: v.clone() for k, v in floats.items()}, assign=assign, strict=strict
        )
        assert not result.missing_keys
        assert not result.unexpected_keys
        for (key, value), (_, wanted) in zip(
            model.state_dict().items(), expected.state_dict().items(), strict=True
        ):
            assert torch.equal(value, wanted), key
        assert assign or {id(parameter) for parameter in model.parameters()} == held
        with pytest.raises(ConfigError, match="never initialised"):
            model.eval()(X)
        assert torch.equal(model.train()(X), copy.deepcopy(expected)(X))
    meta = prepare(net(), config).to("meta")
    meta.load_state_dict({key: value.clone() for key, value in floats.items()}, assign=True)
    assert torch.equal(meta(X), copy.deepcopy(expected)(X))
    calibrate(meta, X)


def test_incomplete_state_of_a_layer_raises_missing_key() -> None:
    model = prepare(net(), None, X)
    for key in ("2.act_quant.initialized_flag", "2.weight_quant.alpha_neg", "5.scale", "2.weight"):
        part = model.state_dict()
        del part[key]
        with pytest.raises(RuntimeError, match=f'Missing key.*"{key}"'):
            prepare(net()).load_state_dict(part)
    # A checkpoint with some prepared layers and one float layer.
    mixed = {
        key: value
        for key, value in model.state_dict().items()
        if not key.startswith(("5.scale", "5.weight_", "5.act"))
    }
    other = prepare(net(), None, X)
    other.load_state_dict(mixed)
    assert other[2].act_quant.initialized
    assert not other[5].act_quant.initialized
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict({**mixed, "5.weight": torch.zeros(3, 3)})
    assert all(isinstance(one, ActivationQuantizer) for one in quantizers(other))
