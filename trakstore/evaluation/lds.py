"""Linear datamodeling score: do scores predict the results of training on other subsets?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.evaluation.intervals import central
from trakstore.evaluation.stored_places import target_places, train_places
from trakstore.planning import ranges
from trakstore.quantities import as_mask, as_number, as_whole
from trakstore.sampling import SubsetPlan
from trakstore.scores.rank_correlation import centred_ranks, row_correlation
from trakstore.scores.windows import Matrix, need_matrix, target_windows

F64 = NDArray[np.float64]
_COLUMNS = 2**14  # train rows whose subsets are made numbers at once
_SUBSETS = 3  # fewest different subsets that a rank correlation can be taken over


@dataclass(frozen=True, eq=False)
class LDS:
    """Rank correlation of predicted and true outputs over subsets, target by target.

    Attributes
    ----------
    mean, low, high : float
        Mean over targets, and its bootstrap interval.
    per_target : ndarray of float64, shape (m,)
        Correlations; 0 for a target whose outputs or predictions are all equal.
    constant : int
        Number of such targets.
    subsets : int
        Number of different subsets.
    level : float
        Share of the resampled means that lie in the interval.
    resampled : ndarray of float64, shape (resamples,)
        Means of the bootstrap; of two scores against the same models, equal seeds give pairs.
    models : str
        Digest of the models' outputs: equal for scores that were compared with the same models.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> scores, subsets = rng.normal(size=(3, 20)), rng.random((40, 20)) < 0.5
    >>> result = lds(scores, subsets, (scores @ subsets.T).T + rng.normal(size=(40, 3)))
    >>> result.per_target.shape, result.low <= result.mean <= result.high
    ((3,), True)
    """

    mean: float
    low: float
    high: float
    per_target: F64
    constant: int
    subsets: int
    level: float
    resampled: F64 = field(repr=False)
    models: str = field(default="", repr=False)


@dataclass(frozen=True)
class Difference:
    """Difference of two LDS on the same models.

    Attributes
    ----------
    mean, low, high : float
        Difference, and its bootstrap interval.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> scores, subsets = rng.normal(size=(3, 20)), rng.random((40, 20)) < 0.5
    >>> outputs = (scores @ subsets.T).T
    >>> lds_difference(lds(scores, subsets, outputs), lds(-scores, subsets, outputs))
    Difference(mean=2.0, low=2.0, high=2.0)
    """

    mean: float
    low: float
    high: float


def lds(
    scores: Matrix,
    subsets: NDArray[np.bool_],
    outputs: NDArray[Any],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    memory_limit: int | str | None = None,
) -> LDS:
    r"""Compute the linear datamodeling score of a (target, train) matrix.

    .. math:: \mathrm{LDS}(z) = \rho(s_z, f_z), \qquad s_{zj} = \sum_{i \in S_j} \tau(z, i),
              \qquad f_{zj} = f(z; \theta(S_j))

    where ρ is Spearman's correlation over the subsets S_j, and the result is the mean over targets. The
    interval resamples targets and subsets, since all targets share the models; ranks are taken among
    all subsets.

    Parameters
    ----------
    scores : Scores, DataArray or array, shape (m, n)
        Scores, positive if training on a sample raises the target's output.
    subsets : ndarray of bool, shape (models, n)
        Train rows of each model: those of the scores, or all stored ones, as in
        :func:`predicted_outputs`. Models of equal subsets count as one, with their mean output.
    outputs : ndarray, shape (models, m)
        f(z; θ(S_j)), such as the margin: the higher, the surer. Of the scores' targets, or of all
        stored ones, masked or not.
    level : float
        Share of the resampled means that lie in the interval.
    resamples : int
        Number of resamples of the bootstrap.
    seed : int
        Seed of the bootstrap.
    memory_limit : int or str, optional
        Bytes of one process for windows of scores; a quarter of the available memory when None.

    Returns
    -------
    LDS

    Raises
    ------
    TrakStoreError
        When shapes do not fit together, there are fewer than three different subsets, or subsets are
        anything but booleans or 0 and 1.
    NumericsError
        When outputs or scores are not finite.

    References
    ----------
    Park et al.: "TRAK: Attributing Model Behavior at Scale", ICML 2023, definition 2.4; Ilyas et al.:
    "Datamodels", ICML 2022.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> scores, subsets = rng.normal(size=(3, 20)), rng.random((40, 20)) < 0.5
    >>> outputs = (scores @ subsets.T).T
    >>> lds(scores, subsets, outputs).mean
    1.0
    >>> lds(-scores, subsets, outputs).mean
    -1.0
    """
    level = as_number(level, "level", above=0, most=1)
    resamples, seed = as_whole(resamples, "resamples", 1), as_whole(seed, "seed", 0)
    scores = need_matrix(scores)
    subsets, truth = _averaged(as_mask(subsets, "subsets"), np.asarray(outputs, np.float64))
    targets = target_places(scores).columns(truth.shape[1])
    if targets is None:
        raise TrakStoreError(
            f"outputs are of {truth.shape[1]} targets, scores of {scores.shape[0]}: needed the same"
        )
    truth = truth.take(targets, axis=1)
    predicted = _joined(*_sums(scores, subsets, memory_limit))
    # Ranks, since scores predict outputs up to a scale that nobody knows: only their order counts.
    a, b = centred_ranks(predicted), centred_ranks(truth.T)
    correlation = row_correlation(a, b)
    constant = np.isnan(correlation)
    # Without such targets, a method would look better if it gave up on the hard ones.
    correlation[constant] = 0.0
    means = _resampled(a, b, resamples, np.random.default_rng(seed))
    low, high = central(means, level)
    mean, empty = float(correlation.mean()), int(constant.sum())
    models = hashlib.sha256(truth.tobytes()).hexdigest()
    return LDS(mean, low, high, correlation, empty, len(subsets), level, means, models)


def lds_difference(one: LDS, other: LDS) -> Difference:
    """Subtract one LDS from another of the same targets, models, resamples and seed.

    Parameters
    ----------
    one, other : LDS
        Scores of two methods. In each resample both means are of the same targets and subsets, so that
        the interval is that of the paired difference, which is much narrower than the two intervals
        suggest.

    Raises
    ------
    TrakStoreError
        When they cannot be compared.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> true, subsets = rng.normal(size=(3, 20)), rng.random((40, 20)) < 0.5
    >>> outputs, noisy = (true @ subsets.T).T, true + rng.normal(size=true.shape)
    >>> difference = lds_difference(lds(true, subsets, outputs), lds(noisy, subsets, outputs))
    >>> difference.low > 0
    True
    """
    kinds = [(len(x.per_target), x.subsets, len(x.resampled), x.level) for x in (one, other)]
    if kinds[0] != kinds[1]:
        raise TrakStoreError(
            f"needed LDS of the same targets, subsets, resamples and level, got {kinds}"
        )
    if one.models and other.models and one.models != other.models:
        raise TrakStoreError(
            "needed LDS against the same models: the outputs of these differ, so they make no pairs"
        )
    return Difference(one.mean - other.mean, *central(one.resampled - other.resampled, one.level))


def predicted_outputs(
    scores: Matrix, subsets: NDArray[np.bool_], memory_limit: int | str | None = None
) -> F64:
    """Sum the scores over each subset, Σ_{i ∈ S_j} τ(z, i).

    Parameters
    ----------
    scores : Scores, DataArray or array, shape (m, n)
        Scores of m targets with n train samples.
    subsets : ndarray of bool, shape (subsets, n)
        Train rows in each subset. Of ``Scores`` with masked rows, n may be the number of all stored
        rows, as in a :class:`SubsetPlan`: their ``train_positions`` are the columns that count, and
        what a masked row does to a model is not predicted.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    ndarray of float64, shape (m, subsets)

    Raises
    ------
    TrakStoreError
        For subsets of another number of train rows, or of anything but booleans or 0 and 1.
    NumericsError
        For scores that are not finite.

    Examples
    --------
    >>> scores = np.array([[1.0, 2.0, 4.0]])
    >>> predicted_outputs(scores, np.array([[True, False, True], [False, True, False]]))
    array([[5., 2.]])
    """
    return _sums(need_matrix(scores), as_mask(subsets, "subsets"), memory_limit)[0]


def _sums(
    scores: Matrix, subsets: NDArray[np.bool_], memory_limit: int | str | None
) -> tuple[F64, F64]:
    """Sum the scores over each subset, (m, subsets), and their magnitudes over all train rows, (m,)."""
    places = train_places(scores)
    columns = places.columns(subsets.shape[1]) if subsets.ndim == 2 else None
    if columns is None:
        needed = " or ".join(map(str, sorted(places.widths)))
        raise TrakStoreError(
            f"scores of {scores.shape} need subsets of {needed} train rows, got an array of shape "
            f"{subsets.shape}"
        )
    sums, magnitudes = np.zeros((scores.shape[0], len(subsets))), np.zeros(scores.shape[0])
    for start, stop, rows in target_windows(scores, memory_limit):
        magnitudes[start:stop] = np.abs(rows).sum(axis=1)
        for low, high in ranges(scores.shape[1], _COLUMNS):
            # Only so many columns at once: subsets in float64 take eight times their own memory.
            chosen = subsets.take(columns[low:high], axis=1).T.astype(np.float64)
            sums[start:stop] += rows[:, low:high] @ chosen
    return sums, magnitudes


def _joined(sums: F64, magnitudes: F64) -> F64:
    """Make sums equal that only the order of their terms tells apart.

    Scores that are the same for many train rows, as those of a class, have sums that are equal but for
    rounding: ranked as they are, they would have an order by chance in place of ties.
    """
    order = np.argsort(sums, axis=1, kind="stable")
    ascending = np.take_along_axis(sums, order, axis=1)
    # Rounding leaves about 1e-16 of the terms' magnitudes; scores of float32 tell apart 1e-8 of them.
    apart = np.diff(ascending, axis=1) > 1e-12 * magnitudes[:, None]
    first = np.where(np.insert(apart, 0, True, axis=1), np.arange(sums.shape[1]), 0)
    first = np.maximum.accumulate(first, axis=1)
    joined = np.empty_like(sums)
    np.put_along_axis(joined, order, np.take_along_axis(ascending, first, axis=1), axis=1)
    return joined


def check_subsets(plan: SubsetPlan, models: int) -> None:
    """Refuse a plan whose first models have too few different subsets, before they are trained."""
    different: set[bytes] = set()
    # One model at a time, until there are enough: masks of all models of a large split fill the memory.
    for model in range(models):
        different.add(plan.masks(model, model + 1).tobytes())
        if len(different) == _SUBSETS:
            return
    _need_three(len(different))


def _need_three(different: int) -> None:
    if different < _SUBSETS:
        raise TrakStoreError(f"a rank correlation needs three different subsets, got {different}")


def _averaged(subsets: NDArray[np.bool_], outputs: F64) -> tuple[NDArray[np.bool_], F64]:
    """Return the different subsets, in order, and the mean outputs of their models.

    Models of one subset differ by their seeds: their mean is closer to the expected output of the
    subset, and a repeated subset would be tied with itself.
    """
    if subsets.ndim != 2 or outputs.ndim != 2 or len(subsets) != len(outputs):
        raise TrakStoreError(
            f"needed subsets (models, train) and outputs (models, targets), got {subsets.shape} "
            f"and {outputs.shape}"
        )
    if not np.isfinite(outputs).all():
        raise NumericsError("outputs of the models hold NaN or inf: leave those models out")
    packed = np.packbits(subsets, axis=1)
    _, first, subset = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    _need_three(len(first))
    total = np.zeros((len(first), outputs.shape[1]))
    np.add.at(total, subset.reshape(-1), outputs)
    means = total / np.bincount(subset.reshape(-1))[:, None]
    order = np.argsort(first)
    return subsets[first[order]], means[order]


def _resampled(a: F64, b: F64, resamples: int, rng: np.random.Generator) -> F64:
    """Compute means over resampled targets of rank correlations over resampled subsets.

    A resample is the number of times that each subset, and each target, was drawn. Its correlation is
    that of weighted ranks, (E[ab] − E[a]E[b]) / √(var a · var b), whose five expectations are products
    with the weights of all resamples at once: ranks are not sorted again.
    """
    targets, subsets = a.shape
    picked = rng.multinomial(subsets, np.full(subsets, 1 / subsets), resamples) / subsets
    chosen = rng.multinomial(targets, np.full(targets, 1 / targets), resamples) / targets
    ma, mb, ab, aa, bb = (x @ picked.T for x in (a, b, a * b, a * a, b * b))
    spread = np.maximum(aa - ma**2, 0) * np.maximum(bb - mb**2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.where(spread > 0, (ab - ma * mb) / np.sqrt(spread), 0.0)
    means: F64 = np.einsum("mr,rm->r", correlation, chosen)
    return means
