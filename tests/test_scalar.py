"""Functions of one element: the engine has torch's bits, on every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fatnn_rs as fatnn
from fatnn_rs.convert.scalar import SCALARS
from nets import exact, ops_of, ready

#: Attributes to try: the defaults, and others.
ATTRS = {"hardtanh": [{"min_val": -0.4, "max_val": 0.8}], "leaky_relu": [{"negative_slope": -0.5}]}

CASES = [(op, attrs) for op, row in SCALARS.items() for attrs in [dict(row.attrs), *ATTRS.get(op, [])]]


def values() -> Tensor:
    """Every kind of float32: special ones, random bits, and those around 0 and around where functions bend."""
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-45, 3.4e38, -3.4e38]
    bends = np.array([-3, -1, 0, 1, 3, 6], np.float32)
    near = np.concatenate([bends, np.nextafter(bends, np.float32(-9)), np.nextafter(bends, np.float32(9))])
    drawn = rng.integers(0, 1 << 32, 100_000, np.uint32).view(np.float32)
    small = rng.normal(0, 3, 100_003).astype(np.float32)
    found = np.concatenate([np.array(special, np.float32), near, drawn, small])
    return torch.from_numpy(found[: found.size // 4 * 4].reshape(-1, 4))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether all bits are equal, but for those that NaN carries."""
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


class Applied(nn.Module):
    """A function, and a ternary layer of another input (NaN has no code), without which nothing is converted."""

    def __init__(self, op: str, attrs: dict[str, float]) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.op, self.attrs = op, attrs

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return SCALARS[self.op].calls[0](x, *self.attrs.values()), self.head(z)


@pytest.mark.parametrize(("op", "attrs"), CASES, ids=[f"{op}{list(attrs.values())}" for op, attrs in CASES])
def test_bits_are_those_of_torch(op: str, attrs: dict[str, float], tmp_path: Path) -> None:
    example, x, z = (torch.randn(3, 4), torch.randn(3, 4)), values(), torch.randn(3, 4)
    net = fatnn.convert(ready(Applied(op, attrs), example), example)
    assert [row.runs for row in net.report.rows if row.op == op] == ["rust float -> float"]
    wanted = SCALARS[op].function(x, *attrs.values())
    assert same_bits(net(x, z)[0], wanted)
    fatnn.save(net, tmp_path / "net")
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import sys, numpy as np, fatnn_rs; net = fatnn_rs.load_numpy(sys.argv[1]);"
        "np.save(sys.argv[3], net(np.load(sys.argv[2]), np.zeros((1, 4), np.float32))[0])"
    )
    names = [str(tmp_path / name) for name in ("net", "x.npy", "out.npy")]
    for isa in ("scalar", "avx2", ""):
        env = {**os.environ, "FATNN_ISA": isa} if isa else dict(os.environ)
        done = subprocess.run([sys.executable, "-c", code, *names], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert same_bits(torch.from_numpy(np.load(tmp_path / "out.npy")), wanted), isa


@pytest.mark.parametrize("op", SCALARS)
def test_every_way_to_call_it_is_taken(op: str) -> None:
    row = SCALARS[op]
    modules: list[nn.Module] = [kind() for kind in row.modules]
    modules += [type("Call", (nn.Module,), {"forward": lambda self, x, call=call: call(x)})() for call in row.calls]
    modules += [
        type("Method", (nn.Module,), {"forward": lambda self, x, name=name: getattr(x, name)()})()
        for name in row.methods
    ]
    x = torch.randn(2, 4)
    for module in modules:
        net = exact(ready(nn.Sequential(nn.Linear(4, 4), module, nn.Linear(4, 4)), x), x)
        assert not [op for op in ops_of(net) if op == "torch"], module
