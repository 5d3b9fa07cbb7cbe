"""prepare, param_groups and TernaryConfig: which layers are replaced, and every error."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fatnn_rs
from fatnn_rs import ConfigError, InputError, TernaryConfig, param_groups, prepare
from fatnn_rs.nn import TernaryConv2d, TernaryLayer, TernaryLinear


class Net(nn.Module):
    """Registers its layers in another order than it calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 1),
        )
        self.stem = nn.Conv2d(2, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y: Tensor = self.head(torch.relu(self.body(x)).mean((2, 3)))
        return y


class Untraceable(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) > 0 else -x)


def ternary(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, TernaryLayer)}


def batch() -> Tensor:
    return torch.randn(4, 2, 7, 7, generator=torch.Generator().manual_seed(0))


def test_first_and_last_are_in_order_of_execution() -> None:
    model = Net()
    keys, weight = set(model.state_dict()), model.body[0].weight
    assert prepare(model) is model
    assert ternary(model) == {"body.0", "body.3"}
    assert keys < set(model.state_dict())
    assert model.body[0].weight is weight
    assert model.body[3].layer_name == "body.3"


def test_first_and_last_fall_back_to_registration_order() -> None:
    model = prepare(Untraceable())
    assert ternary(model) == {"body.0", "body.3"}
    model = prepare(Untraceable(), TernaryConfig(first="ternary"))
    assert ternary(model) == {"head", "body.0", "body.3"}
    assert all(model.get_submodule(name).scale is not None for name in ternary(model))


def test_scale_only_where_no_batchnorm_follows() -> None:
    model = prepare(Net())
    assert model.body[0].scale is None
    assert model.body[3].scale is not None


def test_first_and_last_can_be_ternary() -> None:
    assert ternary(prepare(Net(), TernaryConfig(first="ternary"))) == {"stem", "body.0", "body.3"}
    model = prepare(Net(), TernaryConfig(first="ternary", last="ternary"))
    assert ternary(model) == {"stem", "body.0", "body.3", "head"}


@pytest.mark.parametrize("skip", ["body.0", r"re:body\.0", r"re:.*\.0"])
def test_skip(skip: str) -> None:
    assert ternary(prepare(Net(), TernaryConfig(skip=(skip,)))) == {"body.3"}


def test_a_container_means_its_layers() -> None:
    model = prepare(Net(), TernaryConfig(skip=("body",), last="ternary"))
    assert ternary(model) == {"head"}


def test_overrides_reach_the_layers_they_name() -> None:
    config = TernaryConfig(
        overrides={
            "body": {"per_channel": True, "scale": True},
            r"re:body\.3": {"per_channel": False, "act_range": "full"},
        }
    )
    model = prepare(Net(), config)
    assert model.body[0].weight_quant.per_channel
    assert model.body[0].scale is not None
    assert not model.body[3].weight_quant.per_channel
    assert model.body[3].act_quant.act_range == "full"


def test_example_inputs_initialise_every_layer() -> None:
    model = prepare(Net(), example_inputs=batch())
    assert all(model.get_submodule(name).act_quant.initialized for name in ternary(model))
    assert model.training
    assert torch.isfinite(model.eval()(batch())).all()
    other = prepare(Net(), example_inputs=(batch(),))
    assert all(other.get_submodule(name).act_quant.initialized for name in ternary(other))


def test_the_first_training_batch_initialises_otherwise() -> None:
    model = prepare(Net())
    with pytest.raises(ConfigError, match=r"layer 'body\.0'.*never initialised"):
        copy.deepcopy(model).eval()(batch())
    model.train()(batch()).sum().backward()
    assert all(model.get_submodule(name).act_quant.initialized for name in ternary(model))


def test_prepared_state_dict_loads_into_a_prepared_model() -> None:
    source = prepare(Net(), example_inputs=batch()).eval()
    target = prepare(Net())
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.eval()(batch()), source(batch()))


def test_shared_modules_and_residuals() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.norm = (
                nn.Conv2d(2, 4, 1),
                nn.Conv2d(4, 4, 1),
                nn.BatchNorm2d(4),
            )
            self.again, self.fc = self.conv, nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y: Tensor = self.fc(self.again(self.norm(self.conv(x))))
            return y

    model = prepare(Shared(), example_inputs=batch())
    assert isinstance(model.conv, TernaryConv2d)
    assert model.conv is model.again
    assert model.conv.scale is not None  # one of its two uses has no BatchNorm after it


def test_subclasses_and_the_projections_of_attention_are_swapped() -> None:
    class Odd(nn.Linear):
        pass

    model = prepare(nn.Sequential(nn.Linear(4, 4), Odd(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)))
    assert ternary(model) == {"1", "2"}
    assert isinstance(model[1], Odd)
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    prepare(layer, TernaryConfig(first="ternary", last="ternary"))
    projections = {f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    assert ternary(layer) == {"linear1", "linear2", *projections}


def test_hooks_survive() -> None:
    model = Net()
    seen: list[str] = []
    model.body[0].register_forward_hook(
        lambda module, args, output: seen.append(type(module).__name__)
    )
    prepare(model, example_inputs=batch())
    assert seen == ["Conv2d", "TernaryConv2d"]  # in the copy that prepare runs, and in the model


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            TernaryConfig(skip=("bodi.0",)),
            r"skip: 'bodi\.0' matches no layer; the layers are: head, body\.0",
        ),
        (TernaryConfig(skip=("re:body",)), "skip: 're:body' matches no layer"),
        (TernaryConfig(skip=("body.1",)), "matches no layer"),
        (TernaryConfig(overrides={"x": {"scale": True}}), "overrides: 'x' matches no layer"),
        (
            TernaryConfig(overrides={"stem": {"scale": True}}),
            r"names only layers that do not become ternary: stem \(first='float'\)",
        ),
        (TernaryConfig(skip=("body",)), r"nothing is left to quantize: stem \(first='float'\)"),
    ],
)
def test_errors_of_prepare(config: TernaryConfig, message: str) -> None:
    model = Net()
    with pytest.raises(ConfigError, match=message):
        prepare(model, config)
    assert not ternary(model)


def test_more_errors_of_prepare() -> None:
    with pytest.raises(ConfigError, match="already holds quantized layers"):
        prepare(prepare(Net()))
    with pytest.raises(ConfigError, match=r"holds no nn\.Conv1d"):
        prepare(nn.ReLU())
    with pytest.raises(ConfigError, match="nothing is left"):
        prepare(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="itself the layer"):
        prepare(nn.Linear(2, 2), TernaryConfig(first="ternary", last="ternary"))
    with pytest.raises(ConfigError, match=r"takes a torch\.nn\.Module"):
        prepare(3)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="must be a TernaryConfig"):
        prepare(Net(), {"act": "ternary"})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"layer 'body\.0'.*NaN"):
        prepare(Net(), example_inputs=batch() * torch.nan)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {"act": "uint4"},
            ConfigError,
            "act must be 'ternary' or 'uint2' or 'binary', got 'uint4'",
        ),
        (
            {"first": "int4"},
            ConfigError,
            "first must be 'float' or 'int8' or 'ternary', got 'int4'",
        ),
        ({"last": 8}, ConfigError, "last must be 'float' or 'int8' or 'ternary', got 8"),
        (
            {"weight": "nope"},
            ConfigError,
            "weight must be 'fatnn' or 'twn' or .* or 'binary', got 'nope'",
        ),
        ({"act_quantizer": "nope"}, ConfigError, "act_quantizer must be 'fatnn' or"),
        ({"act": 3}, ConfigError, "act must be"),
        ({"first": None}, ConfigError, "first must be"),
        ({"skip": "body"}, ConfigError, r"skip must be a tuple"),
        ({"skip": (3,)}, ConfigError, "a pattern is a module name"),
        ({"skip": ("re:(",)}, ConfigError, "not a valid regular expression"),
        ({"overrides": [1]}, ConfigError, "overrides must map"),
        ({"overrides": {"a": 3}}, ConfigError, r"must map options \(weight, act"),
        ({"overrides": {"a": {"bits": 3}}}, ConfigError, "unknown option 'bits'"),
        ({"overrides": {"a": {"scale": 1}}}, ConfigError, "True or False"),
        (
            {"overrides": {"a": {"act": "uint4"}}},
            ConfigError,
            r"overrides\['a'\]\['act'\] must be 'ternary'",
        ),
        ({"overrides": {"a": {"act_quantizer": 1}}}, ConfigError, "act_quantizer"),
        ({"overrides": {"a": {"act_range": "x"}}}, ConfigError, "act_range"),
        ({"overrides": {"": {}}}, ConfigError, "a pattern is a module name"),
    ],
)
def test_errors_of_the_config(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TernaryConfig(**kwargs)


def test_config_is_frozen_copies_its_input_and_pickles() -> None:
    overrides = {"a": {"scale": True}}
    config = TernaryConfig(skip=("b",), overrides=overrides)
    overrides["a"]["scale"] = False
    assert config.options_for("a").scale is True
    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.deepcopy(config) == config
    with pytest.raises(AttributeError):
        config.act = "binary"  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.overrides["c"] = {}  # type: ignore[index]


def test_param_groups_keep_decay_off_everything_but_weights() -> None:
    model = prepare(Net(), example_inputs=batch())
    decay, plain = param_groups(model, 1e-4)
    assert decay["weight_decay"] == 1e-4
    assert plain["weight_decay"] == 0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in decay["params"]} == {
        "head.weight",
        "body.0.weight",
        "body.3.weight",
        "stem.weight",
    }
    assert len(decay["params"]) + len(plain["params"]) == len(names)
    torch.optim.SGD(param_groups(model, 1e-4), 0.1)
    with pytest.raises(ConfigError, match="weight_decay"):
        param_groups(model, -1)


def test_ternary_mlp() -> None:
    model = prepare(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    )
    assert isinstance(model[2], TernaryLinear)
    assert model(torch.randn(5, 4)).shape == (5, 2)


def test_import_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import "
        "fatnn_rs\nfatnn_rs.TernaryConfig()\ntry:\n    fatnn_rs.prepare\nexcept ImportError as "
        "error:\n    assert 'pip install torch' in str(error), error\nelse:\n    raise "
        "SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_public_names_resolve_and_functions_are_not_hidden_by_modules() -> None:
    code = (
        "from fatnn_rs.prepare import param_groups\nimport fatnn_rs\nassert "
        "callable(fatnn_rs.prepare)\nassert all(hasattr(fatnn_rs, n) for n in fatnn_rs.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert "prepare" in dir(fatnn_rs)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        getattr(fatnn_rs, "nope")  # noqa: B009


def test_batch_norm_without_eps() -> None:
    """torch refuses an eps of 0 in training mode, where BatchNorm computes its statistics."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.0), nn.ReLU(), nn.Conv2d(4, 4, 3)
    )
    before = model[1].running_var.clone()
    prepare(
        model,
        TernaryConfig(first="ternary", last="ternary"),
        example_inputs=torch.randn(2, 3, 8, 8),
    )
    assert model[1].eps == 0.0
    assert not torch.equal(model[1].running_var, before)


class Mixer(nn.Module):
    """Blocks like ConvMixer's: an activation between convolution and BatchNorm, and a sum."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, 4)
        self.spatial, self.blocks = (
            nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(32, 32, k, padding=k // 2, groups=groups),
                    nn.GELU(),
                    nn.BatchNorm2d(32),
                )
                for _ in range(depth)
            )
            for k, groups in ((3, 32), (1, 1))
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for spatial, block in zip(self.spatial, self.blocks, strict=True):
            x = block(x + spatial(x))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def test_untrained_batch_norms_do_not_shrink_what_later_steps_are_fitted_to() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 32, 32)
    model = Mixer(24)
    prepared = prepare(copy.deepcopy(model), TernaryConfig(first="ternary", last="ternary"), x)
    norms = []
    for net in (model, prepared):
        net.train()(x).square().mean().backward()
        norms.append(max(float(p.grad.norm()) for n, p in net.named_parameters() if "stem" in n))
    assert norms[1] < 10 * norms[0]  # with the initial statistics: 1e14 times


def test_trained_batch_norm_after_an_activation_keeps_its_statistics() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 32, 32)
    model = Mixer(3)
    model.train()(x)
    kept = model.blocks[1][2].running_mean.clone()
    prepare(model, TernaryConfig(first="ternary", last="ternary"), x + 1)
    assert torch.equal(model.blocks[1][2].running_mean, kept)
