"""Report on the kernel of a split: its spectrum, and how far its inverse can be trusted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigvalsh

from trakstore.errors import NumericsError
from trakstore.kernels.gram import Gram, GramDtype, check_gram_dtype
from trakstore.kernels.row_weights import (
    KernelSplit,
    WeightedSplit,
    no_weighting,
    weighted,
    weighting_of,
)
from trakstore.kernels.solvers import CONDITION_LIMIT, Damping
from trakstore.kernels.stored_grams import split_gram
from trakstore.markup import card, curve, facts_markup
from trakstore.methods.epochs import need_open
from trakstore.methods.trak import trak_temperature
from trakstore.planning import byte_count
from trakstore.storage.layout import Epoch
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore

# Share of the first eigenvalue to which smaller ones are raised in the drawing.
_NOISE = 1e-8


@dataclass(frozen=True, eq=False, repr=False)
class KernelReport:
    """The spectrum of K = ΦᵀWΦ, with eigenvalues σ₁ >= ... >= σ_k, and numbers derived from it.

    Attributes
    ----------
    epoch, split
        Names of the epoch and the split.
    weighting : str
        Weights of the rows, the diagonal W; ``""`` for none.
    n, dim : int
        Rows and columns of Φ.
    trace : float
        tr(K).
    eigenvalues : ndarray of float64, shape (dim,)
        Descending; below about 1e-7 of the first they are rounding noise.
    damping : float or None
        c in λ = c·tr(K)/n; None if λ itself was given.
    lam : float
        λ.
    condition : float
        σ₁/σ_k; inf where the smallest is not above zero or n < dim.
    damped_condition : float
        (σ₁ + λ)/(σ_k + λ).
    stable_rank : float
        tr(K)/σ₁.
    effective_rank : float
        exp of the entropy of σ/tr(K).
    effective_dim : float
        tr(K (K + λI)⁻¹).
    warnings : tuple of str
        Sentences that say what is wrong, and what to do.

    Examples
    --------
    >>> report = ts.kernel_report(store, epoch=15)
    >>> round(report.condition), round(report.effective_dim, 1)
    (45, 4.4)
    >>> print(report)
    KernelReport of train at epoch 15: 24 rows x 8, weights none
    λ = 7.73, c = 1; condition 44.6, damped 10.8
    rank: stable 1.9, effective 4.1; effective dimension 4.4
    """

    epoch: Epoch
    split: str
    weighting: str
    n: int
    dim: int
    trace: float
    eigenvalues: NDArray[np.float64]
    damping: float | None
    lam: float
    condition: float
    damped_condition: float
    stable_rank: float
    effective_rank: float
    effective_dim: float
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; numbers that are not finite become None."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    def __repr__(self) -> str:
        damping = "" if self.damping is None else f", c = {self.damping:g}"
        lines = [
            f"KernelReport of {self.split} at epoch {self.epoch}: {self.n:,} rows x {self.dim:,}, "
            f"weights {self.weighting or 'none'}",
            f"λ = {self.lam:.3g}{damping}; condition {self.condition:.3g}, damped "
            f"{self.damped_condition:.3g}",
            f"rank: stable {self.stable_rank:.1f}, effective {self.effective_rank:.1f}; effective "
            f"dimension {self.effective_dim:.1f}",
        ]
        return "\n".join([*lines, *(f"warning: {line}" for line in self.warnings)])

    def _repr_html_(self) -> str:
        """Show the numbers, the spectrum as a line, and the warnings in a notebook."""
        numbers = {
            "kernel of": f"{self.split} at epoch {self.epoch}, {self.n:,} rows x {self.dim:,}",
            "rows' weights": self.weighting or "none",
            "damping": f"λ = {self.lam:.3g}"
            + ("" if self.damping is None else f", c = {self.damping:g}"),
            "condition number": f"{self.condition:.3g}, damped {self.damped_condition:.3g}",
            "stable, effective rank": f"{self.stable_rank:.1f}, {self.effective_rank:.1f}",
            "effective dimension": f"{self.effective_dim:.1f}",
            **{f"warning {at}": line for at, line in enumerate(self.warnings, 1)},
        }
        # Eigenvalues fall over many powers of ten, and the last may be rounding below 0.
        heights = np.log10(self.eigenvalues.clip(_NOISE * self.eigenvalues[0])).tolist()
        label = f"eigenvalues, first to last, logarithmic: {self.eigenvalues[0]:.3g} and falling"
        return card("KernelReport", facts_markup(numbers), curve(heights, label))


def kernel_report(
    store: FeatureStore,
    epoch: Epoch,
    split: str = "train",
    damping: float | Damping = 1.0,
    *,
    weighting: str = "auto",
    gram_dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
) -> KernelReport:
    """Report the spectrum, condition, ranks and damping of the kernel ΦᵀWΦ of one epoch and split.

    Parameters
    ----------
    store : FeatureStore
        Open store that holds the split.
    epoch : int or str
        Epoch of the features.
    split : str
        Name of the split whose unmasked rows make the kernel.
    damping : float or Damping
        c in λ = c·tr(K)/n, or ``Damping(absolute=λ)``, as in the score methods.
    weighting : str
        W. ``"auto"``: the default weights of :func:`~trakstore.trak_scores`. ``"none"``: 1, as in the
        TRAK paper and the whitened cosine. ``"logistic"``: Q(1 − Q), as in influence functions of a
        margin; ``"logistic-T"``, the same at temperature T. ``"loss"``: Q².
    gram_dtype : {"float32", "float64"}
        Dtype of the products within a tile.
    memory_limit : int or str, optional
        Bytes of one process for the gram; a quarter of the available memory when None.

    Returns
    -------
    KernelReport

    Raises
    ------
    NotFoundError
        When there is no such epoch or split.
    IncompleteError
        When rows are missing.
    TrakStoreError
        When there is no such weighting.
    NumericsError
        When features are not finite, or all zero.
    MemoryLimitError
        When the gram does not fit.

    Examples
    --------
    >>> report = ts.kernel_report(store, epoch=15, damping=0.1)
    >>> report.n, report.dim, report.eigenvalues.shape
    (24, 8, (8,))
    >>> report.damped_condition < report.condition
    True
    """
    need_open(store)
    check_gram_dtype(gram_dtype)
    damped = Damping.of(damping)
    if memory_limit is not None:
        byte_count(memory_limit)  # a stored gram needs no memory limit, and would not look at it
    stored = store.split(epoch, split)
    stored.require_complete()
    rows = weighted(stored, _weighting(store, stored, weighting))
    kernel = split_gram(rows, dtype=gram_dtype, memory_limit=memory_limit)
    if kernel.trace == 0:
        raise NumericsError(
            f"all {kernel.rows} rows of split {split!r} at epoch {epoch!r} are zero"
        )
    return _report(kernel, damped, rows)


def _weighting(store: FeatureStore, split: Split, asked: str) -> str:
    if not isinstance(asked, str):
        raise no_weighting(asked)
    if asked != "auto":
        return "" if asked == "none" else asked
    temperature = trak_temperature(store)
    # As in trak_scores: without a temperature, or without q, every row has weight one.
    if temperature is None or "out_to_loss" not in dict(split.spec.columns):
        return ""
    return WeightedSplit(split, "logistic", temperature).weighting


def _report(kernel: Gram, damping: Damping, split: KernelSplit) -> KernelReport:
    # Eigenvectors would cost several times as much, and another matrix.
    values = eigvalsh(kernel.matrix)[::-1].copy()
    # Rounding makes some eigenvalues that should be 0 negative.
    positive = np.maximum(values, 0.0)
    lam = damping.value(kernel.trace, kernel.rows)
    first, last = float(positive[0]), float(positive[-1])
    # With fewer rows than columns the rank is below k: a smallest eigenvalue above 0 is rounding.
    full = last > 0 and kernel.rows >= kernel.dim
    condition = first / last if full else float("inf")
    damped_condition = (first + lam) / (last + lam) if lam > 0 else condition
    return KernelReport(
        epoch=split.epoch,
        split=split.name,
        weighting=weighting_of(split),
        n=kernel.rows,
        dim=kernel.dim,
        trace=kernel.trace,
        eigenvalues=values,
        damping=None if damping.relative is None else float(damping.relative),
        lam=lam,
        condition=condition,
        damped_condition=damped_condition,
        stable_rank=float(positive.sum() / first),
        effective_rank=_effective_rank(positive),
        effective_dim=_effective_dim(positive, lam),
        warnings=_warnings(kernel, condition, damped_condition),
    )


def _effective_rank(values: NDArray[np.float64]) -> float:
    # Of the smallest eigenvalues the share underflows to 0, where p log p is 0 too.
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def _effective_dim(values: NDArray[np.float64], lam: float) -> float:
    values = values[values > 0]
    return float((values / (values + lam)).sum())


def _warnings(kernel: Gram, condition: float, damped: float) -> tuple[str, ...]:
    sentences = []
    if kernel.rows < kernel.dim:
        sentences.append(
            f"singular without damping: rank <= n = {kernel.rows} < k = {kernel.dim}; "
            f"keep damping > 0"
        )
    elif condition > CONDITION_LIMIT:
        sentences.append(
            f"nearly singular without damping: condition number {condition:.1e}, small eigenvalues "
            f"are rounding noise; keep damping > 0"
        )
    if damped > CONDITION_LIMIT:
        sentences.append(
            f"condition number {damped:.1e} at this damping: use a larger one, for example 1.0"
        )
    return tuple(sentences)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
