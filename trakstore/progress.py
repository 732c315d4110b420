"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from trakstore.markup import printable
from trakstore.planning import human_bytes, human_time

_SECONDS = 10.0  # between plain lines, and between looks at what others did


def on_terminal() -> bool:
    """Tell whether somebody looks on: library calls say nothing in a log."""
    return sys.stderr.isatty()


class ProgressLine:
    """Count of the items of one piece of work, on standard error.

    Parameters
    ----------
    what : str
        Name of the work.
    total : int
        Number of its items.
    unit : str
        Name of the items, such as ``"rows"``.
    item_bytes : int
        Stored bytes of an item; with 0, no bytes are shown.
    begun : int
        Items that were done before: they count as done, but not in the rate.
    show : bool
        False prints nothing at all.

    Examples
    --------
    >>> line = ProgressLine("train at epoch 1", 400, item_bytes=1_000_000, begun=100, show=False)
    >>> line.advance(100)
    >>> line.text(seconds=20.0)
    '200/400 rows (50%), 200.0 MB, 5.0 rows/s, 40.0 s left'
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        unit: str = "rows",
        item_bytes: int = 0,
        begun: int = 0,
        show: bool = True,
    ) -> None:
        self.what, self.total, self.done = printable(what), total, begun
        self._unit, self._item_bytes, self._first, self._show = unit, item_bytes, begun, show
        self._began = self._said = self._looked = time.monotonic()
        self._bar: Progress | None = None
        if show and on_terminal():
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[said]}", markup=False),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(
                self.what, total=total, completed=begun, said=self.text(0.0)
            )

    def advance(self, items: int) -> None:
        """Count items as done."""
        self.reach(self.done + items)

    def reach(self, done: int) -> None:
        """Set the number of items done, by whoever did them; never fewer than before."""
        self.done = min(self.total, max(self.done, done))
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, said=self.text(now - self._began))
        elif self._show and now - self._said > _SECONDS:
            self._said = now
            print(f"{self.what}: {self.text(now - self._began)}", file=sys.stderr)

    def wants_a_look(self) -> bool:
        """Tell whether to ask what others did: now and then, and only where it is shown."""
        now = time.monotonic()
        due = self._show and now - self._looked > _SECONDS
        self._looked = now if due else self._looked
        return due

    def text(self, seconds: float) -> str:
        """Write items, bytes, rate and the time that is left, after so many seconds."""
        share = 100 * self.done // self.total if self.total else 100
        parts = [f"{self.done:,}/{self.total:,} {self._unit} ({share}%)"]
        if self._item_bytes:
            parts.append(human_bytes(self.done * self._item_bytes))
        if seconds > 0 and self.done > self._first:
            rate = (self.done - self._first) / seconds
            left = (self.total - self.done) / rate
            parts += [f"{rate:,.{1 if rate < 100 else 0}f} {self._unit}/s"]
            parts += [f"{human_time(left)} left"] if left else []
        return ", ".join(parts)

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
