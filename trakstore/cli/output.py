"""Output of the commands: tables for people, one JSON document for programs, one line for errors."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from trakstore.markup import printable

if TYPE_CHECKING:
    import xarray as xr


def console(*, stderr: bool = False) -> Console:
    """Make a console for people, without coloured numbers; ``NO_COLOR`` is honoured."""
    return _SafeConsole(stderr=stderr, highlight=False, markup=False, emoji=False)


class _SafeConsole(Console):
    """Console that writes out control characters in names and ids, and keeps its own colours."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does; a text is one line, however narrow the terminal."""
        safe = [printable(one) if isinstance(one, str) else one for one in objects]
        options.setdefault("soft_wrap", all(isinstance(one, str | Text) for one in safe))
        super().print(*safe, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as rich does."""
        for one in super().render(renderable, options):
            # Control segments are rich's own (colours, moves); all other text may come from anybody.
            yield one if one.control else one._replace(text=printable(one.text, keep="\n"))


def print_result(
    as_json: bool, document: Mapping[str, Any], tables: Iterable[RenderableType]
) -> None:
    """Print a command's result.

    Parameters
    ----------
    as_json : bool
        True for programs.
    document : mapping
        The whole result, for programs.
    tables : iterable of texts and tables
        The result for people; not read if ``as_json``.
    """
    if as_json:
        print_json(document)
        return
    out = console()
    for one in tables:
        out.print(one)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document: indented on a terminal, else one line in one write."""
    indent = 2 if sys.stdout.isatty() else None
    # NaN is not JSON: a document with one is a fault of the command, and raises here.
    text = json.dumps(document, indent=indent, allow_nan=False, default=_plain)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def only_json(as_json: bool) -> Iterator[None]:
    """Within, send what other code prints to standard error, if ``as_json``.

    Jobs are other people's code, and a line that one prints would spoil the document.
    """
    if not as_json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def print_csv(table: xr.Dataset) -> None:
    """Print a line for each entry of a dataset, its numbers in full, the coordinates first.

    Ids with a comma, a quote or a line end are quoted, as programs expect; on a terminal control
    characters are written out.
    """
    frame = table.to_dataframe().reset_index()
    order = dict.fromkeys([*table.dims, *table.coords, *table.data_vars])
    text = frame[list(order)].to_csv(index=False)
    if sys.stdout.isatty():
        text = printable(text, keep="\n")
    sys.stdout.write(text)
    sys.stdout.flush()


def error_line(message: object, kind: str = "error") -> None:
    """Print one line on standard error."""
    print(f"{kind}: {printable(' '.join(str(message).split()))}", file=sys.stderr)


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def tolerant_streams() -> None:
    """Let output go nowhere where there are no streams, and characters that one lacks become ``?``."""
    # Python has none where the process was started without (`>&-`), as services and windows are.
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def without_nan(found: xr.Dataset) -> dict[str, Any]:
    """List variables and coordinates, in the order of their dimensions; null for NaN."""
    columns = {**found.coords, **found.data_vars}
    return {str(name): _listed(column.values) for name, column in columns.items()}


def _listed(values: Any) -> Any:
    import numpy as np

    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), None, values.astype(object))
    return values.tolist()


def _plain(value: object) -> Any:
    """Convert a value that JSON lacks into one that it has; paths and locations become text."""
    # NumPy's arrays and numbers are recognised by their methods, since NumPy is not imported for every
    # command.
    return value.tolist() if hasattr(value, "tolist") else str(value)
