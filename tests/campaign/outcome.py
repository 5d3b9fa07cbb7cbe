"""What a trial ends in, and which exceptions a public call may raise."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

#: Verdicts: the call gave the right result, was refused clearly, or shows a fault.
OK, REFUSED, FINDING = "ok", "refused", "finding"


@dataclass(frozen=True)
class Outcome:
    """The end of one trial.

    Attributes
    ----------
    verdict
        ``OK``, ``REFUSED`` or ``FINDING``.
    what
        One line that is equal for faults and refusals of the same class.
    detail
        What was expected and what was got.
    reproduction
        Python that can be pasted.
    """

    verdict: str
    what: str = ""
    detail: str = ""
    reproduction: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def normal(message: Any, length: int = 110) -> str:
    """A message without numbers, names and shapes, so that messages of one class are equal."""
    text = str(message).strip().split("\n")[0]
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "'…'", text)
    text = re.sub(r"\[[^\]]*\]|\([\d, ]*\)", "[…]", text)
    text = re.sub(r"0x[0-9a-f]+|-?\d+(\.\d+)?(e[+-]?\d+)?", "#", text)
    return "".join(char if char.isprintable() else "?" for char in text[:length])


def described(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"[:600]
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def is_ours(error: BaseException) -> bool:
    """Whether an exception is one that the package documents."""
    from fatnn_rs.errors import FatnnError

    return isinstance(error, (FatnnError, MemoryError, OSError))


def refusal(error: BaseException) -> str:
    return f"{type(error).__name__}: {normal(error)}"
