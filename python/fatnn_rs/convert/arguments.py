"""Arguments of a model's forward, and models whose arguments are containers of tensors.

Capture, lowering and trial runs know positional arguments that are tensors or constants. A model
with other arguments is given a subclass whose forward takes the tensors one by one and builds the
containers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from fatnn_rs.convert.structure import Container, fill, leaves, plain
from fatnn_rs.errors import ConversionError
from fatnn_rs.nested import TENSOR, Nested
from fatnn_rs.signature import NOTHING, Argument

__all__ = ["describe_arguments", "flatten_arguments"]


def describe_arguments(
    model: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any] | None = None
) -> tuple[Argument, ...]:
    """Describe the arguments of a model's forward, with their values by position and keyword."""
    rest_named = dict(named or {})
    made: list[Argument] = []
    parameters = list(inspect.signature(model.forward).parameters.values())
    for p in parameters:
        if p.kind == p.VAR_POSITIONAL:
            rest = given[len(made) :]
            made.extend(_argument(f"{p.name}_{i}", v, keyword=False) for i, v in enumerate(rest))
        elif p.kind != p.VAR_KEYWORD:
            default = NOTHING if p.default is p.empty else p.default
            value = given[len(made)] if len(made) < len(given) else default
            value = rest_named.pop(p.name, value)
            made.append(
                _argument(
                    p.name,
                    value,
                    default=default,
                    positional=p.kind != p.KEYWORD_ONLY,
                    keyword=p.kind != p.POSITIONAL_ONLY,
                )
            )
    made.extend(_argument(key, value, positional=False) for key, value in rest_named.items())
    return tuple(made)


def _argument(name: str, value: Any, **how: Any) -> Argument:
    if isinstance(value, Tensor):
        return Argument(name, **how)
    if _is_container(value):
        return Argument(name, tensor=False, nested=_nested(plain(value)), **how)
    return Argument(name, tensor=False, constant=value, **how)


def _is_container(value: Any) -> bool:
    structure = plain(value)
    return isinstance(structure, (Container, dict)) or type(structure) in (tuple, list)


def _is_simple(value: Any) -> bool:
    """Whether torch.fx and torch.export take an argument as it is."""
    return isinstance(value, (Tensor, type(None), bool, int, float, str))


def _nested(structure: Any) -> Nested:
    if isinstance(structure, Tensor):
        return TENSOR
    if isinstance(structure, Container):
        items = tuple(map(_nested, structure.items))
        return Nested("other", None, structure.keys, items, structure.kind, _unpack)
    if isinstance(structure, dict):
        return Nested("dict", None, tuple(structure), tuple(map(_nested, structure.values())))
    if type(structure) in (tuple, list):
        return Nested(type(structure).__name__, items=tuple(map(_nested, structure)))
    return Nested("constant", structure)


def _unpack(value: Any) -> tuple[tuple[Any, ...] | None, tuple[Any, ...]]:
    """Return the keys and items of a container."""
    structure = plain(value)
    return structure.keys, structure.items


def flatten_arguments(
    model: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any] | None = None
) -> tuple[nn.Module, tuple[Any, ...], tuple[Argument, ...] | None]:
    """Return a model that takes tensors by position, if arguments are containers or keywords.

    Parameters
    ----------
    model
        The model. It is not changed; the result shares its modules, parameters and buffers.
    arguments
        Its positional arguments.
    named
        Arguments that it takes by keyword only.

    Returns
    -------
    tuple
        The model, its arguments, and the description of the original ones. With tensors and plain
        values by position only, these are ``model``, ``arguments`` and None.

    Raises
    ------
    ConversionError
        If the model has a hook before its forward, or a forward replaced on the instance. These
        expect the containers.
    """
    named = named or {}
    if not named and not any(_is_container(v) or not _is_simple(v) for v in arguments):
        return model, arguments, None
    if "forward" in vars(model) or model._forward_pre_hooks:
        what = "a replaced forward" if "forward" in vars(model) else "a hook before its forward"
        takes = "keyword-only arguments" if named else "containers of tensors or other objects"
        raise ConversionError(
            f"{type(model).__name__} takes {takes} and has {what}, which convert "
            "cannot run with single tensors; remove it, or wrap the model in a module that takes "
            "the tensors one by one"
        )
    structures = [plain(value) for value in arguments]
    by_name = {key: plain(value) for key, value in named.items()}
    parameters = list(inspect.signature(model.forward).parameters.values())
    given: list[str] = []
    for index, structure in enumerate(structures):
        p = parameters[min(index, len(parameters) - 1)]
        start = f"{p.name}_{index}" if p.kind == p.VAR_POSITIONAL else p.name
        given.extend(_names(structure, start))
    for key, structure in by_name.items():
        given.extend(_names(structure, key))
    names = _unique_identifiers(given)

    def forward(self: Any, *tensors: Any) -> Any:
        rest = iter(tensors)

        def with_tensors(structure: Any) -> Any:
            return fill(
                structure, lambda leaf: next(rest) if isinstance(leaf, Tensor) else leaf, build=True
            )

        by_position = [with_tensors(one) for one in structures]
        return super(made, self).forward(
            *by_position, **{key: with_tensors(one) for key, one in by_name.items()}
        )

    made: Any = type(type(model).__name__, (type(model),), {"forward": _with_names(forward, names)})
    made.__module__ = type(model).__module__
    flat: nn.Module = object.__new__(made)
    flat.__dict__.update(vars(model))
    every = (*structures, *by_name.values())
    tensors = tuple(leaf for one in every for leaf in leaves(one) if isinstance(leaf, Tensor))
    return flat, tensors, describe_arguments(model, arguments, named)


def _names(structure: Any, start: str) -> Iterator[str]:
    """Name the tensors of an argument by their keys and indices."""
    if isinstance(structure, Tensor):
        yield start
        return
    if isinstance(structure, Container):
        keys = structure.keys or tuple(range(len(structure.items)))
        items: list[Any] = list(structure.items)
    elif isinstance(structure, dict):
        keys, items = tuple(structure), list(structure.values())
    elif type(structure) in (tuple, list):
        keys, items = tuple(range(len(structure))), list(structure)
    else:
        return
    for key, item in zip(keys, items, strict=True):
        yield from _names(item, f"{start}_{key}")


def _unique_identifiers(names: list[str]) -> list[str]:
    """Turn names into identifiers, all different."""
    made: list[str] = []
    for name in names:
        free = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
        number = 1
        while free in made:
            number += 1
            free = f"{name}_{number}" if name.isidentifier() else f"tensor_{number}"
        made.append(free)
    return made


def _with_names(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """Return a method with named arguments, which torch.fx and torch.export read."""
    listed = ", ".join(names)
    scope: dict[str, Any] = {"function": function}
    exec(f"def forward(self, {listed}):\n    return function(self, {listed})", scope)
    method: Callable[..., Any] = scope["forward"]
    return method
