"""A block of computed features, some of which are compared with samples that are read again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.features.blockcheck import (
    CheckedRows,
    checked_rows,
    difference,
    difference_alone,
    features_alone,
    signs_of,
)
from trakstore.features.factorised import FactorisedEngine
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
    order : ndarray of int64, shape (rows,)
        Position in the split of each of them.
    read : callable
        Reader of the samples at some rows, as a batch of their own.
    """

    engine: FactorisedEngine
    where: str
    features: Tensor
    order: NDArray[np.int64]
    read: Callable[[NDArray[np.int64]], Any]

    @cached_property
    def _place(self) -> NDArray[np.int64]:
        """Position among the features of each row of the block, in order."""
        return np.argsort(self.order)

    @cached_property
    def _finite(self) -> NDArray[np.bool_]:
        """Rows that are finite, by their norms in float64, which do not overflow."""
        norms = torch.linalg.vector_norm(self.features, dim=1, dtype=torch.float64)
        return np.asarray(norms.isfinite())

    @property
    def _start(self) -> int:
        return int(self.order.min())

    def agrees(self, check: CheckedRows, most: int) -> bool:
        """Compare some rows, or all, with ordinary backward passes, ``most`` of them at once.

        Rows that are not finite are left out: they are refused, or skipped, when they are stored.
        """
        chosen = self._each(most) if check == "all" else self._some(most)
        return all(self._compared(rows, check) for rows in chosen if len(rows))

    def _some(self, most: int) -> Iterator[NDArray[np.int64]]:
        start = self._start
        yield checked_rows(start, start + len(self.order), most, self._finite[self._place])

    def _each(self, most: int) -> Iterator[NDArray[np.int64]]:
        own = np.sort(self.order[self._finite])
        yield from (own[low:high] for low, high in ranges(len(own), most))

    def _compared(self, rows: NDArray[np.int64], check: CheckedRows) -> bool:
        batch, features = self.read(rows), self.features[self._place[rows - self._start]]
        last = self._start + len(self.order) - 1
        where = f"{self.where}: rows {self._start} to {last}"
        if check == "all":
            each = (difference_alone(self.engine, batch, features, i) for i in range(len(rows)))
            apart = next((one for one in each if one is not None), None)
        else:
            apart = difference(self.engine, batch, features, signs_of(rows), where)
        if apart is not None:
            names = listed(self.engine.disagreeing(batch)) or "all parameters"
            log.warning(
                "%s disagree with ordinary backward passes by %.2g and are computed again by the "
                "generic engine: %s",
                *(where, apart, names),
            )
        return apart is None

    def spoils_good_rows(self) -> bool:
        """Tell whether a row that is not finite would be so alone; if not, its batch spoilt it."""
        for row in self.order[~self._finite].tolist():
            one = self.engine.samples(self.read(np.array([row])))
            if features_alone(one, self.engine.projector).isfinite().all():
                log.warning(
                    "%s: row %d is finite alone and not in its batch, so samples see one another: its "
                    "block is computed again by the generic engine",
                    *(self.where, row),
                )
                return True
        return False
