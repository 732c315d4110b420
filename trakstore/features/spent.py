"""Where a worker's time went, measured."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

__all__ = ["Featurized", "Spent"]


@dataclass(frozen=True)
class Spent:
    """Seconds of a worker's time, by what it did or waited for; they do not overlap.

    Attributes
    ----------
    preparing : float
        The model, checks of it and of the data set, the first two samples computed for them.
    reading : float
        Waiting for samples that the data set had not given yet.
    computing : float
        Gradients and their projection; on a GPU also waiting for it.
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

    @property
    def total(self) -> float:
        """All of it."""
        parts = (self.preparing, self.reading, self.computing, self.writing, self.helping)
        return sum(parts)

    def __add__(self, other: Spent) -> Spent:
        return self._with(other, 1)

    def less(self, earlier: Spent) -> Spent:
        """What came after an earlier look."""
        return self._with(earlier, -1)

    def _with(self, other: Spent, sign: int) -> Spent:
        names = [field.name for field in fields(self)]
        return Spent(**{one: getattr(self, one) + sign * getattr(other, one) for one in names})


@dataclass(frozen=True)
class Featurized:
    """What this worker wrote.

    Attributes
    ----------
    rows, blocks : int
    seconds : float
        That it took, without the preparation.
    bytes : int
        Of features.
    spent : Spent
        Where the time went.
    """

    rows: int
    blocks: int
    seconds: float
    bytes: int = 0
    spent: Spent = Spent()

    def __add__(self, other: Featurized) -> Featurized:
        return Featurized(
            self.rows + other.rows,
            self.blocks + other.blocks,
            self.seconds + other.seconds,
            self.bytes + other.bytes,
            self.spent + other.spent,
        )

    def within(self, seconds: float) -> Featurized:
        """The same, in so many seconds in all: those before and between the blocks are preparation."""
        before = max(0.0, seconds - self.seconds)
        return replace(self, spent=replace(self.spent, preparing=before))
