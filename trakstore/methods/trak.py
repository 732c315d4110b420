"""TRAK scores from a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trakstore.errors import TrakStoreError
from trakstore.kernels.choice import factor_rows
from trakstore.kernels.gram import GramDtype
from trakstore.kernels.many_epochs import factors_of
from trakstore.kernels.row_weights import KernelSplit, TemperedRows, WeightedSplit, weighting_of
from trakstore.kernels.solvers import Damping, Solver
from trakstore.methods.epochs import EpochPair, epoch_pairs, part_of, scores_of
from trakstore.methods.sampled_kernel import (
    TRAIN_DAMPING,
    KernelRows,
    need_kernel_rows,
    sampled_kernel,
)
from trakstore.passes.gpu import as_device
from trakstore.passes.rows import ArrayRows, PositionRows, Rows
from trakstore.quantities import as_number, is_one_of
from trakstore.scores.factored import Average, Scores, SoftThreshold
from trakstore.scores.parts import Part
from trakstore.storage.layout import Epoch
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore

Temperature: TypeAlias = float | Literal["auto"] | None
# The best of 1, 1.5, 2, 3, 4 and 6 for two of three sets of retrained models.
TEMPERATURE = 2.0


def trak_scores(
    store: FeatureStore,
    targets: str = "test",
    train: str = "train",
    epochs: Epoch | Sequence[Epoch] | None = None,
    damping: float | Damping | None = None,
    *,
    kernel: KernelRows = None,
    temperature: Temperature = "auto",
    average: Average | Literal["auto"] = "auto",
    soft_threshold: SoftThreshold = 0.0,
    solver: Solver | None = None,
    gram_dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
    device: str = "cpu",
    allow_other_weights: bool = False,
) -> Scores:
    r"""Compute TRAK: how training on each sample moves each target's model output.

    .. math:: \tau = \mathrm{mean}_c[T_c (K_c + \lambda_c I)^{-1} \Phi_c^\top \mathrm{diag}(Q_c)],
              \qquad K_c = \Phi_c^\top \mathrm{diag}(Q_c (1 - Q_c)) \Phi_c

    with T and Φ the target and train features of checkpoint c, λ_c = damping · tr(K_c) / n and
    Q = 1 − p at a temperature: p the logistic function of output/temperature. Positive: training on
    the sample raised the target's output.

    Each checkpoint's part is a Newton step of logistic regression. The paper's own form,
    ``temperature=None``, has no weights in the kernel (K = ΦᵀΦ), uses Q = ``out_to_loss``, the 1 − p of
    a model that has seen the sample, and averages Q separately. A model that fits its data is too
    certain of them, so that a sample's Q is far too small there. At temperature 2 scores agree better
    with retrained models (``benchmarks/accuracy.py``).

    Parameters
    ----------
    store : FeatureStore
        Open store that holds both splits.
    targets, train : str
        Names of splits with m and n rows.
    epochs : epoch or sequence of epochs, optional
        Checkpoints to average over; by default all that have both splits.
    damping : float or Damping, optional
        c, or ``Damping(absolute=λ)``; by default 1, for a sampled kernel 0.1.
    kernel : {"train", "sampled"}, optional
        Rows of K. ``"sampled"``: rows of the split ``train~sampled``, whose labels were drawn from the
        model (``featurize(labels="sampled")``). Then K = Σ q²·φφᵀ / draws, the Gauss-Newton matrix;
        there is no temperature, Q = ``out_to_loss``, and the mean weighs checkpoints by 1/√λ_c, since
        gradients grow during training. By default ``"sampled"`` if all epochs have such rows, no
        temperature is given and the output is not the margin, else ``"train"``.
    temperature : float, "auto" or None
        Temperature, above 0. ``"auto"``: 2 if the store's output is the margin, else None, since whole
        sequences are so unlikely that p (1 − p) is no useful weight. None: K = ΦᵀΦ and Q =
        ``out_to_loss``.
    average : {"auto", "factors", "scores"}
        ``"scores"``: the mean of the checkpoints' scores, as above. ``"factors"``: mean_c[T_c (K_c +
        λ_c I)⁻¹ Φ_cᵀ] diag(mean_c[Q_c]), as in the paper. This is for equally well trained models, not
        for epochs of one training, where Q of the first epochs would weigh the products of the last.
        ``"auto"``: ``"factors"`` without a temperature and with K of train rows, else ``"scores"``.
    soft_threshold : float or "auto"
        s >= 0: each score becomes ``sign(τ)·max(|τ| − s, 0)``. The paper does this for sparse scores,
        and chooses s by cross-validation. ``"auto"``: for each target the median of ``|τ|`` over
        0.6745, the standard deviation of normal noise with that median. If few of many samples matter,
        as for language models, it removes most of the projection's noise (``benchmarks/README.md``); if
        most samples matter, it does harm. Of more than 4,096 train rows a sample from 64 places is
        used.
    solver : Solver, optional
        Solver from :mod:`trakstore.kernels`. By default ``Dual()`` for n < k, ``BlockedCholesky()`` for
        a gram that does not fit the memory limit, else ``Cholesky()``.
    gram_dtype : {"float32", "float64"}
        Dtype of the products within a tile of the gram.
    memory_limit : int or str, optional
        Bytes of one process for the grams; a quarter of the available memory when None.
    device : str
        Device for grams and tiles of scores, such as ``"cuda"`` (by torch). A worker that cannot use it
        warns and uses the CPU, as solvers always do.
    allow_other_weights : bool
        Whether to compute scores even if targets and train rows of an epoch were made with different
        checkpoints.

    Returns
    -------
    Scores
        Scores (target, train), shape (m, n), float32, in factored form. The train features were read
        once for the gram, and are read again by every operation on the scores.

    Raises
    ------
    TrakStoreError
        When ``average`` or ``kernel`` is unknown, a temperature is not above 0 or is given with a
        sampled kernel, or a soft threshold is below 0.
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
    Park, Georgiev, Ilyas, Leclerc, Madry: "TRAK: Attributing Model Behavior at Scale", ICML 2023,
    section 3.

    Examples
    --------
    >>> scores = ts.trak_scores(store)
    >>> scores
    <Scores trak (target: 6, train: 24), epochs 2, 5, 15>
    >>> ts.top_k(scores, 3)["train"].values[0].tolist()
    ['train-9', 'train-15', 'train-18']
    """
    if not is_one_of(average, (*get_args(Average), "auto")):
        raise TrakStoreError(f"average must be 'auto', 'factors' or 'scores', got {average!r}")
    if not is_one_of(soft_threshold, ("auto",)):
        needed = "must be a number >= 0 or 'auto'"
        soft_threshold = as_number(soft_threshold, "soft_threshold", least=0, needed=needed)
    damped = Damping.of(TRAIN_DAMPING if damping is None else damping)
    device = as_device(device)
    pairs = epoch_pairs(store, targets, train, epochs, allow_other_weights=allow_other_weights)
    need_kernel_rows(kernel)
    own = is_one_of(temperature, ("auto",))
    if kernel == "sampled" and not own and temperature is not None:
        raise TrakStoreError(f"a sampled kernel has no temperature, got {temperature!r}")
    rows = kernel if kernel or own else "train"
    sampled = sampled_kernel(store, pairs, train, rows)
    own_temperature = None if sampled else trak_temperature(store, temperature)
    # K and Q use the same softened probability: the weights of K are Q (1 − Q).
    kernels = [_kernel_split(pair.train.stored, own_temperature) for pair in pairs]
    if sampled:
        kernels, damped = list(sampled.rows), sampled.damping(damping)
    scales = [_train_scale(pair, own_temperature) for pair in pairs]
    factors = factors_of(
        kernels,
        damped,
        solver=solver,
        dtype=gram_dtype,
        memory_limit=memory_limit,
        device=device,
    )
    parts = [
        part_of(
            pair,
            factor,
            column_scale=scale,
            kernel=weighting_of(split),
            **(sampled.part_values(factor, split) if sampled else {}),
        )
        for pair, split, scale, factor in zip(pairs, kernels, scales, factors, strict=True)
    ]
    if average == "auto":
        average = "factors" if own_temperature is None and not sampled else "scores"
    scores = scores_of("trak", parts, pairs, average=average, soft_threshold=soft_threshold)
    return scores.to(device)


def trak_temperature(store: FeatureStore, asked: Temperature = "auto") -> float | None:
    """Return the temperature of :func:`trak_scores`, or None for none."""
    if is_one_of(asked, ("auto",)):
        # Whole sequences are so unlikely that q rounds to 1, and the weight q (1 − q) to 0.
        output = store.spec.output
        return TEMPERATURE if output is not None and output.name == "margin" else None
    if asked is None:
        return None
    return as_number(asked, "temperature", above=0, needed="must be above 0, 'auto' or None")


def _kernel_split(split: Split, temperature: float | None) -> KernelSplit:
    return split if temperature is None else WeightedSplit(split, "logistic", temperature)


def _train_scale(pair: EpochPair, temperature: float | None) -> Rows:
    """Return Q of the train rows."""
    scale = pair.train.out_to_loss()
    return scale if temperature is None else TemperedRows(scale, temperature)


def trak_scores_of_arrays(
    targets: NDArray[Any],
    train: NDArray[Any],
    out_to_loss: ArrayLike | None = None,
    damping: float | Damping = 1.0,
    *,
    solver: Solver | None = None,
    gram_dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
) -> Scores:
    """Compute :func:`trak_scores` with ``temperature=None`` for features that are in memory.

    Parameters
    ----------
    targets, train : ndarray of floats, shapes (m, k) and (n, k)
        T and Φ, which are not copied.
    out_to_loss : array_like, shape (n,), optional
        Q; by default one.
    damping : float or Damping
        c in λ = c·tr(K)/n, or ``Damping(absolute=λ)``.
    solver : Solver, optional
        Solver from :mod:`trakstore.kernels`; by default chosen by shape and memory.
    gram_dtype : {"float32", "float64"}
        Dtype of the products within a tile of the gram.
    memory_limit : int or str, optional
        Bytes of one process beside the features; a quarter of the available memory when None.

    Returns
    -------
    Scores
        Scores (target, train), shape (m, n); ids are positions. ``np.asarray`` forms the matrix.

    Raises
    ------
    TrakStoreError
        When shapes do not fit together.
    NumericsError
        When features are not finite, or a kernel is singular at this damping.
    MemoryLimitError
        When the kernel does not fit in any form.

    Examples
    --------
    >>> scores = trak_scores_of_arrays(np.eye(2), np.diag([1.0, 3.0]), damping=Damping(absolute=1))
    >>> np.asarray(scores)
    array([[0.5, 0. ],
           [0. , 0.3]], dtype=float32)
    """
    for what, array in (("targets", targets), ("train", train)):
        dtype = getattr(array, "dtype", None)
        if getattr(dtype, "kind", "") != "f" or array.ndim != 2:
            got = f"{dtype} of {array.shape}" if dtype is not None else type(array).__name__
            raise TrakStoreError(f"{what} must be floats of shape (rows, k), got {got}")
    scale = None if out_to_loss is None else ArrayRows(np.asarray(out_to_loss))
    if scale is not None and scale.shape != train.shape[:1]:
        raise TrakStoreError(f"out_to_loss has shape {scale.shape}, needed {train.shape[:1]}")
    rows = ArrayRows(train)
    factor = factor_rows(rows, damping, solver=solver, dtype=gram_dtype, memory_limit=memory_limit)
    part = Part(0, ArrayRows(targets), rows, factor, column_scale=scale)
    return Scores("trak", (part,), PositionRows(len(targets)), PositionRows(len(train)))
