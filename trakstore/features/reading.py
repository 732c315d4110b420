"""Samples read from people's own data sets, with errors that name the sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.named import blamed_on
from trakstore.quantities import is_whole, shown

__all__ = ["REMEDY", "named_sample", "named_samples", "number_of_samples", "read_sample"]

REMEDY = "mend it and run again: what is written stays, and the run goes on behind it"


def number_of_samples(dataset: Any, name: str = "the data set") -> int:
    """Return the length of a data set.

    Raises
    ------
    TrakStoreError
        When its ``__len__`` raises, or gives no whole number above 0.
    """
    # len() refuses these values too, but does not show them.
    with blamed_on(f"{name} has a __len__ that fails", "it gives the number of samples"):
        given = type(dataset).__len__(dataset)
    if not is_whole(given) or given < 0:
        raise TrakStoreError(
            f"{name} has a __len__ that gives {shown(given)}, and the number of samples was needed, a "
            f"whole number from 1 on: mend it"
        )
    if given == 0:
        raise TrakStoreError(f"{name} is empty: it needs one sample or more")
    return int(given)


def read_sample(dataset: Any, index: int, ids: NDArray[Any] | None = None) -> Any:
    """Read the sample at a position, which an error names by its id in ``ids``.

    Raises
    ------
    TrakStoreError
        When the data set raises an error, which becomes the cause, or returns None.
    """
    name = named_sample(index, ids)
    with blamed_on(f"{name} cannot be read", REMEDY):
        try:
            sample = dataset[index]
        # A StopIteration that got out would end a caller's loop over samples. The other errors mean
        # that there is no such sample, even where the lookup was in trakstore's own code.
        except (StopIteration, LookupError, TypeError, NotImplementedError) as error:
            said = f"{type(error).__name__}: {error}".rstrip(": ")
            raise TrakStoreError(
                f"{name} cannot be read ({said}): a data set gives its "
                f"samples by dataset[0] to dataset[len(dataset) - 1], and its length is "
                f"{len(dataset)}; {REMEDY}"
            ) from error
    if sample is None:
        raise TrakStoreError(
            f"{name} is None: its __getitem__ gives nothing, where a sample was needed, a tree of "
            f"tensors, arrays and numbers: leave it out, of __len__ too, or {REMEDY}"
        )
    return sample


def named_sample(index: int, ids: NDArray[Any] | None = None) -> str:
    """Name a sample in a message, with its id if that is not its position.

    Examples
    --------
    >>> import numpy as np
    >>> named_sample(3), named_sample(1, np.array([7, 8]))
    ('sample 3', 'sample 1 (id 8)')
    """
    own = index if ids is None or index >= len(ids) else ids[index : index + 1].tolist()[0]
    return f"sample {index}" if own == index else f"sample {index} (id {shown(own)})"


def named_samples(rows: Sequence[int]) -> str:
    """Name the samples of a batch in a message.

    Examples
    --------
    >>> named_samples([4, 5, 6]), named_samples([4, 9, 6])
    ('samples 4 to 6', 'samples 4, 9, 6')
    """
    first, last = rows[0], rows[-1]
    if list(rows) == list(range(first, last + 1)):
        return f"samples {first} to {last}"
    more = ", ..." if len(rows) > 5 else ""
    return f"samples {', '.join(map(str, rows[:5]))}{more}"
