"""The passes that turn a captured graph into one that runs on codes, in the order they run.

| pass | does |
| --- | --- |
| ``cleanup`` | removes unread nodes; merges equal quantizers of one value |
| ``maps`` | shares map sizes for interpolation; quantizes before nearest interpolation |
| ``codes`` | convolution to quantizer becomes ``conv_codes`` with integer thresholds |
| ``floats`` | other ternary layers become ``conv_float``; other quantizers become ``quantize`` |
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
