"""Influence without projection for a few targets, by conjugate gradients that a store speeds up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeAlias

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from trakstore.attributors.gradient_rows import GradientRows
from trakstore.errors import NotFoundError, SpecMismatchError, TrakStoreError
from trakstore.features.devices import worker_device, working_on
from trakstore.features.evaluated import evaluated
from trakstore.features.fingerprint import checkpoint_hash
from trakstore.features.job import Job
from trakstore.features.wanted_spec import check_job
from trakstore.kernels.iterative import RowsKernel
from trakstore.kernels.many_epochs import factors_of
from trakstore.kernels.row_weights import loss_gradient_rows, masked_rows
from trakstore.kernels.solvers import F64, Damping, Factor
from trakstore.methods.epochs import EpochPair, epoch_pairs
from trakstore.methods.sampled_kernel import SampledKernel, sampled_kernel
from trakstore.passes.memory import memory_budget
from trakstore.passes.rows import Rows, take, whole_column
from trakstore.quantities import as_whole
from trakstore.scores.places import Index
from trakstore.scores.places import positions as positions_of
from trakstore.storage.dropped_rows import dropped_error
from trakstore.storage.layout import Epoch
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore

Positions: TypeAlias = NDArray[np.int64]
_Map: TypeAlias = Callable[[F64], F64]


def unprojected_scores(
    job: Job,
    store: FeatureStore,
    targets: str = "test",
    train: str = "train",
    epochs: Epoch | Sequence[Epoch] | None = None,
    damping: float | Damping | None = None,
    *,
    rows: Index | None = None,
    iterations: int = 2,
    device: str | None = None,
    memory_limit: int | str | None = None,
) -> xr.DataArray:
    r"""Compute influence functions of whole gradients, for a few targets, with the help of a store.

    .. math:: \tau(t, z) = \nabla l(t)^\top (G^\top G / d + \lambda I)^{-1} \nabla l(z)

    averaged over epochs, where G are the gradients of the train samples with d draws of labels each.
    These are :func:`~trakstore.influence_scores` with ``kernel="sampled"``, without the noise of the
    projection. Nothing of the size of G is held. With

    .. math:: (G^\top G + \lambda I)^{-1} = (I - G^\top (G G^\top + \lambda I)^{-1} G) / \lambda

    conjugate gradients run in the space of the samples, where the store has ΦΦᵀ ≈ GGᵀ: its inverse is
    the preconditioner, and its scores are the starting point. Each iteration computes all gradients of
    G twice. Two further passes over G, and one over the train samples, are needed for any number of
    targets: two iterations take about six times as long as featurizing the drawn labels.

    Parameters
    ----------
    job : Job
        Job from which the store was made, with ``sampled`` and the weights of the epochs.
    store : FeatureStore
        Open store with the targets, the train samples, and these with drawn labels.
    targets, train : str
        Names of splits.
    epochs : epoch or sequence of epochs, optional
        Epochs to average; by default all that have both splits.
    damping : float or Damping, optional
        c in λ = c·tr(K)/n, with the store's kernel K, or ``Damping(absolute=λ)``; by default 0.1.
        Without projection a smaller value is better than with it.
    rows : int, slice, sequence of int, or array of bool, optional
        Positions of targets in their stored split, or a mask over all its rows; negative ones count
        from the end. By default all that are not masked. A gradient of each target is held, with three
        further vectors of that size.
    iterations : int
        Steps from the store's answer. With 0, the store's α is used between gradients that are not
        projected.
    device : str, optional
        Device of the model; by default the GPU if there is one.
    memory_limit : int or str, optional
        Bytes for the store's kernel; a quarter of the available memory when None.

    Returns
    -------
    DataArray
        Dimensions ``target`` and ``train``, float32, with the coordinates ``target_id`` and
        ``train_id``. Positive: giving the sample more weight lowers the target's loss.

    Raises
    ------
    NotFoundError
        When the store has no drawn labels, or no such epoch, split or row, or the row is masked.
    IncompleteError
        When the features of targets or drawn labels were dropped, and only their gram is left.
    SpecMismatchError
        When data, weights, output, parameters, projection, scale or precision of the job are not those
        of the store.
    TrakStoreError
        When ``rows`` is empty, or neither positions nor a mask.
    NumericsError
        When a gradient is not finite.

    References
    ----------
    Martens: "Deep learning via Hessian-free optimization", ICML 2010, for the conjugate gradients.

    Examples
    --------
    >>> projection = ts.ProjectionSpec("rademacher", dim=8)
    >>> from trakstore.features import Job, featurize_job
    >>> job = Job(model, {"train": train, "test": test}, projector=projection, sampled=2)
    >>> done = featurize_job(job, "memory://sampled", progress=False)
    >>> unprojected_scores(job, ts.open_store("memory://sampled"), rows=[0]).sizes
    Frozen({'target': 1, 'train': 24})
    """
    iterations = as_whole(iterations, "iterations", 0)
    pairs = epoch_pairs(store, targets, train, epochs)
    kernel = sampled_kernel(store, pairs, train, "sampled")
    assert kernel is not None
    chosen = _chosen(pairs[0].target.stored, rows)
    place = worker_device(device)
    # Hours of gradients may pass before the first stored row is read: everything is checked first.
    _need_rows([*(pair.target.stored for pair in pairs), *(one.stored for one in kernel.rows)])
    check_job(job, store, place, "give the job that the store was made from")
    limit = memory_budget(memory_limit)
    own = kernel.damping(damping)
    factors = factors_of(kernel.rows, own, memory_limit=limit, kept=False)
    total, shares = np.zeros((len(chosen), pairs[0].train.rows)), 0.0
    with job.lent():
        for at, (pair, split, factor) in enumerate(zip(pairs, kernel.rows, factors, strict=True)):
            job.load(pair.epoch)
            with evaluated(job.model, place), working_on(place, job.precision):
                _check_weights(job, pair.train.stored)
                one = _Epoch.of(job, store, pair, kernel, at, chosen, factor, place, limit)
                # The epochs are weighted as in influence_scores.
                share = 1 / kernel.part_values(factor, split)["length"]
                total += share * one.scores(iterations)
                shares += share
    coords = {
        "target_id": ("target", whole_column(pairs[0].target.stored.column("sample_id"))[chosen]),
        "train_id": ("train", whole_column(pairs[0].train.column("sample_id"))),
    }
    values = (total / shares).astype(np.float32)
    return xr.DataArray(values, dims=("target", "train"), coords=coords, name="unprojected")


def _chosen(split: Split, rows: Index | None) -> Positions:
    if rows is None:
        return _unmasked(split)
    chosen = np.asarray(positions_of(rows, split.rows, "rows"), dtype=np.int64)
    if not len(chosen):
        raise TrakStoreError(
            f"rows= selects none of the {split.rows} rows of {split.name}: name some"
        )
    masked = np.intersect1d(chosen, masked_rows(split))
    if len(masked):
        raise NotFoundError(
            f"rows {masked.tolist()[:5]} of {split.name} are masked: leave them out of rows="
        )
    return chosen


def _unmasked(split: Split) -> Positions:
    return np.setdiff1d(np.arange(split.rows), masked_rows(split))


def _taken(rows: Rows, chosen: Positions) -> F64:
    return np.asarray(take(rows, chosen).read(0, len(chosen)), dtype=np.float64)


def _need_rows(splits: Sequence[Split]) -> None:
    """Refuse splits whose features were deleted."""
    for split in splits:
        if split.dropped:
            raise dropped_error(split.path, "unprojected_scores needs the rows of all epochs")


def _check_weights(job: Job, split: Split) -> None:
    """Refuse weights other than those of the split."""
    weights = checkpoint_hash(job.model)
    if split.spec.checkpoint not in (None, weights):
        raise SpecMismatchError(
            f"{split.name} of epoch {split.epoch!r} was made with the weights "
            f"{str(split.spec.checkpoint)[:12]}, the job has {weights[:12]} for it"
        )


@dataclass(frozen=True)
class _Epoch:
    """Gradients of one epoch, and the store's kernel of it.

    Attributes
    ----------
    target, train, drawn : GradientRows
        Gradients; the drawn ones are G.
    projected : ndarray, shape (m, k)
        Stored loss gradients t̂ of the targets.
    kernel : RowsKernel
        Stored rows Φ of the drawn samples, with the signs of G.
    factor : Factor
        ΦᵀΦ + λI, with λ for the sum over all draws.
    draws : int
    """

    target: GradientRows
    train: GradientRows
    drawn: GradientRows
    projected: F64
    kernel: RowsKernel
    factor: Factor
    draws: int

    @classmethod
    def of(
        cls,
        job: Job,
        store: FeatureStore,
        pair: EpochPair,
        kernel: SampledKernel,
        at: int,
        chosen: Positions,
        factor: Factor,
        device: torch.device,
        limit: int,
    ) -> _Epoch:
        drawn = kernel.rows[at]
        train = pair.train.stored
        gradients = partial(GradientRows.of, job, store.spec)
        projected = _taken(pair.target.stored.column("features"), chosen)
        projected *= whole_column(pair.target.stored.column("out_to_loss"))[chosen, None]
        # A row of the store and a row of G must have the same sign, since the start and the
        # preconditioner go from one space to the other. Only solvers need the trace, and the factor is
        # there already.
        stored = RowsKernel(loss_gradient_rows(drawn), 0.0, limit)
        return cls(
            gradients(pair.target.stored, chosen, device),
            gradients(train, _unmasked(train), device),
            gradients(drawn.stored, _unmasked(drawn.stored), device),
            projected,
            stored,
            factor,
            kernel.draws,
        )

    def scores(self, iterations: int) -> F64:
        """Compute the scores of the targets (target, train)."""
        queries, damping = self.target.matrix(), self.factor.damping
        # The store's own answer α = t̂ (ΦᵀΦ + λI)⁻¹ Φᵀ is a better start than its inverse applied to
        # the whole gradients' tGᵀ, in which λ divides the noise of the projection.
        start = self.kernel.project(self.factor.solve(self.projected))
        state = _Solution(self.drawn, damping, self._preconditioned, queries, start)
        for _ in range(iterations):
            state.step()
        # The sum over draws is draws times the Gauss-Newton matrix, and so is its λ.
        return self.train.products((queries - state.lifted) * (self.draws / damping))

    def _preconditioned(self, values: F64) -> F64:
        """Compute ``values`` (ΦΦᵀ + λI)⁻¹, shapes (m, rows) -> (m, rows), by the k x k factor."""
        inner = self.factor.solve(self.kernel.combine(values))
        return (values - self.kernel.project(inner)) / self.factor.damping


class _Solution:
    """Conjugate gradients for α (GGᵀ + λI) = t Gᵀ, each target's α on its own.

    Parameters
    ----------
    drawn : GradientRows
        G.
    damping : float
        λ.
    preconditioned : callable
        Product with an approximation of (GGᵀ + λI)⁻¹.
    queries : Tensor, shape (m, parameters)
        Gradients t of the targets.
    start : ndarray, shape (m, rows)
        First α.

    Attributes
    ----------
    lifted : Tensor, shape (m, parameters)
        α G, the only part of α that is needed.
    """

    def __init__(
        self, drawn: GradientRows, damping: float, preconditioned: _Map, queries: Tensor, start: F64
    ) -> None:
        self._drawn, self._damping, self._preconditioned = drawn, damping, preconditioned
        self._queries, self._start = queries, start
        self.lifted = drawn.combined(start)

    @cached_property
    def _residual(self) -> F64:
        # t Gᵀ − α (GGᵀ + λI) needs one pass over the rows, since t and α G are known.
        return self._drawn.products(self._queries - self.lifted) - self._damping * self._start

    @cached_property
    def _direction(self) -> F64:
        return self._preconditioned(self._residual)

    @cached_property
    def _squared(self) -> F64:
        """Squared norm of each residual in the metric of the preconditioner."""
        return _dots(self._residual, self._direction)

    def step(self) -> None:
        """Take one step, by two passes over the rows."""
        squared, direction = self._squared, self._direction
        lifted = self._drawn.combined(direction)
        applied = self._drawn.products(lifted) + self._damping * direction
        step = _over(squared, _dots(direction, applied))[:, None]
        self.lifted += torch.from_numpy(step).to(lifted) * lifted
        self._residual -= step * applied
        turned = self._preconditioned(self._residual)
        self._squared = _dots(self._residual, turned)
        self._direction = turned + _over(self._squared, squared)[:, None] * direction


def _dots(left: F64, right: F64) -> F64:
    return np.asarray(np.einsum("ij,ij->i", left, right))


def _over(numbers: F64, others: F64) -> F64:
    """Divide; 0 for a target that is solved to the last digit, which takes no further step."""
    return np.divide(numbers, others, out=np.zeros_like(others), where=others > 0)
