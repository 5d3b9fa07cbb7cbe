"""Call a converted network with the arguments of its original model. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fatnn_rs.errors import FormatError, InputError
from fatnn_rs.nested import Nested, describe_value, equal, nested_from_json

__all__ = ["NOTHING", "Argument", "Size", "argument_to_json", "arguments_from_json", "bind_call"]


class _Nothing:
    """Type of :data:`NOTHING`, which marks an argument without a default."""

    def __repr__(self) -> str:
        return "nothing"

    def __reduce__(self) -> str:
        return "NOTHING"


NOTHING = _Nothing()


@dataclass(frozen=True)
class Size:
    """A limit on one dimension of a tensor argument.

    Attributes
    ----------
    dim
        The dimension.
    name
        Dimensions with equal names must have equal sizes in each call; "" for none.
    least, most
        Smallest and largest size; ``most`` is None if there is no limit.
    """

    dim: int
    name: str
    least: int
    most: int | None = None

    def allows(self, size: int) -> bool:
        """Whether a size is allowed."""
        return self.least <= size and (self.most is None or size <= self.most)

    def described(self) -> str:
        """Describe the allowed sizes for messages."""
        if self.least == self.most:
            return f"{self.least}"
        return f"from {self.least}" + ("" if self.most is None else f" to {self.most}")


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
    sizes
        Limits on a tensor's sizes that the user gave at conversion.
    """

    name: str
    tensor: bool = True
    constant: Any = None
    default: Any = NOTHING
    positional: bool = True
    keyword: bool = True
    nested: Nested | None = None
    sizes: tuple[Size, ...] = ()


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
    equal_sizes: dict[str, tuple[str, int]] = {}
    for argument in arguments:
        if argument.tensor:
            if argument.name not in given:
                raise InputError(
                    f"the network takes {len(arguments)} argument(s) ({takes}), and "
                    f"{argument.name!r} is missing; call it with the tensors its model takes"
                )
            tensors.append(given[argument.name])
            _check_sizes(argument, given[argument.name], equal_sizes)
            continue
        value = given.get(argument.name, argument.default)
        if argument.nested is not None:
            tensors.extend(argument.nested.tensors(value, repr(argument.name)))
            continue
        if not equal(value, argument.constant):
            raise InputError(
                f"argument {argument.name!r}: the network was converted for {argument.constant!r}, "
                f"got {describe_value(value)}; give {argument.constant!r}, or convert the model "
                "again with the value you want"
            )
    return tensors


def _check_sizes(argument: Argument, value: Any, equal: dict[str, tuple[str, int]]) -> None:
    """Check a tensor's sizes against the limits; its rank is checked later."""
    if not argument.sizes:
        return
    shape = getattr(value, "shape", ())
    for size in argument.sizes:
        if size.dim >= len(shape):
            continue
        got = shape[size.dim]
        where = f"argument {argument.name!r}, dimension {size.dim}"
        if not size.allows(got):
            name = f" ({size.name})" if size.name else ""
            raise InputError(
                f"{where}{name}: the network was converted for sizes {size.described()}, got {got} "
                f"in shape {list(shape)}; give a size in this range, or convert the model again "
                "with other dynamic_shapes"
            )
        first, other = equal.setdefault(size.name, (where, got)) if size.name else (where, got)
        if other != got:
            raise InputError(
                f"{where}: expected the size of {first}, {other}, because both are {size.name!r} "
                f"in dynamic_shapes, got {got}; give equal sizes"
            )


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
    if argument.sizes:
        made["sizes"] = [[size.dim, size.name, size.least, size.most] for size in argument.sizes]
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
        and set(item) <= {"name", *flags, "constant", "default", "nested", "sizes"}
        and (item["tensor"] or "sizes" not in item)
        and _are_sizes(item.get("sizes", []))
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
    made = [
        Argument(
            **{
                "default": NOTHING,
                **item,
                "nested": None,
                "sizes": tuple(Size(*size) for size in item.get("sizes", [])),
            }
        )
        for item in data
    ]
    structures = iter(found)
    return tuple(
        replace(argument, nested=next(structures)) if "nested" in item else argument
        for argument, item in zip(made, data, strict=True)
    )


def _are_sizes(data: Any) -> bool:
    """Whether ``data`` is what :func:`argument_to_json` writes for limits on sizes."""
    return isinstance(data, list) and all(
        isinstance(size, list)
        and len(size) == 4
        and type(size[0]) is int
        and 0 <= size[0] < 64
        and isinstance(size[1], str)
        and type(size[2]) is int
        and (size[3] is None or type(size[3]) is int)
        for size in data
    )
