"""DoReFa-Net with two-bit weights and activations: four uniform levels, nothing learned.

S. Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth
Gradients", arXiv 1606.06160, equations 9 (with k = 2) and 11. The weights {-3, -1, +1, +3} are sums
of two sign planes, 2 s1 + s0, and take twice the work of ternary weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import hardtanh

from fatnn_rs.quant.base import ActivationQuantizer, WeightQuantizer, round_ste, set_value, widen

__all__ = ["DorefaUint2", "DorefaWeight"]

_MIN_SCALE = 1e-12


class DorefaWeight(WeightQuantizer):
    r"""Two-bit weights: :math:`q(w) = 2\,round(3 u) - 3 \in \{-3, -1, +1, +3\}`.

    Here :math:`u = tanh(w) / (2\,max|tanh(w)|) + 1/2`, with the detached maximum over the layer or
    the output channel. The paper's weights are ``q / 3``; here BatchNorm or the layer's ``scale``
    learns the factor. Gradient (straight-through): ``dq/dw = 3 (1 - tanh(w)**2) / max|tanh(w)|``.
    """

    levels = (-3, -1, 1, 3)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the codes of ``weight``: same shape, float32 (or wider)."""
        bent = torch.tanh(widen(weight))
        rows = bent.detach().abs().reshape(self.out_channels if self.per_channel else 1, -1)
        most = rows.amax(dim=1).clamp(min=_MIN_SCALE).view(-1, *([1] * (weight.dim() - 1)))
        return 2.0 * round_ste(1.5 * (bent / most) + 1.5) - 3.0

    def initialize(self, weight: Tensor) -> None:
        """Do nothing: no parameters are learned."""


class DorefaUint2(ActivationQuantizer):
    r"""Two-bit activations: :math:`q(x) = round(3\,clip(x / c, 0, 1)) \in \{0, 1, 2, 3\}`.

    The paper uses ``c = 1`` and trains from scratch. Here ``c`` is three times the step that fits
    the first batch best, so that training can start from a float network. Gradient
    (straight-through): ``dq/dx = 3 / c`` for x in (0, c), else zero. Negative inputs become 0.

    Attributes
    ----------
    inverse_step : Tensor
        ``3 / c``, a buffer, shape [], float32.
    """

    half_levels = (0, 1, 2, 3)
    full_levels = ()
    inverse_step: Tensor

    def __init__(self, act_range: str = "auto") -> None:
        super().__init__(act_range)
        self.register_buffer("inverse_step", torch.tensor(1.0))

    def quantize_half(self, x: Tensor) -> Tensor:
        """Return the codes of ``x``."""
        return round_ste(hardtanh(x * self.inverse_step.to(x.dtype), 0.0, 3.0, inplace=True))

    @property
    def step(self) -> float:
        """The difference in ``x`` between two neighbouring levels."""
        return 1.0 / float(self.inverse_step)

    @torch.no_grad()
    def set_step(self, step: float) -> None:
        """Set the step."""
        set_value(self.inverse_step, 1.0 / step)
