"""The batch sizes that a graph exported by ``torch.export`` runs like its model.

Export records branches on a dynamic size as guards, but assumes that the size is two or more: a
branch for an empty batch or a batch of one leaves no guard. So graph and model are run at these
sizes, and the inputs of all layers are compared, because the outputs may hide a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils import _pytree as pytree

from fatnn_rs.convert.capture import SizeRange, copies
from fatnn_rs.convert.structure import same_values

__all__ = [
    "BOUND",
    "batch_is_dynamic",
    "batch_range",
    "describe_range",
    "double_batch_of_one",
    "smallest_batch",
]

#: Number of batch sizes that are tried against export's guards.
_TRIED = 130


#: A guard that bounds a size, in the words of export; or that all batches have one size, which is
#: how batch sizes are tried.
_SIZE = r"L\[[^\]]*\]\.size\(\)"
BOUND = (
    rf"{_SIZE}\[\d+\] (<=|<|>=|>) \d+|\d+ (<=|<|>=|>) {_SIZE}\[\d+\]|{_SIZE}\[0\] == {_SIZE}\[0\]"
)


def batch_range(
    check: Callable[..., Any], arguments: tuple[Any, ...], bounds: bool, smallest: int
) -> SizeRange | None:
    """Find the batch sizes that pass the guards; None if they are no range of multiples.

    The range includes sizes that were not tried only if all guards are bounds. It begins at
    ``smallest`` or above.
    """
    sizes = {value.shape[0] for value in arguments if isinstance(value, Tensor) and value.dim()}
    if len(sizes) != 1:
        return None
    example = sizes.pop()
    # Samples that ``expand`` to any batch size without using memory.
    ones = _first_samples(arguments, 1)

    def passes(batch: int) -> bool:
        try:
            check(
                *(
                    v.expand(batch, *v.shape[1:]) if isinstance(v, Tensor) and v.dim() else v
                    for v in ones
                )
            )
        except Exception:  # guards raise AssertionError, and their expressions any error
            return False
        return True

    tried = range(smallest, max(_TRIED, 2 * example + 2))
    good = [batch for batch in tried if passes(batch)]
    if example not in good:
        return None
    multiple = next((m for m in range(example, 0, -1) if all(batch % m == 0 for batch in good)), 1)
    low, high = good[0], good[-1]
    if good != [batch for batch in tried if low <= batch <= high and batch % multiple == 0]:
        return None
    open_end = bounds and high + multiple > tried[-1]
    if open_end and not all(passes(multiple * factor) for factor in (1000 // multiple, 4096)):
        return None
    return SizeRange(low, None if open_end else high, multiple)


def double_batch_of_one(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Double a batch of one, because export treats sizes of 0 and 1 as constants."""
    return tuple(
        torch.cat([value, value])
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == 1
        else value
        for value in arguments
    )


def _first_samples(arguments: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
    return tuple(v[:batch] if isinstance(v, Tensor) and v.dim() else v for v in arguments)


def smallest_batch(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    exported: nn.Module,
    arguments: tuple[Any, ...],
) -> int:
    """Return the smallest batch from which an exported graph gives layers the model's inputs.

    It is 0, 1 or 2. ``layers`` are parts of the model, by name, which the graph calls too.
    """
    for batch in (1, 0):
        given = _first_samples(arguments, batch)
        try:
            wanted = _layer_inputs(model, layers, given)
        except Exception:  # the model refuses this batch
            continue
        try:
            got = _layer_inputs(exported, layers, given)
        except Exception:  # what the graph does may fit no other batch
            return batch + 1
        # Export drops calls whose results are not used.
        if any(
            got[name] and same_values(got[name], inputs, _ROUNDING)
            for name, inputs in wanted.items()
        ):
            return batch + 1
    return 0


#: Differences of at most this fraction of the largest value count as rounding: torch's attention
#: may round differently in the exported graph.
_ROUNDING = 1e-4


def _layer_inputs(
    run: nn.Module, layers: Mapping[str, nn.Module], arguments: tuple[Any, ...]
) -> dict[str, list[Tensor]]:
    """Return a copy of the first tensor that each call of each layer gets."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def hook(name: str) -> Callable[..., None]:
        def record_input(module: nn.Module, args: Any, kwargs: Any) -> None:
            leaves = pytree.tree_leaves((args, kwargs))
            x = next(leaf for leaf in leaves if isinstance(leaf, Tensor))
            seen[name].append(x.detach().clone())

        return record_input

    hooks = [
        layer.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        run(*copies(arguments))
    finally:
        for handle in hooks:
            handle.remove()
    return seen


def describe_range(batch: SizeRange) -> str:
    """Describe the batch sizes for a note of the report."""
    if batch == SizeRange():
        return ", except the batch"
    end = "" if batch.max is None else f" to {batch.max}"
    factor = "" if batch.multiple == 1 else f", in multiples of {batch.multiple}"
    return f", except the batch, which is from {batch.min}{end}{factor}"


def batch_is_dynamic(module: fx.GraphModule) -> bool:
    """Whether the first dimension of every tensor input is dynamic in the exported graph."""
    values = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    return not any(is_concrete_int(v.shape[0]) for v in values if isinstance(v, Tensor) and v.dim())
