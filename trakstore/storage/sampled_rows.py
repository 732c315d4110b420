"""Rows of samples with labels drawn from the model, beside the train rows that they belong to."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from trakstore.errors import SpecMismatchError
from trakstore.storage import layout
from trakstore.storage.split import Split

# Weighting of these rows in their kernel: that of loss gradients, the square of out_to_loss.
WEIGHTING: Literal["loss"] = "loss"


def gram_of_draws(split: Split) -> str:
    """Return the path of the gram that a sampled kernel is made of."""
    return layout.gram_path(split.epoch, split.name, WEIGHTING)


def draws_of(sampled: Split, train: Split) -> int:
    """Return the rows of each train sample; 0 where they are not of these samples."""
    own, data = sampled.spec.dataset, train.spec.dataset
    if own is None or data is None:  # given from elsewhere, of which nothing else is known
        return sampled.rows // train.rows
    of, _, draws = own.rpartition("~")
    number = draws.partition("x")[0]
    return int(number) if of == data and number.isdigit() else 0


def of_train(sampled: Split, train: Split) -> Split:
    """Return sampled rows without those of train samples that are masked.

    Raises
    ------
    SpecMismatchError
        When they are not of these train rows, or of other weights.
    """
    draws = draws_of(sampled, train)
    if draws * train.rows != sampled.rows or sampled.spec.checkpoint != train.spec.checkpoint:
        raise SpecMismatchError(
            f"{sampled.name} of epoch {train.epoch!r} has {sampled.rows} rows, data "
            f"{str(sampled.spec.dataset)[-28:]} and weights {str(sampled.spec.checkpoint)[:12]}, "
            f"{train.name} has {train.rows}, {str(train.spec.dataset)[-24:]} and "
            f"{str(train.spec.checkpoint)[:12]}: sampled rows are some for each train row, by the same "
            f"weights; drop them (trakstore drop) and featurize them again, or use kernel='train'"
        )
    if not len(train.masked):
        return sampled
    # What the store leaves out of the sampled split itself stays known: by that a gram's writer sees
    # whether the split is still as it was.
    own = sampled.masked
    left_out = (train.masked[:, None] * draws + np.arange(draws)).ravel()
    return replace(sampled, masked=np.union1d(own, left_out), own_masked=own)
