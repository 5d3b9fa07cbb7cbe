"""Layers that would silently stay float: prepare and calibrate warn of them or refuse them."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import accelerate
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

import fatnn_rs
from fatnn_rs import ConfigError, InputError, PrepareWarning, TernaryConfig, prepare
from fatnn_rs.convert import convert, verify
from fatnn_rs.nn import Int8Linear, TernaryConv2d, TernaryLayer, TernaryLinear, calibrate
from fatnn_rs.nn.observe import observe

ALL = TernaryConfig(first="ternary", last="ternary")
X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(1))


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3)
    )


def patch_forward(layer: Any) -> None:
    old = layer.forward
    layer.forward = lambda t: old(t) * 0.5


def patch_partial(layer: Any) -> None:
    layer.forward = partial(functional.linear, weight=layer.weight)


def hook_of_accelerate(layer: Any) -> None:
    accelerate.hooks.add_hook_to_module(layer, accelerate.hooks.ModelHook())


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (patch_forward, r"layer '1': forward was replaced.*del layer.forward.*skip"),
        (patch_partial, "forward was replaced"),
        (hook_of_accelerate, "remove_hook_from_module"),
        (lambda layer: layer.compile(), "compile it after prepare"),
        (lambda layer: setattr(layer, "_call_impl", lambda t: t), "_call_impl was replaced"),
    ],
)
def test_methods_replaced_on_the_instance_are_refused(
    patch: Callable[[Any], None], message: str
) -> None:
    model = mlp()
    patch(model[1])
    layers = list(model)
    with pytest.raises(ConfigError, match=message):
        prepare(model, example_inputs=X)
    assert list(model) == layers
    with pytest.raises(ConfigError, match=message.partition(":")[2] or message):
        TernaryLinear.from_float(model[1])
    assert type(prepare(model, TernaryConfig(skip=("1",)))[3]) is TernaryLinear


def test_a_replaced_part_of_forward_is_refused() -> None:
    layer = nn.Conv2d(1, 4, 3)
    layer._conv_forward = lambda *args: args[0]  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="_conv_forward was replaced"):
        TernaryConv2d.from_float(layer)
    with pytest.raises(ConfigError, match="_conv_forward"):
        prepare(nn.Sequential(nn.Conv2d(1, 1, 1), layer, nn.Conv2d(4, 1, 1)))


def test_hooks_around_the_model_are_fine() -> None:
    model = mlp()
    accelerate.hooks.add_hook_to_module(model, accelerate.hooks.ModelHook())
    prepare(model, example_inputs=X)
    assert type(model[1]) is TernaryLinear


def encoder_layer() -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)


def by_hand() -> nn.Module:
    layer = encoder_layer()
    layer.linear1 = TernaryLinear(16, 32)  # type: ignore[assignment]
    return layer


def int8_by_hand() -> nn.Module:
    layer = encoder_layer()
    layer.linear2 = Int8Linear(32, 16)  # type: ignore[assignment]
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: prepare(encoder_layer(), ALL),
        lambda: prepare(encoder_layer(), ALL, TOKENS),
        lambda: copy.deepcopy(prepare(encoder_layer(), ALL)),
        lambda: pickle.loads(pickle.dumps(prepare(encoder_layer(), ALL))),
        lambda: prepare(nn.Sequential(encoder_layer(), encoder_layer()), ALL),
        by_hand,
        lambda: copy.deepcopy(by_hand()),
        int8_by_hand,
    ],
)
def test_fused_transformer_layers_compute_what_the_layers_do(make: Callable[[], nn.Module]) -> None:
    model = make()
    model(TOKENS)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), model.requires_grad_(True)(TOKENS).detach())
        fused = model(TOKENS)
    hooks = [module.register_forward_hook(lambda *args: None) for module in model.modules()]
    with torch.no_grad():
        torch.testing.assert_close(fused, model(TOKENS), rtol=0, atol=0)
    for hook in hooks:
        hook.remove()


def test_transformer_encoder_does_not_use_nested_tensors() -> None:
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[:, 4:] = True
    model = prepare(nn.TransformerEncoder(encoder_layer(), 2), ALL, TOKENS).eval()
    assert not model.use_nested_tensor
    with torch.no_grad():
        fused = model(TOKENS, src_key_padding_mask=mask)
    torch.testing.assert_close(fused, model(TOKENS, src_key_padding_mask=mask).detach())
    hand = nn.TransformerEncoder(encoder_layer(), 2)
    for layer in hand.layers:
        layer.linear1 = TernaryLinear(16, 32)
    hand(TOKENS)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch: nested tensors are a prototype
        with pytest.raises(InputError, match=r"nested tensor.*enable_nested_tensor=False"):
            hand.eval()(TOKENS, src_key_padding_mask=mask)


def test_a_failed_prepare_leaves_the_fused_path_on() -> None:
    model = nn.TransformerEncoder(encoder_layer(), 2)
    with pytest.raises(InputError):
        prepare(model, ALL, torch.ones(3))
    assert model.use_nested_tensor
    assert all(layer.activation_relu_or_gelu == 1 for layer in model.layers)


def test_attention_never_calls_its_projection() -> None:
    attention = nn.MultiheadAttention(16, 2)
    with pytest.raises(
        ConfigError,
        match=r"'out_proj': MultiheadAttention reads the weight.*leave that layer float",
    ):
        attention.out_proj = TernaryLinear(16, 16)  # type: ignore[assignment]
    attention._modules["out_proj"] = TernaryLinear(16, 16)
    with pytest.raises(ConfigError, match=r"'0\.out_proj'"):
        calibrate(nn.Sequential(attention), TOKENS)
    layer = encoder_layer()
    layer.self_attn.out_proj = nn.Linear(16, 16)  # type: ignore[assignment]
    prepare(layer, ALL, TOKENS)  # prepare changes the attention to a class that calls it
    assert type(layer.self_attn.out_proj) is TernaryLinear
    again = encoder_layer()
    again.self_attn.out_proj = nn.Linear(16, 16)  # type: ignore[assignment]
    prepare(
        again, TernaryConfig(first="ternary", last="ternary", skip=("self_attn.out_proj",)), TOKENS
    )
    assert type(again.self_attn.out_proj) is nn.Linear
    again(TOKENS)


class First(nn.Module):
    """The first of two results."""

    def forward(self, x: Any) -> Any:
        return x[0]


class Reader(nn.Module):
    """Reads weights and dtypes of its layers, and never calls some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.asked, self.read = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.both, self.unused, self.by_name = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).to(self.asked.weight.dtype).to(self.asked.weight.device)
        x = self.asked(x)[:, : self.asked.weight.shape[1]]
        x = functional.linear(x, self.read.weight, self.read.bias)
        x = self.both(x) + x @ self.both.weight.T
        y: Tensor = self.head(self.by_name.forward(x))
        return y


def test_layers_that_are_never_called_or_read_elsewhere_are_named() -> None:
    with pytest.warns(PrepareWarning) as caught:
        model = prepare(Reader(), example_inputs=X)
    (message,) = (str(one.message) for one in caught)
    assert isinstance(
        model.read, TernaryLinear
    )  # prepare turns the model's products into calls of them
    assert "'unused' (never called in eval mode)" in message
    assert "'both' (Tensor.T uses its float weight" in message
    assert "skip=(" in message
    assert not any(f"'{name}'" in message for name in ("read", "asked", "by_name", "stem", "head"))
    assert not any(
        "_run" in vars(module) or module._forward_pre_hooks for module in model.modules()
    )
    with pytest.warns(PrepareWarning, match="'unused'"):
        calibrate(model, X)
    prepare(Reader(), TernaryConfig(skip=("read", "unused", "both")), X)


def test_the_warning_as_an_error_leaves_the_model_as_it_was() -> None:
    model = Reader()
    layers = dict(model.named_modules())
    with pytest.raises(PrepareWarning):  # filterwarnings = error
        prepare(model, example_inputs=X)
    assert dict(model.named_modules()) == layers


@pytest.mark.parametrize("name", ["swin", "beit"])
def test_attention_that_reads_weights_of_real_models(name: str) -> None:
    if name == "swin":
        model: nn.Module = torchvision.models.SwinTransformer(
            [4, 4], 16, [2], [2], [2, 2], num_classes=3
        )
    else:
        model = timm.models.beit.Beit(
            img_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=3
        )
    x = torch.rand(1, 3, 32, 32)
    for example in (None, x):
        prepared = prepare(copy.deepcopy(model), example_inputs=example)
        prepared(x)
        layers = [m for m in prepared.modules() if isinstance(m, TernaryLayer)]
        assert layers
        assert all(layer.act_quant.initialized for layer in layers)
        prepared.eval()
        assert verify(prepared, convert(prepared, x), x).identical


def test_layer_that_shares_its_weight_with_an_embedding_is_quantized() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mid, self.head = (
                nn.Embedding(8, 8),
                nn.Linear(8, 8),
                nn.Linear(8, 8, bias=False),
            )
            self.head.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.mid(self.table(x)))
            return y

    model = prepare(Tied(), ALL, torch.arange(8))
    assert model.head.weight is model.table.weight
    assert isinstance(model.head, TernaryLinear)


def test_tied_and_frozen_layers_stay_tied_and_frozen() -> None:
    model = mlp()
    model[3].weight = model[1].weight
    model[1].bias.requires_grad_(False)
    prepare(model, example_inputs=X)
    assert model[3].weight is model[1].weight
    assert torch.equal(model[3].ternary_weight(), model[1].ternary_weight())
    assert not model[1].bias.requires_grad
    model(X).sum().backward()


def test_layers_without_a_quantized_counterpart_are_named() -> None:
    model = mlp()
    model[1] = nn.utils.parametrizations.weight_norm(model[1])
    prepare(model, example_inputs=X)
    assert isinstance(model[1], TernaryLinear)
    with pytest.warns(PrepareWarning, match=r"stay float: '1' \(there is no quantized GRU\)"):
        prepare(nn.Sequential(*mlp()[:1], nn.GRU(8, 8), First(), *mlp()[1:]), example_inputs=X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: initialising nothing
        empty = nn.Linear(8, 0)
    with pytest.warns(
        PrepareWarning, match=r"stay float: '5' \(its weight of shape \(0, 8\) is empty"
    ):
        prepare(nn.Sequential(*mlp(), empty))
    with pytest.raises(ConfigError, match="is empty"):
        TernaryLinear.from_float(empty)
    with pytest.raises(ConfigError, match="is empty"):
        Int8Linear.from_float(empty)


def test_weights_that_hooks_compute_are_quantized() -> None:
    model = mlp()
    prune.l1_unstructured(model[1], "weight", 0.5)
    state = {
        name: 3.0 * value if "orig" in name else value for name, value in model.state_dict().items()
    }
    prepare(model, example_inputs=X)
    before = model[1].scale / model[1].act_quant.step
    model.load_state_dict(state)
    model(X)
    torch.testing.assert_close(model[1].scale / model[1].act_quant.step, 3.0 * before)


def test_a_tensor_in_place_of_a_computed_weight_is_not_a_use_of_the_weight() -> None:
    model = mlp()
    prune.l1_unstructured(model[1], "weight", 0.5)
    prepare(model, example_inputs=X)
    with observe(model, {"1": model[1], "3": model[3]}) as observed:
        del model[1].weight  # Python may give its address, which is its `id`, to a new tensor
        for one in [torch.ones(1) for _ in range(1000)]:
            torch.relu(one)
    assert observed.used == {}


@pytest.mark.parametrize("kind", [nn.parallel.DistributedDataParallel])
def test_models_wrapped_for_distributed_training_are_refused(kind: Any, tmp_path: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        with pytest.raises(ConfigError, match=r"DistributedDataParallel.*prepare the model first"):
            prepare(kind(mlp()))
        model = kind(prepare(mlp()))
        for _ in range(2):
            model(X).sum().backward()
    finally:
        torch.distributed.destroy_process_group()


def test_public_name() -> None:
    assert fatnn_rs.PrepareWarning is PrepareWarning
    assert issubclass(PrepareWarning, UserWarning)
