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
# Outputs whose kernel of train rows, at a temperature, was measured to be better.
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

    def part_values(self, factor: Factor, split: KernelSplit) -> dict[str, Any]:
        """Return what an epoch's part of scores has of this kernel, as a :class:`Part` takes it.

        ``split`` is that of the factor's rows. Gradients grow while a model is trained, and with them
        the scores of an epoch, as t does in tᵀK⁻¹φ: by their length, the root of tr(K)/n, late epochs
        would weigh most, which tell least of what other data would have given. λ = c·tr(K)/n is its
        square, but for a factor that epochs share; a λ that was given as it is, or is 0, weighs all
        alike.
        """
        length = math.sqrt(factor.damping) or 1.0
        rows = SampledRows(split.spec.nonce, self.draws)
        return {"weight": float(self.draws), "length": length, "sampled": rows}


def need_kernel_rows(kernel: object) -> None:
    """Raise a :class:`~trakstore.errors.TrakStoreError` for what names no rows of a kernel."""
    if kernel is not None and not is_one_of(kernel, get_args(get_args(KernelRows)[0])):
        raise TrakStoreError(f"kernel must be 'train', 'sampled' or None, got {kernel!r}")


def takes_sampled(
    store: FeatureStore, train: str, kernel: KernelRows, epochs: Iterable[Epoch] | None = None
) -> bool:
    """Tell whether a kernel is of sampled rows.

    It is where they are asked for; where that is left open, if all of these epochs (or all with the
    train split) have them whole, the output determines the loss, and is no margin.
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
    """Return the sampled rows of an epoch without those of masked train samples."""
    sampled.require_complete()
    return of_train(sampled, pair.train.stored)


def store_sampled_gram(
    store: FeatureStore, epoch: Epoch, train: str, *, memory_limit: int | str | None = None
) -> None:
    """Compute the gram of the sampled rows of an epoch and store it, unless it is stored.

    So that a store's :meth:`~trakstore.FeatureStore.drop_rows` can remove them. Where it cannot be
    stored, nothing is said.

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
        As :func:`sampled_kernel`.
    MemoryLimitError
        The gram does not fit.
    """
    pairs = epoch_pairs(store, train, train, epoch)
    kernel = sampled_kernel(store, pairs, train, "sampled")
    assert kernel is not None  # it was asked for
    keep_gram(kernel.rows[0], memory_limit=memory_limit)
