"""Quantizers: one file per family, one table of them.

To add a family: write ``quant/<name>.py`` with a :class:`WeightQuantizer` and an :class:`ActivationQuantizer`, and give
it a row in :data:`QUANTIZERS`. Configuration, layers and tests iterate the table.
"""

from __future__ import annotations

from typing import NamedTuple

from fatnn_rs.quant.base import ActivationQuantizer, WeightQuantizer
from fatnn_rs.quant.fatnn import FatnnActivation, FatnnWeight
from fatnn_rs.quant.lsq import LsqActivation, LsqWeight
from fatnn_rs.quant.twn import TwnWeight

__all__ = [
    "QUANTIZERS",
    "ActivationQuantizer",
    "FatnnActivation",
    "FatnnWeight",
    "LsqActivation",
    "LsqWeight",
    "QuantizerFamily",
    "TwnWeight",
    "WeightQuantizer",
]


class QuantizerFamily(NamedTuple):
    """The two halves of a family."""

    weight: type[WeightQuantizer]
    activation: type[ActivationQuantizer]


#: Every family there is: name in :class:`fatnn_rs.TernaryConfig` → classes.
QUANTIZERS: dict[str, QuantizerFamily] = {
    "fatnn": QuantizerFamily(weight=FatnnWeight, activation=FatnnActivation),
    "lsq": QuantizerFamily(weight=LsqWeight, activation=LsqActivation),
    "twn": QuantizerFamily(weight=TwnWeight, activation=FatnnActivation),
}
