"""Rows of a split that enter its kernel, and their weights."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.passes.rows import KeptRows, RowByRow, Rows, UnmaskedRows, ZeroedRows
from trakstore.storage import layout
from trakstore.storage.split import Split

Weighting: TypeAlias = Literal["loss", "logistic"]


@dataclass(frozen=True, eq=False)
class WeightedSplit:
    """A split whose kernel is K = Σᵢ wᵢ φᵢ φᵢᵀ, with weights that follow from ``out_to_loss`` = q.

    Attributes
    ----------
    stored : Split
    kind : {"loss", "logistic"}
        ``"loss"``: w = q², so that K is the kernel of the loss gradients −q·φ. ``"logistic"``:
        w = q (1 − q), the second derivative of the loss log(1 + exp(−output)), whose q is
        the logistic function of −output: the Gauss-Newton Hessian.
    temperature : float
        Temperature of a logistic q: see :func:`tempered`.
    """

    stored: Split
    kind: Weighting
    temperature: float = 1.0

    def __post_init__(self) -> None:
        known, own = self.kind in get_args(Weighting), self.temperature
        if not known or not 0 < own < float("inf") or (self.kind == "loss" and own != 1):
            raise no_weighting(self.weighting)

    @property
    def weighting(self) -> str:
        """The name of the weighting in a gram's path and document."""
        if self.temperature == 1:
            return self.kind
        # Python's repr is the shortest text that stands for this float alone.
        return f"{self.kind}-{float(self.temperature)!r}".removesuffix(".0")

    # In all else the kernel code sees the stored split.
    location = property(attrgetter("stored.location"))
    epoch = property(attrgetter("stored.epoch"))
    name = property(attrgetter("stored.name"))
    spec = property(attrgetter("stored.spec"))
    rows = property(attrgetter("stored.rows"))
    masked = property(attrgetter("stored.masked"))
    column = property(attrgetter("stored.column"))
    state = property(attrgetter("stored.state"))
    dropped = property(attrgetter("stored.dropped"))


KernelSplit: TypeAlias = Split | WeightedSplit


def weighting_of(split: KernelSplit) -> str:
    """Name the weighting of the rows of a split; ``""`` if every row counts as one."""
    return split.weighting if isinstance(split, WeightedSplit) else ""


def weighted(split: Split, weighting: str) -> KernelSplit:
    """Weight the rows of a split, by a name from :func:`weighting_of`.

    Raises
    ------
    TrakStoreError
        When there is no such weighting.
    """
    if not weighting:
        return split
    kind, dash, degree = weighting.partition("-")
    try:
        temperature = float(degree) if dash else 1.0
    except ValueError:
        raise no_weighting(weighting) from None
    return WeightedSplit(split, cast("Weighting", kind), temperature)


def no_weighting(name: object) -> TrakStoreError:
    """Return the error for a name that is no weighting."""
    return TrakStoreError(
        f"a weighting is 'loss', 'logistic' or 'logistic-T' with a temperature T above 0 (of a kernel "
        f"that is shown, 'auto' or 'none' too), got {name!r}"
    )


def masked_rows(split: KernelSplit) -> NDArray[np.int64]:
    """Return the positions of the rows that were masked, ascending."""
    return np.sort(np.asarray(split.masked, dtype=np.int64))


def unmasked_count(split: KernelSplit) -> int:
    """Count the unmasked rows: the n of a damping relative to tr(K)/n, whatever the weights are."""
    return split.rows - len(masked_rows(split))


def row_weights(split: KernelSplit, *, without: NDArray[np.int64] | None = None) -> Rows | None:
    """Return the weight of each stored row in the kernel; None if all are 1.

    Rows at the positions ``without``, by default the masked ones, have weight 0, whatever is stored of
    them.
    """
    left_out = masked_rows(split) if without is None else without
    if not isinstance(split, WeightedSplit):
        return KeptRows(split.rows, left_out) if len(left_out) else None
    q = split.column("out_to_loss")
    # A masked row may hold NaN. Its q becomes 0, which gives weight 0 for any kind and temperature.
    if len(left_out):
        q = ZeroedRows(q, left_out)
    if split.temperature != 1:
        q = TemperedRows(q, split.temperature)
    return _WeightRows(q, split.kind)


def tempered(q: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Compute the logistic function of −output/T from q, that of −output.

    It is 1 − p of softened probabilities.

    Examples
    --------
    >>> q = 1 / (1 + np.exp(np.array([-3.0, 0.0, 8.0])))
    >>> np.allclose(tempered(q, 2.0), 1 / (1 + np.exp(np.array([-1.5, 0.0, 4.0]))))
    True
    """
    own = np.asarray(q, dtype=np.float64)
    # q/(1 − q) = exp(−output), and the odds at temperature T are the T-th root of that. A q outside of
    # 0..1 gives NaN, which readers refuse.
    with np.errstate(invalid="ignore"):
        low, high = own ** (1 / temperature), (1 - own) ** (1 / temperature)
    soft: NDArray[np.float64] = low / (low + high)
    return soft


@dataclass(frozen=True, eq=False)
class TemperedRows(RowByRow):
    """A column q at a temperature: see :func:`tempered`.

    Reading raises a :class:`NumericsError` for a q outside of 0..1.
    """

    temperature: float

    def read(self, start: int, stop: int) -> NDArray[np.float64]:
        soft = tempered(self.base.read(start, stop), self.temperature)
        if not np.isfinite(soft).all():
            raise NumericsError(
                f"out_to_loss of rows {start}..{stop} is not finite, or outside of 0..1: it is not "
                f"that of a logistic loss; use temperature=None"
            )
        return soft


def kernel_rows(split: KernelSplit) -> Rows:
    """Return rows whose plain gram is the kernel: √wᵢ·φᵢ of the unmasked ones."""
    rows, masked = split.column(layout.FEATURES), masked_rows(split)
    weights = row_weights(split) if isinstance(split, WeightedSplit) else None
    if weights is not None:
        rows = WeightedRows(rows, weights)
    return UnmaskedRows(rows, masked) if len(masked) else rows


def loss_gradient_rows(split: KernelSplit) -> Rows:
    """Return qᵢ·φᵢ of the unmasked rows, with the sign that √(q²) in the kernel's rows loses.

    Their gram equals that of ``kernel_rows`` for a split weighted with ``"loss"``. Products with rows
    of other kinds differ in sign.
    """
    rows = SignedRows(split.column(layout.FEATURES), split.column("out_to_loss"))
    masked = masked_rows(split)
    return UnmaskedRows(rows, masked) if len(masked) else rows


@dataclass(frozen=True, eq=False)
class _WeightRows(RowByRow):
    """Weights w from the column q."""

    kind: Weighting

    def read(self, start: int, stop: int) -> NDArray[np.float64]:
        q = np.asarray(self.base.read(start, stop), dtype=np.float64)
        weights = q * q if self.kind == "loss" else q * (1 - q)
        if not (weights >= 0).all():
            raise NumericsError(
                f"out_to_loss of rows {start}..{stop} is not finite, or outside of 0..1 where the "
                f"loss is logistic: use hessian='loss'"
            )
        return weights


@dataclass(frozen=True, eq=False)
class WeightedRows(RowByRow):
    """diag(√weights)·base, in float32."""

    weights: Rows
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float32)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        return _scaled(self.base.read(start, stop), np.sqrt(self.weights.read(start, stop)))


@dataclass(frozen=True, eq=False)
class SignedRows(RowByRow):
    """diag(q)·base, in float32."""

    q: Rows
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float32)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        return _scaled(self.base.read(start, stop), self.q.read(start, stop))


def _scaled(rows: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.float32]:
    own: NDArray[np.float32] = np.asarray(rows, dtype=np.float32)
    scaled: NDArray[np.float32] = own * scale.astype(np.float32)[:, None]
    return scaled
