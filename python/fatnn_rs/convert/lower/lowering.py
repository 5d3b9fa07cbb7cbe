"""The context of a lowering: what rows read of the captured graph, and how they add nodes.

A row is a function that lowers one kind of call. It adds nodes to the new
:class:`~fatnn_rs.convert.graph.Graph` and returns their result, or it declines with None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fatnn_rs.convert.capture import Captured
from fatnn_rs.convert.graph import Dtype, Graph, Node, NodeIndex, Ref, refs, unused_name
from fatnn_rs.convert.lower.calls import Method, attention_call, clean_copy
from fatnn_rs.convert.lower.folding import PLAIN, Folding
from fatnn_rs.convert.lower.input_limits import SizeLimit
from fatnn_rs.convert.mutation import Aliases
from fatnn_rs.convert.record import TensorMeta
from fatnn_rs.operations import form_of
from fatnn_rs.report import RULES

__all__ = ["PLAIN", "Lowering", "Row", "attribute_of", "fx_nodes"]


#: Lowers one call: adds nodes and returns their result, or declines with None.
Row = Callable[..., Any]


_NOTHING = TensorMeta()


class Lowering:
    """The state of one lowering."""

    def __init__(self, captured: Captured, not_composed: frozenset[fx.Node] = frozenset()) -> None:
        self.captured = captured
        #: Calls whose results have strides that a composition would not give.
        self.not_composed = not_composed
        #: Value name → call, of the results of compositions.
        self.composed: dict[str, fx.Node] = {}
        #: Value name → the node whose strides it has, of what a composed call writes.
        self.written: dict[str, fx.Node] = {}
        self.graph = Graph(notes=list(captured.notes), arguments=captured.arguments)
        self.env: dict[fx.Node, Any] = {}
        #: Value name → dtype.
        self.types: dict[str, Dtype] = {}
        placeholders = {n.name: n for n in captured.graph.nodes if n.op == "placeholder"}
        self.folding = Folding(
            captured.graph,
            captured.seen,
            [placeholders[name] for name in captured.inputs],
            captured.fixed,
            lambda node: attribute_of(captured.root, str(node.target)),
            captured.leading_sizes,
        )
        self.folded: dict[tuple[fx.Node, int], Ref] = {}
        self.node: fx.Node
        self.layer = ""
        #: What was computed with the example's sizes, as in ``x.view(-1, 400)``.
        self.size_limits: list[SizeLimit] = []
        #: Placeholder → input name.
        self.inputs: dict[fx.Node, str] = {}
        #: Whether some call became a function that writes into a copy.
        self.writes = False
        self.aliases = Aliases(captured.graph, captured.seen, self.call_of)
        #: Returns name → node for the nodes added so far.
        self.index = NodeIndex(self.graph).nodes

    def fix_sizes(
        self, name: str, dim: int | None = None, like: str = "", with_batch: bool = False
    ) -> None:
        """Require that a value has the example's sizes in every run: see :class:`SizeLimit`."""
        self.size_limits.append(SizeLimit(name, dim, like, with_batch))

    def seen(self, value: Any) -> TensorMeta:
        """Return the recorded metadata of a value for the example inputs."""
        return self.captured.seen.get(value, _NOTHING) if isinstance(value, fx.Node) else _NOTHING

    def shape(self, value: Any) -> tuple[int, ...]:
        """Return the shape of a value for the example inputs."""
        return self.seen(value).shape

    def layouts(self) -> dict[str, str]:
        """Map values to their memory formats in the model, as the node that made them left them."""
        found: dict[str, str] = {}
        for node, made in self.env.items():
            if isinstance(made, Ref):
                found.setdefault(made.name, self.seen(node).layout)
        # The last operation of a composition may have another layout than the call.
        made = self.composed | self.written
        return found | {name: self.seen(node).layout for name, node in made.items()}

    def value(self, argument: Any) -> str | None:
        """Return the value name of a float32 tensor argument, or None."""
        if not isinstance(argument, fx.Node) or self.seen(argument).dtype != torch.float32:
            return None
        ref = self.env.get(argument)
        return ref.name if isinstance(ref, Ref) else None

    def plain(self, argument: Any) -> str | None:
        """Return the value name of a tensor argument whose dtype the engine has, or None."""
        if not isinstance(argument, fx.Node) or self.seen(argument).dtype not in PLAIN:
            return None
        ref = self.env.get(argument)
        return ref.name if isinstance(ref, Ref) else None

    def dtype(self, value: Any) -> str | None:
        """Return the graph's name for a value's dtype, or None if the engine lacks the dtype."""
        return PLAIN.get(self.seen(value).dtype)  # type: ignore[arg-type]

    def constant(self, value: Any) -> Tensor | None:
        """Return the tensor of a constant argument, or None if the argument is not constant."""
        ref = self.env.get(value) if isinstance(value, fx.Node) else None
        node = self.index().get(ref.name) if isinstance(ref, Ref) else None
        return None if node is None or node.op != "constant" else self.graph.tensor(node, "value")

    def attribute(self, value: Any) -> Any:
        """Return the model's parameter, buffer or attribute that an argument reads, or None."""
        is_one = isinstance(value, fx.Node) and value.op == "get_attr"
        return attribute_of(self.captured.root, str(value.target)) if is_one else None

    def emit(
        self,
        op: str,
        inputs: list[str],
        attrs: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor | None] | None = None,
        *,
        suffix: str = "",
        shape: tuple[int, ...] | None = None,
        dtype: Dtype | None = None,
        dtypes: Mapping[str, str] | None = None,
        note: str = "",
        call: Callable[..., Any] | None = None,
        name: str = "",
    ) -> Ref:
        """Add a node for the call being lowered.

        Parameters
        ----------
        op
            Operation name.
        inputs
            Names of the values that it reads.
        attrs
            Attributes of the operation.
        tensors
            Role → weight; None entries are skipped.
        suffix
            Appended to the call's name, for inner nodes of a call that becomes several nodes. The
            last node has no suffix.
        shape
            Shape of the value; the shape of the call's result by default.
        dtype
            Dtype of the value. By default an operation that only moves elements keeps its input's
            dtype, and any other makes float32.
        dtypes
            Role → dtype of weights that are codes.
        note
            Shown in the report.
        call
            The function that a ``torch`` node calls.
        name
            Name of the value, instead of the call's.

        Returns
        -------
        Ref
            The new node's value.
        """
        name = unused_name(name or self.node.name + suffix, self.index())
        if dtype is None:
            dtype = self.types[inputs[0]] if inputs and form_of(op) == "shape" else "float32"
        self.types[name] = dtype
        node = Node(
            name,
            op,
            list(inputs),
            dict(attrs or {}),
            layer=self.layer,
            dtype=dtype,
            note=note,
            call=call,
        )
        node.shape = self.shape(self.node) if shape is None else shape
        prefix = self.layer or name
        for role, tensor in (tensors or {}).items():
            if tensor is not None:
                node.tensors[role] = self.graph.add_tensor(
                    f"{prefix}.{role}", tensor, (dtypes or {}).get(role)
                )
        self.graph.nodes.append(node)
        return Ref(name)

    def torch_node(
        self,
        call: Callable[..., Any],
        args: Any,
        kwargs: Any,
        target: str,
        note: str = "",
        rule: str = "unknown",
    ) -> Ref:
        """Add a node that calls torch (or the user's code) as the model did.

        ``rule`` is a key of :data:`fatnn_rs.report.RULES`; ``note`` says the reason in words.
        """
        layouts = {
            ref.name: self.seen(argument).layout
            for argument, ref in ((a, self.env[a]) for a in fx_nodes((args, kwargs)))
            if isinstance(ref, Ref)
        }
        args, kwargs = self.resolve((tuple(args), dict(kwargs)))
        inputs = list(dict.fromkeys(ref.name for ref in refs((args, kwargs))))
        formats = [layouts.get(name, "any") for name in inputs]
        attrs = {"target": target, "layouts": formats, "rule": rule}
        dtype = str(self.seen(self.node).dtype or torch.float32).removeprefix("torch.")
        result = self.emit("torch", inputs, attrs, note=note or RULES[rule], call=call, dtype=dtype)
        self.graph.nodes[-1].arguments = (args, kwargs)
        return result

    def resolve(self, structure: Any) -> Any:
        """Replace fx nodes in a structure by references and constants of the new graph."""
        return fx.node.map_arg(structure, lambda node: self.env[node])

    def call_of(self, node: fx.Node) -> Callable[..., Any]:
        """Return the function that a captured node calls; it shares no memory with the model."""
        if node.op == "call_method":
            return Method(str(node.target))
        if node.op == "call_module":
            return clean_copy(self.captured.modules[str(node.target)])
        if node.target is torch.ops.fatnn_rs.module_call.default:
            layer = clean_copy(self.captured.modules[str(node.args[1])])
            return lambda x, name, add_bias=True: layer(x) if add_bias else layer(x, False)
        if node.target is torch.ops.fatnn_rs.attention_call.default:
            return attention_call(clean_copy(self.captured.modules[str(node.args[-1])]))
        assert callable(node.target)
        return node.target


def fx_nodes(structure: Any) -> list[fx.Node]:
    """Return every fx node in a structure."""
    found: list[fx.Node] = []
    fx.node.map_arg(structure, found.append)
    return found


def attribute_of(root: nn.Module, path: str) -> Any:
    """Return the attribute of a module at a dotted path."""
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value
