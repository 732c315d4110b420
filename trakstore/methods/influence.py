"""Influence functions in the projected space, and self-scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import xarray as xr

from trakstore.errors import TrakStoreError
from trakstore.kernels.gram import GramDtype
from trakstore.kernels.inverse_metric import quadratic_form
from trakstore.kernels.many_epochs import factors_of
from trakstore.kernels.row_weights import KernelSplit, WeightedSplit, weighting_of
from trakstore.kernels.solvers import Damping, Solver
from trakstore.methods.epochs import EpochPair, check_of, epoch_pairs, part_of, scores_of
from trakstore.methods.sampled_kernel import TRAIN_DAMPING, KernelRows, sampled_kernel
from trakstore.passes.gpu import as_device
from trakstore.passes.rows import whole_column
from trakstore.quantities import is_one_of
from trakstore.scores.factored import Scores
from trakstore.storage.layout import Epoch
from trakstore.storage.store import FeatureStore

Hessian: TypeAlias = Literal["loss", "gauss_newton"]

# Second derivative of the loss with respect to the output, by name of the output: a weighting, or the
# constant 1.
_CURVATURE = {
    **dict.fromkeys(("margin", "causal_lm", "masked_lm", "contrastive"), "logistic"),
    "squared_error": "",
}


def influence_scores(
    store: FeatureStore,
    targets: str = "test",
    train: str = "train",
    epochs: Epoch | Sequence[Epoch] | None = None,
    damping: float | Damping | None = None,
    *,
    kernel: KernelRows = None,
    hessian: Hessian = "gauss_newton",
    solver: Solver | None = None,
    gram_dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
    device: str = "cpu",
    allow_other_weights: bool = False,
) -> Scores:
    r"""Compute influence functions in the space of the projection, averaged over epochs.

    .. math:: \tau(t, z) = \nabla l(t)^\top (H + \lambda I)^{-1} \nabla l(z)

    with projected loss gradients ∇l = −q·φ. The Hessian is that of the k projected coordinates, not of
    all parameters. Positive: giving the sample more weight lowers the target's loss.

    Parameters
    ----------
    store : FeatureStore
        Open store that holds both splits.
    targets, train : str
        Names of splits with m and n rows.
    epochs : epoch or sequence of epochs, optional
        Epochs to combine; by default all that have both splits.
    damping : float or Damping, optional
        c in λ = c·tr(H)/n, or ``Damping(absolute=λ)``; by default 1, for a sampled kernel 0.1.
    kernel : {"train", "sampled"}, optional
        Rows of H. ``"sampled"``: those of the split ``train~sampled``, samples whose labels were drawn
        from the model (``featurize(labels="sampled")``): H = Σ ∇l ∇lᵀ / draws, the Gauss-Newton matrix
        also where outputs are sequences, whose ∇l are sums over n tokens divided by √n where the loss
        is their mean; the mean over epochs then weighs checkpoints by 1/√λ, since gradients grow
        while a model is trained. When None: those, where there are some at all epochs, ``hessian`` is
        not ``"loss"`` and the output is not the margin.
    hessian : {"gauss_newton", "loss"}
        ``"gauss_newton"``: H = Σᵢ l''ᵢ φᵢ φᵢᵀ, with the loss's second derivative in the output:
        q (1 − q) for the margin and other log-odds, 1 for the squared error, whose loss is
        (output − y)²/2. ``"loss"``: H = Σᵢ ∇lᵢ ∇lᵢᵀ, the empirical Fisher matrix.
    solver : Solver, optional
        Solver from :mod:`trakstore.kernels`; by default chosen by shape and memory.
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
        (target, train), shape (m, n), float32.

    Raises
    ------
    TrakStoreError
        When ``hessian`` is unknown, or is ``"gauss_newton"`` for an output whose curvature is unknown.
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
    Koh, Liang: "Understanding Black-box Predictions via Influence Functions", ICML 2017; Grosse et
    al.: "Studying Large Language Model Generalization with Influence Functions", 2023, section 2.

    Examples
    --------
    >>> scores = ts.influence_scores(store, hessian="loss")
    >>> ts.top_k(scores, 3)["train"].values[0].tolist()
    ['train-9', 'train-15', 'train-12']
    """
    check_of("loss", store)
    if not is_one_of(hessian, get_args(Hessian)):
        raise TrakStoreError(f"hessian must be 'gauss_newton' or 'loss', got {hessian!r}")
    damped = Damping.of(TRAIN_DAMPING if damping is None else damping)
    device = as_device(device)
    pairs = epoch_pairs(store, targets, train, epochs, allow_other_weights=allow_other_weights)
    # τ = (q_t φ_t) (H + λI)⁻¹ (q_z φ_z): q of the target scales rows, q of the train sample columns.
    scales = [pair.gradient_scales() for pair in pairs]
    sampled = sampled_kernel(store, pairs, train, "train" if hessian == "loss" else kernel)
    kernels: Sequence[KernelSplit]
    if sampled:
        kernels, damped = sampled.rows, sampled.damping(damping)
    else:
        kernels = [_curved(store, pair, hessian) for pair in pairs]
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
            kernel=weighting_of(split),
            **(sampled.part_values(factor, split) if sampled else {}),
            **scale,
        )
        for pair, split, scale, factor in zip(pairs, kernels, scales, factors, strict=True)
    ]
    scores = scores_of("influence", parts, pairs)
    return scores.to(device)


def _curved(store: FeatureStore, pair: EpochPair, hessian: Hessian) -> KernelSplit:
    """Return the train split with the weights of its Hessian."""
    if hessian == "loss":
        # With ∇l = −q φ, Σ ∇lᵢ ∇lᵢᵀ is the kernel of rows with weights q².
        return WeightedSplit(pair.train.stored, "loss")
    spec = store.spec.output
    output = None if spec is None else spec.name
    if spec is None or output not in _CURVATURE or dict(spec.options).get("over") == "loss":
        raise TrakStoreError(
            f"the second derivative of the loss in the output {output!r} is not known (it is for "
            f"{', '.join(_CURVATURE)}): use hessian='loss'"
        )
    # The squared error (output − y)²/2 has second derivative 1, so that its kernel is the unweighted
    # one.
    logistic = _CURVATURE[output] == "logistic"
    return WeightedSplit(pair.train.stored, "logistic") if logistic else pair.train.stored


def self_scores(
    store: FeatureStore,
    split: str = "train",
    epochs: Epoch | Sequence[Epoch] | None = None,
    damping: float | Damping = 1.0,
    *,
    solver: Solver | None = None,
    gram_dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
) -> xr.DataArray:
    r"""Compute TRAK's score of each sample on itself: how much its own output relies on it.

    .. math:: \tau_i = \mathrm{mean}_c[\varphi_{ci}^\top (K_c + \lambda_c I)^{-1} \varphi_{ci}]
              \cdot \mathrm{mean}_c[Q_{ci}]

    Large for samples that nothing else explains: mislabelled, rare, or hard ones.

    Parameters
    ----------
    store : FeatureStore
        Open store that holds the split.
    split : str
        Name of a split with n unmasked rows, which also make the kernel.
    epochs : epoch or sequence of epochs, optional
        Checkpoints to average over; all that have the split when None.
    damping : float or Damping
        c of λ = c·tr(K)/n, or ``Damping(absolute=λ)``.
    solver : Solver, optional
        Solver from :mod:`trakstore.kernels`; by default chosen by shape and memory.
    gram_dtype : {"float32", "float64"}
        Dtype of the products within a tile of the gram.
    memory_limit : int or str, optional
        Bytes of one process for the grams; a quarter of the available memory when None.

    Returns
    -------
    DataArray
        Dimension ``train``, shape (n,), float64; coordinates ``train_id`` and ``position`` (rows of
        the stored split), both non-index. In memory.

    Raises
    ------
    NotFoundError
        When there is no such epoch, split or column.
    IncompleteError
        When rows of the split are missing.
    NumericsError
        When features are not finite, or a kernel is singular at this damping.
    MemoryLimitError
        When a gram does not fit.

    Examples
    --------
    >>> own = ts.self_scores(store)
    >>> own.shape, bool((own > 0).all())
    ((24,), True)
    >>> own.train_id.values[own.values.argmax()]
    'train-10'
    """
    damped, pairs = Damping.of(damping), epoch_pairs(store, split, split, epochs)
    lengths, scales = [], []
    kernels = [pair.train.stored for pair in pairs]
    how: Any = {"solver": solver, "dtype": gram_dtype, "memory_limit": memory_limit}
    for pair, factor in zip(pairs, factors_of(kernels, damped, kept=False, **how), strict=True):
        scales.append(whole_column(pair.train.out_to_loss()).astype(np.float64))
        features = pair.train.column("features")
        # Only one factor is held at a time, since only its lengths are kept.
        lengths.append(quadratic_form(features, factor, memory_limit=memory_limit))
    one = pairs[0].train
    coords = {
        "train_id": ("train", whole_column(one.column("sample_id"))),
        "position": ("train", whole_column(one.positions)),
    }
    # Like TRAK with average="factors": lengths and Q are averaged over checkpoints separately, then
    # multiplied.
    values = np.mean(lengths, axis=0) * np.mean(scales, axis=0)
    return xr.DataArray(values, dims="train", coords=coords, name="self_score")
