"""Elementwise functions: exact ones give torch's bits, the others stay within an error bound."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fatnn_rs as fatnn
from fatnn_rs.convert import TernaryNetwork
from fatnn_rs.convert.scalar import SCALARS
from fatnn_rs.operations import OPERATIONS
from nets import exact, isa_caps, ops_of, ready

#: Attributes to test in addition to the defaults.
ATTRS: dict[str, list[dict[str, Any]]] = {
    "hardtanh": [{"min_val": -0.4, "max_val": 0.8}],
    "leaky_relu": [{"negative_slope": -0.5}],
    "clamp_min": [{"min": 0.0}, {"min": -0.7}],
    "clamp_max": [{"max": 0.0}, {"max": 0.7}],
    "elu": [{"alpha": 0.3}],
    "pow": [{"exponent": e} for e in (4.0, 5.0, -3.0, 1.5, -0.375, 2.0**30)],
    "fake_quantize": [
        {"step_size": 0.125, "low": -128, "high": 127},
        {"step_size": 0.0371, "low": 0, "high": 255},
        {"step_size": 3e37, "low": -3, "high": 0},
    ],
    "softplus": [{"beta": 0.5, "threshold": 3.0}, {"beta": 2.0, "threshold": 40.0}],
}

OPS_AND_ATTRS = [
    (op, attrs)
    for op, row in SCALARS.items()
    for attrs in [dict(row.attrs), *ATTRS.get(op, [])]
    if None not in attrs.values()
]
EXACT = [case for case in OPS_AND_ATTRS if OPERATIONS[case[0]].exactness == "exact"]
APPROXIMATE = [case for case in OPS_AND_ATTRS if case not in EXACT]

#: Maximum error of an approximation, in units in the last place, against the function in float64.
MAX_ULPS = 0.51
#: The same for functions that are computed in float32.
MAX_ULPS_FLOAT32 = {"sigmoid": 2.5, "silu": 3.5}


def special_values() -> Tensor:
    """Return special values, random bit patterns, and numbers near 0 and near kinks."""
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-45, 3.4e38, -3.4e38]
    bends = np.array([-3, -1, 0, 1, 3, 6], np.float32)
    near = np.concatenate(
        [bends, np.nextafter(bends, np.float32(-9)), np.nextafter(bends, np.float32(9))]
    )
    drawn = rng.integers(0, 1 << 32, 100_000, np.uint32).view(np.float32)
    small = rng.normal(0, 3, 100_003).astype(np.float32)
    found = np.concatenate([np.array(special, np.float32), near, drawn, small])
    return torch.from_numpy(found[: found.size // 4 * 4].reshape(-1, 4))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether all bits are equal, except the payload of NaN."""
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


class FunctionAndLayer(nn.Module):
    """The function of one input, and a ternary layer of another, which convert requires."""

    def __init__(self, op: str, attrs: dict[str, float]) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.op, self.attrs = op, attrs

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        row = SCALARS[self.op]
        return (row.calls[0] if row.calls else row.function)(x, *self.attrs.values()), self.head(z)


def case_ids(cases: list[tuple[str, dict[str, float]]]) -> list[str]:
    return [f"{op}{list(attrs.values())}" for op, attrs in cases]


def outputs_on_every_isa(net: TernaryNetwork, x: Tensor, folder: Path) -> Iterator[Tensor]:
    """Yield the outputs of the saved network, run without torch, capped at each instruction set."""
    fatnn.save(net, folder / "net")
    np.save(folder / "x.npy", x.numpy())
    code = (
        "import sys, numpy as np, fatnn_rs; net = fatnn_rs.load_numpy(sys.argv[1]);"
        "np.save(sys.argv[3], net(np.load(sys.argv[2]), np.zeros((1, 4), np.float32))[0])"
    )
    paths = [str(folder / name) for name in ("net", "x.npy", "out.npy")]
    for isa in isa_caps():
        env = {**os.environ, "FATNN_ISA": isa} if isa else dict(os.environ)
        done = subprocess.run(
            [sys.executable, "-c", code, *paths], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        yield torch.from_numpy(np.load(folder / "out.npy"))


def test_loops_over_instruction_sets_cover_avx2() -> None:
    if "avx2" not in fatnn.cpu_info()["features_detected"]:
        pytest.skip(
            "this CPU has no AVX2, so tests of every ISA cover the scalar and best one only"
        )
    assert isa_caps() == ["scalar", "avx2", ""]


@pytest.mark.parametrize(("op", "attrs"), EXACT, ids=case_ids(EXACT))
def test_exact_function_gives_torchs_bits_on_every_isa(
    op: str, attrs: dict[str, float], tmp_path: Path
) -> None:
    example, x, z = (torch.randn(3, 4), torch.randn(3, 4)), special_values(), torch.randn(3, 4)
    net = fatnn.convert(ready(FunctionAndLayer(op, attrs), example), example)
    assert [row.runs for row in net.report.rows if row.op == op] == ["rust float -> float"]
    wanted = SCALARS[op].function(x, *attrs.values())
    assert same_bits(net(x, z)[0], wanted)
    for result in outputs_on_every_isa(net, x, tmp_path):
        assert same_bits(result, wanted)


def in_float64(op: str, x: Tensor, attrs: dict[str, float]) -> Tensor:
    """The function in float64; GELU in a form without torch's cancellation."""
    x = x.double()
    if op == "gelu":
        return x * 0.5 * torch.special.erfc(-x * 0.5**0.5)
    if op == "gelu_tanh":
        return x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))
    if op == "mish":
        w = torch.exp(x.clamp_max(60))
        return x * ((w * w + 2 * w) / (w * w + 2 * w + 2))
    if op == "softplus":
        y = attrs["beta"] * x
        return torch.where(y > attrs["threshold"], x, torch.log1p(torch.exp(y)) / attrs["beta"])
    if op == "elu":
        return torch.where(x > 0, x, np.float32(attrs["alpha"]).item() * torch.expm1(x))
    function: Any = SCALARS[op].function
    result: Tensor = function(x, *attrs.values())
    return result


@pytest.mark.parametrize(("op", "attrs"), APPROXIMATE, ids=case_ids(APPROXIMATE))
def test_approximate_function_stays_within_its_error_bound_on_every_isa(
    op: str, attrs: dict[str, float], tmp_path: Path
) -> None:
    example, x, z = (torch.randn(3, 4), torch.randn(3, 4)), special_values(), torch.randn(3, 4)
    model = ready(FunctionAndLayer(op, attrs), example)
    net = fatnn.convert(model, example)
    assert [row.runs for row in net.report.rows if row.op == op] == ["torch"]
    assert same_bits(net(x, z)[0], model(x, z)[0])
    net = fatnn.convert(model, example, float_layers="rust")
    result, wanted = net(x, z)[0], in_float64(op, x, attrs)
    rounded = wanted.float()
    assert torch.equal(result.isnan(), rounded.isnan())
    ends = rounded.isinf() | rounded.isnan() | result.isinf()
    assert same_bits(result[ends], rounded[ends])
    exponent = wanted.abs().clamp_min(2.0**-126).log2().floor().clamp_min(-126)
    ulps = (result.double() - wanted).abs() / 2.0 ** (exponent - 23)
    limit = MAX_ULPS_FLOAT32.get(op, MAX_ULPS)
    assert float(ulps[~ends].max()) <= limit, x[~ends][ulps[~ends].argmax()]
    for other in outputs_on_every_isa(net, x, tmp_path):
        assert same_bits(other, result)


class ReluPlusHalf(nn.Module):
    """Maps to positive numbers, which logarithms and roots need."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) + 0.5


# GELU, whose form an argument selects, is in the next test.
@pytest.mark.parametrize(
    "op", [op for op, row in SCALARS.items() if row.modules or row.calls or row.methods]
)
def test_modules_functions_and_methods_become_the_operation(op: str) -> None:
    row = SCALARS[op]
    given = [value if value is not None else 0.5 for value in row.attrs.values()]
    modules: list[nn.Module] = [kind() for kind in row.modules]
    modules += [
        type("Call", (nn.Module,), {"forward": lambda self, x, call=call: call(x, *given)})()
        for call in row.calls
    ]
    modules += [
        type(
            "Method", (nn.Module,), {"forward": lambda self, x, name=name: getattr(x, name)(*given)}
        )()
        for name in row.methods
    ]
    x = torch.randn(2, 4)
    for module in modules:
        net = exact(
            ready(nn.Sequential(nn.Linear(4, 4), ReluPlusHalf(), module, nn.Linear(4, 4)), x), x
        )
        assert not [op for op in ops_of(net) if op == "torch"], module


@pytest.mark.parametrize(
    ("op", "call"),
    [
        ("hardtanh", lambda x: x.clamp(-0.3, 0.4)),
        ("hardtanh", lambda x: torch.clip(x, min=-0.3, max=0.4)),
        ("clamp_min", lambda x: x.clamp(min=0.1)),
        ("clamp_max", lambda x: torch.clamp(x, max=0.1)),
        ("square", lambda x: x**2),
        ("square", lambda x: torch.pow(x, 2.0)),
        ("sqrt", lambda x: x.pow(0.5)),
        ("rsqrt", lambda x: x.pow(-0.5)),
        ("reciprocal", lambda x: x**-1),
        ("gelu", nn.GELU()),
        ("gelu_tanh", nn.GELU("tanh")),
        ("gelu_tanh", lambda x: functional.gelu(x, approximate="tanh")),
    ],
)
def test_calls_with_constant_arguments_become_the_operation(op: str, call: Any) -> None:
    x = torch.randn(2, 4)

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return call(self.first(x).abs()), self.last(x)

    net = exact(ready(Call(), x), x)
    assert op in ops_of(net)
    assert "torch" not in ops_of(net)
    special = special_values()
    if not op.startswith("gelu"):
        expected = SCALARS[op].function(special, *attribute_values(net, op))
        assert same_bits(call(special), expected)


def attribute_values(net: TernaryNetwork, op: str) -> list[Any]:
    (node,) = [node for node in net.graph.nodes if node.op == op]
    return [node.attrs[name] for name in SCALARS[op].attrs]
