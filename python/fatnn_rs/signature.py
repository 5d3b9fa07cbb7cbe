"""Call a converted network with the arguments of its original model. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fatnn_rs.errors import FormatError, InputError
from fatnn_rs.nested import Nested, equal, nested_from_json, shown

__all__ = ["NOTHING", "Argument", "argument_to_json", "arguments_from_json", "bind_call"]


class _Nothing:
    """Type of :data:`NOTHING`, which marks an argument without a default."""

    def __repr__(self) -> str:
        return "nothing"

    def __reduce__(self) -> str:
        return "NOTHING"


NOTHING = _Nothing()


@dataclass(frozen=True)
class Argument:
    """One argument of the model's forward.

    Attributes
    ----------
    name
        Name in the signature of ``forward``.
    tensor
        Whether it is a tensor; every call must give it.
    constant
        Value at conversion of an argument that is no tensor. The network computes with this value.
    default
        The default in ``forward``, or :data:`NOTHING`.
    positional
        Whether it may be given by position.
    keyword
        Whether it may be given by keyword.
    nested
        How tensors lie in an argument that is a container; None for other arguments.
    """

    name: str
    tensor: bool = True
    constant: Any = None
    default: Any = NOTHING
    positional: bool = True
    keyword: bool = True
    nested: Nested | None = None


def bind_call(
    arguments: Sequence[Argument], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Bind a call's arguments to those of the model.

    Parameters
    ----------
    arguments
        The model's arguments, in order.
    args, kwargs
        The call's arguments.

    Returns
    -------
    list
        The values given for tensor arguments, in order; their types are not checked.

    Raises
    ------
    InputError
        If there are too many or unknown arguments, if an argument is given twice or missing, or if
        a value differs from the one at conversion.
    """
    by_position = [argument for argument in arguments if argument.positional]
    takes = ", ".join(argument.name for argument in arguments) or "nothing"
    if len(args) > len(by_position):
        raise InputError(
            f"the network takes {len(by_position)} argument(s) ({takes}), got {len(args)}; "
            "call it as its model"
        )
    given = dict(zip((argument.name for argument in by_position), args, strict=False))
    for name, value in kwargs.items():
        if not any(argument.name == name and argument.keyword for argument in arguments):
            raise InputError(
                f"the network takes no argument {name!r}, only {takes}; call it as its model"
            )
        if name in given:
            raise InputError(
                f"argument {name!r} is given twice, by position and by keyword; give it once"
            )
        given[name] = value
    tensors = []
    for argument in arguments:
        if argument.tensor:
            if argument.name not in given:
                raise InputError(
                    f"the network takes {len(arguments)} argument(s) ({takes}), and "
                    f"{argument.name!r} is missing; call it with the tensors its model takes"
                )
            tensors.append(given[argument.name])
            continue
        value = given.get(argument.name, argument.default)
        if argument.nested is not None:
            tensors.extend(argument.nested.tensors(value, repr(argument.name)))
            continue
        if not equal(value, argument.constant):
            raise InputError(
                f"argument {argument.name!r}: the network was converted for {argument.constant!r}, "
                f"got {shown(value)}; give {argument.constant!r}, or convert the model again with "
                "the value you want"
            )
    return tensors


def argument_to_json(argument: Argument) -> dict[str, Any]:
    """Return the JSON description of an argument.

    Raises
    ------
    TypeError
        If a constant or default is not a JSON value; the message names its type.
    """
    made: dict[str, Any] = {
        "name": argument.name,
        "tensor": argument.tensor,
        "positional": argument.positional,
        "keyword": argument.keyword,
    }
    if argument.nested is not None:
        made["nested"] = argument.nested.to_json()
    elif not argument.tensor:
        made["constant"] = _require_plain(argument.constant)
    if argument.default is not NOTHING:
        made["default"] = _require_plain(argument.default)
    return made


def _require_plain(value: Any) -> Any:
    if not _is_plain(value):
        raise TypeError(f"{type(value).__name__} as an argument")
    return value


def _is_plain(value: Any) -> bool:
    return (
        value is None
        or type(value) in (bool, int, str)
        or (type(value) is float and math.isfinite(value))
    )


def arguments_from_json(data: Any, inputs: Sequence[str]) -> tuple[Argument, ...]:
    """Read the arguments of a graph with the given input names.

    Raises
    ------
    FormatError
        If ``data`` is not what :func:`argument_to_json` writes, or does not match the inputs.
    """
    if data is None:
        return tuple(Argument(name) for name in inputs)
    flags = ("tensor", "positional", "keyword")
    good = isinstance(data, list) and all(
        isinstance(item, dict)
        and isinstance(item.get("name"), str)
        and all(type(item.get(flag)) is bool for flag in flags)
        and (item["tensor"] or "constant" in item or "nested" in item)
        and set(item) <= {"name", *flags, "constant", "default", "nested"}
        and all(_is_plain(item.get(key)) for key in ("constant", "default"))
        for item in data
    )
    nested = [nested_from_json(i["nested"]) for i in data if "nested" in i] if good else []
    plain = sum(item["tensor"] for item in data if "nested" not in item) if good else 0
    found = [one for one in nested if one is not None]
    if not good or len(found) < len(nested) or plain + sum(n.count() for n in found) != len(inputs):
        raise FormatError(
            "the graph's arguments are not well-formed; save the network again with this version's "
            "fatnn_rs.save"
        )
    made = [Argument(**{"default": NOTHING, **item, "nested": None}) for item in data]
    structures = iter(found)
    return tuple(
        replace(argument, nested=next(structures)) if "nested" in item else argument
        for argument, item in zip(made, data, strict=True)
    )
