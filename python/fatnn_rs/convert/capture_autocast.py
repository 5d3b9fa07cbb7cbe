"""Inline the regions that ``torch.export`` makes of ``with torch.autocast(...)``."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

__all__ = ["inline_autocast"]


def inline_autocast(module: fx.GraphModule) -> None:
    """Inline every region whose autocast changes nothing on the CPU.

    A network runs without autocast. So a region that turns it off, or on for another device, is
    plain code. One that turns it on for the CPU stays a call.
    """
    graph, count = module.graph, 0
    for node in list(graph.nodes):
        if getattr(node.target, "__name__", "") != "wrap_with_autocast":
            continue
        device, _, enabled, _, region, *arguments = node.args
        if enabled and device == "cpu":
            continue
        inner: Any = module.get_submodule(region.target)
        inline_autocast(inner)
        values: dict[fx.Node, Any] = {}
        given = iter(arguments)
        for one in inner.graph.nodes:
            if one.op == "placeholder":
                values[one] = next(given)
            elif one.op == "get_attr":
                # A submodule or a tensor of the region: the whole graph looks it up in `module`.
                name = f"_of_autocast_{count}_{one.target.replace('.', '_')}"
                setattr(module, name, operator.attrgetter(one.target)(inner))
                one.target = name
        count += 1
        with graph.inserting_before(node):
            results: Any = graph.graph_copy(inner.graph, values)
        for user in list(node.users):
            assert user.target is operator.getitem
            place: Any = user.args[1]
            user.replace_all_uses_with(results[place])
            graph.erase_node(user)
        graph.erase_node(node)
        if not region.users:
            graph.erase_node(region)
    if count:
        module.recompile()
