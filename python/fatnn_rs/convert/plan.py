"""Execution plans: segments and single nodes in order, with the values they read and make."""

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
from fatnn_rs.errors import ConversionError, FatnnError, InputError

__all__ = ["ExecutionStep", "Observer", "dry_run", "observe_segment", "plan_of"]

#: Called with a node, its result and the values that it read.
Observer = Callable[[Node, Any, list[Any]], None]


@dataclass(frozen=True)
class ExecutionStep:
    """One step of a run: a node or a segment.

    Attributes
    ----------
    what
        The node or segment.
    run
        Takes the values that it reads; returns those that it makes.
    reads, makes
        Names of these values.
    drops
        Names of values that no later step reads.
    """

    what: Node | Segment
    run: Callable[..., list[Any]]
    reads: list[str]
    makes: list[str]
    drops: list[str]


def wrong_shape(names: list[str], results: list[Any], index: dict[str, Node]) -> str:
    """Name the first value whose shape differs from the model's; "" if none does."""
    for name, result in zip(names, results, strict=True):
        if tuple(result.shape) != index[name].shape:
            want = list(index[name].shape)
            return f"{name!r} has shape {list(result.shape)}, the model's has {want}"
    return ""


def plan_of(
    graph: Graph,
    parts: list[Node | Segment],
    bound: Mapping[str, Callable[..., list[Any]]] | None = None,
) -> list[ExecutionStep]:
    """Return the steps that run ``parts``; ``bound`` holds functions of nodes bound before."""
    bound = {} if bound is None else bound
    plan: list[ExecutionStep] = []
    read_later: set[str] = {ref.name for ref in refs(graph.outputs)}
    for part in reversed(parts):
        if isinstance(part, Segment):
            run: Callable[..., list[Any]] = part
            reads, makes = part.reads, part.makes
        else:
            run, reads, makes = (
                bound.get(part.name) or _single_result(part, bind(graph, part)),
                part.inputs,
                [part.name],
            )
        drops = [name for name in dict.fromkeys((*reads, *makes)) if name not in read_later]
        read_later.update(reads)
        plan.append(ExecutionStep(part, run, reads, makes, drops))
    return plan[::-1]


def _single_result(node: Node, function: Callable[..., Any]) -> Callable[..., list[Any]]:
    """Return the result in a list, and let errors name the layer as those of segments do."""

    def run(*values: Any) -> list[Any]:
        try:
            return [function(*values)]
        except InputError as error:
            where = f"layer {node.layer!r}"
            if not node.layer or where in str(error):
                raise
            raise InputError(f"{where}: {error}") from error

    return run


def observe_segment(segment: Segment, arguments: list[Any], observer: Observer) -> list[Tensor]:
    """Run a segment and show its nodes. Floats inside it are not kept, and shown as None."""
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
    """Run a plan on the example inputs, and find the segments that fail.

    A segment fails if it raises or makes shapes that differ from the model's. Its nodes then run
    one by one, and the graph gets a note. Multiply-accumulates of torch nodes are counted.

    Parameters
    ----------
    graph
        Its nodes have the shapes for the example.
    plan
        The steps to run.
    values
        Input name → value; afterwards it holds the outputs.

    Returns
    -------
    set of str
        Names of the nodes of failed segments.
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
            except Exception as error:  # any error of the engine: its nodes may run one by one
                problem = f"{type(error).__name__}: {error}"
            if problem:
                results = _run_unfused(graph, part.what, arguments)
                inside = [node.name for node in part.what.nodes]
                excluded.update(inside)
                graph.notes.append(
                    f"{len(inside)} nodes from {inside[0]!r} to {inside[-1]!r} run one by one, "
                    f"because running them in one call failed on the example inputs ({problem})"
                )
        else:
            if part.what.op == "torch":
                part.what.macs = torch_macs(part.what, part.run, arguments)
            results = _run_one(part, arguments)
        values.update(zip(part.makes, results, strict=True))
        for name in part.drops:
            del values[name]
    return excluded


def _run_one(part: ExecutionStep, arguments: list[Any]) -> list[Any]:
    """Run one node on the example.

    Raises
    ------
    ConversionError
        If it fails: the model computed this, so the capture misses something.
    """
    assert isinstance(part.what, Node)
    try:
        return part.run(*arguments)
    except FatnnError:
        raise
    except Exception as error:  # torch's functions raise anything
        op = str(part.what.attrs.get("target", part.what.op))
        raise ConversionError(
            f"{part.what.name!r} ({op}) ran in the model, but fails in the converted network "
            f"({type(error).__name__}: {str(error)[:300]}); write this part of forward with other "
            "functions, or leave it outside of the model that you convert"
        ) from error


def _run_unfused(graph: Graph, segment: Segment, arguments: list[Any]) -> list[Any]:
    """Run a segment's nodes one by one, without the engine."""
    values = dict(zip(segment.reads, arguments, strict=True))
    for step in plan_of(graph, list(segment.nodes)):
        results = step.run(*(values[name] for name in step.reads))
        values.update(zip(step.makes, results, strict=True))
    return [values[name] for name in segment.makes]
