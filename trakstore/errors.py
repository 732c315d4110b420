"""The errors that trakstore raises.

Every one is a :class:`TrakStoreError`, hence a ``ValueError``; most are also the built-in error that
a caller would expect::

    TrakStoreError(ValueError)
    ├── NotFoundError(KeyError)            an epoch, split, store, job or method that is not there
    ├── SpecMismatchError                  the store was written with another spec, model or data set
    ├── IncompleteError                    rows are missing that were asked for
    ├── DamagedError(OSError)              stored bytes are gone or not what was written
    ├── LocationError(OSError)             a place that cannot be opened, read or written
    ├── NumericsError(ArithmeticError)     NaN, inf, underflow, a singular kernel
    └── MemoryLimitError(MemoryError)      the request cannot be done within the memory limit

A message says what was got, what was needed and what to do, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from trakstore.markup import printable

# The docs have a page of this module, which shows these names.
__all__ = [
    "LARGER_LIMIT",
    "NO_THREADS",
    "DamagedError",
    "IncompleteError",
    "LocationError",
    "MemoryLimitError",
    "NotFoundError",
    "NumericsError",
    "SpecMismatchError",
    "TrakStoreError",
    "did_you_mean",
    "error_context",
    "lacks_threads",
]


_NAMES = 12  # known names that a message lists
LARGER_LIMIT = "give a larger memory limit (memory_limit=, --memory-limit)"

NO_THREADS = (
    "the system lets this process start no more threads; raise the limit (ulimit -u), or run fewer "
    "processes"
)


class TrakStoreError(ValueError):
    """Base of every error that trakstore raises on purpose.

    Examples
    --------
    >>> try:
    ...     raise IncompleteError("rows 64:128 of train at epoch 3 are missing")
    ... except TrakStoreError as error:
    ...     print(error)
    rows 64:128 of train at epoch 3 are missing
    """

    def __str__(self) -> str:  # one line, whatever the names and messages in it hold
        return printable(" ".join(ValueError.__str__(self).splitlines()))

    def __reduce__(self) -> tuple[Any, ...]:  # else Dask's way of sending errors loses the class
        return type(self), self.args


class NotFoundError(TrakStoreError, KeyError):
    """A name (epoch, split, store, job, method) that does not exist.

    Examples
    --------
    >>> store.split(3, "train")
    Traceback (most recent call last):
    trakstore.errors.NotFoundError: memory://examples has no epoch 3; there are 2, 5, 15
    """

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return TrakStoreError.__str__(self)


class SpecMismatchError(TrakStoreError):
    """The store's spec, checkpoint or data set is not the writer's; both values are printable.

    Examples
    --------
    >>> other = ts.ProjectionSpec("sjlt", dim=16)
    >>> ts.FeatureStore.create("memory://examples", projection=other)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    trakstore.errors.SpecMismatchError: memory://examples holds projection ...
    """


class IncompleteError(TrakStoreError):
    """Rows that were asked for have not been written yet.

    Examples
    --------
    >>> begun = ts.FeatureStore.create("memory://begun", projection=store.spec.projection)
    >>> split = begun.create_split(0, "train", store.split(15, "train").spec)
    >>> begun.features(0, "train")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    trakstore.errors.IncompleteError: train at epoch 0 has 0 of 24 rows; ...
    """


class DamagedError(TrakStoreError, OSError):
    """Stored bytes are missing or are not those that were written.

    Examples
    --------
    >>> broken = ts.FeatureStore.create("memory://broken", projection=store.spec.projection)
    >>> split = broken.write_split(0, "train", np.ones((4, 8), np.float32))
    >>> broken.location.delete_folder("0/train/features")
    >>> np.asarray(broken.features(0, "train"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    trakstore.errors.DamagedError: chunk 0/train/features/c/0/0 is missing ...
    """


class LocationError(TrakStoreError, OSError):
    """A location that cannot be opened, read or written.

    Examples
    --------
    >>> ts.open_store("memory://nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    trakstore.errors.LocationError: there is no store at memory://nowhere; ...
    """


class NumericsError(TrakStoreError, ArithmeticError):
    """Non-finite or unrepresentable values, or a kernel that cannot be factored.

    Examples
    --------
    >>> other = ts.FeatureStore.create("memory://nan", projection=store.spec.projection)
    >>> other.write_split(0, "train", np.full((2, 8), np.nan, np.float32))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    trakstore.errors.NumericsError: train at epoch 0: 2 rows have NaN or infinite ...
    """


class MemoryLimitError(TrakStoreError, MemoryError):
    """An operation that does not fit the memory limit, whatever its tiles.

    Examples
    --------
    >>> ts.top_k(ts.trak_scores(store), 3, memory_limit="1kB")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    trakstore.errors.MemoryLimitError: top-3 of 6 targets needs at least ...
    """


def lacks_threads(error: RuntimeError) -> bool:
    """Tell whether an error means :data:`NO_THREADS`: Python has no class of its own for it."""
    return "can't start new thread" in str(error)


@contextmanager
def error_context(where: str) -> Iterator[None]:
    """Put ``where`` in front of the message of every trakstore error that is raised within.

    Examples
    --------
    >>> with error_context("train at epoch 3"):
    ...     raise TrakStoreError("1 row has no label")
    Traceback (most recent call last):
    trakstore.errors.TrakStoreError: train at epoch 3: 1 row has no label
    """
    try:
        yield
    except TrakStoreError as error:
        raise type(error)(f"{where}: {error}") from error


def did_you_mean(got: object, known: Iterable[object]) -> str:
    """Write the tail of an error message: the nearest known name, else the list of known names.

    A number is near to no other: for one, the known names are listed.

    Examples
    --------
    >>> did_you_mean("trian", ["train", "test"])
    "; did you mean 'train'?"
    >>> did_you_mean("x", [1, 5])
    '; there are 1, 5'
    >>> did_you_mean(10, [1, 5, "final"])
    '; there are 1, 5, final'
    >>> did_you_mean("x", [])
    '; there are none yet'
    >>> did_you_mean("x", range(100, 200))
    '; there are 100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, ... (100 in all)'
    """
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(got), names, n=1)
    if near and not str(got).isdecimal():
        return f"; did you mean {near[0]!r}?"
    if not names:
        return "; there are none yet"
    more = f", ... ({len(names)} in all)" if len(names) > _NAMES else ""
    return f"; there are {', '.join(names[:_NAMES])}{more}"
