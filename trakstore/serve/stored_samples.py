"""Samples of the store, found by their ids."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import did_you_mean
from trakstore.methods.epochs import EpochPair, UnmaskedSplit
from trakstore.passes.rows import whole_column
from trakstore.report.units import evenly_spaced
from trakstore.serve.asked_sample import taken_columns
from trakstore.serve.question import Question, UnknownSampleError
from trakstore.serve.sample_ids import SampleIds
from trakstore.storage.layout import Epoch


class StoredSamples:
    """Samples of the target and the train split, which are the same at all epochs.

    Parameters
    ----------
    pairs : mapping of epoch to EpochPair
    """

    def __init__(self, pairs: Mapping[Epoch, EpochPair]) -> None:
        self._pairs = pairs
        self.first = next(iter(pairs.values()))
        self.targets, self.train = self.first.target.stored.name, self.first.train.stored.name

    @cached_property
    def train_ids(self) -> SampleIds:
        """Ids of the train rows."""
        return SampleIds(self.first.train)

    @cached_property
    def _target_ids(self) -> SampleIds:
        return SampleIds(self.first.target)

    @cached_property
    def train_labels(self) -> NDArray[np.int64] | None:
        """Classes by position in the stored train split; None if there are none."""
        stored = self.first.train.stored
        return whole_column(stored.column("label")) if "label" in stored.columns else None

    def state(self, epochs: Sequence[Epoch]) -> str:
        """Return a digest of the rows at some epochs, and of their masks."""
        states = "".join(self._states[one] for one in epochs)
        return hashlib.sha256(states.encode()).hexdigest()[:12]

    @cached_property
    def _states(self) -> dict[Epoch, str]:
        return {
            epoch: f"{pair.target.stored.state} {pair.train.stored.state}\n"
            for epoch, pair in self._pairs.items()
        }

    def some_targets(self, count: int) -> list[int | str]:
        """Return ids of some targets, evenly spaced."""
        ids = self.ids_of(self.targets).values
        some: list[int | str] = ids[evenly_spaced(len(ids), count)].tolist()
        return some

    def ids_of(self, split: str) -> SampleIds:
        """Return the ids of one of the splits."""
        return self.train_ids if split == self.train else self._target_ids

    def place(self, question: Question) -> tuple[str, int]:
        """Find the split and the row of a question's target; without a split, among the targets.

        Raises
        ------
        UnknownSampleError
            When there is no such sample or split; for an id that the train split has, the message says
            so.
        """
        known = list(dict.fromkeys([self.targets, self.train]))
        if question.split is not None and question.split not in known:
            raise UnknownSampleError(
                f"no split {question.split!r}{did_you_mean(question.split, known)}"
            )
        name, split = question.target, question.split or self.targets
        row = None if name is None else self.ids_of(split).row(name)
        if row is not None:
            return split, row
        hint = self._hint(split, name)
        raise UnknownSampleError(f"{split} has no sample id {str(name)[:80]!r}{hint}")

    def _hint(self, split: str, name: int | str | None) -> str:
        """Say how to name a sample that a split lacks: by the other split, or by its row."""
        other = self.train if split == self.targets else self.targets
        if other != split and name is not None and self.ids_of(other).row(name) is not None:
            return f"; {other} has it: ask with split={other!r}"
        return f"; @N names row N, from @0 to @{len(self.ids_of(split).values) - 1}"

    def columns(
        self, split: str, row: int, epochs: Sequence[Epoch]
    ) -> dict[Epoch, dict[str, NDArray[Any]]]:
        """Read the columns of a row at some epochs."""
        found = {}
        for epoch in epochs:
            side = self._side(self._pairs[epoch], split)
            names = side.stored.columns
            every = {name: side.column(name) for name in names}
            found[epoch] = {
                name: rows.read(row, row + 1) for name, rows in taken_columns(every).items()
            }
        return found

    def position(self, split: str, row: int) -> int:
        """Return the row's position in the stored split, where masked rows count."""
        return int(self._side(self.first, split).positions.read(row, row + 1)[0])

    def label(self, split: str, row: int) -> int | None:
        """Return the class of a row, if it is stored."""
        side = self._side(self.first, split)
        if "label" not in side.stored.columns:
            return None
        return int(side.column("label").read(row, row + 1)[0])

    def columns_of_train(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the columns of scores for train rows at these positions."""
        # Scores have columns for unmasked rows only; positions count masked rows too.
        masked = self.first.train.masked
        return positions - np.searchsorted(masked, positions)

    def _side(self, pair: EpochPair, split: str) -> UnmaskedSplit:
        return pair.target if split == self.targets else pair.train
