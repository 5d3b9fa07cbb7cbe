"""Ranges of input sizes that the user asks for, in the notation of ``torch.export``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from fatnn_rs.convert.capture import copies
from fatnn_rs.convert.graph import Node
from fatnn_rs.convert.memory_format import in_layout, layout_of
from fatnn_rs.convert.network import TernaryNetwork
from fatnn_rs.convert.structure import same_values
from fatnn_rs.errors import ConfigError, ConversionError
from fatnn_rs.replica import replica
from fatnn_rs.signature import Argument, Size

__all__ = ["limit_sizes", "wanted_sizes"]

#: Argument → its limited dimensions.
Wanted = dict[str, tuple[Size, ...]]

_FORMS = (
    "give a tuple with one entry per argument, or a dict by argument names; each entry is None or "
    "a dict from dimensions to torch.export.Dim"
)


def wanted_sizes(
    dynamic_shapes: Any, arguments: Sequence[Argument], tensors: Sequence[Any]
) -> Wanted:
    """Read ``dynamic_shapes`` for a model's arguments and the example's tensors.

    Raises
    ------
    ConfigError
        If they do not have the form that ``torch.export`` takes, name other arguments or
        dimensions, or exclude the example.
    """
    names = [argument.name for argument in arguments]
    if isinstance(dynamic_shapes, Mapping):
        given = dict(dynamic_shapes)
    elif isinstance(dynamic_shapes, (tuple, list)) and len(dynamic_shapes) <= len(names):
        given = dict(zip(names, dynamic_shapes, strict=False))
    else:
        raise ConfigError(
            f"dynamic_shapes: got {dynamic_shapes!r} for the arguments {', '.join(names)}; {_FORMS}"
        )
    if unknown := [name for name in given if name not in names]:
        raise ConfigError(
            f"dynamic_shapes: the model has no argument {unknown[0]!r}, only {', '.join(names)}; "
            f"{_FORMS}"
        )
    rest = iter(tensors)
    examples = {argument.name: next(rest) for argument in arguments if argument.tensor}
    made: Wanted = {}
    for name, wanted in given.items():
        if wanted is None:
            continue
        if name not in examples:
            raise ConfigError(
                f"dynamic_shapes: argument {name!r} is no tensor, so it has no sizes to limit; "
                "give None for it. Tensors in containers may have all sizes that the model allows"
            )
        made[name] = _sizes(name, wanted, examples[name])
    _check_equal(made, examples)
    return {name: sizes for name, sizes in made.items() if sizes}


def _sizes(name: str, wanted: Any, example: Tensor) -> tuple[Size, ...]:
    where = f"dynamic_shapes: argument {name!r}"
    if isinstance(wanted, (tuple, list)) and len(wanted) <= example.dim():
        wanted = dict(enumerate(wanted))
    if not isinstance(wanted, Mapping):
        raise ConfigError(f"{where}: got {wanted!r} for shape {list(example.shape)}; {_FORMS}")
    sizes = []
    for dim, one in wanted.items():
        if type(dim) is not int or not -example.dim() <= dim < example.dim():
            raise ConfigError(
                f"{where}: there is no dimension {dim!r} in the example's shape "
                f"{list(example.shape)}; {_FORMS}"
            )
        size = int(example.shape[dim])
        made = _size(f"{where}, dimension {dim}", dim % example.dim(), one, size)
        if made is None:
            continue
        if not made.allows(size):
            raise ConfigError(
                f"{where}, dimension {dim}: the example has size {size}, which is not "
                f"{made.described()}; give an example of an allowed size, or another range"
            )
        sizes.append(made)
    return tuple(sizes)


def _size(where: str, dim: int, wanted: Any, size: int) -> Size | None:
    """Return the limit of one dimension; None if there is none."""
    if wanted in (Dim.AUTO, Dim.DYNAMIC):
        return None
    if wanted is None or wanted is Dim.STATIC or type(wanted) is int:
        fixed = wanted if type(wanted) is int else size
        return Size(dim, "", fixed, fixed)
    if not isinstance(wanted, Dim):
        raise ConfigError(f"{where}: expected a torch.export.Dim, got {wanted!r}; {_FORMS}")
    if hasattr(wanted, "root"):
        raise ConfigError(
            f"{where}: {wanted.__name__} is computed from another Dim, which convert does not "
            "take; give torch.export.Dim(name, min=..., max=...)"
        )
    least, most = wanted.min, wanted.max
    return Size(dim, wanted.__name__, int(least), most if type(most) is int else None)


def _check_equal(wanted: Wanted, examples: Mapping[str, Tensor]) -> None:
    seen: dict[str, tuple[str, int]] = {}
    for name, sizes in wanted.items():
        for size in sizes:
            got = int(examples[name].shape[size.dim])
            first, other = seen.setdefault(size.name, (name, got)) if size.name else (name, got)
            if other != got:
                raise ConfigError(
                    f"dynamic_shapes: {first!r} and {name!r} share the Dim {size.name!r}, but the "
                    f"example's sizes are {other} and {got}; give them two Dims, or equal sizes"
                )


def limit_sizes(
    net: TernaryNetwork,
    model: nn.Module,
    tensors: tuple[Any, ...],
    wanted: Wanted,
    nested: tuple[Argument, ...] | None,
) -> tuple[Argument, ...]:
    """Check that a network takes all sizes in the ranges; return its limited arguments.

    Parameters
    ----------
    net
        The new network.
    model
        The model that takes ``tensors`` by position.
    tensors
        The example's tensors and constants.
    wanted
        From :func:`wanted_sizes`.
    nested
        The model's arguments, if they are not those of the network.

    Raises
    ------
    ConversionError
        If the network is fixed to the example's size where a range is wanted, or if model or
        network refuse an end of a range.
    """
    arguments = net.call_arguments if nested is None else nested
    places: dict[str, int] = {}
    count = 0
    for argument in arguments:
        if argument.tensor:
            places[argument.name] = count
        count += argument.nested.count() if argument.nested else int(argument.tensor)
    nodes = [node for node in net.graph.nodes if node.op == "input"]
    for name, sizes in wanted.items():
        for size in sizes:
            if size.least != size.most:
                _check_free(f"argument {name!r}", nodes[places[name]], size, net.graph.notes)
    for which in ("least", "most"):
        _check_extremes(net, model, tensors, wanted, places, which)
    return tuple(replace(a, sizes=wanted.get(a.name, ())) for a in arguments)


def _check_free(where: str, node: Node, size: Size, notes: Sequence[str]) -> None:
    reason = ""
    if size.dim in node.attrs["fixed"]:
        reason = "; ".join(note for note in notes if "fixed" in note) or "the model fixes it"
    elif size.dim == node.attrs["channel_dim"] != 0:
        reason = "the layers' weights fix the number of channels"
    elif size.dim == 0 and "batch" in node.attrs:
        least, most, multiple = node.attrs["batch"]
        unlimited = most >= (1 << 31) - 1
        below = unlimited or (size.most is not None and size.most <= most)
        if multiple > 1 or not (least <= max(size.least, 1) and below):
            end = "" if unlimited else f" to {most}"
            factor = "" if multiple == 1 else f", in multiples of {multiple}"
            reason = f"the model branches on the batch, which is from {least}{end}{factor}"
    if reason:
        raise ConversionError(
            f"dynamic_shapes: {where}, dimension {size.dim} cannot be {size.described()}: {reason}"
            ". Narrow the range, convert one network per size, or do not use the size in forward"
        )


#: The ends of a range are tried up to this multiple of the example's size.
_MAX_GROWTH = 4


def _check_extremes(
    net: TernaryNetwork,
    model: nn.Module,
    tensors: tuple[Any, ...],
    wanted: Wanted,
    places: Mapping[str, int],
    which: str,
) -> None:
    """Compare network and model at the smallest or largest sizes."""
    given = list(copies(tensors))
    at = [i for i, value in enumerate(given) if isinstance(value, Tensor)]
    shown = []
    for name, sizes in wanted.items():
        place = at[places[name]]
        for size in sizes:
            end = size.least if which == "least" else size.most
            if end and end <= _MAX_GROWTH * given[place].shape[size.dim]:
                given[place] = _resized(given[place], size.dim, end)
                shown.append(f"{name!r} {list(given[place].shape)}")
    if not shown:
        return
    where = f"dynamic_shapes: at {', '.join(shown)}"
    way = "narrow the range, or change forward"
    try:
        expected = replica(model)(*copies(tuple(given)))
    except Exception as error:  # the model may raise anything
        raise ConversionError(
            f"{where} the model fails ({type(error).__name__}: {str(error)[:200]}); {way}"
        ) from error
    try:
        problem = same_values(net(*copies(tuple(given))), expected, 0.05)
    except Exception as error:  # nodes in torch may raise anything
        problem = f"{type(error).__name__}: {str(error)[:200]}"
    if problem:
        raise ConversionError(f"{where} the network differs from the model ({problem}); {way}")


def _resized(value: Tensor, dim: int, size: int) -> Tensor:
    index = torch.arange(size, dtype=torch.int64, device="cpu") % max(1, value.shape[dim])
    made: Tensor = in_layout(value.index_select(dim, index), layout_of(value))
    return made
