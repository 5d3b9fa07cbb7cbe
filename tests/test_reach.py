"""``prepare`` on subclasses, computed weights, attention, containers and lazy layers."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune

from fatnn_rs import InputError, PrepareWarning, TernaryConfig, convert, prepare, summary, verify
from fatnn_rs.nn import Int8Layer, QuantizedLayer, TernaryConv2d, TernaryLayer, TernaryLinear
from whole_models import ALL, BOTH, names, tensors, whole


def same_padding(stride: int = 1) -> nn.Module:
    return Conv2dSame(8, 8, 3, stride=stride)


class Gain(nn.Linear):
    """Its own forward computes the weight, and changes the product."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(inner, outer)
        self.gain = nn.Parameter(torch.ones(outer, 1))

    def forward(self, input: Tensor) -> Tensor:
        return 2.0 * functional.linear(input, self.weight * self.gain, self.bias)


class Slotted(nn.Linear):
    """Keeps an attribute outside of ``__dict__``."""

    __slots__ = ("factor",)

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(inner, outer)
        self.factor = 3.0

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input * self.factor, self.weight, self.bias)


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "same": same_padding,
    "same, stride 2": lambda: same_padding(2),
    "scaled": lambda: ScaledStdConv2d(8, 8, 3, padding=1),
    "scaled same": lambda: ScaledStdConv2dSame(8, 8, 3, stride=2),
    "standardized": lambda: StdConv2d(8, 8, 3, padding=1),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 3)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Conv2d(8, 8, 1)),
    "subclass, parametrized": lambda: parametrizations.weight_norm(same_padding()),
    "pruned": lambda: prune.l1_unstructured(nn.Conv2d(8, 8, 3), "weight", 0.3),
    "spectral_norm, hook": lambda: nn.utils.spectral_norm(nn.Conv2d(8, 8, 3)),
}


@pytest.mark.parametrize("config", BOTH)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_with_computed_weights_or_padding(kind: str, config: TernaryConfig) -> None:
    for size in (9, 10):
        torch.manual_seed(0)
        layer = CONVOLUTIONS[kind]()
        model = nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.ReLU(), nn.Conv2d(8, 4, 1))
        whole(model, torch.randn(2, 3, size, size), config)
        assert isinstance(model[1], QuantizedLayer)
        if not parametrize.is_parametrized(layer):
            assert isinstance(model[1], type(layer))


def test_weight_norm_by_hooks_is_quantized_and_trains() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: deprecated
        layer = nn.utils.weight_norm(nn.Linear(8, 8))
    model = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 4))
    prepare(model, ALL, torch.randn(4, 8))
    model(torch.randn(4, 8)).sum().backward()
    assert model[1].weight_g.grad is not None
    x = torch.randn(4, 8)
    assert verify(model.eval(), convert(model, x), x).identical


def test_a_parametrization_can_still_be_removed() -> None:
    layer = parametrizations.weight_norm(nn.Linear(8, 8))
    model = prepare(nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 4)), ALL, torch.randn(4, 8))
    y = model.eval()(torch.ones(2, 8))
    parametrize.remove_parametrizations(model[1], "weight")
    assert type(model[1]) is TernaryLinear
    assert torch.equal(model(torch.ones(2, 8)), y)


def test_prepare_keeps_the_state_of_spectral_norm() -> None:
    layer = parametrizations.spectral_norm(nn.Linear(8, 8))
    model = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 4)).train()
    before = copy.deepcopy(layer.parametrizations.state_dict())
    prepare(model, ALL, torch.randn(4, 8))
    after = model[1].parametrizations.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("kind", [Gain, Slotted])
@pytest.mark.parametrize("config", BOTH[:2])
def test_own_forward_of_a_subclass_runs_unchanged(
    kind: Callable[[int, int], nn.Module], config: TernaryConfig
) -> None:
    model = nn.Sequential(nn.Linear(8, 8), kind(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    other = whole(model, torch.randn(4, 8), config, identical=False)
    assert isinstance(other[1], kind)  # type: ignore[arg-type]
    x = torch.randn(4, 8)
    assert torch.equal(pickle.loads(pickle.dumps(other))(x), other(x))


def test_a_subclass_without_a_product_stays_float() -> None:
    class Cosine(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return functional.normalize(input) @ functional.normalize(self.weight).t()

    model = nn.Sequential(nn.Linear(4, 4), Cosine(4, 4), nn.Linear(4, 4))
    with pytest.warns(PrepareWarning, match=r"'1' \(the forward of Cosine makes no functional"):
        prepare(model, ALL, torch.randn(3, 4))
    assert names(model) == {"0", "2"}
    row = next(row for row in summary(model).rows if row.name == "1")
    assert row.note.startswith("stays float: the forward of Cosine")


class Functional(nn.Module):
    """Multiplies by its layers' weights itself, with their biases or with others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.strided = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        self.own, self.none, self.new = (
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8, bias=False),
        )
        self.shift = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(functional.conv2d(x, self.conv.weight, self.conv.bias, padding=1))
        x = torch.relu(self.strided(x)).mean((2, 3))
        x = functional.linear(x, self.own.weight, self.own.bias)
        x = functional.linear(x, self.none.weight)
        return functional.linear(x, self.new.weight, self.shift)


@pytest.mark.parametrize("config", BOTH[:2])
def test_products_with_a_layers_weight_become_calls_of_the_layer(config: TernaryConfig) -> None:
    model = whole(Functional(), torch.randn(2, 3, 8, 8), config)
    assert names(model) == {"conv", "strided", "own", "none", "new"}
    assert all(m.act_quant.initialized for m in model.modules() if isinstance(m, QuantizedLayer))
    without = prepare(Functional(), config)  # found only by its code
    without(torch.randn(2, 3, 8, 8))
    assert all(m.act_quant.initialized for m in without.modules() if isinstance(m, QuantizedLayer))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


class Contained(nn.Module):
    """Layers in plain containers: some also registered, some not, one in a tuple, one in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.listed = [self.first, self.second]
        self.hidden = [nn.Linear(8, 8), (nn.Linear(8, 8), torch.relu)]
        self.named = {"a.b": nn.Sequential(nn.Linear(8, 8), nn.ReLU())}
        self.__dict__["unseen"] = nn.Linear(8, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.listed:
            x = layer(x)
        x = self.hidden[1][0](torch.relu(self.hidden[0](x)))  # type: ignore[index,operator]
        y: Tensor = self.last(self.unseen(self.named["a.b"](x)))
        return y


@pytest.mark.parametrize("config", BOTH[:2])
def test_layers_in_plain_containers(config: TernaryConfig) -> None:
    model = Contained()
    x = torch.randn(4, 8)
    prepare(model, config, x)
    assert model.listed == [model.first, model.second]
    inside = [model.hidden[0], model.hidden[1][0], model.named["a.b"][0], model.unseen]  # type: ignore[index]
    assert all(isinstance(layer, QuantizedLayer) for layer in inside)
    listed = {row.name for row in summary(model).rows}
    assert {"hidden[0]", "hidden[1][0]", "named[a/b].0", "unseen"} <= listed
    model.train()(x).sum().backward()
    model.eval()  # torch does not know these layers
    assert verify(model, convert(model, x), x).identical


def test_layers_assigned_twice_or_read_by_a_property_are_replaced() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.b = self.a
            self.more = nn.ModuleDict({"x": self.a, "y": nn.Linear(8, 8)})

        @property
        def current(self) -> nn.Module:
            return self.more["y"]

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.current(self.more["x"](self.b(self.a(self.stem(x))))))
            return y

    model = whole(Twice(), torch.randn(4, 8))
    assert model.a is model.b is model.more["x"]


def test_lazy_layers_get_their_shapes_from_the_example() -> None:
    def make() -> nn.Sequential:
        return nn.Sequential(
            nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)
        )

    x = torch.randn(2, 3, 6, 6)
    model = prepare(make(), ALL, x)
    assert type(model[0]) is TernaryConv2d
    assert verify(model.eval(), convert(model, x), x).identical
    model = make()
    with pytest.raises(InputError, match="NaN"):
        prepare(model, ALL, x * torch.nan)
    assert type(model[0]) is nn.LazyConv2d
    assert nn.parameter.is_lazy(model[0].weight)
    assert model[0].weight is next(iter(model.parameters()))
    prepare(model, ALL, x)  # the model is unchanged
    assert type(model[4]) is TernaryLinear


class Runs:
    """A counter that all copies of a model have in common."""

    number = 0


class Stops(nn.Module):
    """Draws random numbers, and raises KeyboardInterrupt in run number ``after``."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.runs, self.tools = after, Runs(), [nn.Linear(8, 8)]
        self.a, self.b = nn.Linear(8, 8), parametrizations.weight_norm(nn.Linear(8, 8))
        self.attention, self.read = nn.MultiheadAttention(8, 2), nn.Linear(8, 8)
        self.c = nn.Linear(8, 8)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs.number += 1
        self.count += 1
        x = x + 0.0 * torch.rand(()) * float(np.random.rand()) * random.random()
        x = self.b(self.tools[0](self.a(x)))
        x = functional.linear(x, self.read.weight, self.read.bias)
        x = self.attention(x, x, x)[0]
        if self.runs.number == self.after:
            raise KeyboardInterrupt
        y: Tensor = self.c(x)
        return y


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupt_changes_nothing(after: int) -> None:
    model = Stops(after).train()
    model.a.eval()
    modules = {name: (module, type(module)) for name, module in model.named_modules()}
    parameters = dict(model.named_parameters())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    attributes = {name: set(vars(module)) for name, (module, _) in modules.items()}
    tool = model.tools[0]
    seeds = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with pytest.raises(KeyboardInterrupt):
        prepare(model, ALL, torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    assert {n: (m, type(m)) for n, m in model.named_modules()} == modules
    assert model.tools == [tool]
    assert all(dict(model.named_parameters())[n] is p for n, p in parameters.items())
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert [module.training for module in model.modules()] == flags
    assert {n: set(vars(m)) for n, m in model.named_modules()} == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), seeds[0])
    assert random.getstate() == seeds[1]
    assert np.array_equal(np.random.get_state()[1], seeds[2])


def test_prepare_keeps_the_random_number_generators() -> None:
    torch.manual_seed(0)
    prepare(Stops(-1), ALL, torch.zeros(4, 8) + 1.0)
    after = torch.rand(3)
    torch.manual_seed(0)
    Stops(-1)
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_optimizer_made_before_prepare_is_warned_of(make: Any) -> None:
    x = torch.randn(8, 8)

    def train(early: bool) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        optimizer = make(model.parameters(), 0.01) if early else None
        prepare(model, ALL, x)
        optimizer = optimizer or make(model.parameters(), 0.01)
        for _ in range(4):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    train(early=False)
    with pytest.warns(
        PrepareWarning, match=r"layer '0'.*made before prepare.*param_groups"
    ) as seen:
        train(early=True)
    assert len(seen) == 1


def hugging_face(kind: str) -> tuple[nn.Module, Tensor]:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    ids = torch.randint(0, 99, (2, 12), generator=torch.Generator().manual_seed(0))
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=99, n_embd=32, n_layer=2, n_head=2, n_positions=32, use_cache=False
        )
        return transformers.GPT2LMHeadModel(config), ids
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=99, num_key_value_heads=1, use_cache=False, **sizes
        )
        return transformers.LlamaForCausalLM(config), ids
    if kind == "vit":
        config = transformers.ViTConfig(image_size=32, patch_size=8, **sizes)
        return transformers.ViTModel(config), torch.randn(2, 3, 32, 32)
    return transformers.BertModel(transformers.BertConfig(vocab_size=99, **sizes)), ids


@pytest.mark.parametrize(
    ("kind", "layers"), [("gpt2", 9), ("llama", 15), ("vit", 14), ("bert", 13)]
)
def test_models_of_transformers(kind: str, layers: int) -> None:
    torch.manual_seed(0)
    model, x = hugging_face(kind)
    prepare(model, TernaryConfig(first="int8", last="int8"), x)
    assert len(names(model)) == layers
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    next(tensors(list(model(x).values()))).square().mean().backward()
    optimizer.step()
    net = convert(model.eval(), x)
    report = verify(model, net, x)
    assert report.identical, report.not_compared
    assert isinstance(next(m for m in model.modules() if isinstance(m, Int8Layer)), Int8Layer)


@pytest.mark.parametrize("name", ["nfnet_l0", "tf_efficientnetv2_b0"])
def test_models_of_timm_are_prepared_whole(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name)
    convolutions = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
    prepare(model, TernaryConfig(first="int8", last="int8"))
    assert len(names(model)) == convolutions
    assert any(isinstance(m, TernaryLayer) for m in model.modules())
