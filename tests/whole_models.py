"""A helper of several tests: prepare a whole model, train one step, convert and compare."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fatnn_rs import TernaryConfig, convert, prepare, verify
from fatnn_rs.nn import QuantizedLayer

ALL = TernaryConfig(first="ternary", last="ternary")
BOTH = [ALL, TernaryConfig(first="int8", last="int8"), TernaryConfig(weight="binary", act="binary")]


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors(one)


def names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}


def whole(
    model: nn.Module, x: Any, config: TernaryConfig = ALL, identical: bool = True
) -> nn.Module:
    """Prepare, train one step, convert: no code differs, and float weights still load strictly."""
    floats = {key: value.clone() for key, value in model.state_dict().items()}
    given = x if isinstance(x, tuple) else (x,)
    parameters = dict(model.named_parameters())
    prepare(model, config, x)
    own = dict(model.named_parameters())
    assert all(own[name] is parameter for name, parameter in parameters.items())
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    sum(y.float().square().mean() for y in tensors(model.train()(*given))).backward()  # type: ignore[union-attr]
    optimizer.step()
    net = convert(model.eval(), x)
    report = verify(model, net, x)
    assert report.codes_different == 0
    assert report.max_abs_diff == 0
    if identical:
        assert report.identical, report.not_compared
    other = copy.deepcopy(model)
    expected = list(tensors(model(*given)))
    assert all(torch.equal(a, b) for a, b in zip(tensors(other(*given)), expected, strict=True))
    missing = other.load_state_dict(floats, strict=True)
    assert not missing.missing_keys
    return model
