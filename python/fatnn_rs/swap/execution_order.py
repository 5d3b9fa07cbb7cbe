"""Find the layers' order of execution and all uses of their weights: trace and run the model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from fatnn_rs.contained import named_modules, register_contained
from fatnn_rs.nn.examples import run_example
from fatnn_rs.nn.observe import function_name, reads_values, tensors_in
from fatnn_rs.nn.products import product_call
from fatnn_rs.nn.projections import INPUT_PROJECTIONS
from fatnn_rs.replica import replica
from fatnn_rs.swap.candidates import Candidate

__all__ = ["ExecutionOrder", "FloatRun", "find_execution_order", "run_float"]


@dataclass
class ExecutionOrder:
    """The order in which layers run.

    Attributes
    ----------
    order
        Names of layers in order of execution.
    feeds_norm
        Names of layers whose outputs go only into BatchNorm.
    """

    order: list[str]
    feeds_norm: set[str] = field(default_factory=set)


@dataclass
class FloatRun:
    """Results of running the float model in eval mode.

    Attributes
    ----------
    order
        Names of layers in the order of their first calls.
    read_by
        Name of a layer → names of other modules that multiply by its weight.
    used
        Name of a layer → a function that uses its weight in another way, outside of the layer.
    """

    order: list[str] = field(default_factory=list)
    read_by: dict[str, list[str]] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)


class _Tracer(torch.fx.Tracer):
    """Does not trace into layers, attention and BatchNorm, nor into subclasses of them."""

    def __init__(self, whole: set[int]) -> None:
        super().__init__()
        self._whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kept = id(m) in self._whole or isinstance(m, (_BatchNorm, nn.MultiheadAttention))
        return kept or super().is_leaf_module(m, module_qualified_name)


def _layers_in_copy(
    copied: nn.Module, model: nn.Module, candidates: Mapping[str, Candidate]
) -> dict[nn.Module, list[str]]:
    """Return module of the copy → names of its layers; an attention holds several."""
    originals = {id(module): name for name, module in named_modules(model)}
    copies = dict(named_modules(copied))
    made: dict[nn.Module, list[str]] = {}
    for name, candidate in candidates.items():
        made.setdefault(copies[originals[id(candidate.module)]], []).append(name)
    return made


def find_execution_order(
    model: nn.Module, candidates: Mapping[str, Candidate], run: FloatRun | None
) -> ExecutionOrder:
    """Trace ``model`` for the order of execution.

    If tracing fails, use the order of ``run``, or without a run the order of registration.
    """
    traced = replica(model)
    names = _layers_in_copy(traced, model, candidates)
    register_contained(traced)
    outs = _projections_after(candidates)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _Tracer({id(module) for module in names}).trace(traced)
    except Exception:  # tracing runs the model's own code, which may raise anything
        graph = None
    by_path = dict(traced.named_modules(remove_duplicate=False))
    order: list[str] = []
    feeds_norm: dict[str, bool] = {}
    for node in graph.nodes if graph is not None else ():
        module = by_path.get(str(node.target)) if node.op == "call_module" else None
        if module is None or module not in names:
            continue
        users = [
            by_path.get(str(user.target)) if user.op == "call_module" else None
            for user in node.users
        ]
        only_norm = bool(users) and all(isinstance(user, _BatchNorm) for user in users)
        for name in names[module]:
            order += [name, *outs.get(name, ())]
            is_whole = not candidates[name].projection
            feeds_norm[name] = is_whole and only_norm and feeds_norm.get(name, True)
    if not order:
        ran = run.order if run is not None else []
        return ExecutionOrder(ran or list(candidates))
    return ExecutionOrder(order, {name for name, only_norm in feeds_norm.items() if only_norm})


def _projections_after(candidates: Mapping[str, Candidate]) -> dict[str, list[str]]:
    """Return last input projection of an attention → its output projection, which runs next."""
    after: dict[str, list[str]] = {}
    for name, candidate in candidates.items():
        if candidate.projection == INPUT_PROJECTIONS[-1]:
            out = f"{name.removesuffix(INPUT_PROJECTIONS[-1])}out_proj"
            after[name] = [out] if out in candidates else []
    return after


class _WeightUses(TorchFunctionMode):
    """Records which functions and modules use a layer's weight outside of the layer."""

    def __init__(self, run: FloatRun, weights: dict[int, list[str]]) -> None:
        super().__init__()
        self._run, self._weights = run, weights
        self.stack: list[str] = []
        self.inside = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if not self.inside and reads_values(func):
            call = product_call(func, args, given)
            for tensor in tensors_in((args, given)):
                for name in self._weights.get(id(tensor), ()):
                    if call is not None and call.weight is tensor:
                        readers = self._run.read_by.setdefault(name, [])
                        if self.stack[-1] not in readers:
                            readers.append(self.stack[-1])
                    elif call is None or call.bias is not tensor:
                        self._run.used.setdefault(name, function_name(func))
        return func(*args, **given)


@torch.no_grad()
def run_float(model: nn.Module, candidates: Mapping[str, Candidate], inputs: Any) -> FloatRun:
    """Run a copy of a float model once in eval mode; record calls and uses of weights.

    Raises
    ------
    InputError
        If the model does not take ``inputs``, or fails on them.
    """
    copied = replica(model)
    modules = dict(named_modules(copied))
    for module in modules.values():
        module.training = False
    layers = _layers_in_copy(copied, model, candidates)
    outs = _projections_after(candidates)
    run = FloatRun()
    watch = _WeightUses(run, _unshared_weights(copied, layers))
    handles: list[Any] = []

    def add_hooks(name: str, module: nn.Module) -> None:
        names = layers.get(module, [])
        quiet = bool(names) or type(module).__module__.startswith("torch.nn.modules.")

        def enter(module: nn.Module, args: Any) -> None:
            watch.stack.append(name)
            watch.inside += quiet
            for one in names:
                run.order += [new for new in (one, *outs.get(one, ())) if new not in run.order]

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            watch.stack.pop()
            watch.inside -= quiet

        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))

    # torch's containers run other code's modules, so they must not hide uses of weights.
    containers = (nn.Sequential, nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.Transformer)
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if module not in layers and isinstance(module, containers):
            continue
        add_hooks(name, module)
    watch.stack.append("")
    with watch:
        run_example(copied, inputs)
    return run


def _unshared_weights(
    copied: nn.Module, layers: Mapping[nn.Module, list[str]]
) -> dict[int, list[str]]:
    """Return ``id`` of a weight → names of its layers, for weights no other torch module has."""
    torchs = [m for m in copied.modules() if type(m).__module__.startswith("torch.nn.")]
    others = {id(p) for m in torchs if m not in layers for p in m._parameters.values()}
    weights: dict[int, list[str]] = {}
    for module, names in layers.items():
        weight = module._parameters.get("weight")
        if isinstance(weight, Tensor) and id(weight) not in others:
            weights.setdefault(id(weight), []).extend(names)
    return weights
