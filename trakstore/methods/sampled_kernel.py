"""Kernels of rows whose labels were drawn from the model: its Gauss-Newton matrix, projected."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.kernels.choice import keep_gram
from trakstore.kernels.row_weights import KernelSplit, WeightedSplit
from trakstore.kernels.solvers import Damping, Factor
from trakstore.methods.epochs import EpochPair, check_of, epoch_pairs, need_open
from trakstore.quantities import is_one_of
from trakstore.scores.parts import SampledRows
from trakstore.storage import layout
from trakstore.storage.dropped_rows import WEIGHTING
from trakstore.storage.layout import Epoch, epoch_sort_key
from trakstore.storage.sampled_rows import draws_of, of_train
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore

log = logging.getLogger("trakstore")

# Rows that a kernel is made of.
KernelRows: TypeAlias = Literal["train", "sampled"] | None
# Outputs for which the kernel of train rows, at a temperature, was measured to be better.
_TRAIN_ROWS = ("margin",)
_OF_BEFORE = (
    "a sequence of n tokens weighs n times too little in its kernel, as an earlier version wrote it: "
    "drop the split and featurize it again"
)
# c of λ = c·tr(K)/n for train rows, and for sampled ones: benchmarks/accuracy.py.
TRAIN_DAMPING, SAMPLED_DAMPING = 1.0, 0.1


@dataclass(frozen=True, eq=False)
class SampledKernel:
    r"""K = Σ ∇l ∇lᵀ / draws over the rows of all draws, ∇l = −q·φ.

    Labels are drawn from the model's own predictions, so that the mean of K over draws is the
    Gauss-Newton matrix Σᵢ Jᵢᵀ Hᵢ Jᵢ, of sequences too: the terms of their tokens are independent, and
    have mean 0. Where the loss is the mean over n tokens, q of drawn rows is stored times √n for that
    (:meth:`~trakstore.features.draws.LabelDraws.scaled`): ∇l is the sum over tokens divided by √n.
    Source: Martens (2020), New Insights and Perspectives on the Natural Gradient Method, section 9.

    Attributes
    ----------
    rows : tuple of WeightedSplit
        Rows of each epoch, weighted with q².
    draws : int
        Rows of each train sample.
    """

    rows: tuple[WeightedSplit, ...]
    draws: int

    def damping(self, asked: float | Damping | None) -> Damping:
        """Return λ for the sum over draws, which is that of K times the number of draws.

        The sum has n·draws rows, and λ = c·tr(K)/n counts n.
        """
        given = Damping.of(SAMPLED_DAMPING if asked is None else asked)
        if given.relative is not None:
            return Damping(relative=given.relative * self.draws)
        return Damping(absolute=(given.absolute or 0.0) * self.draws)

    def part_values(self, factor: Factor, split: KernelSplit) -> dict[str, Any]:
        """Return the fields of an epoch's :class:`Part` that depend on this kernel.

        ``split`` is that of the factor's rows. Gradients grow during training, and the scores of an
        epoch grow with them, as tᵀK⁻¹φ does with t. In a plain mean the late epochs would dominate,
        which tell least about the results of other data. So each epoch is divided by its gradients'
        length, the root of tr(K)/n, which is that of λ = c·tr(K)/n up to a common factor. With an
        absolute λ, or λ = 0, all epochs weigh the same.
        """
        length = math.sqrt(factor.damping) or 1.0
        rows = SampledRows(split.spec.nonce, self.draws)
        return {"weight": float(self.draws), "length": length, "sampled": rows}


def need_kernel_rows(kernel: object) -> None:
    """Raise a :class:`~trakstore.errors.TrakStoreError` for an unknown choice of a kernel's rows."""
    if kernel is not None and not is_one_of(kernel, get_args(get_args(KernelRows)[0])):
        raise TrakStoreError(f"kernel must be 'train', 'sampled' or None, got {kernel!r}")


def takes_sampled(
    store: FeatureStore, train: str, kernel: KernelRows, epochs: Iterable[Epoch] | None = None
) -> bool:
    """Tell whether a kernel uses sampled rows.


    It does if they are asked for. By default it does if all of these epochs (or all with the train
    split) have them completely, and the output determines the loss and is not the margin.
    """
    need_kernel_rows(kernel)
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
    """Open the rows of a sampled kernel; return None if the kernel uses the train rows.

    Parameters
    ----------
    store : FeatureStore
    pairs : sequence of EpochPair
        Epochs of the scores.
    train : str
        Name of the train split.
    kernel : {"train", "sampled"} or None
        None uses sampled rows as :func:`takes_sampled` decides.

    Raises
    ------
    TrakStoreError
        When ``kernel`` is unknown.
    NotFoundError
        When ``"sampled"`` is asked for and an epoch has none.
    SpecMismatchError
        When they are not of the train rows, or of other weights, or epochs have other draws, or rows of
        different versions.
    IncompleteError
        When some are missing.
    """
    if not takes_sampled(store, train, kernel, [pair.epoch for pair in pairs]):
        return None
    check_of("loss", store)
    name = layout.sampled_split(train)
    opened = store.open_splits([pair.epoch for pair in pairs], (name,))
    splits = [_of_train(opened[pair.epoch][0], pair) for pair in pairs]
    draws = {draws_of(split, pair.train.stored) for split, pair in zip(splits, pairs, strict=True)}
    if len(draws) > 1:
        raise SpecMismatchError(
            f"epochs have {', '.join(map(str, sorted(draws)))} draws of labels: choose epochs= of one "
            f"number of draws"
        )
    _check_loss_scales(store, splits)
    return SampledKernel(tuple(WeightedSplit(split, WEIGHTING) for split in splits), draws.pop())


def _check_loss_scales(store: FeatureStore, splits: Sequence[Split]) -> None:
    """Refuse epochs whose rows were computed by different versions; warn of rows of an earlier one.

    Nothing is known of rows that were made elsewhere.
    """
    name, computed = splits[0].name, [one for one in splits if one.spec.dataset is not None]
    scales = {split.spec.loss_scale: split.epoch for split in computed}
    if len(scales) > 1:
        raise SpecMismatchError(
            f"{name} of epoch {scales['']!r} is of an earlier version, in whose kernel a sequence of n "
            f"tokens weighs n times too little, and that of epoch {scales['root']!r} is not: choose "
            f"epochs= of one kind, or drop the split and featurize it again"
        )
    output = store.spec.output
    # Sums over tokens, and outputs of one label, had the same rows before.
    if "" in scales and output is not None and dict(output.options).get("reduction") == "mean":
        log.warning("%s: %s", name, _OF_BEFORE)


def _of_train(sampled: Split, pair: EpochPair) -> Split:
    """Return the sampled rows of an epoch, without those of masked train samples."""
    sampled.require_complete()
    return of_train(sampled, pair.train.stored)


def store_sampled_gram(
    store: FeatureStore, epoch: Epoch, train: str, *, memory_limit: int | str | None = None
) -> None:
    """Compute the gram of the sampled rows of an epoch and store it, unless it is stored.

    A store's :meth:`~trakstore.FeatureStore.drop_rows` can then remove the rows. If the gram cannot be
    stored, there is no error.

    Parameters
    ----------
    store : FeatureStore
    epoch : int or str
    train : str
        Name of the split of the train rows.
    memory_limit : int or str, optional
        Bytes of one process.

    Raises
    ------
    TrakStoreError
        As in :func:`sampled_kernel`.
    MemoryLimitError
        When the gram does not fit.
    """
    pairs = epoch_pairs(store, train, train, epoch)
    kernel = sampled_kernel(store, pairs, train, "sampled")
    assert kernel is not None  # it was asked for
    keep_gram(kernel.rows[0], memory_limit=memory_limit)
