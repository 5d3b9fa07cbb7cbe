"""The steps of a run: segments and single nodes, and what values they need and leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fatnn_rs.convert.engine import Segment
from fatnn_rs.convert.flops import torch_macs
from fatnn_rs.convert.graph import Graph, Node, refs
from fatnn_rs.convert.torch_ops import bind

__all__ = ["ExecutionStep", "Observer", "dry_run", "observe_segment", "plan_of"]

#: Sees every node's value as it is made.
Observer = Callable[[Node, Any, list[Any]], None]


@dataclass(frozen=True)
class ExecutionStep:
    """One step of a run: a node or a segment."""

    what: Node | Segment
    run: Callable[..., list[Any]]
    reads: list[str]
    makes: list[str]
    drops: list[str]


def wrong_shape(names: list[str], results: list[Any], index: dict[str, Node]) -> str:
    """Say which value has another shape than in the model, or nothing."""
    for name, result in zip(names, results, strict=True):
        if tuple(result.shape) != index[name].shape:
            return f"{name!r} has shape {list(result.shape)}, the model's has {list(index[name].shape)}"
    return ""


def plan_of(
    graph: Graph,
    parts: list[Node | Segment],
    bound: Mapping[str, Callable[..., list[Any]]] | None = None,
) -> list[ExecutionStep]:
    """Bind every part that is not bound already, and note which values no later part reads."""
    bound = {} if bound is None else bound
    plan: list[ExecutionStep] = []
    read_later: set[str] = {ref.name for ref in refs(graph.outputs)}
    for part in reversed(parts):
        if isinstance(part, Segment):
            run: Callable[..., list[Any]] = part
            reads, makes = part.reads, part.makes
        else:
            run, reads, makes = (
                bound.get(part.name) or _single_result(bind(graph, part)),
                part.inputs,
                [part.name],
            )
        drops = [name for name in dict.fromkeys((*reads, *makes)) if name not in read_later]
        read_later.update(reads)
        plan.append(ExecutionStep(part, run, reads, makes, drops))
    return plan[::-1]


def _single_result(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    return lambda *values: [function(*values)]


def observe_segment(segment: Segment, arguments: list[Any], observer: Observer) -> list[Tensor]:
    """Run a segment and show its nodes: codes as they were; floats inside a segment are not kept, and shown as None."""
    results, seen = segment.observed(*arguments)
    values = dict(zip(segment.reads, arguments, strict=True)) | dict(
        zip(segment.makes, results, strict=True)
    )
    for node in segment.nodes:
        codes = seen[node.name][1] if node.name in seen else None
        if codes is not None:
            values[node.name] = torch.from_numpy(codes)
        observer(node, values.get(node.name), [values.get(name) for name in node.inputs])
    return results


def dry_run(graph: Graph, plan: list[ExecutionStep], values: dict[str, Any]) -> set[str]:
    """Run a plan on the example, whose shapes nodes note.

    Counts what torch nodes multiply. A segment that fails, or makes values of other shapes than
    the model, runs node by node, and the graph gets a note.

    Parameters
    ----------
    values
        Name → value of the inputs; holds those of the outputs afterwards.

    Returns
    -------
    set of str
        Names of the nodes of such segments.
    """
    index = graph.index()
    excluded: set[str] = set()
    for part in plan:
        arguments = [values[name] for name in part.reads]
        results: list[Any] = []
        problem = ""
        if isinstance(part.what, Segment):
            try:
                results = part.run(*arguments)
                problem = wrong_shape(part.makes, results, index)
            except Exception as error:  # any of the engine's: nodes may run one by one
                problem = f"{type(error).__name__}: {error}"
            if problem:
                results = _one_by_one(graph, part.what, arguments)
                inside = [node.name for node in part.what.nodes]
                excluded.update(inside)
                graph.notes.append(
                    f"{len(inside)} nodes from {inside[0]!r} to {inside[-1]!r} run one by one, "
                    f"because running them in one call failed on the example inputs ({problem})"
                )
        else:
            if part.what.op == "torch":
                part.what.macs = torch_macs(part.what, part.run, arguments)
            results = part.run(*arguments)
        values.update(zip(part.makes, results, strict=True))
        for name in part.drops:
            del values[name]
    return excluded


def _one_by_one(graph: Graph, segment: Segment, arguments: list[Any]) -> list[Any]:
    """Run a segment's nodes without the engine."""
    values = dict(zip(segment.reads, arguments, strict=True))
    for step in plan_of(graph, list(segment.nodes)):
        results = step.run(*(values[name] for name in step.reads))
        values.update(zip(step.makes, results, strict=True))
    return [values[name] for name in segment.makes]
