"""Rows of samples with labels drawn from the model, matched to their train rows."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from trakstore.errors import SpecMismatchError
from trakstore.storage import layout
from trakstore.storage.split import Split


def draws_of(sampled: Split, train: Split) -> int:
    """Return the draws of each train sample; 0 if the rows are not of these samples."""
    own, data = sampled.spec.dataset, train.spec.dataset
    if own is None or data is None:  # given from elsewhere: only ids may tell
        return sampled.spec.draws or _draws_by_ids(sampled, train)
    made = origin_of_draws(own)
    return made.draws if made is not None and made.dataset == data else 0


def _draws_by_ids(sampled: Split, train: Split) -> int:
    """Return the draws of each train sample from the numbers of rows, or 0 if ids disagree.

    Integer ids tell nothing, nor do texts other than ``{train id}~{draw}``.
    """
    draws = sampled.rows // train.rows
    ids, own = train.column(layout.SAMPLE_ID), sampled.column(layout.SAMPLE_ID)
    if not draws or own.dtype.kind != "T":
        return draws
    # With another number of draws, already the second sample would be elsewhere; the last sample ends
    # the rows.
    for row in sorted({0, min(1, train.rows - 1), train.rows - 1}):
        (one,) = ids.read(row, row + 1).tolist()
        there = own.read(row * draws, (row + 1) * draws).tolist()
        if not all("~" in name for name in there):
            return draws
        if there != [f"{one}~{draw}" for draw in range(draws)]:
            return 0
    return draws


class DrawsOrigin(NamedTuple):
    """Fingerprint of the data set of some draws, their number for each sample, and their seed."""

    dataset: str
    draws: int
    seed: int


def origin_of_draws(fingerprint: str | None) -> DrawsOrigin | None:
    """Read the fingerprint of a split of drawn labels; None for any other split.

    Examples
    --------
    >>> origin_of_draws("768:ab~4x0")
    DrawsOrigin(dataset='768:ab', draws=4, seed=0)
    """
    of, _, made = (fingerprint or "").rpartition("~")
    draws, _, seed = made.partition("x")
    digits = draws.isdigit() and seed.isdigit()
    return DrawsOrigin(of, int(draws), int(seed)) if of and digits else None


def of_train(sampled: Split, train: Split) -> Split:
    """Return sampled rows without those of masked train samples.

    Raises
    ------
    SpecMismatchError
        When they do not belong to these train rows, or have other weights.
    """
    draws = draws_of(sampled, train)
    if draws * train.rows != sampled.rows or sampled.spec.checkpoint != train.spec.checkpoint:
        each = f" ({sampled.spec.draws} for each train row)" if sampled.spec.draws else ""
        raise SpecMismatchError(
            f"{sampled.name} of epoch {train.epoch!r} has {sampled.rows} rows{each}, data "
            f"{str(sampled.spec.dataset)[-28:]} and weights {str(sampled.spec.checkpoint)[:12]}, "
            f"{train.name} has {train.rows}, {str(train.spec.dataset)[-24:]} and "
            f"{str(train.spec.checkpoint)[:12]}: sampled rows are some for each train row, by the same "
            f"weights; drop the split (store.drop) and featurize it again{_other_ids(sampled, train)}, "
            f"or use kernel='train'"
        )
    if not len(train.masked):
        return sampled
    # The rows that the store itself leaves out are kept apart: from them the writer of a gram sees
    # whether the split is unchanged.
    own = sampled.masked
    left_out = (train.masked[:, None] * draws + np.arange(draws)).ravel()
    return replace(sampled, masked=np.union1d(own, left_out), own_masked=own)


def _other_ids(sampled: Split, train: Split) -> str:
    """Say which ids drawn rows need if theirs do not match the train rows, else an empty text."""
    made = origin_of_draws(sampled.spec.dataset)
    if made is None or made.draws * train.rows != sampled.rows:
        return ""
    (first,) = train.column(layout.SAMPLE_ID).read(0, 1).tolist()
    (row,) = sampled.column(layout.SAMPLE_ID).read(0, 1).tolist()
    if row == f"{first}~0":
        return ""
    return (
        f" with the ids of {train.name} (ids=), whose first is {first!r}: the first here is {row!r}"
    )
