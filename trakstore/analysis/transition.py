"""Transitions: train samples that gained or lost influence between two checkpoints, with p-values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

from trakstore.analysis.scales import SCALES, Scaled
from trakstore.errors import LARGER_LIMIT, MemoryLimitError, TrakStoreError
from trakstore.passes.memory import memory_budget
from trakstore.passes.rows import taken_rows, whole_column
from trakstore.planning import human_bytes
from trakstore.quantities import as_whole, is_one_of, shown
from trakstore.scores.factored import Scores
from trakstore.scores.needed import need_scores
from trakstore.scores.same_rows import need_same_rows
from trakstore.scores.saving import scores_token

Scale: TypeAlias = Literal["standard", "rank", "raw"]
F64 = NDArray[np.float64]
_SHOWN = 5  # most samples of a list that a repr names
# Bytes kept for each train sample: means, changes, counts, orders and the result.
SAMPLE_BYTES = 120


@dataclass(frozen=True, repr=False)
class Transition:
    """A change of influence.

    Attributes
    ----------
    changes : Dataset
        Dimension ``train``: ``change``, the mean over targets on the chosen scale; ``p``, its
        two-sided p-value under the null, and ``q``, Benjamini's and Hochberg's false discovery rate
        (both NaN without a null); coordinates ``train_id`` and ``position`` (stored row).
    gained, lost : Dataset
        The largest (``gained``) and the most negative (``lost``) changes, along dimension ``rank``.
        Variables: ``train`` (sample ids), ``position``, ``change`` with ``low`` and ``high`` of a 95%
        bootstrap interval over targets (NaN where there is one target only), ``p``, ``q``.
    scale : str
        Name of the scale.
    null_pairs : int
        Number of pairs of the null; 0 without one.

    Examples
    --------
    >>> scores = ts.trak_scores(store)
    >>> change = transition(scores.epoch(5), scores.epoch(15), k=2)
    >>> change.gained["train"].values.tolist(), change.scale, change.null_pairs
    (['train-14', 'train-5'], 'standard', 0)
    """

    changes: xr.Dataset
    gained: xr.Dataset
    lost: xr.Dataset
    scale: str
    null_pairs: int

    def __repr__(self) -> str:
        ends = [
            f"{name} {', '.join(str(one) for one in listed['train'].values[:_SHOWN].tolist())}"
            for name, listed in (("gained", self.gained), ("lost", self.lost))
        ]
        count, null = self.changes.sizes["train"], self.null_pairs or "no"
        return (
            f"<Transition of {count:,} samples, {self.scale}, {null} null pairs; {'; '.join(ends)}>"
        )

    def error_rate(self, side: Literal["gained", "lost"]) -> float:
        """Expected share of chance findings in the list ``side``; NaN without a null.

        This is the largest ``q`` in the list.

        Raises
        ------
        TrakStoreError
            When there is no side of that name.
        """
        if not is_one_of(side, ("gained", "lost")):
            raise TrakStoreError(f"side must be 'gained' or 'lost', got {shown(side)}")
        return float(getattr(self, side)["q"].max(skipna=False))


def transition(
    before: Scores,
    after: Scores,
    null: Sequence[tuple[Scores, Scores]] = (),
    *,
    scale: Scale = "standard",
    k: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    memory_limit: int | str | None = None,
) -> Transition:
    r"""Compute the change of influence of each train sample on some targets.

    The scores of two checkpoints have different scales (gradient norms collapse once a model fits), so
    that they are compared on a common one: ``"standard"``, each target's scores minus their mean over
    train samples, divided by their standard deviation; ``"rank"``, ranks from 0 for the smallest score
    to 1 for the largest; ``"raw"``, the scores themselves. The change is the mean over targets of
    (after - before).
    For ``"standard"`` and ``"raw"`` it is linear in the targets: each checkpoint costs one pass for a
    single target, the mean of all, and ``"standard"`` one more for the moments.

    Parameters
    ----------
    before, after : Scores, shape (m, n)
        Scores of the same method, targets and train samples: ``scores.epoch(...)``.
    null : sequence of pairs of Scores
        Pairs between which nothing should have changed: neighbouring checkpoints of a stable phase, or
        one checkpoint under two seeds of the projection; not the transition itself. The p-value of a
        change d is (1 + #{null changes of any sample of magnitude d or more}) / (1 + their number).
    scale : {"standard", "rank", "raw"}
        Scale on which both checkpoints are compared.
    k : int
        Length of the two lists, 1 to n.
    resamples : int
        Number of resamples of the targets, for the intervals.
    seed : int
        Seed of the resamples.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None. This includes what is kept
        for each train sample: 120 n bytes, 8 n more for each Scores that a later pair uses again, and
        64 n more for ``"rank"``.

    Raises
    ------
    TrakStoreError
        When shapes differ, the scale is unknown, ``k`` is not in 1..n, or a target's scores are all
        equal; when a pair of the null is the transition itself, or has the same scores twice.
    SpecMismatchError
        When ids differ: scores of other samples, or of the same in another order.
    NumericsError
        When a score is NaN or infinite.
    MemoryLimitError
        When the numbers that are kept for each train sample, or the scores of one target, do not fit.

    References
    ----------
    Benjamini and Hochberg (1995). Pooled null: Efron, "Large-Scale Inference", 2010, chapter 6.

    Examples
    --------
    >>> scores = ts.trak_scores(store)
    >>> null = [(scores.epoch(2), scores.epoch(5))]
    >>> change = transition(scores.epoch(5), scores.epoch(15), null, k=2)
    >>> change.gained["train"].values.tolist(), change.gained["q"].values.round(1).tolist()
    (['train-14', 'train-5'], [0.9, 0.9])
    >>> change.lost["change"].values.round(2)
    array([-0.67, -0.61])
    """
    pairs = [(before, after), *null]
    k = _check(pairs, scale, k)
    resamples, seed = as_whole(resamples, "resamples", 1), as_whole(seed, "seed", 0)
    remaining = _remaining_limit(before.shape[1], memory_limit)
    tokens = [(scores_token(early), scores_token(late)) for early, late in pairs]
    _check_null(tokens)
    changes_of_pairs = _changes(pairs, tokens, SCALES[scale], remaining)
    scaled, change = next(changes_of_pairs)
    columns = {
        "change": change,
        "p": np.full_like(change, np.nan),
        "q": np.full_like(change, np.nan),
    }
    if null:
        columns["p"] = _p_values(change, (one for _, one in changes_of_pairs))
        # Benjamini and Hochberg: p n / rank, made monotone.
        columns["q"] = false_discovery_control(columns["p"])
    changes = xr.Dataset({name: ("train", values) for name, values in columns.items()})
    order = np.argsort(-change, kind="stable")
    # One generator serves both lists, so that their resamples differ.
    rng = np.random.default_rng(seed)
    gained, lost = (
        _listed(changes, before, at, *_interval(*scaled, at, resamples, rng))
        for at in (order[:k], order[::-1][:k])
    )
    coords = {
        "train_id": ("train", whole_column(before.train_ids)),
        "position": ("train", _positions(before, np.arange(before.shape[1]))),
    }
    return Transition(changes.assign_coords(coords), gained, lost, scale, len(null))


def _changes(
    pairs: Sequence[tuple[Scores, Scores]],
    tokens: Sequence[tuple[str, str]],
    scaled: Callable[[Scores, int], Scaled],
    memory_limit: int,
) -> Iterator[tuple[tuple[Scaled, Scaled], F64]]:
    """Put each pair on the scale, and yield it with its change.

    Scores that are in several pairs are scaled once, and dropped after the last of these: each holds a
    number for every train row.
    """
    last = {token: at for at, both in enumerate(tokens) for token in both}
    scaled_scores: dict[str, Scaled] = {}
    for at, (both, pair) in enumerate(zip(tokens, pairs, strict=True)):
        for token, scores in zip(both, pair, strict=True):
            if token not in scaled_scores:
                scaled_scores[token] = scaled(scores, memory_limit)
        early, late = (scaled_scores[token] for token in both)
        yield (early, late), late.mean - early.mean
        scaled_scores = {token: one for token, one in scaled_scores.items() if last[token] > at}


def _remaining_limit(columns: int, memory_limit: int | str | None) -> int:
    """Return the memory limit less the numbers that are kept for each train sample."""
    limit, kept = memory_budget(memory_limit), SAMPLE_BYTES * columns
    if limit <= kept:
        raise MemoryLimitError(
            f"changes of {columns} train samples take {human_bytes(kept)}, the memory limit is "
            f"{human_bytes(limit)}: {LARGER_LIMIT}"
        )
    return limit - kept


def _check(pairs: Sequence[tuple[Scores, Scores]], scale: str, k: int) -> int:
    """Return k, after checking that the scores, the scale and k fit together."""
    if not is_one_of(scale, get_args(Scale)):
        raise TrakStoreError(f"scale must be one of {', '.join(get_args(Scale))}, got {scale!r}")
    for one in itertools.chain(*pairs):
        need_scores(one)
    shapes = {one.shape for pair in pairs for one in pair}
    if len(shapes) > 1:
        raise TrakStoreError(f"scores to compare must have the same shape, got {sorted(shapes)}")
    need_same_rows([one for pair in pairs for one in pair])
    ((_, columns),) = shapes
    return as_whole(k, "k", 1, columns, needed=f"must be in 1..{columns} (the train rows)")


def _check_null(tokens: Sequence[tuple[str, str]]) -> None:
    """Refuse a null pair that is the transition itself.

    Its changes would be compared with themselves, and none would stand out.
    """
    change, *null = (set(pair) for pair in tokens)
    for number, pair in enumerate(null, 1):
        if pair == change:
            raise TrakStoreError(
                f"pair {number} of the null is the transition itself: give checkpoints between "
                f"which nothing happened"
            )
        if len(pair) == 1:
            raise TrakStoreError(
                f"pair {number} of the null has the same scores twice: give two checkpoints"
            )


def _p_values(change: F64, null: Iterable[F64]) -> F64:
    """Compute p = (1 + #{null changes as large in magnitude}) / (1 + their number), over all samples.

    For each pair, it is counted how many changes each null change reaches in magnitude; only these
    counts are kept, for any number of pairs. The null changes of all samples are pooled as one
    distribution, which the common scale allows. The change itself counts as one of the null, so that p
    is never 0.
    """
    order = np.argsort(np.abs(change), kind="stable")
    # On the scale "rank", changes are often equal up to rounding: an equal one counts as reached.
    thresholds = np.abs(change[order]) * (1 - 1e-9)
    counts = np.zeros(len(thresholds) + 1, dtype=np.int64)
    for one in null:
        reached = np.searchsorted(thresholds, np.sort(np.abs(one)), side="right")
        counts += np.bincount(reached, minlength=len(counts))
    # counts[j] null changes reach exactly the j smallest changes. So the i-th smallest, from 0, is
    # reached by those in counts[i + 1:].
    larger = np.cumsum(counts[::-1])[-2::-1]
    p = np.empty(len(thresholds))
    p[order] = (1 + larger) / (1 + counts.sum())
    return p


def _interval(
    early: Scaled, late: Scaled, at: NDArray[np.int64], resamples: int, rng: np.random.Generator
) -> tuple[F64, F64]:
    """Return the 2.5% and 97.5% quantiles of the mean change over resampled targets, for train rows.

    Targets are resampled because the mean is over them. NaN where there is only one target.
    """
    change_by_target = late.at(at) - early.at(at)
    count = len(change_by_target)
    if count == 1:
        return np.full(at.shape, np.nan), np.full(at.shape, np.nan)
    # The number of times that each target is drawn is its weight in the mean, so that a resample is a
    # row of a matrix product.
    weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count
    low, high = np.quantile(weights @ change_by_target, [0.025, 0.975], axis=0)
    return low, high


def _listed(
    changes: xr.Dataset, scores: Scores, at: NDArray[np.int64], low: F64, high: F64
) -> xr.Dataset:
    kept = {name: ("rank", changes[name].values[at]) for name in ("change", "p", "q")}
    ids = taken_rows(scores.train_ids, at)
    where = {"train": ("rank", ids), "position": ("rank", _positions(scores, at))}
    return xr.Dataset(where | kept | {"low": ("rank", low), "high": ("rank", high)})


def _positions(scores: Scores, at: NDArray[np.int64]) -> NDArray[np.int64]:
    return at if scores.train_positions is None else taken_rows(scores.train_positions, at)
