""":class:`Report`: where each operation of a converted network runs, and why. Needs no torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fatnn_rs import _core
from fatnn_rs.errors import FormatError
from fatnn_rs.operations import OPERATIONS, products_of
from fatnn_rs.overview import Profile, overview
from fatnn_rs.table import render

__all__ = [
    "RULES",
    "NotFused",
    "Report",
    "ReportRow",
    "engine_refusal",
    "macs",
    "missing_operations",
    "packed_weight_bytes",
    "runs",
    "unsupported_call",
]

#: Maximum number of layers that a line of the printed report names.
MAX_NAMES = 4

#: Reasons why a node runs in torch.
RULES: dict[str, str] = {
    "unknown": "the conversion has no rule for this function or module",
    "argument": "the rule for this function does not take these arguments",
    "dtype": "it reads values that are not float32",
    "module": "the module has hooks, or methods replaced on the instance",
    "part": "it takes one of the results of a torch node",
    "write": "it writes into a tensor: torch does, into a copy",
    "constant": "it is a constant that is not float32",
    "sum-order": "only torch rounds its sums as torch does; float_layers='rust' runs it in Rust",
    "transcendental": "torch approximates it in its own way; float_layers='rust' runs it in Rust",
    "engine": "the engine does not have it for these attributes and shapes",
    "strides": "it makes a strided view, and bits of a torch node after it depend on strides",
    "failed": "running it in the engine failed on the example",
    "codes": "codes would leave the segment",
    "no integers": "no ternary or int8 layer is next to it, so a call of the engine saves nothing",
    "not exact": "one multiply-add does not have the bits of this BatchNorm",
}

#: Properties that `Report.as_dict` adds to the fields.
_FIGURES = (
    *("overview", "macs_total", "macs_ternary", "macs_int8", "macs_float"),
    *("layers_ternary", "layers_int8", "bytes_packed", "bytes_int8"),
    *("saveable", "runs_without_torch", "unsaveable"),
)


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{', '.join(names[:MAX_NAMES])}{more}"


@dataclass(frozen=True)
class ReportRow:
    """One node of a network.

    Attributes
    ----------
    name
        The layer that it came from, or the node's own name.
    op
        Its operation.
    runs
        ``"rust codes -> codes"``, ``"rust codes -> float"``, ``"rust float -> codes"``, ``"rust
        float -> float"`` (in a segment of the engine) or ``"torch"``.
    shape
        Shape of the result for the example inputs.
    macs
        Multiply-accumulates per example batch.
    packed_bytes
        Bytes of its ternary, two-bit or int8 weights in a file.
    note
        What was fused into it, or why torch or the engine runs it.
    rule
        Key of :data:`RULES` if the node runs in torch, else empty.
    reason
        Why the node runs in torch, else empty.
    """

    name: str
    op: str
    runs: str
    shape: tuple[int, ...]
    macs: int
    packed_bytes: int
    note: str
    rule: str = ""
    reason: str = ""


@dataclass(frozen=True)
class NotFused:
    """A layer that the engine runs separately, although this kind of layer can often be fused.

    Attributes
    ----------
    layer
        The layer, or the node's own name.
    rewrite
        Name of the engine's rewrite: ``"fuse_elementwise"``, ``"fuse_max_pool"``,
        ``"fuse_bounds"``, ``"fuse_shortcut"`` or ``"fuse_quantizer"``.
    reason
        Why it was not fused, worded to follow "because".
    """

    layer: str
    rewrite: str
    reason: str


@dataclass(frozen=True)
class Report:
    """A converted network, node by node. Print it, or use ``as_dict()`` in programs.

    Attributes
    ----------
    rows
        One row per node.
    notes
        Notes on how the model was captured.
    not_fused
        Layers that the engine runs separately and could not fuse.
    segments
        Number of engine calls per run of the network.
    cuts
        Operation that runs in torch between two segments → number of these gaps that hold it.
    missing
        Operation that the engine lacks, so that the network needs torch → number of its nodes.
    outputs
        Type of the model's result if a file cannot hold it, else empty.
    profile
        Measurements of :meth:`TernaryNetwork.profile`, or None.
    refused
        Why the model cannot be converted; empty if it can. Only :func:`fatnn_rs.explain` reports
        on such models.
    """

    rows: tuple[ReportRow, ...]
    notes: tuple[str, ...] = ()
    not_fused: tuple[NotFused, ...] = ()
    segments: int = 0
    cuts: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, int] = field(default_factory=dict)
    outputs: str = ""
    profile: Profile | None = None
    refused: str = ""

    def _rows_with_products(self, what: str) -> list[ReportRow]:
        return [row for row in self.rows if products_of(row.op) == what]

    @property
    def layers_ternary(self) -> int:
        """Number of convolutions and linear layers that run on codes."""
        return len(self._rows_with_products("codes"))

    @property
    def bytes_packed(self) -> int:
        """Bytes in a file of the weights of all layers that run on codes."""
        return sum(row.packed_bytes for row in self._rows_with_products("codes"))

    @property
    def layers_int8(self) -> int:
        """Number of convolutions and linear layers that run on 8-bit integers."""
        return len(self._rows_with_products("int8"))

    @property
    def bytes_int8(self) -> int:
        """Bytes in a file of all int8 weights."""
        return sum(row.packed_bytes for row in self._rows_with_products("int8"))

    @property
    def macs_ternary(self) -> int:
        """Multiply-accumulates on codes."""
        return sum(row.macs for row in self._rows_with_products("codes"))

    @property
    def macs_float(self) -> int:
        """Multiply-accumulates of floats, in torch or in the engine."""
        return self.macs_total - self.macs_ternary - self.macs_int8

    @property
    def macs_int8(self) -> int:
        """Multiply-accumulates on 8-bit integers."""
        return sum(row.macs for row in self._rows_with_products("int8"))

    @property
    def macs_total(self) -> int:
        """All multiply-accumulates."""
        return sum(row.macs for row in self.rows)

    @property
    def saveable(self) -> bool:
        """Whether :func:`fatnn_rs.save` can write the network."""
        return not (self.unsaveable or self.outputs or self.refused)

    @property
    def runs_without_torch(self) -> bool:
        """Whether :func:`fatnn_rs.load_numpy` can run the saved network."""
        return self.saveable and not self.missing

    @property
    def overview(self) -> str:
        """The first paragraph of the printed report."""
        return overview(self)

    @property
    def unsaveable(self) -> tuple[str, ...]:
        """Names of torch nodes that a file cannot hold."""
        return tuple(row.name for row in self.rows if row.op.startswith("torch: "))

    def with_notes(self, notes: Iterable[str]) -> Report:
        """Return the report with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def as_dict(self) -> dict[str, Any]:
        """Return the whole report as plain dicts, lists, strings and numbers.

        Returns
        -------
        dict
            Attributes and properties of this class under their names. Lists of dicts: ``rows``,
            ``not_fused``. Lists of texts: ``notes``, ``outputs``, ``unsaveable``. Texts:
            ``overview``, ``refused``. Dicts of counts: ``cuts``, ``missing``. Numbers:
            ``macs_total``, ``macs_ternary``, ``macs_int8``, ``macs_float``, ``layers_ternary``,
            ``layers_int8``, ``bytes_packed``, ``bytes_int8``, ``segments``. Booleans:
            ``saveable``, ``runs_without_torch``. ``profile`` is None or a dict with the fields of
            :class:`Profile` and ``slower``, a list of layer names.
        """
        made = asdict(self)
        for name in _FIGURES:
            made[name] = getattr(self, name)
        if self.profile is not None:
            made["profile"]["slower"] = [row.layer for row in self.profile.slower]
        plain: dict[str, Any] = json.loads(json.dumps(made))
        return plain

    def to_json(self) -> str:
        """Return :meth:`as_dict` as JSON."""
        return json.dumps(self.as_dict(), indent=2)

    def __str__(self) -> str:
        cells = [
            [
                row.name,
                row.op,
                row.runs,
                "x".join(map(str, row.shape)),
                f"{row.macs:,}" if row.macs else "",
                f"{row.packed_bytes:,}" if row.packed_bytes else "",
                "" if row.note == row.reason else row.note,
            ]
            for row in self.rows
        ]
        table = render(
            ["node", "op", "runs", "shape", "MACs", "bytes", "note"], cells, right=(4, 5)
        )
        lines = [
            self.overview,
            table,
            f"{self.layers_ternary} ternary layers: {self.macs_ternary:,} of {self.macs_total:,} "
            f"MACs; ternary weights take {self.bytes_packed:,} bytes",
        ]
        if self.layers_int8:
            lines.append(
                f"{self.layers_int8} int8 layers: {self.macs_int8:,} of {self.macs_total:,} MACs; "
                f"int8 weights take {self.bytes_int8:,} bytes"
            )
        lines += self._why_in_torch()
        if self.profile is not None:
            lines.append(str(self.profile))
        together: dict[tuple[str, str], list[str]] = {}
        for found in self.not_fused:
            together.setdefault((found.rewrite, found.reason), []).append(found.layer)
        for (rewrite, reason), layers in together.items():
            lines.append(f"not fused: {_list_names(layers)} ({rewrite}), because {reason}")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def _why_in_torch(self) -> list[str]:
        """Return one line per reason why nodes run in torch."""
        together: dict[str, list[str]] = {}
        for row in self.rows:
            if row.reason:
                together.setdefault(row.reason, []).append(row.name)
        return [f"in torch: {_list_names(names)}, because {why}" for why, names in together.items()]


def runs(op: str, in_engine: bool) -> str:
    """Return where an operation runs, and what it reads and makes (:attr:`ReportRow.runs`).

    Parameters
    ----------
    op
        Name of the operation.
    in_engine
        Whether the engine runs it, if it is a float operation.
    """
    row = OPERATIONS.get(op)
    if row is not None and (row.reads_codes or row.makes_codes):
        return f"rust {row.signature}"
    return "rust float -> float" if in_engine else "torch"


def macs(
    op: str,
    shape: Sequence[int],
    weight: Sequence[int] | None,
    inputs: Sequence[Sequence[int]] = (),
    attrs: Mapping[str, Any] | None = None,
) -> int:
    """Return the number of multiply-accumulates of an operation; 0 if it does not multiply.

    Parameters
    ----------
    op
        Name of the operation.
    shape, weight, inputs
        Shapes of its result, its weight and its inputs.
    attrs
        Its attributes.
    """
    attrs = attrs or {}
    if op in _PRODUCTS and inputs:
        return _PRODUCTS[op](shape, inputs, attrs)
    if op not in OPERATIONS:
        return 0
    read = inputs[0] if inputs else ()
    return _core.macs(op, shape, weight, read, attrs.get("input_products"))


_Shapes = Sequence[Sequence[int]]


def _matmul(shape: Sequence[int], inputs: _Shapes, attrs: Mapping[str, Any]) -> int:
    return math.prod(shape) * inputs[0][-1]


def _attention(shape: Sequence[int], inputs: _Shapes, attrs: Mapping[str, Any]) -> int:
    query, key, value = inputs[:3]
    return math.prod(shape[:-1]) * key[-2] * (query[-1] + value[-1])


def _multihead(shape: Sequence[int], inputs: _Shapes, attrs: Mapping[str, Any]) -> int:
    query, key, value = inputs[:3] if len(inputs) > 2 else (inputs[0],) * 3
    length, width = key[1 if attrs.get("batch_first") else 0], query[-1]
    projections = 2 * math.prod(query) + math.prod(key) + math.prod(value)
    return projections * width + 2 * math.prod(query) * length


#: Operations that multiply two values. The table counts only products with weights.
_PRODUCTS = {"matmul": _matmul, "attention": _attention, "multihead_attention": _multihead}


def missing_operations(
    nodes: Iterable[tuple[str, str | None, Sequence[Sequence[int]]]],
) -> dict[str, int]:
    """Count operations that the engine does not have.

    Parameters
    ----------
    nodes
        For each node: its operation, its attributes as JSON (None if torch runs the model's own
        code), and the shapes that it reads.

    Returns
    -------
    dict
        Operation → number of nodes.
    """
    return dict(
        Counter(
            op for op, attrs, shapes in nodes if attrs is None or engine_refusal(op, attrs, shapes)
        )
    )


def engine_refusal(op: str, attrs: str, shapes: Sequence[Sequence[int]]) -> str:
    """Return why the engine cannot run an operation on inputs of ``shapes``; empty if it can."""
    if op == "input":
        return ""
    if op not in OPERATIONS:
        return "the engine does not have it"
    try:
        return _core.engine_refusal(op, attrs, shapes) or ""
    except FormatError as error:  # the engine does not know an attribute
        return str(error)


def unsupported_call(dtypes: Iterable[Any]) -> tuple[str, str]:
    """Return the rule and the reason for a call whose arguments the conversion does not support.

    Parameters
    ----------
    dtypes
        The dtypes of its arguments; None for an argument that is not a tensor.
    """
    others = sorted({str(dtype) for dtype in dtypes} - {"None", "torch.float32"})
    if others:
        return "dtype", f"it reads {' and '.join(others)}"
    return "argument", RULES["argument"]


def packed_weight_bytes(op: str, weight: Sequence[int] | None, dtype: str) -> int:
    """Return the bytes that weights take in a file; 0 unless they are codes or int8.

    Parameters
    ----------
    op
        Operation that reads the weights.
    weight
        Shape of the weights; None without weights.
    dtype
        Their type in the file.
    """
    if weight is None or products_of(op) not in ("codes", "int8"):
        return 0
    return _core.file_bytes(dtype, math.prod(weight))
