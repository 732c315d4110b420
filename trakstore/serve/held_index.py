"""The index of a service, opened once and asked for each target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trakstore.scores.approximate import approximate_top_k
from trakstore.scores.both_ends import BothEnds
from trakstore.scores.factored import Scores
from trakstore.scores.index_recall import MEASURED_ORDER, recall_of
from trakstore.scores.train_index import TrainIndex, open_index, usual_candidates


@dataclass(frozen=True, eq=False)
class HeldIndex:
    """An index for the scores of one method at all epochs that are served.

    Attributes
    ----------
    scores : Scores
        Scores of the train rows with themselves.
    index : TrainIndex or None
        None where all rows are candidates.
    memory_limit : int or str, optional
    """

    scores: Scores
    index: TrainIndex | None
    memory_limit: int | str | None

    @classmethod
    def of(cls, scores: Scores, memory_limit: int | str | None) -> HeldIndex:
        """Open the index of some scores; raise as :func:`~trakstore.open_index` does."""
        rows = scores.shape[1]
        few = usual_candidates(1, rows) == rows
        index = None if few else open_index(scores, memory_limit=memory_limit)
        return cls(scores, index, memory_limit)

    def serves(self, scores: Scores) -> bool:
        """Tell whether these are scores of other targets by the same kernels."""
        return (scores.method, scores.epochs) == (self.scores.method, self.scores.epochs)

    def both_ends(self, scores: Scores, k: int) -> Iterator[BothEnds]:
        """Yield the lists of both ends of one target's scores, once."""
        how: dict[str, Any] = {"index": self.index, "memory_limit": self.memory_limit}
        largest = approximate_top_k(scores, k, order="largest", **how)
        yield BothEnds(1.0, largest, approximate_top_k(scores, k, order="smallest", **how))

    @property
    def said(self) -> dict[str, Any]:
        """Measured recall of its lists, for an answer's provenance."""
        if self.index is None:
            return {"recall": 1.0}
        known = recall_of(self.index.document, self.scores, MEASURED_ORDER)
        if known is None:
            return {}
        # Nothing is known of the list of opponents.
        names = ("recall", "k", "checked", "candidates")
        return {"order": MEASURED_ORDER, **{name: getattr(known, name) for name in names}}
