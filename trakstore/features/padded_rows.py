"""Samples that are another thing for a model where they are padded: they are read without."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trakstore.features.batch_reader import BatchReader, RowOrder
from trakstore.features.blockcheck import changed_by_padding
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.gradients import cut

__all__ = ["leave_padding_out", "try_padding"]

log = logging.getLogger("trakstore")


def leave_padding_out(reader: BatchReader, where: str) -> None:
    """Read samples in batches of one shape from here on, and say why."""
    reader.padded = False
    log.warning(
        "%s: padding changes what the model computes: samples are computed in batches of one "
        "length, which is slower; pad at the right, pass position_ids, or samples of one length",
        where,
    )


def try_padding(
    reader: BatchReader,
    groups: Iterable[NDArray[np.int64]],
    engine: FactorisedEngine,
    labelled: Callable[[NDArray[np.int64], Any], Any],
    where: str,
) -> None:
    """Compare the sample with most padding with itself without, before any rows are computed.

    Where its gradients are others, samples are read without padding from here on.

    Parameters
    ----------
    reader : BatchReader
    groups : iterable of ndarray of int64
        Rows that will be read at once.
    engine : FactorisedEngine
    labelled : callable
        Gives the batch that is computed of rows, from what is read of them.
    where : str
        Name of the samples, for messages.
    """
    if reader.batches.collate is None:
        return
    order = RowOrder()
    for rows in groups:
        for read in reader.picked(rows):
            order.add(read)
    row = order.most_padded(np.ones(len(order.rows), dtype=bool))
    if row is None:
        return
    both = [np.array([row]), order.beside(row)]
    one, batch = map(labelled, both, reader.groups(both))
    # What rounding explains is known after the first rows.
    engine.rows(cut(batch, 0, 2))
    at = int(np.flatnonzero(both[1] == row)[0])
    none = torch.zeros(1, engine.projector.dim)
    if changed_by_padding(engine, one, cut(batch, at, at + 1), none):
        leave_padding_out(reader, where)
