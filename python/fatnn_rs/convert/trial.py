"""Compare a new network with its model: on the example, other values, sizes and batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fatnn_rs.convert.capture import copies, other_values
from fatnn_rs.convert.memory_format import in_layout, layout_of
from fatnn_rs.convert.network import TernaryNetwork
from fatnn_rs.convert.structure import same_values
from fatnn_rs.errors import ConversionError, InputError
from fatnn_rs.replica import replica

__all__ = ["check_batches", "check_outputs", "check_sizes", "check_values"]


def check_outputs(results: Any, expected: Any) -> None:
    """Compare the outputs of a network and its model for the example.

    Raises
    ------
    ConversionError
        If the outputs differ: the model does something that the capture did not record.
    """
    if problem := same_values(results, expected):
        raise ConversionError(
            "the converted network does not give the model's outputs on the example inputs "
            f"({problem}), so it is refused: forward does something that the conversion does not "
            "see. Look for writes into tensors, state outside of modules and patched functions in "
            "forward, or leave layers out with TernaryConfig(skip=...)"
        )


def check_values(model: nn.Module, net: TernaryNetwork, arguments: tuple[Any, ...]) -> None:
    """Compare network and model on five times the example's values, and on their negatives.

    Raises
    ------
    ConversionError
        If the outputs differ: the model branches on values, and the capture followed one branch.
    """
    for factor in (5.0, -1.0):
        given = other_values(arguments, factor)
        try:
            expected = replica(model)(*copies(given))
        except Exception:  # the model refuses these values
            continue
        problem, _ = _difference(net, given, expected, may_refuse=True)
        if problem:
            raise ConversionError(
                f"the converted network does not give the model's outputs on {factor:g} times the "
                f"example inputs ({problem}), so it is refused: forward seems to branch on values "
                "(for example with try around a comparison); compute both ways and choose with "
                "torch.where"
            )


def check_sizes(model: nn.Module, net: TernaryNetwork, arguments: tuple[Any, ...]) -> None:
    """Compare network and model at larger sizes; fix the example's sizes if outputs differ.

    Maps get two more pixels per axis. The first dimension after the batch is doubled and made
    larger by one where it is neither fixed nor the channels, as in a sequence.
    """
    inputs = [node for node in net.graph.nodes if node.op == "input"]
    tensors = [i for i, value in enumerate(arguments) if isinstance(value, Tensor)]
    if len(tensors) != len(inputs):
        return
    maps, sequences = list[int](), list[int]()
    for i, node in zip(tensors, inputs, strict=True):
        rank, fixed = arguments[i].dim(), node.attrs["fixed"]
        if not arguments[i].numel():
            return
        if rank in (3, 4) and not set(fixed) & set(range(2, rank)):
            maps.append(i)
        if rank > 1 and 1 not in fixed and node.attrs["channel_dim"] != 1:
            sequences.append(i)
    trials = [(maps, range(2, 4), lambda size: size + 2, "with two more pixels per axis")]
    for grown, how in ((lambda size: size * 2, "twice"), (lambda size: size + 1, "one more than")):
        what = f"with {how} the example's size in dimension 1"
        trials.append((sequences, range(1, 2), grown, what))
    for chosen, dims, grown, what in trials:
        if chosen and (problem := _problem_at(model, net, arguments, chosen, dims, grown)):
            net.graph.fix_inputs(slice(1, None))
            net.graph.notes.append(f"sizes are fixed to the example's: {what}, {problem}")
            return


def _problem_at(
    model: nn.Module,
    net: TernaryNetwork,
    arguments: tuple[Any, ...],
    chosen: Sequence[int],
    dims: Sequence[int],
    grown: Callable[[int], int],
) -> str:
    """Return how network and model differ if some arguments are larger; rounding does not count."""
    given = tuple(
        _larger(value, dims, grown) if i in chosen else value for i, value in enumerate(arguments)
    )
    try:
        expected = replica(model)(*copies(given))
    except Exception:  # the model refuses this size
        return ""
    problem, is_rounding = _difference(net, given, expected)
    return "" if is_rounding else problem


def _larger(value: Tensor, dims: Sequence[int], grown: Callable[[int], int]) -> Tensor:
    """Make dimensions larger, by scaled copies of their elements."""
    layout = layout_of(value)
    for dim in dims:
        if dim < value.dim():
            value = _resized(value, dim, grown(value.shape[dim]))
    made: Tensor = in_layout(value, layout)
    return made


def _resized(value: Tensor, dim: int, size: int) -> Tensor:
    """Repeat or drop elements of a dimension; repeated floats are scaled, to show their order."""
    old = value.shape[dim]
    index = torch.arange(size, dtype=torch.int64, device="cpu")
    made = value.index_select(dim, index % old)
    if value.is_floating_point():
        factors = 1 + (index // old).to(value.dtype) / 4
        made = made * factors.reshape(-1, *[1] * (value.dim() - 1 - dim))
    return made


def check_batches(model: nn.Module, net: TernaryNetwork, arguments: tuple[Any, ...]) -> None:
    """Compare network and model at three other batch sizes; if outputs differ, fix the batch size.

    Sizes that the model refuses are not compared. Small differences get a note: they are rounding,
    because torch chooses its convolution and its memory format also by batch size and thread count.
    """
    inputs = [node for node in net.graph.nodes if node.op == "input"]
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    sizes = {value.shape[0] for value in tensors if value.dim()}
    if (
        len(sizes) != 1
        or any(not value.dim() for value in tensors)
        or any(0 in n.attrs["fixed"] for n in inputs)
    ):
        return
    (size,) = sizes
    for batch in {1, 2, size + 1} - {size}:
        given = tuple(_with_batch_size(value, batch) for value in arguments)
        try:
            expected = replica(model)(*copies(given))
        except Exception:  # the model refuses this batch size
            continue
        problem, is_rounding = _difference(net, given, expected)
        if problem and not is_rounding:
            net.graph.fix_inputs(slice(1))
            net.graph.notes.append(f"the batch is fixed to {size}: at {batch}, {problem}")
            return
        if problem:
            net.graph.notes.append(
                f"at batch {batch} torch's float layers round differently than at {size}: {problem}"
            )


#: Differences of at most this fraction of the largest value count as rounding.
_ROUNDING = 0.05


def _difference(
    net: TernaryNetwork, given: tuple[Any, ...], expected: Any, may_refuse: bool = False
) -> tuple[str, bool]:
    """Describe how a network's outputs differ from its model's, and whether by rounding only.

    With ``may_refuse``, errors that the network raises on purpose, as for NaN, are no difference.
    """
    try:
        net.check([value for value in given if isinstance(value, Tensor)])
    except InputError:  # the network refuses this size with a clear error
        return "", False
    except ValueError:  # it has other inputs than the model
        pass
    try:
        got = net(*copies(given))
    except InputError as error:
        return "" if may_refuse else f"it refuses: {str(error)[:200]}", False
    except Exception as error:  # torch nodes may raise anything
        return f"it fails ({type(error).__name__}: {str(error)[:200]})", False
    problem = same_values(got, expected)
    return problem, bool(problem) and same_values(got, expected, _ROUNDING) == ""


def _with_batch_size(value: Any, batch: int) -> Any:
    """Repeat or drop samples to get a batch of ``batch``; repeated floats are scaled."""
    if not isinstance(value, Tensor) or len(value) == batch or not len(value):
        return value
    return in_layout(_resized(value, 0, batch), layout_of(value))
