"""Epochs of a store that a method works on: chosen and checked before any feature is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, SpecMismatchError, TrakStoreError, did_you_mean
from trakstore.kernels.row_weights import masked_rows
from trakstore.kernels.solvers import Factor
from trakstore.passes.rows import PositionRows, Rows, UnmaskedRows
from trakstore.quantities import as_flag, is_one_of, shown
from trakstore.scores.factored import Average, Scores, SoftThreshold
from trakstore.scores.parts import Part
from trakstore.spec import check_settings
from trakstore.storage.layout import Epoch
from trakstore.storage.same_samples import need_same_samples
from trakstore.storage.selections import as_epochs
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore

# The function whose gradients are taken.
Of: TypeAlias = Literal["output", "loss"]
# Prefix of the hash of features that came without a hash of their weights.
OF_FEATURES = "features:"


@dataclass(frozen=True, eq=False)
class UnmaskedSplit:
    """A split as methods see it: without its masked rows.

    Attributes
    ----------
    stored : Split
        The split with all its rows.
    masked : ndarray of int64
        Positions of the rows that are left out, ascending.
    """

    stored: Split
    masked: NDArray[np.int64]

    @classmethod
    def of(cls, stored: Split) -> UnmaskedSplit:
        return cls(stored, masked_rows(stored))

    @property
    def rows(self) -> int:
        """Number of rows that are left."""
        return self.stored.rows - len(self.masked)

    @property
    def dim(self) -> int:
        return self.stored.dim

    @property
    def positions(self) -> Rows:
        """Position of each row in the stored split."""
        return self._unmasked(PositionRows(self.stored.rows))

    def column(self, name: str) -> Rows:
        return self._unmasked(self.stored.column(name))

    def out_to_loss(self) -> Rows:
        """Return the column q = −dl/d(output), by which loss gradients are −q times the stored ones.

        Raises
        ------
        NotFoundError
            When the features were stored without it.
        """
        try:
            return self.column("out_to_loss")
        except NotFoundError as error:
            raise NotFoundError(
                f"{error}: this method needs the derivative of the loss; featurize writes it, and "
                f"write_split takes out_to_loss="
            ) from None

    def gradient_scale(self, of: Of) -> Rows | None:
        """Return the factor of each stored row, up to the sign that both sides share."""
        # A loss gradient is −q times the stored one. The two signs of a product cancel.
        return None if of == "output" else self.out_to_loss()

    def _unmasked(self, rows: Rows) -> Rows:
        return UnmaskedRows(rows, self.masked) if len(self.masked) else rows


@dataclass(frozen=True, eq=False)
class EpochPair:
    """The target and the train split of one epoch."""

    epoch: Epoch
    target: UnmaskedSplit
    train: UnmaskedSplit

    def gradient_scales(self, of: Of = "loss") -> dict[str, Rows | None]:
        """Return the scales of both sides, as a :class:`~trakstore.scores.parts.Part` takes them."""
        target, train = self.target.gradient_scale(of), self.train.gradient_scale(of)
        return {"row_scale": target, "column_scale": train}

    @property
    def known_weights(self) -> str | None:
        """Hash of the weights with which the train rows were made, if the store knows it."""
        return _weights(self.train)


def need_open(store: FeatureStore) -> None:
    """Raise a :class:`TrakStoreError` for anything but an open store, such as its path."""
    if isinstance(store, str | os.PathLike):
        raise TrakStoreError(f"needed an open store, got its path: open_store({str(store)!r})")
    if not hasattr(store, "epochs_of"):
        raise TrakStoreError(f"needed an open store, as open_store gives it, got {store!r}")


def check_of(of: str, store: FeatureStore) -> None:
    """Refuse anything but ``"output"`` and ``"loss"``, and a loss that no output determines."""
    if not is_one_of(of, get_args(Of)):
        raise TrakStoreError(f"of must be 'output' or 'loss', got {of!r}")
    need_open(store)
    output = store.spec.output
    if of == "loss" and output and dict(output.options).get("loss_of_output") is False:
        raise TrakStoreError(
            f"the output {output.name!r} of this store, over tokens, does not determine the loss, so "
            f"that loss gradients do not follow from the stored ones: use of='output' or another "
            f"method, or featurize with over='sequence'"
        )


def epoch_pairs(
    store: FeatureStore,
    targets: str,
    train: str,
    epochs: Epoch | Sequence[Epoch] | None = None,
    *,
    allow_other_weights: bool = False,
) -> tuple[EpochPair, ...]:
    """Open the splits of each epoch: complete, of one shape, and made with the same weights.

    Parameters
    ----------
    store : FeatureStore
        Open store that holds both splits.
    targets, train : str
        Names of splits.
    epochs : epoch or sequence of epochs, optional
        Epochs to combine; by default all that have both splits.
    allow_other_weights : bool
        Whether to accept splits of an epoch that were made with different checkpoints.

    Raises
    ------
    NotFoundError
        When there is no such epoch or split, or no epoch with both.
    IncompleteError
        When rows of a split are missing.
    SpecMismatchError
        When dimensions or the hashes of an epoch's weights differ, or epochs have other samples,
        another order of them, or other masked samples.
    """
    allow_other_weights = as_flag(allow_other_weights, "allow_other_weights")
    need_open(store)
    chosen = None if epochs is None else _chosen(epochs)
    opened = store.open_splits(chosen, (targets, train))
    if not opened:
        raise _no_epoch(store, targets, train)
    pairs = tuple(
        EpochPair(epoch, *(UnmaskedSplit.of(split) for split in splits))
        for epoch, splits in opened.items()
    )
    for pair in pairs:
        _check_like(pair, pairs[0])
        if not allow_other_weights:
            _check_weights(pair)
        # A split that was complete when it was opened is not read again here.
        pair.target.stored.require_complete()
        pair.train.stored.require_complete()
    if len(pairs) > 1:
        sides = [pair.target for pair in pairs], [pair.train for pair in pairs]
        need_same_samples(*([split.stored for split in side] for side in sides))
        for side in sides:
            # From here on positions stand for samples, which must be the same at all epochs.
            _check_masked_alike(side)
    return pairs


def _no_epoch(store: FeatureStore, targets: str, train: str) -> NotFoundError:
    # An unknown name is mostly a misspelling: the error suggests the nearest one.
    known = sorted({name for epoch in store.epochs for name in store.splits_of(epoch)})
    for name in (targets, train):
        if name not in known:
            return NotFoundError(f"no epoch has a split {name!r}{did_you_mean(name, known)}")
    return NotFoundError(f"no epoch has both splits {targets!r} and {train!r}")


def _chosen(epochs: Epoch | Sequence[Epoch]) -> tuple[Epoch, ...]:
    # An epoch that is named twice would count twice in a mean.
    chosen = as_epochs(epochs)
    if not chosen or len(set(chosen)) < len(chosen):
        raise TrakStoreError(f"epochs must be some epochs, each named once, got {epochs!r}")
    return chosen


def _check_like(pair: EpochPair, first: EpochPair) -> None:
    """Refuse an epoch whose splits cannot be summed with those of the first."""
    for split in (pair.train, pair.target):
        if split.rows == 0:
            raise TrakStoreError(
                f"{_named(split)} has no rows left: all {len(split.masked)} are masked (store.skipped "
                f"says which were bad when they were written)"
            )
    for split, like in ((pair.train, pair.target), (pair.target, first.target)):
        if split.dim != like.dim:
            raise SpecMismatchError(
                f"{_named(split)} has dimension {split.dim}, {_named(like)} has {like.dim}: "
                f"scores need features of one projection"
            )
    for split, like in ((pair.target, first.target), (pair.train, first.train)):
        if split.stored.rows != like.stored.rows:
            raise SpecMismatchError(
                f"{_named(split)} has {split.stored.rows} rows, {_named(like)} has "
                f"{like.stored.rows}: choose epochs= of the same samples, masked alike"
            )


def _check_masked_alike(splits: Sequence[UnmaskedSplit]) -> None:
    """Refuse epochs with the same samples if some mask a sample that others do not."""
    like = splits[0]
    for split in splits[1:]:
        unlike = np.setxor1d(split.masked, like.masked)
        if len(unlike):
            row = int(unlike[0])
            (sample,) = split.stored.column("sample_id").read(row, row + 1).tolist()
            raise SpecMismatchError(
                f"{_named(split)} and {_named(like)} have other rows masked, first that of sample "
                f"{shown(sample)} (store.skipped says which were bad when they were written): mask the "
                f"same samples in all epochs, by store.mask"
            )


def _check_weights(pair: EpochPair) -> None:
    """Refuse two splits of one epoch that were made with different weights or settings of the model."""
    target, train = (_weights(one) for one in (pair.target, pair.train))
    # Features from elsewhere may have no hash of weights: unknown weights are accepted.
    if target is None or train is None:
        return
    if target == train:
        check_settings(
            pair.train.stored.spec.settings,
            pair.target.stored.spec.settings,
            _named(pair.train),
            f"that of {_named(pair.target)}",
            "featurize both by the same model, or allow_other_weights=True (--allow-other-weights) if "
            "this is meant",
        )
        return
    raise SpecMismatchError(
        f"{_named(pair.target)} was made with the weights {target[:12]}, {_named(pair.train)} with "
        f"{train[:12]}: products of their features mean nothing; featurize both with the same "
        f"checkpoint, or allow_other_weights=True (--allow-other-weights) if this is meant"
    )


def _weights(split: UnmaskedSplit) -> str | None:
    """Return the hash of a split's weights; None if the store does not know it."""
    checkpoint: str | None = split.stored.spec.checkpoint
    return None if checkpoint is None or checkpoint.startswith(OF_FEATURES) else checkpoint


def _named(split: UnmaskedSplit) -> str:
    return f"split {split.stored.name!r} of epoch {split.stored.epoch!r}"


def _labels(splits: Iterable[UnmaskedSplit]) -> Rows | None:
    """Return the classes of the rows, from the first epoch that has them."""
    for split in splits:
        with suppress(NotFoundError):
            return split.column("label")
    return None


def part_of(pair: EpochPair, factor: Factor | None = None, /, **how: Any) -> Part:
    """Make the part of an epoch's features, without its masked rows; ``how`` as in :class:`Part`."""
    features = pair.target.column("features"), pair.train.column("features")
    return Part(pair.epoch, *features, factor, **how)


def scores_of(
    method: str,
    parts: Sequence[Part],
    pairs: Sequence[EpochPair],
    *,
    reduce: Literal["mean", "sum"] = "mean",
    average: Average = "scores",
    soft_threshold: SoftThreshold = 0.0,
) -> Scores:
    """Make scores of these epochs, with the ids, positions and labels of their splits."""
    # epoch_pairs has checked that all epochs have the same samples, order and mask: the ids of the
    # first epoch serve all.
    target, train = pairs[0].target, pairs[0].train
    return Scores(
        method,
        tuple(parts),
        target.column("sample_id"),
        train.column("sample_id"),
        reduce=reduce,
        average=average,
        train_positions=train.positions,
        target_positions=target.positions,
        train_labels=_labels(pair.train for pair in pairs),
        target_labels=_labels(pair.target for pair in pairs),
        soft_threshold=soft_threshold,
    )
