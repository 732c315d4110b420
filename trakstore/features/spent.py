"""A worker's time, measured, by what it was spent on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from trakstore.features.preparation import Preparation
from trakstore.features.seconds import SecondsByPart

__all__ = ["Featurized", "Spent"]


@dataclass(frozen=True)
class Spent(SecondsByPart):
    """Seconds of a worker's time, by what it did or waited for; they do not overlap.

    Attributes
    ----------
    preparing : float
        Checks of the model and the data set, and the first two samples, computed for them.
    reading : float
        Waiting for samples that the data set had not given yet.
    computing : float
        Computing gradients and their projection; on a GPU also waiting for it.
    writing : float
        Waiting for the storage: what was written behind the computation costs nothing here.
    helping : float
        All else: markers, and waiting for blocks that other workers have in hand.
    """

    preparing: float = 0.0
    reading: float = 0.0
    computing: float = 0.0
    writing: float = 0.0
    helping: float = 0.0


@dataclass(frozen=True)
class Featurized:
    """Rows, blocks and bytes that this worker wrote, and its time.

    Attributes
    ----------
    rows, blocks : int
        Numbers that were written.
    seconds : float
        Time that it took, without the preparation.
    bytes : int
        Size of the features.
    spent : Spent
        Parts of the time.
    prepared : Preparation
        Parts of the time that it took to prepare, of those that are measured.
    overtaken : int
        Rows of its own share that a worker which had finished its own committed first.
    repeated : int
        Rows that it helped with, and that the worker which had them in hand committed first.

    Examples
    --------
    >>> projection = ts.ProjectionSpec("rademacher", dim=8)
    >>> from trakstore.features import featurize
    >>> done = featurize(model, train, "memory://featurized", projector=projection, progress=False)
    >>> done.rows, done.blocks
    (24, 1)
    """

    rows: int
    blocks: int
    seconds: float
    bytes: int = 0
    spent: Spent = Spent()
    prepared: Preparation = field(default_factory=Preparation)
    overtaken: int = 0
    repeated: int = 0

    def __add__(self, other: Featurized) -> Featurized:
        return Featurized(
            self.rows + other.rows,
            self.blocks + other.blocks,
            self.seconds + other.seconds,
            self.bytes + other.bytes,
            self.spent + other.spent,
            self.prepared + other.prepared,
            self.overtaken + other.overtaken,
            self.repeated + other.repeated,
        )

    def within(self, seconds: float) -> Featurized:
        """Return the same of so many seconds: those before and between the blocks are preparation."""
        before = max(0.0, seconds - self.seconds)
        return replace(self, spent=replace(self.spent, preparing=before))
