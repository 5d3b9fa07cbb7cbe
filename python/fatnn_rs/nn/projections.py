"""Quantized linear layers whose weight belongs to another module or is stored transposed.

:class:`TernaryProjection` computes one projection of an ``nn.MultiheadAttention``. Its weight is a
parameter of the attention. :class:`TernaryConv1D` replaces ``Conv1D`` of transformers (GPT-2), a
linear layer that stores its weight as [in, out].
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fatnn_rs.errors import ConfigError
from fatnn_rs.nn.base import QuantizedLayer, replaced_methods, why_replaced
from fatnn_rs.nn.int8 import Int8Layer
from fatnn_rs.nn.layers import TernaryLayer

__all__ = [
    "INPUT_PROJECTIONS",
    "Int8Conv1D",
    "Int8Projection",
    "LinearLike",
    "TernaryConv1D",
    "TernaryProjection",
    "is_transposed_linear",
    "transposed_linear",
]

#: Names of an attention's input projections, in the order of ``in_proj_weight``.
INPUT_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class LinearLike(QuantizedLayer):
    """Base of quantized linear layers that do not subclass ``nn.Linear``."""

    @property
    def out_features(self) -> int:
        """Size of the last dimension of the output."""
        raise NotImplementedError

    def forward(self, input: Tensor, add_bias: bool = True) -> Tensor:
        """Map [..., in] to [..., out]."""
        return self._run(functional.linear, input, 0, add_bias)


class _Projection(LinearLike):
    """Reads its weight and bias from the attention that it is a child of."""

    # A tuple, so that torch does not register the attention as a submodule of its own child.
    _owner: tuple[Any]
    part: str

    @property
    def out_features(self) -> int:
        """Size of the last dimension of the output."""
        size: int = self._owner[0].embed_dim
        return size

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The attention's weight for this projection, [out, in]."""
        owner, index = self._owner[0], INPUT_PROJECTIONS.index(self.part)
        if owner.in_proj_weight is None:
            own: Tensor = getattr(owner, f"{self.part}_weight")
            return own
        size = owner.embed_dim
        packed: Tensor = owner.in_proj_weight[index * size : (index + 1) * size]
        return packed

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The attention's bias for this projection, [out]."""
        owner, index = self._owner[0], INPUT_PROJECTIONS.index(self.part)
        if owner.in_proj_bias is None:
            return None
        size = owner.embed_dim
        packed: Tensor = owner.in_proj_bias[index * size : (index + 1) * size]
        return packed

    def latent_weight(self) -> Tensor:
        """Return the attention's weight for this projection, [out, in]."""
        return self.weight

    def _float_parameter(self) -> Tensor | None:
        owner = self._owner[0]
        packed: Tensor | None = owner.in_proj_weight
        return getattr(owner, f"{self.part}_weight") if packed is None else packed


class TernaryProjection(_Projection, TernaryLayer):
    """An input projection of an attention with ternary weights and activations.

    Parameters
    ----------
    owner : nn.MultiheadAttention
        The attention that holds the weights.
    part : str
        ``"q_proj"``, ``"k_proj"`` or ``"v_proj"``.
    **options
        As :class:`fatnn_rs.nn.TernaryLinear`.
    """

    def __init__(self, owner: nn.Module, part: str, **options: Any) -> None:
        super().__init__()
        self._owner, self.part = (owner,), part
        self.training = owner.training
        self._add_options(options)


class Int8Projection(_Projection, Int8Layer):
    """An input projection of an attention with 8-bit weights and activations.

    Parameters
    ----------
    owner : nn.MultiheadAttention
        The attention that holds the weights.
    part : str
        ``"q_proj"``, ``"k_proj"`` or ``"v_proj"``.
    """

    def __init__(self, owner: nn.Module, part: str) -> None:
        super().__init__()
        self._owner, self.part = (owner,), part
        self.training = owner.training
        self._add_quantizer()


class _Transposed(LinearLike):
    """Stores its weight as [in, out]."""

    nf: int

    @property
    def out_features(self) -> int:
        """Size of the last dimension of the output."""
        return self.nf

    def _weight(self) -> Tensor:
        return self.weight.t()


class TernaryConv1D(_Transposed, TernaryLayer):
    """``transformers.pytorch_utils.Conv1D`` with ternary weights and activations."""


class Int8Conv1D(_Transposed, Int8Layer):
    """``transformers.pytorch_utils.Conv1D`` with 8-bit weights and activations."""


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether a module is ``Conv1D`` of transformers. The library need not be installed."""
    kind = type(module)
    if kind.__name__ != "Conv1D" or not kind.__module__.startswith("transformers."):
        return False
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2 and hasattr(module, "nf")


def transposed_linear(module: nn.Module, int8: bool, **options: Any) -> TernaryConv1D | Int8Conv1D:
    """Make a quantized layer that shares the parameters of a ``Conv1D`` of transformers.

    Raises
    ------
    ConfigError
        If methods of ``module`` were replaced on the instance.
    """
    if changed := replaced_methods(module):
        raise ConfigError(why_replaced(changed))
    layer: Any = object.__new__(Int8Conv1D if int8 else TernaryConv1D)
    layer.__dict__.update(module.__dict__)
    for own in ("_parameters", "_buffers", "_modules"):
        layer.__dict__[own] = dict(module.__dict__[own])
    if int8:
        layer._add_quantizer()
    else:
        layer._add_options(options)
    made: TernaryConv1D | Int8Conv1D = layer
    return made
