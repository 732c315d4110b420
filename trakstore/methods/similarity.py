"""Scores without a kernel inverse, and the cosine in a kernel's metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import methodcaller

import numpy as np
from numpy.typing import NDArray

from trakstore.kernels.gram import GramDtype
from trakstore.kernels.inverse_metric import quadratic_form
from trakstore.kernels.many_epochs import factors_of, grams_at_once
from trakstore.kernels.solvers import Cholesky, Damping, Factor
from trakstore.kernels.stored_grams import split_gram
from trakstore.methods.epochs import (
    EpochPair,
    Of,
    UnmaskedSplit,
    check_of,
    epoch_pairs,
    part_of,
    scores_of,
)
from trakstore.passes.gpu import as_device
from trakstore.passes.memory import memory_budget
from trakstore.passes.rows import ArrayRows, RowByRow, Rows
from trakstore.quantities import as_number
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part, held_bytes
from trakstore.storage.layout import Epoch
from trakstore.storage.store import FeatureStore


def grad_dot_scores(
    store: FeatureStore,
    targets: str = "test",
    train: str = "train",
    epochs: Epoch | Sequence[Epoch] | None = None,
    *,
    of: Of = "loss",
    allow_other_weights: bool = False,
) -> Scores:
    """Compute GradDot: the mean over epochs of ⟨t, φ⟩.

    Parameters
    ----------
    store : FeatureStore
        Open store that holds both splits.
    targets, train : str
        Names of splits with m and n rows.
    epochs : epoch or sequence of epochs, optional
        Epochs to combine; by default all that have both splits.
    of : {"loss", "output"}
        Function whose gradients are used, on both sides; those of the loss are the stored ones times
        minus ``out_to_loss``. With ``"loss"`` a positive score means that a small step on the train
        sample lowers the target's loss.
    allow_other_weights : bool
        Whether to compute scores even if targets and train rows of an epoch were made with different
        checkpoints.

    Returns
    -------
    Scores
        (target, train), shape (m, n), float32.

    Raises
    ------
    NotFoundError
        When there is no such epoch, split or column.
    IncompleteError
        When rows of a split are missing.
    SpecMismatchError
        When dimensions differ, an epoch's splits were made with different weights, or epochs have other
        samples, another order of them, or other masked samples.

    References
    ----------
    Charpiat, Girard, Felardos, Tarabalka: "Input Similarity from the Neural Network Perspective",
    NeurIPS 2019.

    Examples
    --------
    >>> ts.grad_dot_scores(store, epochs=[5, 15])
    <Scores grad_dot (target: 6, train: 24), epochs 5, 15>
    >>> ts.top_k(ts.grad_dot_scores(store), 3)["train"].values[0].tolist()
    ['train-18', 'train-3', 'train-9']
    """
    check_of(of, store)
    pairs = epoch_pairs(store, targets, train, epochs, allow_other_weights=allow_other_weights)
    parts = [part_of(pair, **pair.gradient_scales(of)) for pair in pairs]
    return scores_of("grad_dot", parts, pairs)


def grad_cos_scores(
    store: FeatureStore,
    targets: str = "test",
    train: str = "train",
    epochs: Epoch | Sequence[Epoch] | None = None,
    *,
    of: Of = "loss",
    allow_other_weights: bool = False,
) -> Scores:
    """Compute GradCos: the mean over epochs of ⟨t, φ⟩ / (‖t‖ ‖φ‖), with norms of the projected rows.

    A row of zeros has the cosine 0 with any other.

    Parameters
    ----------
    store : FeatureStore
        Open store that holds both splits.
    targets, train : str
        Names of splits with m and n rows.
    epochs : epoch or sequence of epochs, optional
        Epochs to combine; by default all that have both splits.
    of : {"loss", "output"}
        As in :func:`grad_dot_scores`; only the sign of ``out_to_loss`` matters.
    allow_other_weights : bool
        Whether to compute scores even if targets and train rows of an epoch were made with different
        checkpoints.

    Returns
    -------
    Scores
        (target, train), shape (m, n), float32.

    Raises
    ------
    NotFoundError
        When there is no such epoch, split or column.
    IncompleteError
        When rows of a split are missing.
    SpecMismatchError
        When dimensions differ, an epoch's splits were made with different weights, or epochs have other
        samples, another order of them, or other masked samples.

    Examples
    --------
    >>> cosines = np.asarray(ts.grad_cos_scores(store, epochs=15))
    >>> cosines.shape, bool(abs(cosines).max() <= 1.001)
    ((6, 24), True)
    >>> ts.top_k(ts.grad_cos_scores(store), 3)["train"].values[0].tolist()
    ['train-6', 'train-9', 'train-18']
    """
    check_of(of, store)
    pairs = epoch_pairs(store, targets, train, epochs, allow_other_weights=allow_other_weights)
    norms = methodcaller("column", "norm")
    parts = [part_of(pair, **_unit_scales(pair, norms, of)) for pair in pairs]
    return scores_of("grad_cos", parts, pairs)


def whitened_cos_scores(
    store: FeatureStore,
    targets: str = "test",
    train: str = "train",
    epochs: Epoch | Sequence[Epoch] | None = None,
    damping: float | Damping = 1.0,
    *,
    mix: float = 0.0,
    of: Of = "loss",
    gram_dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
    device: str = "cpu",
    allow_other_weights: bool = False,
) -> Scores:
    r"""Compute the cosine of H^(-1/2) t and H^(-1/2) φ, averaged over epochs: TrackStar's score.

    .. math:: H = (1 - \mathrm{mix}) K_\mathrm{train} + \mathrm{mix} \frac{n}{m} K_\mathrm{target}
              + \lambda I

    Parameters
    ----------
    store : FeatureStore
        Open store that holds both splits.
    targets, train : str
        Names of splits with m and n rows.
    epochs : epoch or sequence of epochs, optional
        Epochs to combine; by default all that have both splits.
    damping : float or Damping
        c of λ = c·tr(H)/n, or ``Damping(absolute=λ)``.
    mix : float
        Share of the targets' own kernel, 0 to 1, by which directions that all targets share count less.
    of : {"loss", "output"}
        As in :func:`grad_dot_scores`; a cosine keeps only the sign of ``out_to_loss``, and kernels use
        the stored rows.
    gram_dtype : {"float32", "float64"}
        Dtype of the products within a tile of the gram.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.
    device : str
        Device for grams and tiles of scores, such as ``"cuda"`` (by torch). A worker that cannot use it
        warns and uses the CPU, as solvers always do.
    allow_other_weights : bool
        Whether to compute scores even if targets and train rows of an epoch were made with different
        checkpoints.

    Returns
    -------
    Scores
        Scores (target, train), shape (m, n), float32. The lengths of all rows are computed here, in one
        pass over both splits, and kept: 8 (m + n) bytes an epoch.

    Raises
    ------
    TrakStoreError
        When ``mix`` is outside of 0 to 1.
    NotFoundError
        When there is no such epoch, split or column.
    IncompleteError
        When rows of a split are missing.
    SpecMismatchError
        When dimensions differ, an epoch's splits were made with different weights, or epochs have other
        samples, another order of them, or other masked samples.
    NumericsError
        When features are not finite, or a kernel is singular at this damping.
    MemoryLimitError
        When a gram does not fit.

    References
    ----------
    Chang, Rajagopal, Bolukbasi, Dixon, Tenney: "Scalable Influence and Fact Tracing for Large
    Language Model Pretraining", 2024, section 3.

    Examples
    --------
    >>> scores = ts.whitened_cos_scores(store, mix=0.5)
    >>> ts.top_k(scores, 3)["train"].values[0].tolist()
    ['train-6', 'train-9', 'train-15']
    """
    check_of(of, store)
    mix = as_number(mix, "mix", least=0, most=1, needed="is a share from 0 to 1")
    damped = Damping.of(damping)
    device = as_device(device)
    pairs = epoch_pairs(store, targets, train, epochs, allow_other_weights=allow_other_weights)
    parts: list[Part] = []
    limit = memory_budget(memory_limit)
    # The cosine of H^(-1/2) t and H^(-1/2) φ is t H⁻¹ φᵀ over the roots of t H⁻¹ tᵀ and φ H⁻¹ φᵀ. So
    # one factor of H gives all three terms, and no root of H is needed. If targets are mixed in, H is
    # held in memory.
    if mix:
        factors = _mixed_factors(pairs, damped, mix, gram_dtype, limit, device)
    else:
        kernels = [pair.train.stored for pair in pairs]
        factors = factors_of(kernels, damped, dtype=gram_dtype, memory_limit=limit, device=device)
    for pair, factor in zip(pairs, factors, strict=True):
        # The factors of earlier epochs are kept, and take their share of the limit.
        lengths = partial(_lengths, factor=factor, limit=max(1, limit - held_bytes(parts)))
        kernel = f"mix {mix}" if mix else ""
        parts.append(part_of(pair, factor, kernel=kernel, **_unit_scales(pair, lengths, of)))
    scores = scores_of("whitened_cos", parts, pairs)
    return scores.to(device)


def _mixed_factors(
    pairs: Sequence[EpochPair],
    damping: Damping,
    mix: float,
    dtype: GramDtype,
    limit: int,
    device: str,
) -> Iterator[Factor]:
    """Factor H of each epoch, with the targets' kernel mixed in."""
    sides = [side.stored for pair in pairs for side in (pair.train, pair.target)]
    # A mixture of two grams is stored nowhere and has no rows, so that it is factored in memory.
    solver, held = Cholesky(), 0
    grams = grams_at_once(sides, damping, solver, dtype, limit, device)

    # In a function of its own: grams in local variables of a generator would live on across its
    # ``yield``.
    def factored(at: int) -> Factor:
        own, other = (
            split_gram(
                sides[side],
                dtype=dtype,
                memory_limit=max(1, limit - held),
                ready=grams.pop(side, None),
                device=device,
            )
            for side in (at, at + 1)
        )
        # Both kernels are sums over rows: n/m scales the targets' kernel to n rows.
        matrix = (1 - mix) * own.matrix + mix * own.rows / other.rows * other.matrix
        mixed = replace(own, matrix=matrix, trace=float(np.trace(matrix)))
        return solver.factor(mixed, damping)

    for at in range(0, len(sides), 2):
        factor = factored(at)
        held += factor.memory
        yield factor


def _lengths(split: UnmaskedSplit, factor: Factor, limit: int) -> Rows:
    """Compute the lengths of the rows in the metric of a factored kernel."""
    squared = quadratic_form(split.column("features"), factor, memory_limit=limit)
    # Rounding may make the squared length of a short row negative.
    return ArrayRows(np.sqrt(np.maximum(squared, 0)))


def _unit_scales(
    pair: EpochPair, lengths: Callable[[UnmaskedSplit], Rows], of: Of
) -> dict[str, Rows]:
    """Return the scales that divide the rows of both sides by their lengths."""
    target, train = (
        InverseRows(lengths(side), side.gradient_scale(of)) for side in (pair.target, pair.train)
    )
    return {"row_scale": target, "column_scale": train}


@dataclass(frozen=True, eq=False)
class InverseRows(RowByRow):
    """Values 1/base, times the sign of ``sign`` if that is given; 0 if the base is 0.

    A row of zeros has no direction, and its cosine with any row counts as 0.
    """

    sign: Rows | None = None

    def read(self, start: int, stop: int) -> NDArray[np.float64]:
        # In float64, since the scale multiplies a row of the left factor before that is rounded to
        # float32.
        values = np.asarray(self.base.read(start, stop), dtype=np.float64)
        inverse = np.divide(1.0, values, out=np.zeros_like(values), where=values != 0)
        if self.sign is not None:
            inverse *= np.sign(self.sign.read(start, stop))
        return inverse
