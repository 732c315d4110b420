"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["ProgressLine", "on_terminal"]

_SECONDS = 10.0  # between plain lines


def on_terminal() -> bool:
    """Whether somebody looks on: library calls say nothing in a log."""
    return sys.stderr.isatty()


class ProgressLine:
    """Counts rows of one piece of work on standard error.

    Parameters
    ----------
    what : str
        Name of the work.
    total : int
        Rows that it has.
    show : bool
        Whether to print anything at all.
    """

    def __init__(self, what: str, total: int, *, show: bool = True) -> None:
        self.what, self.total, self.done = what, total, 0
        self._show = show
        self._began = self._said = time.monotonic()
        self._bar: Progress | None = None
        if show and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("rows"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(what, total=total)

    def advance(self, rows: int) -> None:
        """Count rows as done."""
        self.done = min(self.total, self.done + rows)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        elif self._show and time.monotonic() - self._said > _SECONDS:
            self._said = time.monotonic()
            rate = self.done / (self._said - self._began)
            print(f"{self.what}: {self.done}/{self.total} rows, {rate:.0f} rows/s", file=sys.stderr)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
