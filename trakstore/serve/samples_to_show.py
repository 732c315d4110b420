"""Samples as answers show them, each made once and cached."""

from __future__ import annotations

import threading
from typing import Any

from trakstore.report.sample import Shown
from trakstore.report.sample_source import SampleSource

_MOST = 2000  # samples that are cached


class SamplesToShow:
    """Cached source of samples for several threads, which forgets everything when it is full.

    Other people's data sets are read by one thread at a time.

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
