"""Steps with branches and loops in Python, and with sizes used as numbers."""

from __future__ import annotations

from campaign.programs.builder import StepBuilder

__all__ = ["ControlFlowSteps"]


class ControlFlowSteps(StepBuilder):
    """Steps that depend on shapes or values in Python."""

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
