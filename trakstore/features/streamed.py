"""Samples that can only be iterated, by their positions."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any

from trakstore.errors import TrakStoreError
from trakstore.quantities import as_whole

__all__ = ["Streamed"]

_HELD = 64  # samples at first: all that is tried before the first block


class Streamed:
    """A data set of an iterable: a sample is the one that comes at its position.

    Samples are computed in order, so that one pass reads each once. A run that was stopped, or a worker
    whose share begins further on, passes over those before; the last ones are held, for what is read
    again to be compared. Anything else, such as a report, begins at the start for each sample.

    Parameters
    ----------
    source : iterable
        Samples, the same ones in the same order whenever it is iterated: a data set of ``datasets``
        that streams, an ``IterableDataset`` of torch. That they are is compared for the first samples
        alone: where later ones come in another order each time, a run that was stopped and goes on may
        have some of them twice, and others not.
    rows : int, optional
        Number of samples, from the first; by default ``len(source)``.

    Attributes
    ----------
    held : int
        Most samples in memory: set to a block and what is read ahead of it while features are
        computed. Where samples are large, choose a smaller ``block_rows``.

    Raises
    ------
    TrakStoreError
        For what cannot be iterated twice, or has no length where ``rows`` is not given.

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
        # The thread that reads ahead, and the one that compares rows, both read.
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
        """True of data sets of ``datasets``, which pass over samples without making them."""
        return type(self._source).__module__.split(".")[0] == "datasets"

    def restart(self) -> None:
        """Forget what was read: the next sample is read anew."""
        self._begin(0)

    def _begin(self, index: int) -> None:
        """Iterate anew, from a sample on."""
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
