"""From a captured torch.fx graph to our own graph.

:mod:`.lowering` walks the graph; :mod:`.modules`, :mod:`.functions`, :mod:`.rearrange` and :mod:`.reductions`
have a row for each module class, function and tensor method that becomes an operation.
"""

from fatnn_rs.convert.lower.lowering import Lowering, Row, lower

__all__ = ["Lowering", "Row", "lower"]
