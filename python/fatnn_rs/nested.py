"""Arguments that hold several tensors: lists, tuples, dicts and other containers. Needs no torch.

A :class:`Nested` describes the structure of one argument at conversion. It takes the tensors out of
the same argument of a later call, whose structure must not differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fatnn_rs.errors import InputError

__all__ = ["TENSOR", "Nested", "describe_value", "equal", "nested_from_json"]

#: Kinds of :class:`Nested` that a file holds, and their Python types.
_PLAIN = {"list": list, "tuple": tuple, "dict": dict}


@dataclass(frozen=True)
class Nested:
    """A tensor, a constant, or a container of several of them.

    Attributes
    ----------
    kind
        ``"tensor"``, ``"constant"``, ``"list"``, ``"tuple"``, ``"dict"``, or ``"other"``.
    value
        The constant.
    keys
        Keys of a dict, or names of the items of another container.
    items
        What a container holds, in order.
    type
        Class of a container of the kind ``"other"``.
    unpack
        Returns the keys and items of such a container.
    """

    kind: str
    value: Any = None
    keys: tuple[Any, ...] | None = None
    items: tuple[Nested, ...] = ()
    type: type | None = None
    unpack: Callable[[Any], tuple[tuple[Any, ...] | None, Sequence[Any]]] | None = None

    def tensors(self, given: Any, where: str) -> Iterator[Any]:
        """Yield what a call passes where the conversion had tensors.

        Parameters
        ----------
        given
            The argument of the call.
        where
            Name of the argument, for messages.

        Raises
        ------
        InputError
            If the argument has other containers, keys, lengths or constants than at conversion.
        """
        if self.kind == "tensor":
            yield given
        elif self.kind == "constant":
            if not equal(given, self.value):
                raise _refusal(where, describe_value(self.value), describe_value(given))
        else:
            yield from self._inside(given, where)

    def _inside(self, given: Any, where: str) -> Iterator[Any]:
        wanted = _PLAIN.get(self.kind, self.type)
        if type(given) is not wanted:
            raise _refusal(where, self.describe(), describe_value(given))
        keys, items = self._keys_and_items(given)
        if keys != self.keys or len(items) != len(self.items):
            raise _refusal(where, self.describe(), _container(type(given), keys, len(items)))
        for index, (nested, item) in enumerate(zip(self.items, items, strict=True)):
            inner = f"{where}[{index if keys is None else keys[index]!r}]"
            yield from nested.tensors(item, inner)

    def _keys_and_items(self, given: Any) -> tuple[tuple[Any, ...] | None, Sequence[Any]]:
        if self.unpack is not None:
            return self.unpack(given)
        if isinstance(given, Mapping):
            return tuple(given), list(given.values())
        return None, given

    def describe(self) -> str:
        """Describe the argument for messages."""
        if self.kind in ("tensor", "constant"):
            return "a tensor" if self.kind == "tensor" else describe_value(self.value)
        kind = self.type or _PLAIN[self.kind]
        return _container(kind, self.keys, len(self.items))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON description.

        Raises
        ------
        TypeError
            If a file cannot hold a container or a constant; the message names its type.
        """
        if self.kind == "tensor":
            return {"kind": "tensor"}
        if self.kind == "constant":
            if not (self.value is None or type(self.value) in (bool, int, float, str)):
                raise TypeError(f"{type(self.value).__name__} inside an argument")
            return {"kind": "constant", "value": self.value}
        keys = self.keys or ()
        if self.kind == "other" or not all(type(key) in (int, str) for key in keys):
            name = "dict" if self.type is None else self.type.__name__
            raise TypeError(f"{name} as an argument")
        made = {"kind": self.kind, "items": [item.to_json() for item in self.items]}
        return made if self.keys is None else {**made, "keys": list(self.keys)}

    def count(self) -> int:
        """Return the number of tensors."""
        return int(self.kind == "tensor") + sum(item.count() for item in self.items)


#: A tensor in a container.
TENSOR = Nested("tensor")


def nested_from_json(data: Any, depth: int = 0) -> Nested | None:
    """Read what :meth:`Nested.to_json` wrote; None if it is something else."""
    kind = data.get("kind") if isinstance(data, dict) and depth < 64 else None
    if kind == "tensor":
        return TENSOR if set(data) == {"kind"} else None
    if kind == "constant":
        value = data.get("value")
        good = set(data) == {"kind", "value"} and (
            value is None or type(value) in (bool, int, float, str)
        )
        return Nested("constant", value) if good else None
    if kind not in _PLAIN or not isinstance(data.get("items"), list):
        return None
    items = [nested_from_json(item, depth + 1) for item in data["items"]]
    found = tuple(item for item in items if item is not None)
    keys = data.get("keys") if kind == "dict" else []
    if set(data) != {"kind", "items"} | ({"keys"} if kind == "dict" else set()):
        return None
    if len(found) < len(items) or not isinstance(keys, list):
        return None
    if kind != "dict":
        return Nested(kind, items=found)
    if len(keys) != len(found) or not all(type(key) in (int, str) for key in keys):
        return None
    return Nested(kind, keys=tuple(keys), items=found)


def equal(one: Any, other: Any) -> bool:
    """Whether two constants have the same type and value; NaN equals NaN."""
    try:
        if type(one) is not type(other):
            return False
        if hasattr(one, "dtype") and hasattr(one, "shape"):  # arrays of NumPy
            return bool(
                one.dtype == other.dtype and one.shape == other.shape and (one == other).all()
            )
        return bool(one == other or (one != one and other != other))
    except Exception:  # A foreign class's comparison may raise anything.
        return False


def describe_value(value: Any) -> str:
    """Show a value in a message."""
    plain = isinstance(value, (type(None), bool, int, float, str))
    if plain:
        return repr(value)[:80]
    if isinstance(value, (list, tuple, dict)):
        keys = tuple(value) if isinstance(value, dict) else None
        return _container(type(value), keys, len(value))
    name = type(value).__name__
    return "nothing" if name == "_Nothing" else f"a {name}"


def _container(kind: type, keys: tuple[Any, ...] | None, count: int) -> str:
    if keys is None:
        return f"a {kind.__name__} of {count}"
    return f"a {kind.__name__} with {', '.join(map(repr, keys)) or 'nothing'}"


def _refusal(where: str, wanted: str, got: str) -> InputError:
    return InputError(
        f"argument {where}: the network was converted for {wanted}, got {got}; call it as at "
        "conversion, or convert the model again with such an argument"
    )
