"""Samples that a data set has more than the store: they are added behind those that are there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from trakstore.features.block_rows import Columns, RowComputer
from trakstore.features.split_samples import SplitSamples
from trakstore.features.token_samples import TokenSamples
from trakstore.spec import SplitSpec, check_equal
from trakstore.storage.growth import append_rows
from trakstore.storage.store import FeatureStore

__all__ = ["append_samples"]


def append_samples(
    store: FeatureStore,
    epoch: int | str,
    split: str,
    wanted: SplitSpec,
    rows: RowComputer,
    samples: SplitSamples | TokenSamples,
    blame: Callable[[range], AbstractContextManager[None]],
) -> None:
    """Add the samples that the data set has more than the store, if the others are the same.

    Parameters
    ----------
    store : FeatureStore
        Store that has the split, or nothing is done.
    epoch, split
        Names of the split.
    wanted : SplitSpec
        Spec of the split of the whole data set.
    rows : RowComputer
    samples : SplitSamples or TokenSamples
        All samples, those that are stored first.
    blame : callable
        ``blame(rows)`` gives a context whose errors name the sample that they come from.

    Raises
    ------
    SpecMismatchError
        When the stored rows are of other samples, or were made otherwise.
    """
    if split not in store.splits_of(epoch):
        return
    old = store.split(epoch, split)
    more = wanted.rows - old.rows
    if more <= 0:
        return
    count = old.rows
    # A fingerprint is over samples that the number of rows chooses, so that the old one can only be
    # compared with that of as many samples as there were.
    choices = [one.fingerprint for one in samples.of_first(count)]
    first = old.spec.dataset if old.spec.dataset in choices else choices[-1]
    same = replace(wanted, rows=count, dataset=first)
    check_equal(old.spec, same, f"{store.location}: {split} at epoch {epoch}")

    def columns(start: int, stop: int) -> Columns:
        with blame(range(start, stop)):
            return rows.columns(start, stop)

    append_rows(old, more, columns, dataset=wanted.dataset)
