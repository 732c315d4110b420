"""Samples that can only be iterated, given by their positions."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any

from trakstore.errors import TrakStoreError
from trakstore.quantities import as_whole

__all__ = ["Streamed"]

_HELD = 64  # samples held at first: all that are tried before the first block


class Streamed:
    """A data set made from an iterable: a sample is the one that comes at its position.

    Samples are computed in order, so that one pass reads each once. A run that goes on, or a worker
    whose share begins later, passes over the samples before. The last ones are held for comparisons
    that read them again. Other uses, such as a report, iterate from the start for each sample.

    Parameters
    ----------
    source : iterable
        Samples, the same ones in the same order whenever it is iterated: a streaming data set of
        ``datasets``, an ``IterableDataset`` of torch. Only the first samples are checked for that: if
        later ones come in another order each time, a run that is resumed may have some twice and lack
        others.
    rows : int, optional
        Number of samples, counted from the first; by default ``len(source)``.

    Attributes
    ----------
    held : int
        Most samples in memory: while features are computed, a block and the samples read ahead of it.
        Where samples are large, choose a smaller ``block_rows``.

    Raises
    ------
    TrakStoreError
        When the source cannot be iterated twice, or has no length and ``rows`` is not given.

    Examples
    --------
    >>> Streamed({"a": 1, "b": 2}.keys())[1]
    'b'
    """

    def __init__(self, source: Iterable[Any], rows: int | None = None) -> None:
        if not isinstance(source, Iterable) or isinstance(source, Iterator):
            raise TrakStoreError(
                f"a stream is iterated more than once, and a {type(source).__name__} cannot be: give "
                f"an object whose __iter__ begins again"
            )
        if rows is None and not isinstance(source, Sized):
            raise TrakStoreError(
                f"a {type(source).__name__} has no length: say how many samples to take, as in "
                f"Streamed(data, rows=10_000)"
            )
        self._source = source
        known = len(source) if rows is None and isinstance(source, Sized) else rows
        self._rows = as_whole(known, "rows", 1)
        self.held = _HELD
        self._lock = threading.Lock()
        self.restart()

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self._rows:
            raise IndexError(f"sample {index} of {self._rows}")
        # Two threads read: the one that reads ahead, and the one that compares rows.
        with self._lock:
            far = index > self._next + self.held and self._skips
            if far or index < self._next - len(self._last):
                self._begin(index)
            while self._next <= index:
                self._last.append(self._come())
                self._next += 1
                if len(self._last) > self.held:
                    self._last.popleft()
            return self._last[index - self._next]

    @property
    def _skips(self) -> bool:
        """True for data sets of ``datasets``, which skip samples without making them."""
        return type(self._source).__module__.split(".")[0] == "datasets"

    def restart(self) -> None:
        """Drop the samples that are held: the next one is read anew."""
        self._begin(0)

    def _begin(self, index: int) -> None:
        """Iterate anew, beginning with a sample."""
        self._last: deque[Any] = deque()
        self._next = index
        if index and self._skips:
            self._coming = iter(self._source.skip(index))  # type: ignore[attr-defined]
        else:
            self._coming = islice(iter(self._source), index, None)

    def _come(self) -> Any:
        try:
            return next(self._coming)
        except StopIteration:
            raise TrakStoreError(
                f"the stream ended after {self._next} samples, and {self._rows} were to come: give "
                f"rows={self._next}, and drop a split that was begun with more (store.drop)"
            ) from None
