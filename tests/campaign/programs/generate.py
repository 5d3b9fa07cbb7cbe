"""Draws a program: its steps, results, options, patches and inputs."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import torch

from campaign.programs.builder import CHANNELS
from campaign.programs.control_flow import ControlFlowSteps
from campaign.programs.layers import LayerSteps
from campaign.programs.program import NORM_VALUES, Program, Step
from campaign.programs.tensors import TensorSteps
from campaign.programs.writes import WriteSteps

__all__ = ["program"]

#: Factor on the frequency of unusual steps.
STRANGE = 1.0


class Builder(LayerSteps, TensorSteps, WriteSteps, ControlFlowSteps):
    """Grows one program step by step."""

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
    """Draw inputs that differ from the example: pairs of a label and an expression."""
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
