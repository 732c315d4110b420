"""A block of computed features, some of which are compared with samples that are read again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.features.batch_reader import RowOrder
from trakstore.features.blockcheck import (
    CheckedRows,
    changed_by_padding,
    checked_rows,
    difference,
    difference_alone,
    drawn,
    features_alone,
    signs_of,
)
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.gradients import cut
from trakstore.features.wording import listed
from trakstore.planning import ranges

__all__ = ["ComputedBlock"]

log = logging.getLogger("trakstore")


@dataclass
class ComputedBlock:
    """Features of a block.

    Attributes
    ----------
    engine : FactorisedEngine
    where : str
        Name of the split, for messages.
    features : Tensor, shape (rows, dim), float32
        On the CPU, in the order in which they were computed.
    order : RowOrder
        Number of each of them in the split.
    read : callable
        Reader of the samples of groups of rows, each as a batch of its own.
    padded : bool
        Whether samples of several shapes were one batch, and are in what is read.
    padding_changes : bool
        Whether a row was found that is other than its sample's alone since it was padded.
    """

    engine: FactorisedEngine
    where: str
    features: Tensor
    order: RowOrder
    read: Callable[[list[NDArray[np.int64]]], list[Any]]
    padded: bool = True
    padding_changes: bool = field(default=False, init=False)

    @cached_property
    def _place(self) -> NDArray[np.int64]:
        """Place of each row of the block, in order, among the features."""
        return np.argsort(self.order.rows)

    @cached_property
    def _finite(self) -> NDArray[np.bool_]:
        """Rows that are finite, by their norms in float64, which do not overflow."""
        norms = torch.linalg.vector_norm(self.features, dim=1, dtype=torch.float64)
        return np.asarray(norms.isfinite())

    @property
    def _start(self) -> int:
        return int(self.order.rows.min())

    def agrees(self, check: CheckedRows, most: int) -> bool:
        """Compare some rows, or all, with ordinary backward passes, ``most`` of them at once.

        Rows that are not finite are left out: they are refused, or skipped, when they are stored.
        """
        if check == "all":
            return all(map(self._each_is_alone, self._each(most)))
        rows, one = self._some(most)
        # One row is its sample alone; rows that were not padded are of several shapes.
        if len(rows) < 2 or not self.padded:
            return self._each_is_alone(rows)
        own, batch = self.read([np.array([one]), rows])
        return self._is_alone(one, own, rows) and self._are_together(rows, batch)

    def _some(self, most: int) -> tuple[NDArray[np.int64], int]:
        """Choose rows, and the one of them that is compared with its sample alone."""
        start = self._start
        rows = checked_rows(start, start + len(self._place), most, self._finite[self._place])
        if not len(rows):
            return rows, -1
        at = drawn(signs_of(rows))
        most_padded = self.order.most_padded(self._finite)
        if most_padded is None:
            return rows, int(rows[at])
        if most_padded not in rows:
            rows[at] = most_padded
        return np.sort(rows), most_padded

    def _each(self, most: int) -> Iterator[NDArray[np.int64]]:
        own = np.sort(self.order.rows[self._finite])
        yield from (own[low:high] for low, high in ranges(len(own), most))

    def _of(self, rows: NDArray[np.int64]) -> Tensor:
        return self.features[self._place[rows - self._start]]

    def _each_is_alone(self, rows: NDArray[np.int64]) -> bool:
        return all(self._is_alone(row, self._read(row), rows) for row in rows.tolist())

    def _read(self, *rows: int) -> Any:
        return self.read([np.array(rows)])[0]

    def _is_alone(self, row: int, one: Any, rows: NDArray[np.int64]) -> bool:
        """Compare one of some rows with its sample, as a batch of ``one``."""
        features, at = self._of(rows), int(np.searchsorted(rows, row))
        apart = difference_alone(self.engine, one, features, at)
        if apart is None:
            return True
        if self.padded and self._is_changed(row, one, self.order.beside(row), features):
            self.padding_changes = True
        else:
            self._say(rows, apart)
        return False

    def _is_changed(self, row: int, one: Any, beside: NDArray[np.int64], features: Tensor) -> bool:
        """Tell whether a sample is another one by the padding that it has beside others."""
        at = int(np.flatnonzero(beside == row)[0])
        padded = cut(self._read(*beside.tolist()), at, at + 1)
        return changed_by_padding(self.engine, one, padded, features)

    def _are_together(self, rows: NDArray[np.int64], batch: Any) -> bool:
        """Compare rows with ordinary passes of their samples as one batch."""
        features = self._of(rows)
        apart = difference(self.engine, batch, features, signs_of(rows), self._named)
        if apart is None:
            return True
        # These rows are of several batches, and may have been padded less there.
        for row in rows.tolist():
            if self._is_changed(row, self._read(row), rows, features):
                return self._each_is_alone(rows)
        self._say(rows, apart)
        return False

    @property
    def _named(self) -> str:
        last = self._start + len(self._place) - 1
        return f"{self.where}: rows {self._start} to {last}"

    def _say(self, rows: NDArray[np.int64], apart: float) -> None:
        batch = self._read(*rows.tolist())
        names = listed(self.engine.disagreeing(batch)) or "all parameters"
        log.warning(
            "%s disagree with ordinary backward passes by %.2g and are computed again by the "
            "generic engine: %s",
            *(self._named, apart, names),
        )

    def spoils_good_rows(self) -> bool:
        """Tell whether a row that is not finite would be so alone: else others of its batch did it."""
        for row in self.order.rows[~self._finite].tolist():
            own = self._read(row)
            one = self.engine.samples(own)
            if not features_alone(one, self.engine.projector).isfinite().all():
                continue
            if self.padded and self._is_changed(row, own, self.order.beside(row), self._good):
                self.padding_changes = True
                return True
            log.warning(
                "%s: row %d is finite alone and not in its batch, so samples see one another: its "
                "block is computed again by the generic engine",
                *(self.where, row),
            )
            return True
        return False

    @property
    def _good(self) -> Tensor:
        """Features that are finite, shape (rows, dim): one row of zeros where there are none."""
        finite = self.features[torch.from_numpy(self._finite)]
        return finite if len(finite) else torch.zeros(1, self.features.shape[1])
