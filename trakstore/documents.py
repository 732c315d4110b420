"""Documents that others wrote: parsed, and checked field by field before anything is made of them.

A document says which values each of its fields may have; what does not fit is one
:class:`~trakstore.errors.DamagedError` that names the field. So no name in a store leads out of it,
and no size is believed that no writer would choose.

Examples
--------
>>> checks = {"rows": whole(1), "dtype": one_of("float32", "float16")}
>>> fields({"rows": 5, "dtype": "float32"}, checks)
{'rows': 5, 'dtype': 'float32'}
>>> fields({"rows": "5", "dtype": "float32"}, checks)
Traceback (most recent call last):
trakstore.errors.DamagedError: rows of the document must be a whole number >= 1, got '5'
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from trakstore.errors import DamagedError, SpecMismatchError, TrakStoreError
from trakstore.quantities import shown

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.+=-]{0,99}")  # can name a file everywhere
_NAMES = "a name: letters, digits and _ . + = - behind a letter"
MOST = 2**63 - 1
_LONGEST = 2**12  # characters of a text
# Values of a document. Python needs some 100 bytes for each, so that a small file could take all
# memory: they are counted before they are parsed, by the marks that come with each.
_VALUES = 2**19
_MARKS = b"[{,:"


def parsed(document: bytes) -> Any:
    """Parse a JSON document.

    Raises
    ------
    DamagedError
        When it is no JSON, nests too deeply, or has more values than any that trakstore writes.
    """
    count = sum(document.count(bytes([mark])) for mark in _MARKS)
    if count > _VALUES:
        raise DamagedError(
            f"the document has some {count:,} values; at most {_VALUES:,} can be right"
        )
    try:
        return json.loads(document, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"the metadata document is damaged ({error})") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


@dataclass(frozen=True)
class Check:
    """Rule for the values of a field.

    Attributes
    ----------
    what : str
        The values in words, as they follow "must be" in a message.
    read : callable
        ``read(value, where)`` returns the value as it is used, and raises a ``ValueError`` or
        ``TypeError`` for one that is not allowed. ``where`` names the value in messages.
    """

    what: str
    read: Callable[[Any, str], Any]

    def __call__(self, value: Any, where: str = "a value") -> Any:
        """Return the value as it is used; raise a :class:`DamagedError` for a wrong one."""
        try:
            return self.read(value, where)
        except TrakStoreError:
            raise
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise DamagedError(f"{where} must be {self.what}, got {shown(value)}") from error


def fields(
    document: Any,
    checks: Mapping[str, Check],
    missing: Collection[str] = (),
    what: str = "the document",
) -> dict[str, Any]:
    """Read the fields of a document.

    Parameters
    ----------
    document : mapping
        The parsed document.
    checks : mapping of name to Check
        A check for each field that there may be.
    missing : collection of str
        Fields that need not be there.
    what : str
        Words for the document in messages.

    Raises
    ------
    DamagedError
        When a field is missing or has another value.
    SpecMismatchError
        When there is a field that nobody knows: a newer trakstore wrote it.
    """
    if not isinstance(document, Mapping):
        raise DamagedError(f"{what} must have named fields, got {shown(document)}")
    absent = checks.keys() - document.keys() - set(missing)
    if absent:
        raise DamagedError(f"{what} has no {', '.join(sorted(absent))}")
    unknown = document.keys() - checks.keys()
    if unknown:
        raise SpecMismatchError(
            f"{what} has the field {min(map(str, unknown))!r}, which this trakstore does not know: "
            f"pip install --upgrade trakstore"
        )
    return {name: checks[name](value, f"{name} of {what}") for name, value in document.items()}


def _need(right: bool) -> None:
    if not right:
        raise ValueError


def whole(least: int = 0, most: int = MOST) -> Check:
    """A whole number."""

    def read(value: Any, _: str) -> int:
        # By type, not isinstance: True is an int in Python, and no number in a document.
        _need(type(value) is int and least <= value <= most)
        return int(value)

    bounds = f">= {least}" if most == MOST else f"from {least} to {most}"
    return Check(f"a whole number {bounds}", read)


def number(least: float = -math.inf) -> Check:
    """A finite number."""

    def read(value: Any, _: str) -> float:
        _need(type(value) in (int, float) and math.isfinite(value) and value >= least)
        return float(value)

    return Check("a finite number" + ("" if least == -math.inf else f" >= {least:g}"), read)


def text(pattern: re.Pattern[str] | None = None) -> Check:
    """Text of no great length, all of which fits ``pattern``."""

    def read(value: Any, _: str) -> str:
        _need(isinstance(value, str) and len(value) <= _LONGEST)
        _need(pattern is None or pattern.fullmatch(value) is not None)
        return str(value)

    return Check("a short text" if pattern is None else _NAMES, read)


def one_of(*known: Any) -> Check:
    """One of some values."""

    def read(value: Any, _: str) -> Any:
        _need(any(type(value) is type(one) and value == one for one in known))
        return value

    return Check(f"one of {', '.join(map(str, known))}", read)


def optional(check: Check) -> Check:
    """Null, or a value that passes ``check``."""

    def read(value: Any, where: str) -> Any:
        return None if value is None else check(value, where)

    return Check(f"null or {check.what}", read)


def each(check: Check) -> Check:
    """A list of values that all pass ``check``; read as a tuple."""

    def read(value: Any, where: str) -> tuple[Any, ...]:
        _need(isinstance(value, list | tuple))
        return tuple(check(one, f"a value in {where}") for one in value)

    return Check("a list", read)


def row_of(*checks: Check) -> Check:
    """A list with a value for each check, in their order; read as a tuple."""

    def read(value: Any, where: str) -> tuple[Any, ...]:
        _need(isinstance(value, list | tuple) and len(value) == len(checks))
        return tuple(check(one, where) for check, one in zip(checks, value, strict=True))

    return Check(f"a list of {len(checks)} values", read)


def entries(names: Check, values: Check) -> Check:
    """Named values; read as a tuple of pairs, in their order."""

    def read(value: Any, where: str) -> tuple[tuple[Any, Any], ...]:
        _need(isinstance(value, Mapping))
        return tuple(
            (names(name, f"a name in {where}"), values(one, f"{name!r} in {where}"))
            for name, one in value.items()
        )

    return Check("named values", read)


def made_by(make: Callable[[Any], Any], what: str) -> Check:
    """A document of its own, from which ``make`` makes the value."""
    return Check(what, lambda value, _: make(value))


def anything() -> Check:
    """Anything that JSON can hold, for values that are only handed on."""
    return Check("anything", lambda value, _: value)
