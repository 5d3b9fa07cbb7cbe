"""A graph while a pass rewrites it: the time of a pass stays linear in the number of nodes."""

from __future__ import annotations

from collections.abc import Iterable

from fatnn_rs.convert.graph import Graph, Node, Ref, map_refs, unused_name

__all__ = ["GraphEdit"]


class GraphEdit:
    """Who makes and who reads every value, kept up to date while nodes are replaced.

    Nodes are replaced in the graph's list only by :meth:`finish`.

    Parameters
    ----------
    graph
        What is rewritten; nobody else may change its nodes meanwhile.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        #: Value → the node that makes it.
        self.makers = graph.index()
        #: Value → nodes that read it, once per read; None stands for the outputs.
        self.readers = graph.users()
        self._replaced: dict[int, list[Node]] = {}

    def only_reader(self, name: str) -> Node | None:
        """Return the node that reads a value, if there is exactly one read and it is a node's."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 else None

    def unused_name(self, name: str) -> str:
        """Return ``name``, or a numbered variant that no node has."""
        return unused_name(name, self.makers)

    def replace(self, gone: Iterable[Node], place: Node, made: list[Node]) -> None:
        """Put ``made`` in the place of one of the nodes that are ``gone``.

        Who read the value of ``place`` then reads the last one's.
        """
        lost = {id(node): node for node in gone}
        self._replaced |= {key: [] for key in lost}
        self._replaced[id(place)] = made
        reads: dict[str, list[Node]] = {}
        for node in lost.values():
            reads |= {name: [] for name in node.inputs}
        for node in made:
            for name in node.inputs:
                reads.setdefault(name, []).append(node)
        readers = self.readers[place.name]
        for node in lost.values():
            del self.makers[node.name], self.readers[node.name]
        self.makers |= {node.name: node for node in made}
        self.readers |= {node.name: [] for node in made}
        for name, nodes in reads.items():
            if name in self.readers:
                self.readers[name] = _substituted(self.readers[name], lost, nodes)
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
        """Write the graph's nodes."""
        self.graph.nodes = [
            made for node in self.graph.nodes for made in self._replaced.get(id(node), [node])
        ]


def _substituted(
    readers: list[Node | None], lost: dict[int, Node], new: list[Node]
) -> list[Node | None]:
    """Put new readers in the places of those that are gone."""
    waiting = iter(new)
    kept = [next(waiting, _GONE) if id(node) in lost else node for node in readers]
    return [node for node in kept if node is not _GONE] + list(waiting)


_GONE = Node("", "")
