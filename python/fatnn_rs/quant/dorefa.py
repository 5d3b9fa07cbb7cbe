"""DoReFa-Net with two bits on either side: four uniform levels, nothing learned.

S. Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth
Gradients", arXiv 1606.06160. Weights are {-3, -1, +1, +3}, which take two ternary planes and twice
the work of ternary ones (the conventional 4N of FATNN's comparison).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import hardtanh

from fatnn_rs.quant.base import ActivationQuantizer, WeightQuantizer, round_ste, set_value, widen

__all__ = ["DorefaUint2", "DorefaWeight"]

_LEAST = 1e-12


class DorefaWeight(WeightQuantizer):
    r"""Weights of two bits: :math:`q(w) = 2\,round(3 u) - 3 \in \{-3, -1, +1, +3\}`.

    With :math:`u = tanh(w) / (2\,max|tanh(w)|) + 1/2`, the maximum over the layer (or the output
    channel), detached. The paper's weights are ``q / 3``; here BatchNorm (or the layer's ``scale``)
    has the factor. Gradient (straight-through): ``dq/dw = 3 (1 - tanh(w)**2) / max|tanh(w)|``.

    Parameters
    ----------
    out_channels
        Size of the weight's first dimension.
    per_channel
        One maximum per output channel instead of one per layer.

    References
    ----------
    DoReFa-Net (arXiv 1606.06160), equation 9 with k = 2.
    """

    levels = (-3, -1, 1, 3)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the codes of ``weight``: same shape, float32 (or wider), values -3.0, -1.0, +1.0, +3.0."""
        bent = torch.tanh(widen(weight))
        rows = bent.detach().abs().reshape(self.out_channels if self.per_channel else 1, -1)
        most = rows.amax(dim=1).clamp(min=_LEAST).view(-1, *([1] * (weight.dim() - 1)))
        return 2.0 * round_ste(1.5 * (bent / most) + 1.5) - 3.0

    def initialize(self, weight: Tensor) -> None:
        """Nothing to set."""


class DorefaUint2(ActivationQuantizer):
    r"""Activations of two bits: :math:`q(x) = round(3\,clip(x / c, 0, 1)) \in \{0, 1, 2, 3\}`, nothing learned.

    The paper has ``c = 1``, for networks trained from scratch to keep activations in that range.
    Here ``c`` is three times the step that fits the first batch best, so that a trained float
    network can be the start. Gradient (straight-through): ``dq/dx = 3 / c`` for x in (0, c), else
    zero.

    Parameters
    ----------
    act_range
        ``"half"`` or ``"auto"``, which here means the same but takes negative inputs for 0.

    Attributes
    ----------
    inverse_step : Tensor
        ``3 / c``, a buffer, shape [], float32.

    References
    ----------
    DoReFa-Net (arXiv 1606.06160), equation 11.
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
        """How much of ``x`` one level stands for."""
        return 1.0 / float(self.inverse_step)

    @torch.no_grad()
    def set_step(self, step: float) -> None:
        """Set the step."""
        set_value(self.inverse_step, 1.0 / step)
