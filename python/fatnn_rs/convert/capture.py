"""From a model to a torch.fx graph in which every known layer is one call.

Symbolic tracing comes first (:mod:`fatnn_rs.convert.capture_fx`). If the model branches on shapes
or values, ``torch.export`` follows (:mod:`fatnn_rs.convert.capture_export`). A captured graph must
reproduce the example's outputs exactly; its values are recorded at the same time
(:mod:`fatnn_rs.convert.record`). Only copies of the model are run and traced
(:func:`fatnn_rs.replica.replica`), because its code may change its state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fatnn_rs.convert.memory_format import with_strides
from fatnn_rs.convert.record import TensorMeta
from fatnn_rs.convert.structure import fill, leaves, plain, same_values
from fatnn_rs.errors import ConversionError, FatnnError
from fatnn_rs.replica import replica
from fatnn_rs.signature import Argument

__all__ = ["Captured", "SizeRange", "capture"]


@dataclass(frozen=True)
class SizeRange:
    """Which batch sizes an input may have.

    Attributes
    ----------
    min, max
        Smallest and largest size; ``max`` is None if there is no limit.
    multiple
        Common factor of all sizes.
    """

    min: int = 0
    max: int | None = None
    multiple: int = 1


@dataclass
class Captured:
    """A graph that reproduces the model.

    Attributes
    ----------
    graph
        torch.fx graph; layers are ``call_module`` nodes or calls of the export's marker function.
    modules
        Qualified name → the model's own module.
    root
        Module in which ``get_attr`` nodes are looked up.
    inputs
        Names of the placeholder nodes that the given arguments fill.
    arguments
        The model's arguments.
    outputs
        The returned structure, with fx nodes for values.
    seen
        fx node → metadata of its value.
    expected
        What the model returned for the example.
    notes
        Remarks for the report.
    fixed
        Dimensions of the inputs whose sizes must be the example's.
    batch
        Allowed sizes of the first dimension of every input.
    asks_format
        Whether the model reads strides or memory formats, and so may branch on them.
    example
        The example's positional arguments.
    leading_sizes
        fx node → size of dimension 0 of its value at another batch size. Empty until needed:
        :mod:`fatnn_rs.convert.leading_sizes`.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    root: nn.Module
    inputs: list[str]
    arguments: tuple[Argument, ...]
    outputs: Any
    seen: dict[fx.Node, TensorMeta]
    expected: Any = None
    notes: list[str] = field(default_factory=list)
    fixed: tuple[int, ...] = ()
    batch: SizeRange | None = None
    asks_format: bool = False
    example: tuple[Any, ...] = ()
    leading_sizes: dict[fx.Node, int] = field(default_factory=dict)


class _FormatReads(TorchFunctionMode):
    """Records whether code reads a tensor's strides, offset or address."""

    _READS = frozenset(
        {
            Tensor.is_contiguous,
            Tensor.stride,
            Tensor.storage_offset,
            Tensor.data_ptr,
            Tensor.untyped_storage,
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= func in self._READS
        return func(*args, **(kwargs or {}))


def copies(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Clone all tensors, so that a model that works in place cannot change the caller's."""
    return tuple(
        fill(plain(value), lambda v: v.clone() if isinstance(v, Tensor) else v, build=True)
        for value in arguments
    )


def named_copies(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Clone all tensors of keyword arguments."""
    return dict(zip(arguments, copies(tuple(arguments.values())), strict=True))


def _run_repeatedly(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, bool]:
    """Run a model several times; return its outputs, and whether it reads memory formats.

    Raises
    ------
    ConversionError
        If the model fails, or if its outputs depend on earlier calls or random numbers.
    """
    run = replica(model)
    try:
        expected = run(*copies(arguments))
    except FatnnError as error:
        raise ConversionError(
            f"{type(model).__name__} fails on the example inputs: {error}"
        ) from error
    except Exception as error:
        raise ConversionError(
            f"{type(model).__name__} fails on the example inputs ({type(error).__name__}: "
            f"{error}); give inputs that the model accepts"
        ) from error
    if opaque := _opaque_class(expected):
        raise ConversionError(
            f"{type(model).__name__} returns a {opaque}, which a converted network cannot make; "
            "return tensors, plain values, and containers of them, or register the class with "
            "torch.utils._pytree. A transformers model returns its cache unless use_cache is "
            "False: set model.config.use_cache = False"
        )
    asked = _check_state(model, run, arguments, expected)
    _check_grad_mode(model, arguments, expected)
    return expected, asked


def _opaque_class(outputs: Any) -> str:
    """Name the class of an output that is no known container, such as a cache; "" if none is."""
    for leaf in leaves(plain(outputs)):
        if not isinstance(leaf, Tensor) and getattr(leaf, "__dict__", None):
            return type(leaf).__name__
    return ""


def other_values(arguments: tuple[Any, ...], factor: float) -> tuple[Any, ...]:
    """Multiply floating-point tensors by a factor and reverse the order of their samples."""

    def scaled_and_reversed(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value.clone() if isinstance(value, Tensor) else value
        changed = (value.flip(0) if value.dim() else value) * factor
        made = with_strides(changed, value.stride())
        return changed if made is None else made

    return tuple(pytree.tree_map(scaled_and_reversed, list(arguments)))


def _check_again(used: nn.Module, arguments: tuple[Any, ...], expected: Any) -> None:
    """Refuse a model that gives another result when it is called again with the same inputs."""
    if problem := same_values(expected, used(*copies(arguments))):
        raise ConversionError(
            f"{type(used).__name__} gives two results for the same inputs ({problem}): it draws "
            "random numbers, or keeps state from call to call, which a converted network does not; "
            "make forward a function of its arguments in eval mode"
        )


def _check_state(
    model: nn.Module, used: nn.Module, arguments: tuple[Any, ...], expected: Any
) -> bool:
    """Compare a model that has run with a fresh one, on other values.

    Returns
    -------
    bool
        Whether the model reads memory formats.

    Raises
    ------
    ConversionError
        If the results differ: the first call changed the model's state.
    """
    others = other_values(arguments, 1.25)
    watch = _FormatReads()
    try:
        with watch:  # this mode disables torch's fast paths, in both runs
            fresh, after = replica(model)(*copies(others)), used(*copies(others))
    except Exception:  # the model refuses the other values
        with watch:
            _check_again(used, arguments, expected)
        return watch.found
    if problem := same_values(fresh, after):
        _check_again(used, arguments, expected)
        raise ConversionError(
            f"{type(model).__name__} gives another result after an earlier call ({problem}): it "
            "keeps state from call to call, which a converted network does not; make forward a "
            "function of its arguments in eval mode"
        )
    return watch.found


def _check_grad_mode(model: nn.Module, arguments: tuple[Any, ...], expected: Any) -> None:
    """Refuse a model whose outputs change by more than rounding when gradients are recorded."""
    try:
        with torch.enable_grad():
            other = _without_saved(model, arguments)
    except Exception:  # autograd refuses some in-place writes
        return
    detached = fill(plain(other), lambda v: v.detach() if isinstance(v, Tensor) else v)
    if problem := same_values(list(leaves(detached)), list(leaves(plain(expected))), 0.05):
        raise ConversionError(
            f"{type(model).__name__} gives another result when gradients are recorded "
            f"({problem}), and a converted network does not record any; let forward not branch on "
            "torch.is_grad_enabled() or requires_grad"
        )


def _without_saved(model: nn.Module, arguments: tuple[Any, ...]) -> Any:
    """Run a model without keeping activations, because no backward pass follows."""
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda saved: None, _refuse_backward)
    try:
        with hooks:
            return replica(model)(*copies(arguments))
    except Exception:  # the model may compute gradients itself
        return replica(model)(*copies(arguments))


def _refuse_backward(kept: None) -> Any:
    raise RuntimeError("activations were not kept")


@torch.no_grad()
def capture(model: nn.Module, arguments: tuple[Any, ...]) -> Captured:
    """Capture the model's graph at the given arguments.

    Raises
    ------
    ConversionError
        If the model fails on the example, gives another result the second time, returns anything
        but a structure of tensors and plain values, or cannot be captured.
    """
    from fatnn_rs.convert.capture_export import by_export
    from fatnn_rs.convert.capture_fx import by_fx

    expected, asks_format = _run_repeatedly(model, arguments)
    traced = by_fx(model, arguments, expected)
    if isinstance(traced, Captured):
        traced.asks_format, traced.example = asks_format, arguments
        return traced
    exported = by_export(model, arguments, expected)
    if isinstance(exported, Captured):
        exported.asks_format, exported.example = asks_format, arguments
        exported.notes.insert(
            0, f"captured by torch.export, because torch.fx cannot trace it: {_first_line(traced)}"
        )
        return exported
    raise ConversionError(
        f"{type(model).__name__} cannot be captured. torch.fx: {_first_line(traced)}. "
        f"torch.export: {_first_line(exported)}. Move Python that depends on values out of "
        "forward, or convert the submodules that hold quantized layers with "
        "fatnn_rs.convert_submodule"
    )


def _first_line(reason: str) -> str:
    """Return the first line, at most 300 characters."""
    line = reason.strip().splitlines()[0] if reason.strip() else "no reason given"
    return line if len(line) <= 300 else line[:297] + "..."
