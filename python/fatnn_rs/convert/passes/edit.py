"""Edits of a graph, in time linear in the number of nodes of a pass."""

from __future__ import annotations

from collections.abc import Iterable

from fatnn_rs.convert.graph import Graph, Node, Ref, map_refs, unused_name

__all__ = ["GraphEdit"]


class GraphEdit:
    """Producers and readers of every value, kept up to date while nodes are replaced.

    The graph's list of nodes changes only in :meth:`finish`.

    Parameters
    ----------
    graph
        The graph to edit. No other code may change its nodes before :meth:`finish`.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        #: Value → the node that makes it.
        self.producers = graph.index()
        #: Value → its readers, once per read; None means the graph's outputs.
        self.readers = graph.users()
        self._replaced: dict[int, list[Node]] = {}

    def only_reader(self, name: str) -> Node | None:
        """Return the node that reads a value, if it is the only reader; None otherwise."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 else None

    def unused_name(self, name: str) -> str:
        """Return ``name``, or a numbered variant if it is taken."""
        return unused_name(name, self.producers)

    def replace(self, removed: Iterable[Node], place: Node, made: list[Node]) -> None:
        """Remove nodes and insert ``made`` at the position of one of them.

        Readers of the value of ``place`` then read the value of the last node of ``made``.

        Parameters
        ----------
        removed
            Nodes to remove.
        place
            The one of them whose position ``made`` takes.
        made
            New nodes, in order.
        """
        by_id = {id(node): node for node in removed}
        self._replaced |= {key: [] for key in by_id}
        self._replaced[id(place)] = made
        reads: dict[str, list[Node]] = {}
        for node in by_id.values():
            reads |= {name: [] for name in node.inputs}
        for node in made:
            for name in node.inputs:
                reads.setdefault(name, []).append(node)
        readers = self.readers[place.name]
        for node in by_id.values():
            del self.producers[node.name], self.readers[node.name]
        self.producers |= {node.name: node for node in made}
        self.readers |= {node.name: [] for node in made}
        for name, nodes in reads.items():
            if name in self.readers:
                self.readers[name] = _substituted(self.readers[name], by_id, nodes)
        self.readers[made[-1].name] = readers
        if made[-1].name != place.name:
            self._rename(readers, place.name, made[-1].name)

    def _rename(self, readers: list[Node | None], old: str, new: str) -> None:
        def renamed(ref: Ref) -> Ref:
            return Ref(new) if ref.name == old else ref

        for node in readers:
            if node is None:
                self.graph.outputs = map_refs(self.graph.outputs, renamed)
                continue
            node.inputs = [new if name == old else name for name in node.inputs]
            if node.arguments is not None:
                args, kwargs = map_refs(node.arguments, renamed)
                node.arguments = (args, kwargs)

    def finish(self) -> None:
        """Update the graph's list of nodes."""
        self.graph.nodes = [
            made for node in self.graph.nodes for made in self._replaced.get(id(node), [node])
        ]


def _substituted(
    readers: list[Node | None], by_id: dict[int, Node], new: list[Node]
) -> list[Node | None]:
    """Replace removed readers by new ones."""
    waiting = iter(new)
    kept = [next(waiting, _REMOVED) if id(node) in by_id else node for node in readers]
    return [node for node in kept if node is not _REMOVED] + list(waiting)


_REMOVED = Node("", "")
