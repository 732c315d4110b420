"""Kernels of rows whose labels were drawn from the model: its Gauss-Newton matrix, projected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np

from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.kernels.row_weights import WeightedSplit
from trakstore.kernels.solvers import Damping
from trakstore.methods.epochs import EpochPair, check_of, need_open
from trakstore.storage import layout
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore

# Rows that a kernel is made of.
KernelRows: TypeAlias = Literal["train", "sampled"] | None
# c of λ = c·tr(K)/n for train rows, and for sampled ones.
TRAIN_DAMPING, SAMPLED_DAMPING = 1.0, 0.3


@dataclass(frozen=True, eq=False)
class SampledKernel:
    r"""K = Σ ∇l ∇lᵀ / draws over the rows of all draws, ∇l = −q·φ.

    Labels are drawn from the model's own predictions, so that the mean of K over draws is the
    Gauss-Newton matrix Σᵢ Jᵢᵀ Hᵢ Jᵢ, of sequences too: the terms of their tokens are independent, and
    have mean 0. Source: Martens (2020), New Insights and Perspectives on the Natural Gradient
    Method, section 9.

    Attributes
    ----------
    rows : tuple of WeightedSplit
        The rows of each epoch, weighted with q².
    draws : int
        Rows of each train sample.
    """

    rows: tuple[WeightedSplit, ...]
    draws: int

    def damping(self, asked: float | Damping | None) -> Damping:
        """Return the λ of the sum over draws, which is that of K times their number.

        The sum has n·draws rows, and λ = c·tr(K)/n counts n.
        """
        given = Damping.of(SAMPLED_DAMPING if asked is None else asked)
        if given.relative is not None:
            return Damping(relative=given.relative * self.draws)
        return Damping(absolute=(given.absolute or 0.0) * self.draws)


def takes_sampled(store: FeatureStore, train: str, kernel: KernelRows) -> bool:
    """Tell whether a kernel is of sampled rows: asked for, or there where it is left open."""
    if kernel not in (None, *get_args(get_args(KernelRows)[0])):
        raise TrakStoreError(f"kernel must be 'train', 'sampled' or None, got {kernel!r}")
    need_open(store)
    there = layout.sampled_split(train) in store.splits
    return kernel == "sampled" or (kernel is None and there)


def sampled_kernel(
    store: FeatureStore, pairs: Sequence[EpochPair], train: str, kernel: KernelRows
) -> SampledKernel | None:
    """Open the rows of a sampled kernel; None where the kernel is of the train rows.

    Parameters
    ----------
    store : FeatureStore
    pairs : sequence of EpochPair
        Epochs that scores are of.
    train : str
        Name of the train split.
    kernel : {"train", "sampled"} or None
        None: sampled rows, where the store has some.

    Raises
    ------
    TrakStoreError
        An unknown ``kernel``.
    NotFoundError
        ``"sampled"`` where an epoch has none.
    SpecMismatchError
        When they are not of the train rows, or of other weights.
    IncompleteError
        When some are missing.
    """
    if not takes_sampled(store, train, kernel):
        return None
    check_of("loss", store)
    name = layout.sampled_split(train)
    opened = store.open_splits([pair.epoch for pair in pairs], (name,))
    splits = [_of_train(opened[pair.epoch][0], pair) for pair in pairs]
    draws = {
        split.rows // pair.train.stored.rows for split, pair in zip(splits, pairs, strict=True)
    }
    if len(draws) > 1:
        raise SpecMismatchError(
            f"epochs have {', '.join(map(str, sorted(draws)))} draws of labels: choose epochs= of one "
            f"number of draws"
        )
    return SampledKernel(tuple(WeightedSplit(split, "loss") for split in splits), draws.pop())


def _of_train(sampled: Split, pair: EpochPair) -> Split:
    """Return the sampled rows of an epoch without those of masked train samples."""
    sampled.require_complete()
    train = pair.train.stored
    draws, rest = divmod(sampled.rows, train.rows)
    if rest or not draws or sampled.spec.checkpoint != train.spec.checkpoint:
        raise SpecMismatchError(
            f"{sampled.name} of epoch {pair.epoch!r} has {sampled.rows} rows and weights "
            f"{str(sampled.spec.checkpoint)[:12]}, {train.name} has {train.rows} and "
            f"{str(train.spec.checkpoint)[:12]}: sampled rows are some for each train row, by the same "
            f"weights; drop them (trakstore drop) and featurize them again, or use kernel='train'"
        )
    if not len(pair.train.masked):
        return sampled
    left_out = (pair.train.masked[:, None] * draws + np.arange(draws)).ravel()
    return replace(sampled, masked=np.union1d(sampled.masked, left_out))
