"""HTML for notebooks: what an object holds, in a small table; all text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

__all__ = ["card", "curve", "facts_markup", "table_markup"]

_CELL = "text-align: left; padding: 0.15em 1em 0.15em 0; vertical-align: top"
_WIDTH, _HEIGHT = 220, 56


def card(title: str, *parts: str) -> str:
    """A heading over parts that are HTML already."""
    return (
        f'<div><div style="margin-bottom: 0.3em"><b>{escape(title)}</b></div>{"".join(parts)}</div>'
    )


def facts_markup(facts: Mapping[str, object]) -> str:
    """Names and values, a line each.

    Examples
    --------
    >>> facts_markup({"rows": "1 < 2"}).count("1 &lt; 2")
    1
    """
    head = 'th scope="row"'
    lines = [_cell(name, head) + _cell(value, "td") for name, value in facts.items()]
    return _table(lines)


def table_markup(head: Sequence[object], lines: Iterable[Sequence[object]]) -> str:
    """A table with a line of headings."""
    first = "".join(_cell(one, 'th scope="col"') for one in head)
    return _table([first, *("".join(_cell(one, "td") for one in line) for line in lines)])


def curve(values: Sequence[float], label: str) -> str:
    """A line through values, without axes; ``label`` says in words what it shows."""
    low, high = min(values), max(values)
    across, up = _WIDTH / max(1, len(values) - 1), (_HEIGHT - 4) / ((high - low) or 1.0)
    points = " ".join(
        f"{at * across:.1f},{_HEIGHT - 2 - (value - low) * up:.1f}"
        for at, value in enumerate(values)
    )
    return (
        f'<svg role="img" aria-label="{escape(label)}" width="{_WIDTH}" height="{_HEIGHT}">'
        f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )


def _table(lines: Sequence[str]) -> str:
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(value: object, tag: str) -> str:
    return f'<{tag} style="{_CELL}">{escape(str(value))}</{tag.split()[0]}>'
