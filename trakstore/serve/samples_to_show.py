"""Samples as answers show them, each made once for a while."""

from __future__ import annotations

import threading
from typing import Any

from trakstore.report.sample import Shown
from trakstore.report.sample_source import SampleSource

_MOST = 2000  # samples that are kept


class SamplesToShow:
    """Source of samples for several threads, which forgets what it showed once that is much.

    Data sets of other people are read by one thread at a time.

    Parameters
    ----------
    source : SampleSource
    lock : lock
        Held while the data sets are read.
    """

    def __init__(self, source: SampleSource, lock: threading.Lock) -> None:
        self._source, self.lock = source, lock

    def __call__(self, split: str, position: int, name: Any) -> Shown | None:
        with self.lock:
            if len(self._source.known) > _MOST:
                self._source.known.clear()
            return self._source(split, position, name)
