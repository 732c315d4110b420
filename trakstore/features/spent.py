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
        Checking the model and the data set, and computing the first samples for that.
    reading : float
        Waiting for samples from the data set.
    computing : float
        Computing gradients and their projection; on a GPU also waiting for it.
    writing : float
        Waiting for the storage; writing in the background of the computation is not counted.
    helping : float
        The rest: markers, and waiting for blocks that other workers are writing.
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
        Rows and blocks that this worker wrote.
    seconds : float
        Time without the preparation.
    bytes : int
        Size of the features written.
    spent : Spent
        Parts of the time.
    prepared : Preparation
        Parts of the preparation, as far as they are measured.
    overtaken : int
        Rows of its own share that a helping worker committed first.
    repeated : int
        Rows that it helped with, but that their own worker committed first.

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
        """Return the same with a total of ``seconds``: time outside blocks counts as preparation."""
        before = max(0.0, seconds - self.seconds)
        return replace(self, spent=replace(self.spent, preparing=before))
