"""The outcome of a trial, and which exceptions a public call may raise."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

#: Verdicts: the result was right, the call was refused with a clear error, or there is a fault.
OK, REFUSED, FINDING = "ok", "refused", "finding"


@dataclass(frozen=True)
class Outcome:
    """The outcome of one trial.

    Attributes
    ----------
    verdict
        ``OK``, ``REFUSED`` or ``FINDING``.
    what
        One line, equal for all faults or refusals of one class.
    detail
        The expected and the actual result.
    reproduction
        Python source that shows the fault.
    """

    verdict: str
    what: str = ""
    detail: str = ""
    reproduction: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def message_class(message: Any, length: int = 110) -> str:
    """Remove numbers, names and shapes from a message, so that messages of one class are equal."""
    text = str(message).strip().split("\n")[0]
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "'…'", text)
    text = re.sub(r"\[[^\]]*\]|\([\d, ]*\)", "[…]", text)
    text = re.sub(r"0x[0-9a-f]+|-?\d+(\.\d+)?(e[+-]?\d+)?", "#", text)
    return "".join(char if char.isprintable() else "?" for char in text[:length])


def describe_error(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"[:600]
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def is_documented_error(error: BaseException) -> bool:
    """Whether the package documents that it raises such an exception."""
    from fatnn_rs.errors import FatnnError

    return isinstance(error, (FatnnError, MemoryError, OSError))


def refusal_class(error: BaseException) -> str:
    return f"{type(error).__name__}: {message_class(error)}"
