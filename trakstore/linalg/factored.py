"""``Scores``: the (target, train) matrix as a sum of factors, formed only where asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import DTypeLike, NDArray

from trakstore.errors import NotFoundError, NumericsError, TrakStoreError, did_you_mean
from trakstore.linalg.devices import torch_tile, usable_device
from trakstore.linalg.lazy import lazy_column, lazy_matrix
from trakstore.linalg.rows import MeanRows, Rows, TakenRows
from trakstore.linalg.solvers import Factor
from trakstore.linalg.tiles import tile_rows
from trakstore.planning import ranges

__all__ = ["Average", "Epoch", "Index", "Part", "Scores", "Window"]

Epoch: TypeAlias = int | str
Index: TypeAlias = int | slice | Sequence[int] | NDArray[Any]
Average: TypeAlias = Literal["factors", "scores"]
F32: TypeAlias = NDArray[np.float32]

BLOCK_VALUES = 2**23  # of one block of the lazy array: 32 MB
SCRATCH_VALUES = 2**20  # of a product that waits to be added to a tile


@dataclass(frozen=True, eq=False)
class Part:
    """One epoch's share: weight · diag(row_scale) T (K + λI)⁻¹ Φᵀ, and its column scale.

    Attributes
    ----------
    epoch : int or str
    target : Rows, shape (m, k)
        T, the target features.
    train : Rows, shape (n, k)
        Φ, the train features; never read as a whole.
    factor : Factor, optional
        K + λI; the identity when None.
    row_scale : Rows, shape (m,), optional
    column_scale : Rows, shape (n,), optional
        Q of this epoch; how the epochs' Q enter is for ``Scores.average`` to say.
    weight : float
    """

    epoch: Epoch
    target: Rows
    train: Rows
    factor: Factor | None = None
    row_scale: Rows | None = None
    column_scale: Rows | None = None
    weight: float = 1.0

    @property
    def solve_rows(self) -> int:
        """Targets that are solved at once."""
        return max(tile_rows(self.target), 1 if self.factor is None else self.factor.solve_rows)

    def left(self, start: int, stop: int) -> F32:
        """L for a window of targets: solved in float64, kept as float32, shape (stop - start, k).

        Raises
        ------
        NumericsError
            When a target feature, or what becomes of it, is not finite.
        """
        out = np.empty((stop - start, self.target.shape[1]), dtype=np.float32)
        for low, high in ranges(stop - start, self.solve_rows):
            out[low:high] = self._left_tile(start + low, start + high)
        return out

    def _left_tile(self, start: int, stop: int) -> NDArray[np.float64]:
        rows: NDArray[np.float64] = self.target.read(start, stop).astype(np.float64)
        rows = rows if self.factor is None else self.factor.solve(rows)
        scale = np.full(stop - start, self.weight)
        if self.row_scale is not None:
            scale *= self.row_scale.read(start, stop)
        rows *= scale[:, None]
        if not (np.abs(rows) <= np.finfo(np.float32).max).all():
            raise NumericsError(
                f"features of targets {start}..{stop} at epoch {self.epoch!r} are not finite, or "
                f"do not fit float32 once preconditioned: featurize them again"
            )
        return rows

    def isel(self, target: Taken, train: Taken) -> Part:
        return replace(
            self,
            target=_take(self.target, target),
            row_scale=self.row_scale and _take(self.row_scale, target),
            train=_take(self.train, train),
            column_scale=self.column_scale and _take(self.column_scale, train),
        )


@dataclass(frozen=True, eq=False)
class Window:
    """A window of targets against all train rows: what is sent to workers.

    Attributes
    ----------
    lefts : tuple of float32 arrays, shape (w, k) each
    trains : tuple of Rows, shape (n, k) each
    scales : tuple of (Rows or None), shape (n,) each
        Column scale of each product.
    scale : Rows, shape (n,), optional
        Column scale of their sum.
    device : str
        Where tiles are computed.
    soft_threshold : float
        As of the scores.
    """

    lefts: tuple[F32, ...]
    trains: tuple[Rows, ...]
    scales: tuple[Rows | None, ...]
    scale: Rows | None
    device: str = "cpu"
    soft_threshold: float = 0.0

    def tile(self, start: int, stop: int) -> F32:
        """Scores of the window with train rows start..stop, shape (w, stop - start)."""
        device = usable_device(self.device)
        on_cpu = device == "cpu"
        out = self._tile(start, stop) if on_cpu else torch_tile(self, start, stop, device)
        return _shrunk(out, self.soft_threshold) if self.soft_threshold else out

    def _tile(self, start: int, stop: int) -> F32:
        out = np.empty((len(self.lefts[0]), stop - start), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # the readers look for non-finite scores
            parts = zip(self.lefts, self.trains, self.scales, strict=True)
            for at, (left, train, scale) in enumerate(parts):
                right = np.asarray(train.read(start, stop), dtype=np.float32)
                if scale is not None:
                    right = right * _column(scale, start, stop)[:, None]
                if at == 0:
                    np.matmul(left, right.T, out=out)
                else:
                    _add_product(out, left, right.T)
            if self.scale is not None:
                out *= _column(self.scale, start, stop)
        return out


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Scores (target, train) = Σ_c L_c Φ_cᵀ with row and column scales, in factored form.

    Attributes
    ----------
    method : str
        What made them: ``"trak"``, ...
    parts : tuple of Part
        One for each epoch; all of one shape.
    target_ids, train_ids : Rows, shapes (m,) and (n,)
        Sample ids, lazy.
    train_positions : Rows, shape (n,), optional
        Positions of the train rows in the stored split; 0, 1, ... when None.
    reduce : {"mean", "sum"}
        Over the epochs.
    average : {"factors", "scores"}
        How column scales Q_c enter. ``"factors"``: averaged apart from the products,
        (reduce_c L_c Φ_cᵀ)·diag(mean_c Q_c). ``"scores"``: reduce_c(L_c Φ_cᵀ diag(Q_c)).
    train_labels, target_labels : Rows, shapes (n,) and (m,), optional
        Classes.
    device : str
        Where tiles are computed: see :meth:`to`.
    soft_threshold : float
        s of sign(τ)·max(|τ| − s, 0), applied to each score last; 0 changes nothing.
    """

    method: str
    parts: tuple[Part, ...]
    target_ids: Rows
    train_ids: Rows
    reduce: Literal["mean", "sum"] = "mean"
    average: Average = "factors"
    train_positions: Rows | None = None
    train_labels: Rows | None = None
    target_labels: Rows | None = None
    device: str = "cpu"
    soft_threshold: float = 0.0

    def __post_init__(self) -> None:
        if not self.parts:
            raise TrakStoreError("scores need at least one epoch")
        for part in self.parts:
            got = (part.target.shape[0], part.train.shape[0])
            if got != self.shape or part.target.shape[1:] != part.train.shape[1:]:
                raise TrakStoreError(
                    f"epoch {part.epoch!r} has targets {part.target.shape} and train "
                    f"{part.train.shape}; needed {self.shape[0]} and {self.shape[1]} rows of one "
                    f"dimension"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """(targets, train rows)."""
        return self.parts[0].target.shape[0], self.parts[0].train.shape[0]

    @property
    def dims(self) -> tuple[str, str]:
        return ("target", "train")

    @property
    def dtype(self) -> np.dtype[np.float32]:
        return np.dtype(np.float32)

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        return tuple(part.epoch for part in self.parts)

    @property
    def tile_rows(self) -> int:
        """Train rows of one tile."""
        return min(tile_rows(part.train) for part in self.parts)

    def __repr__(self) -> str:
        targets, train = self.shape
        epochs = ", ".join(str(epoch) for epoch in self.epochs)
        return f"<Scores {self.method} (target: {targets}, train: {train}), epochs {epochs}>"

    def window(self, start: int, stop: int) -> Window:
        """Targets start..stop, preconditioned: the left operand of their tiles."""
        share = np.float32(1 / len(self.parts) if self.reduce == "mean" else 1)
        lefts = []
        for part in self.parts:
            left = part.left(start, stop)
            left *= share
            lefts.append(left)
        columns = tuple(part.column_scale for part in self.parts)
        given = tuple(column for column in columns if column is not None)
        apart = self.average == "factors" and bool(given)
        return Window(
            tuple(lefts),
            tuple(part.train for part in self.parts),
            tuple(None for _ in columns) if apart else columns,
            MeanRows(given) if apart else None,
            self.device,
            self.soft_threshold,
        )

    def to(self, device: str) -> Scores:
        """The same scores with their tiles computed on ``"cuda"`` (through torch) or ``"cpu"``.

        Where a worker cannot use the device, it warns and works on the CPU.
        """
        return replace(self, device=device)

    def block(self, t0: int, t1: int, n0: int, n1: int) -> F32:
        """The dense block of targets t0..t1 and train rows n0..n1."""
        return self.window(t0, t1).tile(n0, n1)

    def epoch(self, epoch: Epoch) -> Scores:
        """The scores of one epoch alone, with its own column scale.

        Raises
        ------
        NotFoundError
            When the scores do not hold that epoch.
        """
        for part in self.parts:
            if part.epoch == epoch:
                return replace(self, parts=(part,))
        raise NotFoundError(f"no epoch {epoch!r} in {self}{did_you_mean(epoch, self.epochs)}")

    def isel(self, target: Index = slice(None), train: Index = slice(None)) -> Scores:
        """Some targets and train rows by position; lazy, and always of two dimensions.

        Raises
        ------
        TrakStoreError
            When a position is out of range.
        """
        targets = _positions(target, self.shape[0], "target")
        trains = _positions(train, self.shape[1], "train")
        return replace(
            self,
            parts=tuple(part.isel(targets, trains) for part in self.parts),
            target_ids=_take(self.target_ids, targets),
            train_ids=_take(self.train_ids, trains),
            train_positions=self.train_positions and _take(self.train_positions, trains),
            train_labels=self.train_labels and _take(self.train_labels, trains),
            target_labels=self.target_labels and _take(self.target_labels, targets),
        )

    def to_xarray(self) -> xr.DataArray:
        """A lazy, Dask-backed array of float32, with the ids as non-index coordinates."""
        columns = self.tile_rows
        rows = max(1, min(self.shape[0], BLOCK_VALUES // columns))
        coords = {
            "target_id": ("target", lazy_column(self.target_ids, rows)),
            "train_id": ("train", lazy_column(self.train_ids, columns)),
        }
        data = lazy_matrix(self, rows, columns)
        return xr.DataArray(data, dims=self.dims, coords=coords, name=self.method)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("scores are computed when they become an array: copy=False cannot be")
        return np.asarray(self.to_xarray().data.compute(), dtype=dtype)


def _add_product(out: F32, left: F32, right: F32) -> None:
    """out += left @ right, by rows, so that the product takes little memory."""
    for low, high in ranges(len(left), max(1, SCRATCH_VALUES // max(1, right.shape[1]))):
        out[low:high] += left[low:high] @ right


def _shrunk(scores: F32, threshold: float) -> F32:
    """Each score nearer to 0 by the threshold, and 0 within it; in place."""
    scores -= np.clip(scores, -threshold, threshold)
    return scores


def _column(scale: Rows, start: int, stop: int) -> F32:
    return np.asarray(scale.read(start, stop), dtype=np.float32)


Taken: TypeAlias = range | NDArray[np.int64]


def _take(rows: Rows, index: Taken) -> Rows:
    whole = isinstance(index, range) and index == range(rows.shape[0])
    return rows if whole else TakenRows(rows, index)


def _positions(index: Index, size: int, dim: str) -> Taken:
    if isinstance(index, slice):
        return range(*index.indices(size))
    array: NDArray[Any] = np.atleast_1d(np.asarray(index))
    if array.dtype == bool and array.shape == (size,):
        return np.flatnonzero(array)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TrakStoreError(f"{dim}= takes an integer, a slice, positions or a mask of {size}")
    outside = array[(array < -size) | (array >= size)]
    if outside.size:
        raise TrakStoreError(f"{dim}={outside[0]} is outside of {size} positions")
    return np.where(array < 0, array + size, array).astype(np.int64)
