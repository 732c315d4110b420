"""Kernels of rows whose labels were drawn from the model: its Gauss-Newton matrix, projected."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np

from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.kernels.row_weights import WeightedSplit
from trakstore.kernels.solvers import Damping
from trakstore.methods.epochs import EpochPair, check_of, need_open
from trakstore.storage import layout
from trakstore.storage.layout import Epoch, epoch_sort_key
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore

log = logging.getLogger("trakstore")

# Rows that a kernel is made of.
KernelRows: TypeAlias = Literal["train", "sampled"] | None
# Outputs whose kernel of train rows, at a temperature, was measured to be better.
_TRAIN_ROWS = ("margin",)
# c of λ = c·tr(K)/n for train rows, and for sampled ones: benchmarks/accuracy.py.
TRAIN_DAMPING, SAMPLED_DAMPING = 1.0, 0.1


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


def takes_sampled(
    store: FeatureStore, train: str, kernel: KernelRows, epochs: Iterable[Epoch] | None = None
) -> bool:
    """Tell whether a kernel is of sampled rows.

    It is where they are asked for; where that is left open, if all of these epochs (or all with the
    train split) have them whole, the output determines the loss, and is no margin.
    """
    if kernel not in (None, *get_args(get_args(KernelRows)[0])):
        raise TrakStoreError(f"kernel must be 'train', 'sampled' or None, got {kernel!r}")
    need_open(store)
    name = layout.sampled_split(train)
    if kernel is not None or name not in store.splits:
        return kernel == "sampled"
    output = store.spec.output
    if output is not None:
        undetermined = dict(output.options).get("loss_of_output") is False
        if undetermined or output.name in _TRAIN_ROWS:
            return False
    opened = store.open_splits(None, (name,))
    whole = {epoch for epoch, (split,) in opened.items() if split.complete}
    lacking = set(store.epochs_of(train) if epochs is None else epochs) - whole
    if lacking:
        some = ", ".join(map(str, sorted(lacking, key=epoch_sort_key)[:5]))
        log.warning("the kernel is of %s: %s is not whole at the epochs %s", train, name, some)
    return not lacking


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
    if not takes_sampled(store, train, kernel, [pair.epoch for pair in pairs]):
        return None
    check_of("loss", store)
    name = layout.sampled_split(train)
    opened = store.open_splits([pair.epoch for pair in pairs], (name,))
    splits = [_of_train(opened[pair.epoch][0], pair) for pair in pairs]
    draws = {_draws(split, pair.train.stored) for split, pair in zip(splits, pairs, strict=True)}
    if len(draws) > 1:
        raise SpecMismatchError(
            f"epochs have {', '.join(map(str, sorted(draws)))} draws of labels: choose epochs= of one "
            f"number of draws"
        )
    return SampledKernel(tuple(WeightedSplit(split, "loss") for split in splits), draws.pop())


def _draws(sampled: Split, train: Split) -> int:
    """Return the rows of each train sample; 0 where they are not of these samples."""
    own, data = sampled.spec.dataset, train.spec.dataset
    if own is None or data is None:  # given from elsewhere, of which nothing else is known
        return sampled.rows // train.rows
    of, _, draws = own.rpartition("~")
    number = draws.partition("x")[0]
    return int(number) if of == data and number.isdigit() else 0


def _of_train(sampled: Split, pair: EpochPair) -> Split:
    """Return the sampled rows of an epoch without those of masked train samples."""
    sampled.require_complete()
    train = pair.train.stored
    draws = _draws(sampled, train)
    if draws * train.rows != sampled.rows or sampled.spec.checkpoint != train.spec.checkpoint:
        raise SpecMismatchError(
            f"{sampled.name} of epoch {pair.epoch!r} has {sampled.rows} rows, data "
            f"{str(sampled.spec.dataset)[-28:]} and weights {str(sampled.spec.checkpoint)[:12]}, "
            f"{train.name} has {train.rows}, {str(train.spec.dataset)[-24:]} and "
            f"{str(train.spec.checkpoint)[:12]}: sampled rows are some for each train row, by the same "
            f"weights; drop them (trakstore drop) and featurize them again, or use kernel='train'"
        )
    if not len(pair.train.masked):
        return sampled
    left_out = (pair.train.masked[:, None] * draws + np.arange(draws)).ravel()
    return replace(sampled, masked=np.union1d(sampled.masked, left_out))
