"""Entries of an answer's lists, from a pass over the train rows."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np
import xarray as xr

from trakstore.scores.both_ends import BothEnds
from trakstore.scores.factored import Scores
from trakstore.serve.answer_data import Entry
from trakstore.serve.epoch_intervals import intervals, scores_by_epoch
from trakstore.serve.samples_to_show import SamplesToShow
from trakstore.serve.stored_samples import StoredSamples

Entries = tuple[Entry, ...]


def entries_of(
    ends: BothEnds, scores: Scores, stored: StoredSamples, show: SamplesToShow | None
) -> tuple[Entries, Entries]:
    """Make the entries of both lists; scores of single epochs are added once the lists are final.

    Parameters
    ----------
    ends : BothEnds
    scores : Scores
        Scores of the one target.
    stored : StoredSamples
    show : SamplesToShow, optional
        Source of texts and images; None if only ids are wanted.
    """
    lists = [one.isel(target=0) for one in (ends.largest, ends.smallest)]
    both = [_plain(one, stored, show) for one in lists]
    made = list(chain(*both))
    if ends.share == 1.0:
        positions = np.concatenate([one["position"].values for one in lists])
        each = scores_by_epoch(scores, stored.columns_of_train(positions))
        if each is not None:
            alone = zip(made, each.T.tolist(), intervals(scores, each), strict=True)
            made = [
                replace(one, by_epoch=tuple(own), low=low, high=high)
                for one, own, (low, high) in alone
            ]
    count = len(both[0])
    return tuple(made[:count]), tuple(made[count:])


def _plain(listed: xr.Dataset, stored: StoredSamples, show: SamplesToShow | None) -> list[Entry]:
    """Make the entries of a list, leaving out places that are still free."""
    columns = [listed[name].values.tolist() for name in ("train", "score", "position")]
    labels = stored.train_labels
    return [
        Entry(
            name,
            score,
            position,
            None if labels is None else int(labels[position]),
            shown=None if show is None else show(stored.train, position, name),
        )
        for name, score, position in zip(*columns, strict=True)
        if position >= 0
    ]
