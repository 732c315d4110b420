"""Progress of long work: a bar or a spinner on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from functools import wraps
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from trakstore.markup import printable
from trakstore.planning import human_bytes, human_time

P = ParamSpec("P")
T = TypeVar("T")
_SECONDS = 10.0  # between plain lines, and between looks at what others did


def on_terminal() -> bool:
    """Tell whether somebody looks on: library calls say nothing in a log."""
    # Without a console, as services and some windows have none, Python has no such stream.
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


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
        self._steps: StepLine | None = None
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
        # Two lines that are drawn at once would overwrite each other.
        self._steps = _around.get() if self._show else None
        if self._steps is not None:
            self._steps.pause()
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
        if self._steps is not None:
            self._steps.resume()


class StepLine:
    """Step that long work is at, on standard error, and how long it has taken.

    It is for work whose items cannot be counted. A :class:`ProgressLine` that is shown within takes its
    place meanwhile.

    Parameters
    ----------
    show : bool
        False prints nothing at all.
    drawn : bool
        False prints plain lines on a terminal, too: while other code may draw bars of its own there.

    Examples
    --------
    >>> with StepLine(show=False) as line:
    ...     line.step("report: lists of 24 targets")
    """

    def __init__(self, *, show: bool = True, drawn: bool = True) -> None:
        self.show, self._drawn = show, drawn and on_terminal()
        self._text, self._began = "", time.monotonic()
        self._spinner: Progress | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._token: Token[StepLine | None] | None = None
        self._outer: StepLine | None = None

    def step(self, text: str) -> None:
        """Begin a step, which ends the one before."""
        self._text, self._began = printable(text), time.monotonic()
        self.resume()
        if self._spinner is not None:
            self._spinner.reset(self._spinner.task_ids[0], description=self._text)

    def pause(self) -> None:
        """Show nothing until :meth:`resume`, or the next step."""
        if self._spinner is not None:
            self._spinner.stop()
        self._spinner = None
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def resume(self) -> None:
        """Show the step again; nothing before the first one, and after the end."""
        if not self.show or not self._text or self._token is None:
            return
        if self._drawn and self._spinner is None:
            self._spinner = _spinner()
            self._spinner.add_task(self._text)
            self._spinner.start()
        elif not self._drawn and self._thread is None:
            self._ended = threading.Event()
            self._thread = threading.Thread(target=self._tell, args=(self._ended,), daemon=True)
            self._thread.start()

    def _tell(self, ended: threading.Event) -> None:
        """Print the step now and then, also while one takes long, until ``ended``."""
        while not ended.wait(_SECONDS):
            seconds = time.monotonic() - self._began
            print(f"{self._text}, {human_time(seconds)} so far", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        self._outer = _around.get() if self.show else None
        if self._outer is not None:
            self._outer.pause()
        self._token = _around.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.pause()
        if self._token is not None:
            _around.reset(self._token)
        self._token = None
        if self._outer is not None:
            self._outer.resume()


# The line of steps around what runs now; threads of other work have their own.
_around: ContextVar[StepLine | None] = ContextVar("steps", default=None)


def begin_step(text: str) -> None:
    """Begin a step on the line around what runs now; nothing is said where there is none."""
    if (line := _around.get()) is not None:
        line.step(text)


def told_on_terminal(work: Callable[P, T]) -> Callable[P, T]:
    """Have a function tell a terminal of its steps, unless its caller shows them."""

    @wraps(work)
    def told(*args: P.args, **options: P.kwargs) -> T:
        if _around.get() is not None:
            return work(*args, **options)
        with StepLine(show=on_terminal()):
            return work(*args, **options)

    return told


def _spinner() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        # What is printed meanwhile goes where it was meant to go, which may be a file.
        redirect_stdout=False,
    )
