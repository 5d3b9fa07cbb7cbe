"""Statistics of the codes of every ternary layer, once per epoch, and warnings about dead layers.

Ternary layers fail in ways that the loss shows late: all weights become zero, activations stay at
their lowest or highest level, or a learned step diverges. The codes show it at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fatnn_rs.nn import TernaryLayer

__all__ = ["CodeMonitor", "LayerState"]


@dataclass(frozen=True)
class LayerState:
    """One ternary layer after an epoch.

    Attributes
    ----------
    layer
        Qualified name.
    weight_zeros
        Fraction of the weight codes that are 0.
    flips
        Fraction of the weight codes that changed since the last call; None in the first call.
    act_zeros
        Fraction of the activation codes that are 0.
    saturation
        Fraction of the activations at the highest level or, in full range, at the highest or
        lowest level; 0 for binary activations in full range.
    steps
        Name of a quantizer's learned parameter → mean of its absolute value.
    """

    layer: str
    weight_zeros: float
    flips: float | None
    act_zeros: float
    saturation: float
    steps: dict[str, float]

    def scalars(self) -> dict[str, float]:
        """Return the figures by name, for logs."""
        figures = {key: value for key, value in asdict(self).items() if isinstance(value, float)}
        figures |= {f"step.{name}": value for name, value in self.steps.items()}
        return {f"{self.layer}/{name}": value for name, value in figures.items()}

    def warnings(self, dead: float) -> Iterator[str]:
        """Yield warnings; ``dead`` is the fraction from which a layer counts as dead."""
        what = f"layer {self.layer!r}"
        if self.weight_zeros >= dead:
            yield (
                f"{what} is dying: {self.weight_zeros:.0%} of its weight codes are zero, so it "
                "passes almost nothing on; lower its weight decay or the learning rate, or start "
                "from a trained float model"
            )
        if self.act_zeros >= dead:
            yield (
                f"{what} is dying: {self.act_zeros:.0%} of the activation codes that it reads are "
                "zero; its step is too large for the output of the layer before it"
            )
        elif self.saturation >= dead:
            yield (
                f"{what} is saturated: {self.saturation:.0%} of the activations that it reads are "
                "at the end of their range; its step is too small, and no gradient passes"
            )
        if self.flips == 0.0:
            yield (
                f"{what} stands still: none of its weight codes changed since the last check; the "
                "learning rate is too small, or its weights get no gradient"
            )


class CodeMonitor:
    """Computes statistics of the codes of a model's ternary layers.

    Parameters
    ----------
    model
        A prepared model. Its quantizers are not changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, TernaryLayer)
        }
        self.model = model
        self._last: dict[str, Tensor] = {}

    @torch.no_grad()
    def look(self, x: Tensor) -> list[LayerState]:
        """Run ``x`` through the model in eval mode; describe every ternary layer that ran."""
        seen: dict[str, tuple[float, float]] = {}

        def hook(name: str, layer: TernaryLayer) -> Any:
            def look(module: nn.Module, args: Any, codes: Tensor) -> None:
                levels = layer.act_quant.levels
                ends = (
                    (codes == levels[-1]) | (codes == levels[0])
                    if levels[0] < 0
                    else codes == levels[-1]
                )
                seen[name] = (_fraction(codes == 0), _fraction(ends) if 0 in levels else 0.0)

            return layer.act_quant.register_forward_hook(look)

        training = self.model.training
        handles = [hook(name, layer) for name, layer in self.layers.items()]
        try:
            self.model.eval()
            self.model(x)
        finally:
            for handle in handles:
                handle.remove()
            self.model.train(training)
        return [self._state(name, *seen[name]) for name in self.layers if name in seen]

    def _state(self, name: str, act_zeros: float, saturation: float) -> LayerState:
        layer = self.layers[name]
        codes = layer.weight_quant.codes(layer.weight).cpu()
        last = self._last.get(name)
        self._last[name] = codes
        learned = {
            f"{side}.{key}": float(value.detach().abs().mean())
            for side, quantizer in (("weight", layer.weight_quant), ("act", layer.act_quant))
            for key, value in quantizer.named_parameters()
        }
        return LayerState(
            layer=name,
            weight_zeros=_fraction(codes == 0),
            flips=None if last is None else _fraction(codes != last),
            act_zeros=act_zeros,
            saturation=saturation,
            steps=learned,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weight codes that the next call of :meth:`look` compares with."""
        return dict(self._last)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state of a checkpoint."""
        self._last = dict(state)


def _fraction(mask: Tensor) -> float:
    return float(mask.sum()) / mask.numel() if mask.numel() else 0.0
