"""The passes that turn a captured graph into one that runs on codes: one file each, in the order they run.

| pass | does |
| --- | --- |
| ``cleanup`` | drops what nobody reads; lets quantizers that agree share one result |
| ``maps`` | gives interpolations their size from a value that others read; quantizes before nearest ones |
| ``codes`` | convolution … quantizer becomes ``conv_codes`` with integer thresholds, max-pools move onto codes |
| ``floats`` | other ternary layers become ``conv_float`` with what fits its epilogue, other quantizers ``quantize`` |
"""

from __future__ import annotations

from fatnn_rs.convert.graph import Graph
from fatnn_rs.convert.passes.cleanup import drop_unread, share_leading_shapes, share_quantizers
from fatnn_rs.convert.passes.codes import fuse_codes
from fatnn_rs.convert.passes.floats import lower_rest
from fatnn_rs.convert.passes.maps import quantize_before_nearest, share_map_sizes

__all__ = ["run_passes"]


def run_passes(graph: Graph) -> Graph:
    """Run every pass, in place."""
    drop_unread(graph)
    share_leading_shapes(graph)
    share_quantizers(graph)
    share_map_sizes(graph)
    fuse_codes(graph)
    quantize_before_nearest(graph)
    lower_rest(graph)
    drop_unread(graph)
    return graph
