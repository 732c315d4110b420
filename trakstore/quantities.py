"""Numbers as people give them: of Python, NumPy or torch, as Python's own.

Python's own numbers are what documents hold, and what compares equal with what was stored.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from trakstore.errors import TrakStoreError

_MOST_BITS = 1000
_LONGEST = 80  # characters of a value in a message


def as_whole(
    value: Any, name: str, least: int | None = None, most: int | None = None, *, needed: str = ""
) -> int:
    """Return a whole number as an ``int``; True and False are no numbers.

    Parameters
    ----------
    value : int, or integer of NumPy or torch
        Value that somebody gave.
    name : str
        Name of the value in the message.
    least, most : int, optional
        Ends of the range.
    needed : str
        Words of the message about what was needed, instead of the range.

    Raises
    ------
    TrakStoreError
        When it is not a whole number, or outside of the range.

    Examples
    --------
    >>> import numpy as np
    >>> as_whole(np.int64(3), "k")
    3
    >>> as_whole(True, "k", 1)
    Traceback (most recent call last):
    trakstore.errors.TrakStoreError: k must be an integer, 1 or more, got True
    """
    if is_whole(value):
        number = operator.index(value)
        if (least is None or number >= least) and (most is None or number <= most):
            return number
    wanted = needed or "must be an integer" + _range(least, most)
    raise TrakStoreError(f"{name} {wanted}, got {shown(value)}")


def as_number(
    value: Any,
    name: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    needed: str = "",
) -> float:
    """Return a number as a finite ``float``; True, False and text are no numbers.

    Parameters
    ----------
    value : int or float, or a number of NumPy or torch
        Value that somebody gave.
    name : str
        Name of the value in the message.
    least, above, most : float, optional
        The range: from ``least`` or above ``above``, up to ``most``.
    needed : str
        Words of the message about what was needed, instead of the range.

    Raises
    ------
    TrakStoreError
        When it is not a finite number, or outside of the range.

    Examples
    --------
    >>> import numpy as np
    >>> as_number(np.float32(0.5), "share", above=0, most=1)
    0.5
    >>> as_number("0.5", "share", above=0, most=1)
    Traceback (most recent call last):
    trakstore.errors.TrakStoreError: share must be a number above 0 and at most 1, got '0.5'
    """
    if is_number(value):
        number = float(value)
        low = (least is None or number >= least) and (above is None or number > above)
        if math.isfinite(number) and low and (most is None or number <= most):
            return number
    bounds = (("at least", least), ("above", above), ("at most", most))
    span = " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)
    wanted = needed or f"must be a {f'number {span}' if span else 'finite number'}"
    raise TrakStoreError(f"{name} {wanted}, got {shown(value)}")


def is_whole(value: Any) -> bool:
    """Tell whether a value is one whole number, of any library.

    Examples
    --------
    >>> is_whole(3), is_whole(3.0), is_whole(True)
    (True, False, False)
    """
    if not _is_single(value):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def is_number(value: Any) -> bool:
    """Tell whether a value is one real number, of any library; NaN and infinity are."""
    if not _is_single(value) or isinstance(value, str | bytes | bytearray):
        return False
    if isinstance(value, complex) or "complex" in str(getattr(value, "dtype", "")):
        return False
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def shown(value: object) -> str:
    """Write a value for a message: in one line, cut where it is long.

    Examples
    --------
    >>> import numpy as np
    >>> shown(np.zeros((2, 2)))
    'array([[0., 0.], [0., 0.]])'
    """
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:  # Python would not write it out
        return f"a number of some {value.bit_length() * 3 // 10} digits"
    line = " ".join(repr(value).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _is_single(value: Any) -> bool:
    """Tell whether a value is one value, and no boolean of Python, NumPy or torch."""
    boolean = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    return not boolean and getattr(value, "ndim", 0) == 0


def _range(least: int | None, most: int | None) -> str:
    """Write a range as the end of "must be an integer"."""
    if least is not None and most is not None:
        return f" from {least} to {most}"
    if least is not None:
        return f", {least} or more"
    return "" if most is None else f", {most} or less"
