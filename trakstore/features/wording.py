"""Errors and names, shortened for messages."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["first_line", "first_sentence", "listed", "made_anew"]


def first_line(error: Exception) -> str:
    """Return the first line of an error, or its kind if it has no text.

    Examples
    --------
    >>> first_line(ValueError("no\\nmore")), first_line(KeyError())
    ('no', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def first_sentence(error: Exception) -> str:
    """Return the whole first sentence of an error, or its kind if it has no text.

    Examples
    --------
    >>> first_sentence(ValueError("1.5 is too much. Give less")), first_sentence(KeyError())
    ('1.5 is too much', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].removesuffix(".") if lines else type(error).__name__


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return the first names, and dots if there are more.

    Examples
    --------
    >>> listed(["a", "b"]), listed(["a", "b", "c"], most=2)
    ('a, b', 'a, b, ...')
    """
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def made_anew(doubt: str) -> str:
    """Say how rows are made anew that were doubted for padding, or for an engine.

    Examples
    --------
    >>> made_anew("padding"), made_anew("engine")
    ('without padding', 'by the generic engine')
    """
    return "without padding" if doubt == "padding" else "by the generic engine"
