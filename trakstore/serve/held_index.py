"""The index of a service, opened once and used for every target."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trakstore.scores.both_ends import BothEnds
from trakstore.scores.factored import Scores
from trakstore.serve.held_kernels import HeldKernels

if TYPE_CHECKING:  # it needs numba, whose import takes as long as a small store's kernel
    from trakstore.scores.train_index import TrainIndex


@dataclass(frozen=True, eq=False)
class _Opened:
    """Scores of the train rows with themselves, and their index; None if all rows are candidates."""

    scores: Scores
    index: TrainIndex | None


class HeldIndex:
    """An index for the scores of one method at all epochs of the service.

    Parameters
    ----------
    kernels : HeldKernels
        Kernels of the service, with the method of the index.
    memory_limit : int or str, optional
    """

    def __init__(self, kernels: HeldKernels, memory_limit: int | str | None) -> None:
        self._kernels, self._limit = kernels, memory_limit
        self._opening = threading.Lock()
        self._opened: _Opened | None = None

    def open(self) -> _Opened:
        """Open the index, once; raise as :func:`~trakstore.open_index` does."""
        from trakstore.scores.train_index import open_index, usual_candidates

        with self._opening:
            if self._opened is None:
                scores = self._kernels.scores(self._kernels.method)
                few = usual_candidates(1, scores.shape[1]) == scores.shape[1]
                index = None if few else open_index(scores, memory_limit=self._limit)
                self._opened = _Opened(scores, index)
            return self._opened

    @property
    def nbytes(self) -> int:
        """Bytes of its codes, if it is open."""
        opened = self._opened
        return 0 if opened is None or opened.index is None else opened.index.nbytes

    def let_go(self) -> None:
        """Drop the codes; the next use opens the index again."""
        with self._opening:
            self._opened = None

    def serves(self, scores: Scores) -> bool:
        """Tell whether scores are of other targets by the same kernels."""
        own = self.open().scores
        return (scores.method, scores.epochs) == (own.method, own.epochs)

    def both_ends(self, scores: Scores, k: int) -> Iterator[BothEnds]:
        """Yield the lists of both ends of one target's scores, once."""
        from trakstore.scores.approximate import approximate_top_k

        how: dict[str, Any] = {"index": self.open().index, "memory_limit": self._limit}
        largest = approximate_top_k(scores, k, order="largest", **how)
        yield BothEnds(1.0, largest, approximate_top_k(scores, k, order="smallest", **how))

    @property
    def said(self) -> dict[str, Any]:
        """Return the measured recall of its lists, for an answer's provenance."""
        from trakstore.scores.index_recall import MEASURED_ORDER, recall_of

        scores, index = self.open().scores, self.open().index
        if index is None:
            return {"recall": 1.0}
        known = recall_of(index, scores, MEASURED_ORDER)
        if known is None:
            return {}
        # The recall of the list of opponents was not measured.
        names = ("recall", "k", "checked", "candidates")
        return {"order": MEASURED_ORDER, **{name: getattr(known, name) for name in names}}
