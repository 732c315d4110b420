"""Text that is not ours, made safe for a terminal or a page; and small tables for notebooks."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import accumulate

# Controls (C0, delete, C1), marks and controls of writing direction, the separators of lines and
# paragraphs, annotations, and halves of surrogate pairs, which no encoding has.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)

# Folders of a path that begins at a root, at ``~``, a drive or a scheme such as s3://.
_FOLDERS = re.compile(r"""(?<![\w.])(?:\w+:/|~|[A-Za-z]:)?[/\\](?:[^\s/\\'"]+[/\\])+""")
_CELL = "text-align: left; padding: 0.15em 1em 0.15em 0; vertical-align: top"
_WIDTH, _HEIGHT = 220, 56


def printable(text: object, keep: str = "") -> str:
    r"""Spell out the characters of a text that would steer a terminal, or the order of reading.

    Ids of samples, names of files and all other text that somebody else chose go through here.

    Parameters
    ----------
    text : object
        Shown as its ``str``.
    keep : str
        Characters that are left as they are.

    Examples
    --------
    >>> print(printable("\x1b[2Jcat\u202e"), printable("dög ✓"))
    \x1b[2Jcat\u202e dög ✓
    """
    return _UNSEEN.sub(lambda one: one[0] if one[0] in keep else repr(one[0])[1:-1], str(text))


def without_folders(text: str, known: str = "") -> str:
    """Cut the folders off paths in a text, which would name people and machines to whoever reads it.

    Paths with spaces are found only where they are ``known``.

    Parameters
    ----------
    text : str
    known : str
        A path that may stand in the text.

    Examples
    --------
    >>> without_folders("verify /home/anna/run.zarr; s3://bucket/a/b.zarr of ~/x/jobs.py:digits")
    'verify run.zarr; b.zarr of jobs.py:digits'
    >>> without_folders("'/my disk/run.zarr' in 1/2 of a.b/c", known="/my disk/run.zarr")
    "'run.zarr' in 1/2 of a.b/c"
    """
    if known:
        text = text.replace(known, re.split(r"[/\\]", known.rstrip("/\\"))[-1])
    return _FOLDERS.sub("", text)


def one_line(name: object, most: int = 36) -> str:
    r"""Write an id in one short line of a table: it may be a whole prompt.

    A long one keeps its beginning and its end, since ids often differ in one of them alone.

    Parameters
    ----------
    name : object
        Shown as its ``str``.
    most : int
        Most cells of a terminal: Chinese characters, for some, take two.

    Examples
    --------
    >>> print(one_line("def f():\n    pass"), one_line("0123456789" * 9, most=12))
    def f():\n    pass 01234567…789
    """
    text = printable(name)
    if cells(text) <= most:
        return text
    last = most // 4
    return f"{_fitting(text, most - last - 1)}…{_fitting(text[::-1], last)[::-1]}"


def cells(text: str) -> int:
    """Return the cells that a text takes on a terminal.

    Examples
    --------
    >>> cells("digit"), cells("数字"), cells("e\u0301")
    (5, 4, 1)
    """
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):  # marks on the character before
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _fitting(text: str, most: int) -> str:
    """Return the first characters that take so many cells at most."""
    ends = list(accumulate(map(_width, text)))
    return text[: bisect_right(ends, most)]


def card(title: str, *parts: str) -> str:
    """Put a heading over parts that are HTML already."""
    head = f'<div style="margin-bottom: 0.3em"><b>{escape(printable(title))}</b></div>'
    return f"<div>{head}{''.join(parts)}</div>"


def facts_markup(facts: Mapping[str, object]) -> str:
    """Make a table of names and values, a line each.

    Examples
    --------
    >>> facts_markup({"rows": "1 < 2"}).count("1 &lt; 2")
    1
    """
    head = 'th scope="row"'
    lines = [_cell(name, head) + _cell(value, "td") for name, value in facts.items()]
    return _table(lines)


def table_markup(head: Sequence[object], lines: Iterable[Sequence[object]]) -> str:
    """Make a table with a line of headings."""
    first = "".join(_cell(one, 'th scope="col"') for one in head)
    return _table([first, *("".join(_cell(one, "td") for one in line) for line in lines)])


def curve(values: Sequence[float], label: str) -> str:
    """Draw a line through values, without axes; ``label`` says in words what it shows."""
    low, high = min(values), max(values)
    across, up = _WIDTH / max(1, len(values) - 1), (_HEIGHT - 4) / ((high - low) or 1.0)
    points = " ".join(
        f"{at * across:.1f},{_HEIGHT - 2 - (value - low) * up:.1f}"
        for at, value in enumerate(values)
    )
    return (
        f'<svg role="img" aria-label="{escape(printable(label))}" width="{_WIDTH}" height="{_HEIGHT}">'
        f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )


def _table(lines: Sequence[str]) -> str:
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(value: object, tag: str) -> str:
    # Names and values are anybody's: made printable first, since escaping leaves controls alone.
    return f'<{tag} style="{_CELL}">{escape(printable(value))}</{tag.split()[0]}>'
