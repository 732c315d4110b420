"""Scores without a kernel inverse, and the cosine in a kernel's metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trakstore.kernels.choice import factor_split
from trakstore.kernels.gram import Gram, GramDtype
from trakstore.kernels.many_epochs import kernels_together
from trakstore.kernels.quadratic import quadratic_form
from trakstore.kernels.solvers import Cholesky, Damping, Factor
from trakstore.kernels.stored_grams import split_gram
from trakstore.methods.epochs import (
    EpochPair,
    UnmaskedSplit,
    epoch_pairs,
    part_of,
    scores_of,
)
from trakstore.methods.row_scales import InverseRows, Of, check_of, gradient_scale
from trakstore.passes.memory import memory_budget
from trakstore.passes.rows import ArrayRows, Rows
from trakstore.quantities import as_number
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Epoch, Part, held_bytes
from trakstore.storage.store import FeatureStore

__all__ = ["grad_cos_scores", "grad_dot_scores", "whitened_cos_scores"]


def grad_dot_scores(
    store: FeatureStore,
    targets: str = "test",
    train: str = "train",
    epochs: Epoch | Sequence[Epoch] | None = None,
    *,
    of: Of = "loss",
    allow_other_weights: bool = False,
) -> Scores:
    """GradDot: the mean over epochs of ⟨t, φ⟩.

    Parameters
    ----------
    store : FeatureStore
    targets, train : str
        Names of splits with m and n rows.
    epochs : epoch or sequence of epochs, optional
        All that have both splits when None.
    of : {"loss", "output"}
        The gradients of what: those of the loss are the stored ones times −``out_to_loss``, on both
        sides. Positive for ``"loss"``: a small step on the train sample lowers the target's loss.
    allow_other_weights : bool
        Score also where targets and train rows of an epoch were made with different checkpoints.

    Returns
    -------
    Scores
        (target, train), shape (m, n), float32.

    Raises
    ------
    NotFoundError
        No such epoch, split or column.
    IncompleteError
        Rows of a split are missing.
    SpecMismatchError
        Dimensions or numbers of rows differ, or the weights of an epoch's splits.

    References
    ----------
    Charpiat, Girard, Felardos, Tarabalka: "Input Similarity from the Neural Network Perspective",
    NeurIPS 2019.
    """
    check_of(of, store)
    pairs = epoch_pairs(store, targets, train, epochs, allow_other_weights=allow_other_weights)
    parts = [
        part_of(
            pair,
            row_scale=gradient_scale(pair.target, of),
            column_scale=gradient_scale(pair.train, of),
        )
        for pair in pairs
    ]
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
    """GradCos: the mean over epochs of ⟨t, φ⟩ / (‖t‖ ‖φ‖), with the norms of the projected rows.

    A row of zeros has the cosine 0 with anything. Arguments and errors are those of
    :func:`grad_dot_scores`; for ``of="loss"`` only the sign of ``out_to_loss`` matters.
    """
    check_of(of, store)
    pairs = epoch_pairs(store, targets, train, epochs, allow_other_weights=allow_other_weights)
    parts = [
        part_of(
            pair,
            row_scale=InverseRows(pair.target.column("norm"), gradient_scale(pair.target, of)),
            column_scale=InverseRows(pair.train.column("norm"), gradient_scale(pair.train, of)),
        )
        for pair in pairs
    ]
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
    allow_other_weights: bool = False,
) -> Scores:
    r"""The cosine of H^(-1/2) t and H^(-1/2) φ, averaged over epochs: TrackStar's score.

    .. math:: H = (1 - \mathrm{mix}) K_\mathrm{train} + \mathrm{mix} \frac{n}{m} K_\mathrm{target}
              + \lambda I

    Parameters
    ----------
    store : FeatureStore
    targets, train : str
        Names of splits with m and n rows.
    epochs : epoch or sequence of epochs, optional
        All that have both splits when None.
    damping : float or Damping
        c of λ = c·tr(H)/n, or ``Damping(absolute=λ)``.
    mix : float
        Share of the targets' own kernel, 0 to 1: what all targets have in common counts less.
    of : {"loss", "output"}
        As in :func:`grad_dot_scores`; a cosine keeps only its sign, kernels are of stored rows.
    gram_dtype : {"float32", "float64"}
        Of the products within a tile of the gram.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.
    allow_other_weights : bool
        Score also where targets and train rows of an epoch were made with different checkpoints.

    Returns
    -------
    Scores
        (target, train), shape (m, n), float32. Lengths of all rows are computed here, in a pass of
        their own over both splits, and held: 8 (m + n) bytes an epoch.

    Raises
    ------
    TrakStoreError
        A ``mix`` outside of 0 to 1.
    NumericsError
        A kernel that is singular at this damping.
    MemoryLimitError
        A gram does not fit.

    References
    ----------
    Chang, Rajagopal, Bolukbasi, Dixon, Tenney: "Scalable Influence and Fact Tracing for Large
    Language Model Pretraining", 2024, section 3.
    """
    check_of(of, store)
    mix = as_number(mix, "mix", least=0, most=1, needed="is a share from 0 to 1")
    damped = Damping.of(damping)
    pairs = epoch_pairs(store, targets, train, epochs, allow_other_weights=allow_other_weights)
    parts: list[Part] = []
    limit = memory_budget(memory_limit)
    how: Any = {"dtype": gram_dtype, "memory_limit": limit}
    sides = [side for pair in pairs for side in (pair.train, pair.target)[: 2 if mix else 1]]
    kernels = [side.stored for side in sides]
    with kernels_together(kernels, damped, solver=Cholesky() if mix else None, **how):
        for pair in pairs:
            held = held_bytes(parts)
            left = max(1, limit - held)
            if mix == 0:  # out of core where the targets have no part in it
                factor = factor_split(pair.train.stored, damped, held=held, **how)
            else:
                factor = _mixed(pair, damped, mix, gram_dtype, left)
            parts.append(
                part_of(
                    pair,
                    factor,
                    kernel=f"mix {mix}" if mix else "",
                    row_scale=_inverse_length(pair.target, factor, of, left),
                    column_scale=_inverse_length(pair.train, factor, of, left),
                )
            )
    return scores_of("whitened_cos", parts, pairs)


def _mixed(
    pair: EpochPair,
    damping: Damping,
    mix: float,
    dtype: GramDtype,
    memory_limit: int,
) -> Factor:
    """H of an epoch with the targets in it, factored."""
    own = split_gram(pair.train.stored, dtype=dtype, memory_limit=memory_limit)
    other = split_gram(pair.target.stored, dtype=dtype, memory_limit=memory_limit)
    matrix = (1 - mix) * own.matrix + mix * own.rows / other.rows * other.matrix
    mixed: Gram = replace(own, matrix=matrix, trace=float(np.trace(matrix)))
    return Cholesky().factor(mixed, damping)


def _inverse_length(split: UnmaskedSplit, factor: Factor, of: Of, memory_limit: int) -> Rows:
    squared = quadratic_form(split.column("features"), factor, memory_limit=memory_limit)
    length = ArrayRows(np.sqrt(np.maximum(squared, 0)))
    return InverseRows(length, gradient_scale(split, of))
