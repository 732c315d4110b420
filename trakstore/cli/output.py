"""What commands print: tables for people, one JSON document for programs, one line for errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from trakstore.markup import printable

__all__ = [
    "console",
    "error_line",
    "only_json",
    "print_json",
    "tolerant_streams",
    "without_nan",
]


def console(*, stderr: bool = False) -> Console:
    """Where a command prints for people; numbers are not coloured, ``NO_COLOR`` is honoured."""
    return _SafeConsole(stderr=stderr, highlight=False, markup=False, emoji=False)


class _SafeConsole(Console):
    """Spells out what names and ids hold besides characters; its own colours are as they were."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's; a text is one line."""
        safe = (printable(one) if isinstance(one, str) else one for one in objects)
        super().print(*safe, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich's."""
        for one in super().render(renderable, options):
            yield one if one.control else one._replace(text=printable(one.text, keep="\n"))


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on standard output: indented on a terminal, else one line in one write."""
    indent = 2 if sys.stdout.isatty() else None
    text = json.dumps(document, indent=indent, allow_nan=False, default=_plain)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def only_json(as_json: bool) -> Iterator[None]:
    """With ``as_json``, what other code prints meanwhile goes to standard error."""
    if not as_json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def error_line(message: object, kind: str = "error") -> None:
    """One line on standard error."""
    print(f"{kind}: {printable(' '.join(str(message).split()))}", file=sys.stderr)


def tolerant_streams() -> None:
    """Characters that the terminal's encoding lacks become ``?`` instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def without_nan(found: xr.Dataset) -> dict[str, Any]:
    """Variables and coordinates as lists, in the order of their dimensions; null for NaN."""
    columns = {**found.coords, **found.data_vars}
    return {str(name): _listed(column.values) for name, column in columns.items()}


def _listed(values: Any) -> Any:
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), None, values.astype(object))
    return values.tolist()


def _plain(value: object) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)
