"""Lower a captured torch.fx graph to a :class:`~fatnn_rs.convert.graph.Graph`.

:mod:`.walk` visits the calls and :mod:`.lowering` holds the state. The tables of :mod:`.modules`
and :mod:`.functions` have a row for each module class, function and tensor method that becomes an
operation. The rows live in one module per subject.
"""

from fatnn_rs.convert.lower.lowering import Lowering, Row
from fatnn_rs.convert.lower.walk import lower

__all__ = ["Lowering", "Row", "lower"]
