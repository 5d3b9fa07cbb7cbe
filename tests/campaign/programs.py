"""A generator of unusual networks as source text, so that a failing one can be pasted.

A program grows step by step. A step adds lines to ``__init__`` and ``forward``. It runs at once on
real tensors and is kept if PyTorch accepts it. So every program is a model that runs, and no step
needs to know shape rules.
"""

from __future__ import annotations

import contextlib
import operator
import random
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Program", "Step", "program"]

#: A step that makes a larger tensor is dropped.
MAX_ELEMENTS = 40_000

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
    #: Lines run before ``prepare`` and after it, and a key of ``NORM_VALUES``.
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
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
            "model.train()\n"
            "optimizer = torch.optim.SGD(fatnn.param_groups(model, weight_decay=1e-4), lr=0.01)\n"
            "for _ in range(2):\n"
            "    leaves = torch.utils._pytree.tree_leaves(model(*(t.clone() if torch.is_tensor(t) else t for t in example)))\n"
            "    loss = sum(t.square().mean() for t in leaves if torch.is_tensor(t) and t.requires_grad)\n"
            "    optimizer.zero_grad()\n"
            "    loss.backward()\n"
            "    optimizer.step()\n"
            "model.eval()\n"
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

CHANNELS = (1, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 12, 16, 17, 31, 33, 64, 65)


class Builder:
    """Grows one program step by step."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.module = nn.Module()
        self.env: dict[str, Any] = {
            "self": self.module,
            "torch": torch,
            "nn": nn,
            "F": functional,
            "operator": operator,
            "Pair": namedtuple("Pair", "a b"),
        }
        self.steps: list[Step] = []
        self.layers: list[str] = []
        self.variables = ["x"]
        self.numbers = 0

    @property
    def x(self) -> Tensor:
        value = self.env["x"]
        assert isinstance(value, Tensor)
        return value

    def name(self, prefix: str) -> str:
        self.numbers += 1
        return f"{prefix}{self.numbers}"

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def pick(self, *values: Any) -> Any:
        return self.rng.choice(values)

    def number(self) -> str:
        return repr(self.pick(0.5, -0.5, 2.0, 1.0, -1.0, 0.25, 1.5, 3.0, 0.1, -0.3))

    def add(self, tag: str, init: list[str], forward: list[str]) -> bool:
        """Run a step; return whether it was kept."""
        before = dict(self.env)
        try:
            with torch.no_grad():
                exec("\n".join(init), self.env)
                self.module.eval()
                exec("\n".join(forward), self.env)
                value = self.env["x"]
                if (
                    not isinstance(value, Tensor)
                    or not value.is_floating_point()
                    or value.dim() == 0
                ):
                    raise TypeError
                if value.numel() > MAX_ELEMENTS or value.numel() == 0 or value.dim() > 5:
                    raise ValueError
        except Exception:
            self.env.clear()
            self.env.update(before)
            return False
        self.steps.append(Step(tag, tuple(init), tuple(forward)))
        return True

    # Layers.

    def conv(self) -> bool:
        x, r = self.x, self.rng
        dims = x.dim() - 2
        if dims not in (1, 2):
            return self.linear()
        inner = x.shape[1]
        kernel = [r.choice((1, 1, 2, 3, 3, 3, 4, 5)) for _ in range(dims)]
        groups, outer = 1, r.choice(CHANNELS)
        kind = r.random()
        if kind < 0.15:
            groups, outer = inner, inner * r.choice((1, 1, 2))
        elif kind < 0.4:
            groups = r.choice([g for g in range(1, inner + 1) if inner % g == 0])
            outer = groups * r.choice((1, 2, 3))
        stride = [r.choice((1, 1, 1, 2, 3)) for _ in range(dims)]
        dilation = [r.choice((1, 1, 1, 2)) for _ in range(dims)]
        padding: Any = [r.choice((0, 1, 1, 2)) for _ in range(dims)]
        if self.chance(0.2):
            padding, stride = "same", [1] * dims
        elif self.chance(0.05):
            padding = "valid"
        mode = r.choice(("zeros",) * 7 + ("reflect", "replicate", "circular"))
        name = self.name("c")
        extra = "" if mode == "zeros" else f", padding_mode={mode!r}"
        text = (
            (
                f"self.{name} = nn.Conv{dims}d({inner}, {outer}, {tuple(kernel)}, stride={tuple(stride)}, "
                f"padding={padding if isinstance(padding, str) else tuple(padding)!r}, dilation={tuple(dilation)}, "
                f"groups={groups}, bias={self.chance(0.5)}{extra})"
            )
            .replace("padding=same", "padding='same'")
            .replace("padding=valid", "padding='valid'")
        )
        tag = (
            "conv"
            + (" same" if padding == "same" else "")
            + ("" if mode == "zeros" else f" {mode}")
        )
        kept = self.add(tag, [text], [f"x = self.{name}(x)"])
        self.layers += [name] if kept else []
        return kept

    def transposed(self) -> bool:
        x, r = self.x, self.rng
        dims = x.dim() - 2
        if dims not in (1, 2):
            return False
        groups = r.choice([g for g in range(1, x.shape[1] + 1) if x.shape[1] % g == 0])
        outer = groups * r.choice((1, 2, 4, 8))
        stride, dilation = r.choice((1, 2, 2, 3)), r.choice((1, 1, 2))
        more = r.randrange(max(stride, dilation))
        name = self.name("t")
        text = (
            f"self.{name} = nn.ConvTranspose{dims}d({x.shape[1]}, {outer}, {r.choice((1, 2, 3, 4))}, "
            f"stride={stride}, padding={r.choice((0, 0, 1, 2))}, output_padding={more}, "
            f"groups={groups}, dilation={dilation}, bias={self.chance(0.5)})"
        )
        kept = self.add("transposed conv", [text], [f"x = self.{name}(x)"])
        self.layers += [name] if kept else []
        return kept

    def linear(self) -> bool:
        name = self.name("l")
        outer = self.rng.choice(CHANNELS)
        text = f"self.{name} = nn.Linear({self.x.shape[-1]}, {outer}, bias={self.chance(0.5)})"
        kept = self.add("linear", [text], [f"x = self.{name}(x)"])
        self.layers += [name] if kept else []
        return kept

    def again(self) -> bool:
        return bool(self.layers) and self.add(
            "shared layer", [], [f"x = self.{self.rng.choice(self.layers)}(x)"]
        )

    def norm(self) -> bool:
        x = self.x
        if x.dim() not in (2, 3, 4):
            return False
        name = self.name("b")
        extra = self.pick(
            *("",) * 12,
            ", affine=False",
            ", eps=0.0",
            ", track_running_stats=False",
            ", momentum=None",
            ", eps=1.0",
        )
        kind = "2d" if x.dim() == 4 else "1d"
        return self.add(
            "batch norm" + extra.split("=")[0][1:],
            [f"self.{name} = nn.BatchNorm{kind}({x.shape[1]}{extra})"],
            [f"x = self.{name}(x)"],
        )

    def sums(self) -> bool:
        """Add a normalisation, reduction, softmax, matrix product or attention."""
        x, r = self.x, self.rng
        rank, name, last = x.dim(), self.name("s"), x.shape[-1]
        if rank < 2:
            return False
        dims = tuple(sorted(r.sample(range(1, rank), r.randint(1, rank - 1))))
        groups = r.choice([g for g in range(1, x.shape[1] + 1) if x.shape[1] % g == 0])
        heads = r.choice([h for h in range(1, last + 1) if last % h == 0])
        modules = {
            "layer norm": f"nn.LayerNorm({tuple(x.shape[-r.randint(1, rank - 1) :])})",
            "rms norm": f"nn.RMSNorm({last})",
            "group norm": f"nn.GroupNorm({groups}, {x.shape[1]}, affine={self.chance(0.5)})",
            "attention layer": f"nn.MultiheadAttention({last}, {heads}, batch_first={self.chance(0.5)})",
        }
        functions = {
            "mean over": f"x = x.mean({dims}, keepdim={self.chance(0.5)})",
            "sum over": f"x = x.sum({dims}, keepdim={self.chance(0.5)})",
            "largest": f"x = x.amax({dims}, keepdim={self.chance(0.5)})",
            "smallest": f"x = torch.min(x, {dims[0]})[0]",
            "softmax": f"x = F.softmax(x, dim={r.randrange(rank)})",
            "log softmax": f"x = torch.log_softmax(x, {r.randrange(-rank, rank)})",
            "product": "x = x @ x.transpose(-1, -2)",
            "batched product": "x = torch.matmul(x.transpose(-1, -2), x)",
            "attention": f"x = F.scaled_dot_product_attention(x, x, x, is_causal={self.chance(0.5)})",
            "reflection": "x = F.pad(x, (1, 1), mode='reflect')",
            "circle": "x = F.pad(x, (1, 0), mode='circular')",
            "edge": "x = F.pad(x, (0, 2), mode='replicate')",
            "shuffle": "x = F.pixel_shuffle(x, 2)",
        }
        tag = r.choice((*modules, *functions))
        if tag not in modules:
            return self.add(tag, [], [functions[tag]])
        call = f"self.{name}(x, x, x)[0]" if tag == "attention layer" else f"self.{name}(x)"
        return self.add(tag, [f"self.{name} = {modules[tag]}"], [f"x = {call}"])

    def activation(self) -> bool:
        r = self.rng
        name, c = self.name("a"), self.x.shape[1] if self.x.dim() > 1 else 1
        modules = (
            "nn.ReLU()",
            "nn.ReLU()",
            "nn.ReLU(inplace=True)",
            "nn.ReLU6()",
            "nn.Hardtanh(-0.4, 0.8)",
            "nn.Hardtanh(0.0, 3.0, inplace=True)",
            "nn.LeakyReLU(0.3)",
            "nn.LeakyReLU(-0.5)",
            "nn.LeakyReLU(0.1, inplace=True)",
            "nn.PReLU()",
            f"nn.PReLU({c})",
            f"nn.PReLU({c}, init=-0.5)",
            "nn.GELU()",
            "nn.SiLU()",
            "nn.Sigmoid()",
            "nn.Hardswish()",
            "nn.Hardswish(inplace=True)",
            "nn.ELU(inplace=True)",
            "nn.Tanh()",
            "nn.Softplus()",
            "nn.Identity()",
            "nn.Dropout(0.5)",
            "nn.Dropout(0.5, inplace=True)",
            "nn.AlphaDropout()",
            "nn.LogSoftmax(1)",
            "nn.Softmax(-1)",
            "nn.Hardsigmoid()",
            "nn.Mish()",
            "nn.GELU('tanh')",
            "nn.Softplus(2.0, 5.0)",
            "nn.Threshold(0.1, 0.0)",
        )
        functions = (
            "x = F.relu(x)",
            "x = x.relu()",
            "x = torch.relu(x)",
            "x = F.relu6(x)",
            "x = F.hardtanh(x, -0.5, 0.5)",
            "x = F.leaky_relu(x, 0.2)",
            "x = F.hardswish(x)",
            "x = x.clamp(0, 1)",
            "x = torch.clamp(x, min=0.0)",
            "x = x.abs()",
            "x = F.hardsigmoid(x)",
            "x = x.clamp(max=0.5)",
            "x = x.clamp_min(-0.25)",
            "x = x**2",
            "x = x.square().sqrt()",
            "x = (x.abs() + 0.5).rsqrt()",
            "x = (x.abs() + 0.5).reciprocal()",
            "x = x.clamp_max(3.0).exp()",
            "x = (x.abs() + 1.0).log()",
            "x = F.gelu(x, approximate='tanh')",
            "x = F.silu(x)",
            "x = F.mish(x)",
            "x = F.elu(x, 0.5)",
            "x = x.sigmoid()",
            "x = torch.tanh(x)",
            "x = F.dropout(x, 0.5, self.training)",
            "x = torch.where(x > 0, x, x * 0.1)",
            "x = torch.maximum(x, torch.zeros_like(x))",
            "x = x.sign()",
            "x = x.softmax(1)",
            "x = -x",
            "x = x.round()",
            "x = x.float()",
            "x = x.to(torch.float32)",
            "x = x.double().float()",
            "x = x.contiguous()",
            "x = x.clone()",
            "x = x.detach()",
        )
        if self.chance(0.6):
            text = r.choice(modules)
            return self.add(
                text.split("(")[0][3:], [f"self.{name} = {text}"], [f"x = self.{name}(x)"]
            )
        text = r.choice(functions)
        return self.add(text[4:], [], [text])

    def pool(self) -> bool:
        dims = self.x.dim() - 2
        if dims not in (1, 2):
            return False
        name = self.name("p")
        text = self.pick(
            f"nn.MaxPool{dims}d(2)",
            f"nn.MaxPool{dims}d(2, 1)",
            f"nn.MaxPool{dims}d(3, 2, 1)",
            f"nn.MaxPool{dims}d(3, 2, 1, ceil_mode=True)",
            f"nn.MaxPool{dims}d(2, 2, dilation=2, ceil_mode=True)",
            f"nn.AvgPool{dims}d(2)",
            f"nn.AvgPool{dims}d(3, 2, 1, ceil_mode=True)",
            f"nn.AvgPool{dims}d(3, 2, 1, count_include_pad=False)",
            f"nn.AvgPool{dims}d(2, 1, ceil_mode=True, count_include_pad=False)",
            "nn.AvgPool2d(2, divisor_override=3)",
            f"nn.AdaptiveAvgPool{dims}d(1)",
            f"nn.AdaptiveAvgPool{dims}d(3)",
            f"nn.AdaptiveMaxPool{dims}d(2)",
            "nn.AdaptiveAvgPool2d((2, None))",
            f"nn.LPPool{dims}d(2, 2)",
        )
        return self.add(text.split("(")[0][3:], [f"self.{name} = {text}"], [f"x = self.{name}(x)"])

    # Values kept for later, and combined.

    def keep(self) -> bool:
        name = self.name("h")
        kept = self.add("keep", [], [f"{name} = x"])
        self.variables += [name] if kept else []
        return kept

    def join(self) -> bool:
        others = [v for v in self.variables if v != "x" and v in self.env]
        if not others:
            return self.keep()
        h = self.rng.choice(others)
        form = self.pick(
            f"x = x + {h}",
            f"x = {h} + x",
            f"x += {h}",
            f"x.add_({h})",
            f"x = torch.add(x, {h})",
            f"x = torch.add(x, {h}, alpha=2)",
            f"x = torch.add(x, {h}, out=x)",
            f"torch.add(x, {h}, out=x)",
            f"x = x - {h}",
            f"x = x * {h}",
            f"x = operator.iadd(x, {h})",
            f"x = torch.cat([x, {h}], 1)",
            f"x = torch.cat(({h}, x), dim=1)",
            f"x = torch.stack([x, {h}]).sum(0)",
            f"x = x + {h}.mean((2, 3), keepdim=True)",
            f"x.copy_({h})",
            f"{h} += x",
            f"{h} = {h} + x",
            f"x = {h}",
        )
        return self.add(form.replace(h, "h"), [], [form])

    def broadcast(self) -> bool:
        x = self.x
        name = self.name("q")
        ones = ", 1" * max(0, x.dim() - 2)
        c = x.shape[1] if x.dim() > 1 else 1
        if self.chance(0.5):
            text = self.pick(
                f"torch.randn(1, {c}{ones})",
                f"torch.randn({c}{ones})",
                "torch.randn(1)",
                f"torch.randn({x.shape[-1]})",
            )
            form = self.pick(
                f"x = x + self.{name}",
                f"x = self.{name} + x",
                f"x += self.{name}",
                f"x = x * self.{name}",
            )
            return self.add(
                "parameter " + form.replace(name, "q"),
                [f"self.{name} = nn.Parameter({text})"],
                [form],
            )
        n = self.number()
        form = self.pick(
            f"x = x + {n}",
            f"x = {n} * x",
            f"x = {n} - x",
            f"x = x / {n}",
            f"x += {n}",
            f"x *= {n}",
            "x = x / x.shape[1]",
            "x = x * x.shape[-1]",
            "x = x + x",
            "x = x + x.mean(1, keepdim=True)",
            "x = x - x.mean()",
            "x = x + x.amax(-1, keepdim=True)",
            "x = x + torch.arange(x.shape[-1])",
            "x = x + torch.zeros_like(x)",
            "x = x + torch.ones(x.shape[-1])",
        )
        return self.add(form.replace(n, "n"), [], [form])

    # Writes into the value and into views of it.

    def mutate(self) -> bool:
        x, r, n = self.x, self.rng, self.number()
        c = x.shape[1] if x.dim() > 1 else 1
        k = r.randint(1, max(1, c - 1))
        v = self.name("v")
        forms = (
            f"x[:, :{k}] *= {n}",
            f"x[:, :{k}] += {n}",
            f"x[:, 0] = {n}",
            "x[:, -1] = x[:, 0]",
            f"x[..., 0] = {n}",
            f"x[0] *= {n}",
            f"x[:, ::2] = {n}",
            "a, b = x.chunk(2, 1); a += b",
            "a, b = x.chunk(2, 1); a += b; x = a",
            "a, b = torch.chunk(x, 2, 1); b.relu_()",
            f"a = x.split({k}, 1)[0]; a.mul_({n})",
            f"a = torch.split(x, {k}, dim=1)[-1]; a.add_({n})",
            f"{v} = x[:, :{k}]; {v} += {n}",
            f"{v} = x[:, :{k}]; {v}.relu_()",
            f"{v} = x[:, :{k}]; F.relu({v}, inplace=True)",
            f"{v} = x[:, :{k}]; torch.relu_({v})",
            f"{v} = x; x += {n}; x = x + {v}",
            f"{v} = x; x = x + {n}; {v} *= 2; x = x + {v}",
            f"{v} = x.view(x.shape); {v}.mul_({n})",
            f"{v} = x.flatten(1); {v}.clamp_(0, 1)",
            f"{v} = x.flatten(1); x.mul_({n}); x = {v}",
            f"{v} = x.reshape(x.shape[0], -1); {v} *= {n}",
            f"x.view(-1)[::3] = {n}",
            f"x.transpose(0, 1).add_({n})",
            f"x.transpose(0, 1)[0] = {n}",
            f"x.narrow(1, 0, {k}).mul_({n})",
            f"x.select(1, 0).fill_({n})",
            f"x.unbind(1)[0].add_({n})",
            "x.diagonal().zero_()",
            f"x.squeeze().mul_({n})",
            f"x.unsqueeze(0).mul_({n})",
            f"x.detach().mul_({n})",
            f"x.data.mul_({n})",
            f"x.data[:, 0] = {n}",
            f"x.expand_as(x).mul_({n})",
            "x.copy_(x.flip(1))",
            f"x[:, :{k}].copy_(x[:, -{k}:])",
            f"x.fill_({n})",
            f"x.mul_({n})",
            "x.neg_()",
            "x.clamp_(0, 1)",
            "x.clamp_(min=0.0)",
            "x.relu_()",
            "F.relu_(x)",
            "F.hardtanh_(x, -0.5, 0.5)",
            "F.leaky_relu_(x, 0.2)",
            "F.elu_(x)",
            "torch.relu_(x)",
            f"torch.add(x, {n}, out=x)",
            f"torch.mul(x, {n}, out=x)",
            "torch.clamp(x, 0, 1, out=x)",
            f"torch.mul(x[:, :{k}], {n}, out=x[:, :{k}])",
            f"{v} = torch.empty_like(x); torch.add(x, {n}, out={v}); x = {v}",
            "torch.abs(x, out=x)",
            f"x.index_put_((torch.tensor([0]),), torch.tensor({n}))",
            f"x.index_fill_(1, torch.tensor([0]), {n})",
            "x.index_add_(1, torch.tensor([0]), x[:, :1])",
            "x.index_copy_(1, torch.tensor([0]), x[:, -1:].clone())",
            f"x.masked_fill_(x > 0.5, {n})",
            f"x[x > 0.5] = {n}",
            "x.lerp_(torch.ones_like(x), 0.5)",
            "x.addcmul_(x, x)",
            f"x.scatter_(1, torch.zeros_like(x, dtype=torch.long)[:, :1], {n})",
            f"x.put_(torch.tensor([0]), torch.tensor([{n}]))",
            "x.requires_grad_(False)",
            f"x.set_(x * {n})",
            f"x.resize_(x.shape).mul_({n})",
            f"x.as_strided(x.shape, x.stride()).mul_({n})",
            f"x.swapaxes(0, 1).add_({n})",
            f"x.movedim(1, -1).mul_({n})",
            f"x.permute(*range(x.dim())).mul_({n})",
            f"x.T.mul_({n})",
            f"x.numpy()[:] *= {n}",
            f"x.__setitem__(0, {n})",
            f"operator.setitem(x, 0, {n})",
            f"operator.imul(x, {n})",
            f"operator.imul(x[:, :{k}], {n})",
            f"torch._foreach_mul_([x], {n})",
            f"nn.init.constant_(x, {n})",
            f"torch.ops.aten.mul_.Scalar(x, {n})",
            f"torch.ops.aten.relu_(x[:, :{k}])",
            f"torch.fill_(x[:, :{k}], {n})",
            "x.bernoulli_(1.0)",
            f"x = x.add_({n}).mul_(2)",
            f"x[:, :{k}].add_(1)[:, 0].mul_({n})",
            f"x = F.pad(x, (1, 1)); x[..., 0] = {n}",
            "F.dropout(x, 0.5, self.training, inplace=True)",
            f"F.batch_norm(x, torch.zeros({c}), torch.ones({c}), out=x)",
            "x.unfold(-1, 2, 1).mul_(1.5)",
            "torch.nn.functional.threshold_(x, 0.1, 0.0)",
            "x.sub_(x.mean())",
            "x.sigmoid_()",
            "x.div_(x.shape[1])",
            "x.view(torch.int32).bitwise_and_(-65536)",
            f"x.apply_(lambda t: t * {n})",
            "x.map_(x, lambda a, b: a + b)",
        )
        form = r.choice(forms)
        lines = form.split("; ")
        extra_tag = ""
        if self.chance(0.15):
            name = self.name("r")
            view = self.pick(f"x[:, :{k}]", "x", "x.flatten(1)", "x.transpose(0, 1)")
            return self.add(
                f"inplace module on {view.replace(str(k), 'k')}",
                [
                    f"self.{name} = {self.pick('nn.ReLU(inplace=True)', 'nn.Hardtanh(-0.5, 0.5, inplace=True)', 'nn.ELU(inplace=True)')}"
                ],
                [f"self.{name}({view})"],
            )
        tag = form.replace(n, "n").replace(v, "v").replace(f":{k}", ":k").replace(f"({k},", "(k,")
        return self.add(tag + extra_tag, [], lines)

    def reshape(self) -> bool:
        x, r = self.x, self.rng
        c = x.shape[1] if x.dim() > 1 else 1
        k = r.randint(1, max(1, c - 1))
        name = self.name("s")
        g = r.choice([g for g in range(1, c + 1) if c % g == 0])
        forms = (
            f"x = x[:, :{k}]",
            f"x = x[:, {k}:]",
            "x = x[:, ::2]",
            "x = x[..., 1:]",
            "x = x[..., ::2]",
            "x = x[:, :, 1:]",
            "x = x[:, 0:1]",
            "x = x[:, [0, -1]]",
            "x = x[:, torch.arange(x.shape[1] - 1, -1, -1)]",
            "x = x.flip(1)",
            "x = x.flip(-1)",
            "x = torch.roll(x, 1, 1)",
            "x = x.transpose(-1, -2)",
            "x = x.transpose(1, -1)",
            "x = x.transpose(1, -1).contiguous()",
            "x = x.transpose(1, 2)",
            "x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)",
            "x = x.permute(0, 2, 3, 1)",
            "x = x.permute(0, 2, 1)",
            f"x = x.view(x.shape[0], {g}, {c // g}, *x.shape[2:]).transpose(1, 2).reshape(x.shape)",
            "x = x.view(x.size(0), -1)",
            "x = x.reshape(x.shape[0], -1)",
            "x = x.reshape(len(x), -1)",
            "x = x.view(-1, x.shape[1:].numel())",
            "x = torch.flatten(x, 1)",
            "x = x.flatten(2)",
            "x = x.flatten(-2)",
            f"x = x.reshape(x.shape[0], {c}, -1)",
            "x = x.unsqueeze(-1)",
            "x = x.unsqueeze(1)",
            "x = x.squeeze(-1)",
            "x = x.squeeze(1)",
            "x = torch.cat([x, x], 1)",
            "x = torch.cat([x, x * 0.5, x.relu()], 1)",
            "x = torch.cat([x, torch.zeros_like(x)], 1)",
            "a, b = x.chunk(2, 1); x = torch.cat([b, a], 1)",
            "a, b = x.chunk(2, 1); x = a + b",
            "a, b = torch.tensor_split(x, 2, 1); x = a",
            f"a = x.split([{k}, {c - k}], 1); x = torch.cat([a[1], a[0]], 1)",
            "x = F.pad(x, (1, 2))",
            "x = F.pad(x, (0, 0, 1, 1), value=0.5)",
            "x = F.pad(x, (1, 1), mode='replicate')",
            "x = F.pad(x, (-1, 0))",
            "x = F.pad(x, (0, 1, 0, 1), mode='constant', value=-1.0)",
            "x = F.pad(x, (0, 0, 0, 0, 1, 1))",
            "x = F.interpolate(x, scale_factor=2)",
            "x = F.interpolate(x, scale_factor=(1.3, 0.5), mode='nearest-exact')",
            "x = F.interpolate(x, scale_factor=1.7, mode='nearest', recompute_scale_factor=True)",
            "x = F.interpolate(x, size=(5, 9), mode='bilinear', align_corners=True)",
            "x = F.interpolate(x, size=7, mode='linear')",
            "x = F.interpolate(F.max_pool2d(x, 2), size=x.shape[-2:])",
            "x = F.interpolate(F.max_pool2d(x, 2), size=(x.size(2), x.size(3)), mode='bilinear')",
            "x = F.interpolate(x, size=(2, 3), mode='area')",
            "x = F.instance_norm(x)",
            "x = F.adaptive_max_pool2d(x, (2, 3))",
            "x = x.mean((2, 3))",
            "x = x.mean(-1)",
            "x = x.mean(1, keepdim=True)",
            "x = x.mean([-1, -2], keepdim=True)",
            "x = x.sum(1, keepdim=True)",
            "x = x.amax(-1)",
            "x = x.max(1, keepdim=True)[0]",
            "x = x.repeat_interleave(2, 1)",
            "x = x.expand(x.shape)",
            "x = x[None].squeeze(0)",
            "x = F.pixel_shuffle(x, 2)",
            "x = F.pixel_unshuffle(x, 2)",
            "x = F.unfold(x, 2)",
            "x = x.unflatten(1, (1, -1)).flatten(1, 2)",
            "x = x.to(memory_format=torch.channels_last)",
            "x = x.contiguous(memory_format=torch.channels_last)",
            "x = x.movedim(1, -1)",
            "x = x.T.T",
            "x = x.narrow(1, 0, 1)",
            "x = x.index_select(1, torch.tensor([0]))",
            "x = torch.einsum('bc...->bc...', x)",
            "x = x.sort(1)[0]",
            "x = x.cumsum(1)",
        )
        form = r.choice(forms)
        if self.chance(0.1):
            text = self.pick(
                "nn.Flatten()",
                "nn.Flatten(2)",
                "nn.ZeroPad2d(1)",
                "nn.ReflectionPad2d(1)",
                "nn.Upsample(scale_factor=2)",
                "nn.Upsample(scale_factor=1.5, mode='bilinear')",
                f"nn.InstanceNorm2d({c}, affine=True)",
                "nn.ConstantPad1d(1, 0.5)",
                "nn.ChannelShuffle(2)",
                "nn.Unflatten(1, (1, -1))",
            )
            return self.add(
                text.split("(")[0][3:], [f"self.{name} = {text}"], [f"x = self.{name}(x)"]
            )
        return self.add(form[:60], [], form.split("; "))

    def masks(self) -> bool:
        """Masks, ids and choices, which are made of floats here, of sizes, or of constants."""
        x, name, n = self.x, self.name("m"), self.number()
        last = x.shape[-1] if x.dim() else 1
        form = self.pick(
            f"x = torch.where(x > {n}, x, x * 0.5)",
            "x = torch.where(x < x.flip(-1), x, 0.25)",
            f"x = x.masked_fill(x <= {n}, 0.5)",
            f"x = x.masked_fill((x != 0) & ~(x > {n}), -1.0)",
            f"x = x * (x >= {n})",
            f"x = x * (x == x).float() + (x > {n}).long()",
            "x = x.masked_fill(torch.arange(x.shape[-1]) > 1, 0.0)",
            f"x = x.masked_fill(torch.ones({last}, {last}, dtype=torch.bool).triu(1)[-1], 1.0)",
            "x = x + torch.arange(x.shape[-1]).flip(0) * 2",
            "x = x + torch.cumsum(torch.ones(x.shape[-1], dtype=torch.long), 0)",
            "x = x * torch.logical_xor(x > 0, torch.arange(x.shape[-1]) % 2 == 0)",
            f"x = x + self.{name}((x > {n}).long().flatten(1).cumsum(1) % 7).mean((1, 2)).sum()",
            f"x = x + self.{name}(torch.arange(x.shape[-1]))[:, 0]",
            f"x = x + self.{name}((x > {n}).int())[..., 1]",
            "x = torch.einsum('ij,kj->ik', x.flatten(1), x.flatten(1))",
            "x = torch.einsum('ijk,ilk->ijl', x, x)",
            "x = torch.baddbmm(x, x, x.transpose(1, 2) @ x, beta=0.5)",
            "x = x + torch.zeros_like(x[:1])",
            "x = torch.cat([x, x.new_ones(x.shape[0], *x.shape[1:])], 1)",
        )
        tag = form.replace(name, "m").replace(n, "n").replace(str(last), "k")
        init = [f"self.{name} = nn.Embedding({max(7, last)}, 3)"] if f"self.{name}" in form else []
        return self.add(tag[:60], init, [form])

    def branch(self) -> bool:
        b = self.x.shape[0]
        n = self.number()
        form = self.pick(
            f"if x.shape[0] > {b - 1}: x = x * {n}",
            f"if x.shape[0] == 1: x = x * {n}",
            "if x.shape[0] > 2: x = x - x.mean(0)",
            f"x = x if x.size(0) != 1 else x + {n}",
            f"if x.shape[0] % 2 == 0: x = x + {n}",
            f"if x.shape[-1] % 2 == 0: x = x * {n}",
            "if x.shape[-1] > 3: x = x[..., 1:]",
            f"if x.numel() > 100: x = x * {n}",
            "x = x - x.mean(0)",
            "x = x / x.shape[0]",
            "x = x * len(x)",
            "x = x + float(x.shape[0])",
            "x = torch.cat([x, x], 0)[: x.shape[0]]",
            "x = x.flip(0)",
            "x = torch.roll(x, 1, 0)",
            "x = x + torch.arange(x.shape[0]).view(-1, *[1] * (x.dim() - 1))",
            "for i in range(x.shape[0]): x = x * 0.9",
            "for i in range(2): x = x * 0.9",
            "assert x.shape[1] > 0",
            f"if self.training: x = x * {n}",
            f"if x.is_contiguous(): x = x * {n}",
            f"if x.sum() > 0: x = x * {n}",
            f"x = torch.stack([t * {n} for t in x])",
            "x = x.view(x.shape[0] // 1, *x.shape[1:])",
            f"x = torch.cond(x.sum() > 0, lambda t: t * {n}, lambda t: t + 0.0, (x,))",
            "if not hasattr(self, 'seen'): self.seen = x.shape[0]",
            "self.cache = x",
        )
        return self.add(form.replace(n, "n"), [], [form])

    def container(self) -> bool:
        """Add a Sequential: several modules under one name."""
        x = self.x
        dims = x.dim() - 2
        if dims not in (1, 2):
            return False
        name, c = self.name("s"), self.rng.choice(CHANNELS)
        last = self.pick(
            "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.Identity()", f"nn.MaxPool{dims}d(2)"
        )
        text = f"nn.Sequential(nn.Conv{dims}d({x.shape[1]}, {c}, 3, padding=1, bias={self.chance(0.3)}), nn.BatchNorm{dims}d({c}), {last})"
        return self.add("container", [f"self.{name} = {text}"], [f"x = self.{name}(x)"])

    def block(self) -> bool:
        """Add a layer, often with BatchNorm and activation, so that codes pass between layers."""
        kept = self.conv()
        if self.chance(0.7):
            self.norm()
        if self.chance(0.7):
            self.activation()
        return kept

    def grow(self, length: int) -> None:
        steps: list[tuple[float, Callable[[], bool]]] = [
            (6, self.block),
            (1, self.container),
            (1, self.conv),
            (1, self.norm),
            (2, self.activation),
            (2, self.sums),
            (1.5, self.pool),
            (1.5, self.keep),
            (2, self.join),
            (1, self.transposed),
            (1, self.again),
            (1.2, self.broadcast),
            (STRANGE * 2.5, self.mutate),
            (STRANGE * 2.5, self.reshape),
            (STRANGE, self.masks),
            (STRANGE * 0.7, self.branch),
        ]
        weights, calls = zip(*steps, strict=True)
        tries = 0
        while len(self.steps) < length and tries < 8 * length:
            tries += 1
            self.rng.choices(calls, weights)[0]()


#: Factor on the frequency of unusual steps.
STRANGE = 1.0

#: Expressions of special input values; ``{shape}`` is the shape.
SPECIAL: dict[str, str] = {
    "negative zeros": "torch.full({shape}, -0.0)",
    "zeros": "torch.zeros({shape})",
    "denormals": "torch.randn({shape}) * 1e-40",
    "1e20": "torch.randn({shape}) * 1e20",
    "3e38": "torch.rand({shape}) * 6e38 - 3e38",
    "infinities": "torch.randn({shape}).masked_fill(torch.rand({shape}) < 0.1, float('inf'))",
    "halves": "torch.randint(-4, 5, {shape}) / 2",
    "nan": "torch.randn({shape}).masked_fill(torch.rand({shape}) < 0.1, float('nan'))",
}


def _inputs(rng: random.Random, shape: tuple[int, ...]) -> list[tuple[str, str]]:
    """Return other inputs than the example, each a label and an expression."""
    rest = shape[1:]
    found = []
    for batch in rng.sample([1, 2, 3, 4, 5, 7], 2):
        found.append(("another batch", f"torch.randn({(batch, *rest)})"))
    if rng.random() < 0.15:
        found.append(("an empty batch", f"torch.randn({(0, *rest)})"))
    label = rng.choice(list(SPECIAL))
    found.append((label, SPECIAL[label].format(shape=shape)))
    last = len(shape) - 1
    strange = [
        ("non-contiguous", f"torch.randn({(*shape[:-1], 2 * shape[-1])})[..., ::2]"),
        ("transposed", f"torch.randn({(*shape[1:], shape[0])}).movedim({last}, 0)"),
        ("expanded", f"torch.randn({(1, *rest)}).expand({shape})"),
        ("expanded along channels", f"torch.randn({(shape[0], 1, *shape[2:])}).expand({shape})"),
        ("requires grad", f"torch.randn({shape}).requires_grad_()"),
        ("a parameter", f"nn.Parameter(torch.randn({shape}))"),
        (
            "an offset view",
            f"torch.randn({shape[0] * torch.Size(rest).numel() + 1})[1:].view({shape})",
        ),
    ]
    if len(shape) == 4:
        strange += [
            ("channels last", f"torch.randn({shape}).contiguous(memory_format=torch.channels_last)")
        ] * 3
    found.append(rng.choice(strange))
    if len(shape) > 2 and rng.random() < 0.5:
        other = (*shape[:2], *(size + rng.choice((0, 1, 2, 5, -1)) for size in shape[2:]))
        if min(other) > 0:
            found.append(("another size", f"torch.randn({other})"))
    return found


RESULTS = (
    ("x", 10.0),
    ("(x, x.relu())", 0.5),
    ("[x, x]", 0.4),
    ("{'a': x, 'b': x.mean()}", 0.4),
    ("Pair(x, x * 2)", 0.4),
    ("(x, None, 3, 'text')", 0.3),
    ("{'a': [x, (x,)], 'b': 2.0}", 0.3),
    ("x, x.shape[0]", 0.3),
    ("(x, h)", 0.6),
    ("(h, x)", 0.3),
    ("(x, input)", 0.3),
    ("x[0]", 0.2),
    ("x.argmax(1)", 0.2),
    ("x > 0", 0.1),
)


def _config(rng: random.Random, layers: int) -> str:
    ends = ("ternary", "ternary", "float", "int8") if layers > 2 else ("ternary",) * 9 + ("int8",)
    options = [f"first={rng.choice(ends)!r}", f"last={rng.choice(ends)!r}"]
    options.append(f"act={rng.choice(('ternary', 'ternary', 'uint2', 'binary'))!r}")
    options.append(
        f"weight={rng.choice(('fatnn', 'fatnn', 'twn', 'lsq', 'sttn', 'dorefa', 'binary'))!r}"
    )
    if rng.random() < 0.6:
        options.append(f"depthwise={rng.choice(('ternary', 'ternary', 'float'))!r}")
    if rng.random() < 0.15:
        options.append(f"act_quantizer={rng.choice(('fatnn', 'lsq', 'dorefa'))!r}")
    if rng.random() < 0.25:
        key = rng.choice(
            [
                "'per_channel': True",
                "'act_range': 'full'",
                "'act_range': 'half'",
                "'scale': True",
                "'scale': False",
            ]
        )
        options.append(f"overrides={{'re:.*': {{{key}}}}}")
    return ", ".join(options)


def _patches(rng: random.Random, builder: Builder) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draw a hook or a replaced method: lines before ``prepare`` and lines after it."""
    names = [name for name, _ in builder.module.named_modules() if name and "." not in name]
    if not names or rng.random() < 0.85:
        return (), ()
    name = rng.choice(names)
    lines = rng.choice(
        [
            (f"model.{name}.register_forward_hook(lambda m, a, o: o * 0.5)",),
            (f"model.{name}.register_forward_pre_hook(lambda m, a: (a[0] * 0.5,))",),
            (f"model.{name}.forward = lambda t, old=model.{name}.forward: old(t) * 0.5",),
            (
                f"class Sub(type(model.{name})):",
                "    def forward(self, t): return super().forward(t) * 0.5",
                f"model.{name}.__class__ = Sub",
            ),
            ("model.register_forward_hook(lambda m, a, o: o)",),
            ("model.forward = lambda *a, old=model.forward: old(*a)",),
            (f"model.{name}.register_full_backward_hook(lambda m, a, b: None)",),
            (f"nn.utils.parametrizations.weight_norm(model.{name})",),
            (f"torch.nn.utils.prune.random_unstructured(model.{name}, 'weight', 0.3)",),
            (f"model.{name}.weight = nn.Parameter(model.{name}.weight.detach() * 2)",),
            (f"model.{name}.requires_grad_(False)",),
        ]
    )
    return (lines, ()) if rng.random() < 0.5 else ((), lines)


def program(seed: int) -> Program:
    """Generate the program of a seed."""
    builder = Builder(seed)
    rng = builder.rng
    torch.manual_seed(seed)
    rank = rng.choice((4, 4, 4, 4, 3, 2))
    batch = rng.choice((1, 2, 3, 4, 5))
    channels = rng.choice(CHANNELS)
    shape = {
        4: (batch, channels, rng.choice((1, 2, 3, 5, 6, 8, 9)), rng.choice((1, 3, 4, 6, 7, 8, 11))),
        3: (batch, channels, rng.choice((1, 4, 7, 12, 19))),
        2: (batch, rng.choice((*CHANNELS, 130))),
    }[rank]
    builder.env["x"] = torch.randn(shape)
    builder.env["input"] = builder.env["x"]
    builder.grow(rng.choice((2, 3, 4, 6, 8, 10, 14)))
    if not builder.layers:
        with contextlib.suppress(Exception):
            builder.conv()
    if (
        rng.random() < 0.3
        and builder.x.dim() > 2
        and builder.add("flatten", [], ["x = x.flatten(1)"])
    ):
        builder.linear()
    forms, weights = zip(*RESULTS, strict=True)
    result = "x"
    for _ in range(5):
        result = rng.choices(forms, weights)[0]
        variables = [v for v in builder.variables if v != "x"]
        result = result.replace("(x, h)", f"(x, {rng.choice(variables)})" if variables else "x")
        result = result.replace("(h, x)", f"({rng.choice(variables)}, x)" if variables else "x")
        result = result.replace("input", "x")
        try:
            eval(result, builder.env)
            break
        except Exception:
            result = "x"
    parameters, arguments = "x", ""
    others = [(label, f"({text},)") for label, text in _inputs(rng, shape)]
    steps = tuple(builder.steps)
    kind = rng.random()
    if kind < 0.06:
        parameters, arguments = "x, s=2.0", ", 2.0"
        steps = (
            *steps[: len(steps) // 2],
            Step("argument", (), ("x = x * s",)),
            *steps[len(steps) // 2 :],
        )
        base = f"torch.randn({shape})"
        others += [("another number", f"({base}, 5.0)"), ("the default", f"({base},)")]
    elif kind < 0.1:
        parameters, arguments = "x, y", f", torch.randn({shape})"
        steps = (
            Step(
                "two inputs",
                (),
                (
                    rng.choice(
                        (
                            "x = x + y",
                            "x = torch.cat([x, y], 0)[:x.shape[0]]",
                            "x += y",
                            "x = x * y",
                        )
                    ),
                ),
            ),
            *steps,
        )
        others = [
            (label, f"{text[:-1]} torch.randn({shape}))")
            for label, text in others
            if "batch" not in label
        ]
        others = [(label, text) for label, text in others if "size" not in label]
    elif kind < 0.13:
        parameters, arguments = "x, flag=True", ", False"
        steps = (*steps, Step("flag", (), ("if flag: x = x * 0.5",)))
        others += [("another flag", f"(torch.randn({shape}), True)")]
    example = f"(torch.randn({shape}){arguments},)"
    if rank == 4 and rng.random() < 0.1:
        example = (
            f"(torch.randn({shape}).contiguous(memory_format=torch.channels_last){arguments},)"
        )
    before, after = _patches(rng, builder)
    norm_values = rng.choice(("plain",) * 12 + tuple(NORM_VALUES))
    return Program(
        seed=seed,
        steps=steps,
        result=result,
        parameters=parameters,
        config=_config(rng, len(builder.layers)),
        example=example.replace(",,", ","),
        others=tuple(others),
        before=before,
        after=after,
        norm_values=norm_values,
        train=rng.random() < 0.25,
    )


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
