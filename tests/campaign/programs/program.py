"""The text of a program, and how to make it smaller."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["NORM_VALUES", "Program", "Step", "smaller_programs"]

HEADER = """\
import operator
from collections import namedtuple
import torch
from torch import nn
from torch.nn import functional as F
import fatnn_rs as fatnn

Pair = namedtuple("Pair", "a b")
"""


@dataclass(frozen=True)
class Step:
    """Part of a program; findings are grouped by its ``tag``."""

    tag: str
    init: tuple[str, ...]
    forward: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """A model, the options of ``prepare``, patches, BatchNorm values and inputs."""

    seed: int
    steps: tuple[Step, ...]
    result: str
    parameters: str
    config: str
    example: str
    others: tuple[tuple[str, str], ...]
    #: Lines to run before ``prepare``.
    before: tuple[str, ...] = ()
    #: Lines to run after ``prepare``.
    after: tuple[str, ...] = ()
    #: A key of ``NORM_VALUES``.
    norm_values: str = "plain"
    train: bool = False

    def define(self) -> str:
        init = [line for step in self.steps for line in step.init]
        forward = [line for step in self.steps for line in step.forward]
        lines = [
            HEADER,
            f"torch.manual_seed({self.seed % 1000})",
            "class Net(nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
            *("        " + line for line in init),
            f"    def forward(self, {self.parameters}):",
            *("        " + line for line in forward),
            f"        return {self.result}",
            "",
            "model = Net().eval()",
            f"example = {self.example}",
            *self.before,
        ]
        return "\n".join(lines) + "\n"

    def prepare(self) -> str:
        return f"fatnn.prepare(model, fatnn.TernaryConfig({self.config}), example_inputs=example)\n"

    def training(self) -> str:
        return (
            "model.train()\noptimizer = torch.optim.SGD(fatnn.param_groups(model, "
            "weight_decay=1e-4), lr=0.01)\nfor _ in range(2):\n    leaves = "
            "torch.utils._pytree.tree_leaves(model(*(t.clone() if torch.is_tensor(t) else t for t "
            "in example)))\n    loss = sum(t.square().mean() for t in leaves if torch.is_tensor(t) "
            "and t.requires_grad)\n    optimizer.zero_grad()\n    loss.backward()\n    "
            "optimizer.step()\nmodel.eval()\n"
        )

    def set_norm_values(self) -> str:
        lines = [
            "model.eval()",
            "from fatnn_rs.quant import ActivationQuantizer",
            "with torch.no_grad():",
            "    for m in model.modules():",
            "        if isinstance(m, ActivationQuantizer) and not m.initialized:",
            "            m.set_step(0.5)",
            "            m._set_state(initialized=True, half_range=True)",
        ]
        if self.norm_values != "none":
            lines += [
                "        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):",
                *("            " + line for line in NORM_VALUES[self.norm_values]),
            ]
        lines += [*self.after]
        return "\n".join(lines) + "\n"


_AFFINE = (
    "if m.weight is not None:",
    "    m.weight.copy_(torch.randn(m.num_features) * {scale})",
    "    m.weight[torch.rand(m.num_features) < {zeros}] = 0.0",
    "    m.bias.copy_(torch.randn(m.num_features) * {bias})",
)
_STATISTICS = (
    "if m.running_var is not None:",
    "    m.running_var.copy_({var})",
    "    m.running_mean.copy_(torch.randn(m.num_features) * {mean})",
)


def _norm_lines(scale: str, zeros: str, bias: str, var: str, mean: str) -> tuple[str, ...]:
    given = {"scale": scale, "zeros": zeros, "bias": bias, "var": var, "mean": mean}
    return tuple(line.format(**given) for line in _AFFINE + _STATISTICS)


#: Lines that set parameters and statistics of the BatchNorm ``m``.
NORM_VALUES: dict[str, tuple[str, ...]] = {
    "plain": _norm_lines("1.0", "0.1", "0.5", "torch.rand(m.num_features) + 0.1", "0.5"),
    "zero gamma": _norm_lines("1.0", "0.6", "0.5", "torch.rand(m.num_features) + 0.1", "0.5"),
    "huge gamma": _norm_lines("1e18", "0.1", "1e17", "torch.rand(m.num_features) + 0.1", "0.5"),
    "greatest gamma": _norm_lines("3e37", "0.1", "1.0", "torch.rand(m.num_features) * 1e-3", "0.5"),
    "tiny gamma": _norm_lines("1e-30", "0.1", "0.5", "torch.rand(m.num_features) + 0.1", "0.5"),
    "denormal gamma": _norm_lines(
        "1e-41", "0.1", "1e-41", "torch.rand(m.num_features) + 0.1", "0.5"
    ),
    "tiny variance": _norm_lines("1.0", "0.1", "0.5", "torch.rand(m.num_features) * 1e-30", "0.5"),
    "no variance": (
        *_norm_lines("1.0", "0.1", "0.5", "torch.zeros(m.num_features)", "0.5"),
        "m.eps = 0.0",
    ),
    "negative variance": _norm_lines(
        "1.0", "0.1", "0.5", "torch.rand(m.num_features) - 0.5", "0.5"
    ),
    "huge mean": _norm_lines("1.0", "0.1", "0.5", "torch.rand(m.num_features) + 0.1", "1e20"),
    "none": (),
}


def smaller_programs(given: Program) -> list[Program]:
    """Return the programs with one part less."""
    found = []
    for index in reversed(range(len(given.steps))):
        found.append(replace(given, steps=given.steps[:index] + given.steps[index + 1 :]))
    if given.before:
        found.append(replace(given, before=()))
    if given.after:
        found.append(replace(given, after=()))
    if given.train:
        found.append(replace(given, train=False))
    if given.norm_values != "none":
        found.append(replace(given, norm_values="none"))
    if given.norm_values not in ("none", "plain"):
        found.append(replace(given, norm_values="plain"))
    if given.result != "x":
        found.append(replace(given, result="x"))
    if given.config != "first='ternary', last='ternary'":
        found.append(replace(given, config="first='ternary', last='ternary'"))
    if len(given.others) > 1:
        found.append(replace(given, others=()))
        found += [replace(given, others=(other,)) for other in given.others]
    return found
