"""Samples that are another thing for a model where they are padded: they are read without."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trakstore.features.batch_reader import BatchReader, ReadBatch
from trakstore.features.blockcheck import changed_by_padding
from trakstore.features.draws import LabelDraws
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.fitness import explained
from trakstore.features.gradients import cut
from trakstore.features.reading import named_samples

__all__ = ["WatchedReader", "leave_padding_out"]

log = logging.getLogger("trakstore")


def leave_padding_out(reader: BatchReader, where: str) -> None:
    """Read samples in batches of one shape from here on, and say why."""
    reader.padded = False
    log.warning(
        "%s: padding changes what the model computes: samples are computed in batches of one "
        "length, which is slower; pad at the right, pass position_ids, or samples of one length",
        where,
    )


@dataclass
class WatchedReader:
    """Reader of samples that are compared with themselves without padding, the most padded ones.

    Where the gradients of one are others then, samples are read without from there on.

    Attributes
    ----------
    reader : BatchReader
    engine : FactorisedEngine
    labels : LabelDraws or None
        Drawer of the labels that samples have in place of their own.
    where : str
        Name of the samples, for messages.
    most : int
        Most padding of a sample that was compared.
    """

    reader: BatchReader
    engine: FactorisedEngine
    labels: LabelDraws | None
    where: str
    most: int = 0

    def picked(self, rows: NDArray[np.int64]) -> list[ReadBatch]:
        """Read the samples at some rows, one of which is compared if none before had its padding."""
        read = self.reader.picked(rows)
        padding = max(int(one.padding.max()) for one in read)
        if padding <= self.most:
            return read
        self.most = padding
        most_padded = next(one for one in read if one.padding.max() == padding)
        if not self._is_changed(most_padded.rows, int(most_padded.padding.argmax())):
            return read
        leave_padding_out(self.reader, self.where)
        if self.labels is not None:
            self.labels.forget(len(rows))  # they were drawn from what padded samples predict
        return self.reader.picked(rows)

    def labelled(self, rows: NDArray[np.int64], batch: Any) -> Any:
        """Return a batch of these rows with drawn labels, where such are asked for."""
        return batch if self.labels is None else self.labels.labelled(rows, batch)

    def _is_changed(self, rows: NDArray[np.int64], at: int) -> bool:
        groups = [rows, rows[at : at + 1]]
        # Labels of all are drawn first: those of the one are the same.
        batch, one = map(self.labelled, groups, self.reader.groups(groups))
        own, none = self.engine.samples(batch), torch.zeros(1, self.engine.projector.dim)
        with explained(own.model, own.output, batch, named_samples(rows.tolist())):
            # What rounding explains is known after the first rows.
            self.engine.rows(cut(batch, 0, 2))
            return changed_by_padding(self.engine, one, cut(batch, at, at + 1), none)
