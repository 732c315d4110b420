"""Epochs, methods and lengths of lists that a question names, checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trakstore.errors import TrakStoreError, did_you_mean
from trakstore.methods.by_name import METHODS
from trakstore.quantities import as_whole, is_whole, shown
from trakstore.serve.question import BadQuestionError, UnknownSampleError
from trakstore.storage.layout import Epoch, as_epoch

MOST_LISTED, _LISTED = 1000, 20


def named_epochs(epochs: Any) -> tuple[Any, ...] | None:
    """Return named epochs as a tuple, even a single one; None if all are meant."""
    if epochs is None or isinstance(epochs, tuple):
        return epochs
    if isinstance(epochs, str) or not isinstance(epochs, Iterable) or is_whole(epochs):
        return (epochs,)
    return tuple(epochs)


def known_epochs(named: Sequence[Epoch] | None, known: tuple[Epoch, ...]) -> tuple[Epoch, ...]:
    """Return the epochs that a question names, each once; all if it names none.

    Raises
    ------
    UnknownSampleError
        When one is unknown.
    BadQuestionError
        When the list is empty, or names one twice.
    """
    if named is None:
        return known
    try:
        epochs = tuple(as_epoch(one) for one in named)
    except TrakStoreError as error:  # an epoch cannot have such a name
        raise UnknownSampleError(str(error)) from None
    for epoch in epochs:
        if epoch not in known:
            raise UnknownSampleError(f"no epoch {epoch!r}{did_you_mean(epoch, known)}")
    if not epochs or len(set(epochs)) < len(epochs):
        raise BadQuestionError("epochs must be some epochs, each named once")
    return epochs


def known_length(k: Any, rows: int) -> int:
    """Return the length of a list over so many train rows; 20, or all of them, by default.

    Raises
    ------
    BadQuestionError
        When it is not a number from 1 to 1,000, or is more than the rows.
    """
    if k is None:
        return min(rows, _LISTED)
    try:
        return as_whole(k, "k", 1, min(rows, MOST_LISTED))
    except TrakStoreError as error:
        raise BadQuestionError(str(error)) from None


def known_method(name: Any, usual: str) -> str:
    """Return the method that a question names, by default the service's.

    Raises
    ------
    UnknownSampleError
        When there is no such method.
    BadQuestionError
        When it is not a name.
    """
    if not isinstance(name, str | None):
        raise BadQuestionError(f"method must be a name, such as {usual!r}, got {shown(name)}")
    method = usual if name is None else name.replace("_", "-")
    if method not in METHODS:
        raise UnknownSampleError(f"no method {name!r}{did_you_mean(method, METHODS)}")
    return method
