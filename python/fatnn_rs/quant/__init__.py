"""Quantizers: one file per family, and the table :data:`QUANTIZERS` of all families.

To add a family, write ``quant/<name>.py`` with a :class:`WeightQuantizer` and, if needed, an
:class:`ActivationQuantizer`, then add it to :data:`QUANTIZERS`. Layers, recipes and tests read the
table.
"""

from __future__ import annotations

from typing import NamedTuple

from fatnn_rs.quant.base import ActivationQuantizer, WeightQuantizer
from fatnn_rs.quant.binary import BinaryActivation, BinaryWeight
from fatnn_rs.quant.dorefa import DorefaUint2, DorefaWeight
from fatnn_rs.quant.fatnn import FatnnActivation, FatnnUint2, FatnnWeight
from fatnn_rs.quant.lsq import LsqActivation, LsqUint2, LsqWeight
from fatnn_rs.quant.sttn import SttnWeight
from fatnn_rs.quant.ttq import TtqWeight
from fatnn_rs.quant.twn import TwnWeight

__all__ = [
    "QUANTIZERS",
    "ActivationQuantizer",
    "BinaryActivation",
    "BinaryWeight",
    "DorefaUint2",
    "DorefaWeight",
    "FatnnActivation",
    "FatnnUint2",
    "FatnnWeight",
    "LsqActivation",
    "LsqUint2",
    "LsqWeight",
    "QuantizerFamily",
    "SttnWeight",
    "TtqWeight",
    "TwnWeight",
    "WeightQuantizer",
    "activation_quantizer",
]


class QuantizerFamily(NamedTuple):
    """Quantizer classes of a family: one for weights, and one per value of ``act``.

    A family without activation quantizers of its own uses those of another family.
    """

    weight: type[WeightQuantizer]
    ternary: type[ActivationQuantizer]
    uint2: type[ActivationQuantizer]
    binary: type[ActivationQuantizer] = BinaryActivation


#: Name in :class:`fatnn_rs.TernaryConfig` → quantizer classes.
QUANTIZERS: dict[str, QuantizerFamily] = {
    "fatnn": QuantizerFamily(FatnnWeight, ternary=FatnnActivation, uint2=FatnnUint2),
    "twn": QuantizerFamily(TwnWeight, ternary=FatnnActivation, uint2=FatnnUint2),
    "ttq": QuantizerFamily(TtqWeight, ternary=FatnnActivation, uint2=FatnnUint2),
    "lsq": QuantizerFamily(LsqWeight, ternary=LsqActivation, uint2=LsqUint2),
    "sttn": QuantizerFamily(SttnWeight, ternary=FatnnActivation, uint2=FatnnUint2),
    "dorefa": QuantizerFamily(DorefaWeight, ternary=LsqActivation, uint2=DorefaUint2),
    "binary": QuantizerFamily(BinaryWeight, ternary=FatnnActivation, uint2=FatnnUint2),
}


def activation_quantizer(family: str, act: str) -> type[ActivationQuantizer]:
    """Return a family's class for ``act``: ``"ternary"``, ``"uint2"`` or ``"binary"``."""
    found: type[ActivationQuantizer] = QUANTIZERS[family]._asdict()[act]
    return found
