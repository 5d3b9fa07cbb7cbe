"""Progress of a conversion, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

__all__ = ["Phases"]


class Phases:
    """Shows the running phase and the time of each; shows nothing if ``shown`` is False."""

    def __init__(self, shown: bool) -> None:
        columns = (SpinnerColumn(finished_text="•"), TextColumn("{task.description}"))
        self._progress = (
            Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) if shown else None
        )

    def __enter__(self) -> Phases:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show a phase while the context is open."""
        if self._progress is None:
            yield
            return
        task = self._progress.add_task(name, total=1)
        yield
        self._progress.update(task, completed=1)
