"""Samples that a data set has more than the store: they are added behind those that are there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.features.block_rows import Columns, RowComputer
from trakstore.features.sharding import WHOLE, Sharding
from trakstore.features.spent import Featurized, Spent
from trakstore.features.split_samples import SplitSamples
from trakstore.features.token_samples import TokenSamples
from trakstore.features.wording import made_anew
from trakstore.spec import SplitSpec, check_equal
from trakstore.storage.growth import append_rows, withdraw_rows
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore

__all__ = ["append_samples"]

log = logging.getLogger("trakstore")


class _DoubtError(TrakStoreError):
    """Rows are right, and others, which were computed before, may not be."""


def append_samples(
    store: FeatureStore,
    epoch: int | str,
    split: str,
    wanted: SplitSpec,
    rows: RowComputer,
    samples: SplitSamples | TokenSamples,
    blame: Callable[[range], AbstractContextManager[None]],
    sharding: Sharding = WHOLE,
) -> Featurized:
    """Add the samples that the data set has more than the store, if the others are the same.

    Where a block of them is wrong, those that are stored are doubted like the others: the split has all
    rows from then on, and none of them is there.

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
    sharding : Sharding
        Ranks that share the model: those of the first samples compute the rows, and one writes them.

    Returns
    -------
    Featurized
        New rows, the blocks that hold them (the first with old rows too, where it was not full), the
        bytes of the new rows, and the time.

    Raises
    ------
    SpecMismatchError
        When the stored rows are of other samples, or were made otherwise.
    """
    sharding.meet()  # so that no rank opens the split when another one has added the samples
    if split not in store.splits_of(epoch):
        return Featurized(0, 0, 0.0)
    old = store.split(epoch, split)
    more = wanted.rows - old.rows
    if more <= 0:
        return Featurized(0, 0, 0.0)
    began = time.monotonic()
    count = old.rows
    # A fingerprint is over samples that the number of rows chooses, so that the old one can only be
    # compared with that of as many samples as there were.
    choices = [one.fingerprint for one in samples.of_first(count)]
    first = old.spec.dataset if old.spec.dataset in choices else choices[-1]
    same = replace(wanted, rows=count, dataset=first)
    check_equal(old.spec, same, f"{store.location}: {split} at epoch {epoch}")

    def columns(start: int, stop: int) -> Columns:
        with blame(range(start, stop)):
            made = rows.columns(start, stop)
        if rows.doubted:
            raise _DoubtError(f"rows {start} to {stop - 1} were wrong")
        return made

    if sharding.number:
        sharding.finish()  # with the passes that the first ranks need it for
        return Featurized(0, 0, time.monotonic() - began)
    if old.spec.doubted:
        rows.distrust(old.spec.doubted)
    try:
        add = append_rows if sharding.writes else _follow_append
        grown = add(old, more, columns, dataset=wanted.dataset)
    except NumericsError as error:
        if not rows.doubted:
            raise
        # No engine can make the stored rows anew, so that they stay.
        raise NumericsError(
            f"{error}; the {count} rows that are stored stay, and may be wrong where they were not "
            f"compared: to have all of them compared, drop the split (store.drop) and featurize it "
            f"with check='all'"
        ) from error
    except _DoubtError:
        log.warning(
            "%s at epoch %s: the %d rows that are stored may be wrong where they were not compared: "
            "all are withdrawn, and made anew with those that are appended, %s",
            *(split, epoch, count),
            made_anew(rows.doubted),
        )
        longer = replace(old.spec, rows=wanted.rows, dataset=wanted.dataset)
        if sharding.writes:
            withdraw_rows(old, rows.doubted, longer)
        sharding.finish()
        seconds = time.monotonic() - began
        # All rows are blocks that are missing now.
        return Featurized(0, 0, seconds, spent=Spent(computing=seconds))
    sharding.finish()  # the others open the split once it is longer
    blocks = grown.spec.blocks - count // grown.spec.block_rows
    seconds = time.monotonic() - began
    spent = Spent(computing=seconds)
    if not sharding.writes:
        return Featurized(0, 0, seconds, spent=spent)
    return Featurized(more, blocks, seconds, more * grown.row_bytes, spent)


def _follow_append(
    split: Split, rows: int, columns: Callable[[int, int], Columns], *, dataset: str | None
) -> Split:
    """Compute what another rank appends by :func:`append_rows`, which needs all of them."""
    spec = replace(split.spec, rows=split.rows + rows, dataset=dataset, given=None)
    for block in range(split.rows // split.spec.block_rows, spec.blocks):
        start, stop = spec.block_range(block)
        columns(max(start, split.rows), stop)
    return replace(split, spec=spec)
