"""Runs the steps of a growing program, and keeps those that PyTorch accepts."""

from __future__ import annotations

import operator
import random
from collections import namedtuple
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from campaign.programs.program import Step

__all__ = ["CHANNELS", "StepBuilder"]

#: A step that makes a larger tensor is dropped.
MAX_ELEMENTS = 40_000

CHANNELS = (1, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 12, 16, 17, 31, 33, 64, 65)


class StepBuilder:
    """The state of a growing program; subclasses add methods that each draw one step."""

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
