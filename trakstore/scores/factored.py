"""``Scores``: the (target, train) matrix as a sum of factors, formed only where asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import DTypeLike, NDArray

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.markup import card, facts_markup
from trakstore.passes.gpu import as_device
from trakstore.passes.rows import MeanRows, Rows, take, together
from trakstore.passes.scheduler import in_this_process, tile_rows
from trakstore.planning import ranges
from trakstore.quantities import as_range
from trakstore.scores.fill_pass import FillPass
from trakstore.scores.lazy import lazy_column, lazy_matrix
from trakstore.scores.own_thresholds import own_thresholds, sampled_rows
from trakstore.scores.parts import F32, Part, Window, held_bytes
from trakstore.scores.places import Ids, Index, places_of_ids, positions
from trakstore.scores.vanishing import refuse_vanishing
from trakstore.scores.window_plans import ScoreSizes, tile_bytes
from trakstore.storage.backends.ahead import AHEAD_BYTES
from trakstore.storage.layout import Epoch, as_epoch

Average: TypeAlias = Literal["factors", "scores"]
SoftThreshold: TypeAlias = float | Literal["auto"]

# Values of one block of the lazy array: 32 MB.
BLOCK_VALUES = 2**23


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Scores (target, train) = Σ_c L_c Φ_cᵀ with row and column scales, in factored form.

    Attributes
    ----------
    method : str
        Name of the method: ``"trak"``, ...
    parts : tuple of Part
        Shares of the epochs, all of one shape.
    target_ids, train_ids : Rows, shapes (m,) and (n,)
        Sample ids, lazy.
    train_positions, target_positions : Rows, shapes (n,) and (m,), optional
        Positions of the train rows and the targets in their stored splits; 0, 1, ... when None.
    reduce : {"mean", "sum"}
        Reduction over the epochs; a mean divides each epoch by the ``length`` of its part.
    average : {"factors", "scores"}
        Use of the column scales Q_c. ``"factors"``: averaged separately from the products, (reduce_c
        L_c Φ_cᵀ)·diag(mean_c Q_c). ``"scores"``: reduce_c(L_c Φ_cᵀ diag(Q_c)).
    train_labels, target_labels : Rows, shapes (n,) and (m,), optional
        Class of each row.
    device : str
        Device that computes tiles, see :meth:`to`.
    soft_threshold : float or "auto"
        s in ``sign(τ)·max(|τ| − s, 0)``, applied to each score last; 0 changes nothing. ``"auto"``: one
        s for each target, the spread of its scores with most train rows (:mod:`own_thresholds`).
    threshold_parts : tuple of Part
        Parts with the train rows that ``"auto"`` uses: all those of the scores as they were made, so
        that no score depends on a later selection. Empty for other thresholds.

    Raises
    ------
    TrakStoreError
        When there is no part, or parts differ in their targets, train rows or dimension.

    Examples
    --------
    >>> scores = ts.trak_scores(store)
    >>> scores
    <Scores trak (target: 6, train: 24), epochs 2, 5, 15>
    >>> scores.isel(target=[0, 1]).epoch(15).shape
    (2, 24)
    >>> scores.to_xarray().dims
    ('target', 'train')
    >>> np.asarray(scores).shape
    (6, 24)
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
    soft_threshold: SoftThreshold = 0.0
    threshold_parts: tuple[Part, ...] = ()
    target_positions: Rows | None = None

    def __post_init__(self) -> None:
        if not self.parts:
            raise TrakStoreError("scores need at least one epoch")
        if self.soft_threshold == "auto" and not self.threshold_parts:
            every, rows = range(self.parts[0].target.shape[0]), self.parts[0].train.shape[0]
            sampled = tuple(part.isel(every, sampled_rows(rows)) for part in self.parts)
            object.__setattr__(self, "threshold_parts", sampled)
        for part in self.parts:
            # Parts are added entry by entry, so that all must have the same targets and train rows.
            got = (part.target.shape[0], part.train.shape[0])
            if got != self.shape or part.target.shape[1:] != part.train.shape[1:]:
                raise TrakStoreError(
                    f"epoch {part.epoch!r} has targets {part.target.shape} and train "
                    f"{part.train.shape}; needed {self.shape[0]} and {self.shape[1]} rows of one "
                    f"dimension"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """Targets and train rows, (m, n)."""
        return self.parts[0].target.shape[0], self.parts[0].train.shape[0]

    @property
    def dims(self) -> tuple[str, str]:
        """Names of the dimensions: ``("target", "train")``."""
        return ("target", "train")

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Dtype of the scores, float32."""
        return np.dtype(np.float32)

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Epochs that the scores combine, in the order of ``parts``."""
        return tuple(part.epoch for part in self.parts)

    @property
    def shares(self) -> tuple[float, ...]:
        """Factors of the epochs' parts: they sum to 1 in a mean, and are all 1 in a sum."""
        if self.reduce == "sum":
            return (1.0,) * len(self.parts)
        inverse = [1 / part.length for part in self.parts]
        return tuple(one / sum(inverse) for one in inverse)

    @property
    def tile_rows(self) -> int:
        """Train rows of one tile."""
        return min(tile_rows(part.train) for part in self.parts)

    @property
    def scale_apart(self) -> MeanRows | None:
        """The mean of the column scales, where it is separate from the products."""
        return self._scale_apart(self.parts)

    def _scale_apart(self, parts: Sequence[Part]) -> MeanRows | None:
        given = tuple(part.column_scale for part in parts if part.column_scale is not None)
        return MeanRows(given) if self.average == "factors" and given else None

    @property
    def sizes(self) -> ScoreSizes:
        """Sizes from which operations are planned."""
        parts, rows = self.parts, self.tile_rows
        solved = [(part, min(part.solve_rows, self.shape[0])) for part in parts]
        return ScoreSizes(
            self.shape[0],
            rows,
            sum(part.target.shape[1] for part in parts),
            max(tile_bytes(rows, part.train.shape[1], part.train.dtype.itemsize) for part in parts),
            max(part.solve_memory(count) for part, count in solved),
            held_bytes(parts),
            self.train_ids.dtype.itemsize,
            self.device,
        )

    def __repr__(self) -> str:
        targets, train = self.shape
        epochs = ", ".join(str(epoch) for epoch in self.epochs)
        return f"<Scores {self.method} (target: {targets}, train: {train}), epochs {epochs}>"

    def _repr_html_(self) -> str:
        """Show method, shape and epochs in a notebook; nothing is computed."""
        labels = [
            side
            for side, rows in (("target", self.target_labels), ("train", self.train_labels))
            if rows is not None
        ]
        targets, train = self.shape
        facts = {
            "method": self.method,
            "shape": f"{targets:,} targets x {train:,} train samples, {self.reduce} over epochs",
            "epochs": ", ".join(map(str, self.epochs)),
            "dimension": f"{self.parts[0].train.shape[1]:,}",
            "labels": ", ".join(labels) or "none",
        }
        return card("Scores", facts_markup(facts))

    def window(self, start: int, stop: int, ahead: int = AHEAD_BYTES) -> Window:
        """Precondition targets start..stop: the left operand of their tiles.

        Up to ``ahead`` bytes of stored rows may be read in advance, here and in each task.

        Raises
        ------
        TrakStoreError
            For targets that are not in these scores.
        """
        start, stop = as_range(start, stop, self.shape[0], "targets")
        # The left factors include the mean over epochs, so that tiles need only be added.
        with together((one for part in self.parts for one in part.reads(start, stop)), ahead):
            lefts = tuple(part.left(start, stop) for part in self.parts)
        for left, share in zip(lefts, self.shares, strict=True):
            left *= np.float32(share)
        refuse_vanishing(lefts, self.parts, self.scale_apart, start)
        if self.soft_threshold == "auto":
            sampled = [part for part in self.threshold_parts if part.epoch in self.epochs]
            thresholds = own_thresholds(self._window(lefts, sampled, None, ahead))
        elif self.soft_threshold:
            thresholds = np.full(len(lefts[0]), self.soft_threshold, np.float32)
        else:
            thresholds = None
        return self._window(lefts, self.parts, thresholds, ahead)

    def _window(
        self, lefts: tuple[F32, ...], parts: Sequence[Part], thresholds: F32 | None, ahead: int
    ) -> Window:
        apart = self._scale_apart(parts)
        return Window(
            lefts,
            tuple(part.train for part in parts),
            tuple(None if apart else part.column_scale for part in parts),
            apart,
            self.device,
            thresholds,
            ahead,
        )

    def to(self, device: str) -> Scores:
        """Return the same scores, whose tiles are computed on ``"cuda"`` (by torch) or ``"cpu"``.

        Running lists and sums stay on the device too. A worker that cannot use it warns, and works on
        the CPU.

        Raises
        ------
        TrakStoreError
            When it is neither the CPU nor a GPU.
        """
        return replace(self, device=as_device(device))

    def block(self, t0: int, t1: int, n0: int, n1: int) -> F32:
        """Compute the dense block of targets t0..t1 and train rows n0..n1.

        Raises
        ------
        TrakStoreError
            For targets or train rows that are not in these scores.

        Examples
        --------
        >>> ts.trak_scores(store).block(0, 2, 10, 15).shape
        (2, 5)
        """
        n0, n1 = as_range(n0, n1, self.shape[1], "train rows")
        window = self.window(t0, t1)
        with window.reading([(n0, n1)]):
            return window.tile(n0, n1)

    def epoch(self, epoch: Epoch) -> Scores:
        """Return the scores of one epoch alone, with its own column scale.

        Raises
        ------
        NotFoundError
            When the scores do not hold that epoch.

        Examples
        --------
        >>> ts.trak_scores(store).epoch(15)
        <Scores trak (target: 6, train: 24), epochs 15>
        """
        for part in self.parts:
            if part.epoch == as_epoch(epoch):
                return replace(self, parts=(part,))
        raise NotFoundError(f"no epoch {epoch!r} in {self}{did_you_mean(epoch, self.epochs)}")

    def isel(self, target: Index = slice(None), train: Index = slice(None)) -> Scores:
        """Select targets and train rows by position, lazily; the result always has two dimensions.

        Parameters
        ----------
        target, train : int, slice, sequence of int, or array of bool
            Positions to keep, in this order, or a mask over all; negative ones count from the end.

        Raises
        ------
        NotFoundError
            When a position is out of range.
        TrakStoreError
            When it is neither a position nor a mask over all.

        Examples
        --------
        >>> ts.trak_scores(store).isel(target=slice(2), train=[0, 5, 7])
        <Scores trak (target: 2, train: 3), epochs 2, 5, 15>
        """
        targets = positions(target, self.shape[0], "target")
        trains = positions(train, self.shape[1], "train")
        return replace(
            self,
            parts=tuple(part.isel(targets, trains) for part in self.parts),
            target_ids=take(self.target_ids, targets),
            train_ids=take(self.train_ids, trains),
            train_positions=self.train_positions and take(self.train_positions, trains),
            target_positions=self.target_positions and take(self.target_positions, targets),
            train_labels=self.train_labels and take(self.train_labels, trains),
            target_labels=self.target_labels and take(self.target_labels, targets),
        )

    def sel(self, target_id: Ids | None = None, train_id: Ids | None = None) -> Scores:
        """Select targets and train rows by their sample ids, lazily; without ids, all are kept.

        Saved scores (:func:`trakstore.open_scores`) take the same names.

        Parameters
        ----------
        target_id, train_id : int, str, or sequence of them
            Ids of the samples to keep, in this order.

        Raises
        ------
        NotFoundError
            When no sample has such an id.
        TrakStoreError
            When ``target_id`` or ``train_id`` holds anything but ids.

        Examples
        --------
        >>> ts.trak_scores(store).sel(target_id="test-2", train_id=["train-7", "train-0"])
        <Scores trak (target: 1, train: 2), epochs 2, 5, 15>
        """
        every = slice(None)
        return self.isel(
            every if target_id is None else places_of_ids(self.target_ids, target_id, "target"),
            every if train_id is None else places_of_ids(self.train_ids, train_id, "train row"),
        )

    def to_xarray(self) -> xr.DataArray:
        """Return a lazy, Dask-backed array of float32, with the ids as non-index coordinates.

        Examples
        --------
        >>> matrix = ts.trak_scores(store).to_xarray()
        >>> matrix.dims, matrix.isel(target=0).mean().compute().shape
        (('target', 'train'), ())
        """
        rows, columns = self._block
        coords = {
            "target_id": ("target", lazy_column(self.target_ids, rows)),
            "train_id": ("train", lazy_column(self.train_ids, columns)),
        }
        # A block is as wide as a tile, which is read and multiplied as a whole, and has at most 32 MB.
        data = lazy_matrix(self, rows, columns)
        return xr.DataArray(data, dims=self.dims, coords=coords, name=self.method)

    @property
    def _block(self) -> tuple[int, int]:
        """Return the targets and train rows of a block of the lazy array."""
        columns = self.tile_rows
        return max(1, min(self.shape[0], BLOCK_VALUES // columns)), columns

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        # With copy=False NumPy asks for a view, but there is no array to view.
        if copy is False:
            raise ValueError("scores are computed when they become an array: copy=False cannot be")
        # Tasks in other processes cannot write into an array of this one.
        if not in_this_process():
            return np.asarray(self.to_xarray().data.compute(), dtype=dtype)
        out = np.empty(self.shape, dtype=np.float32)
        if out.size:
            rows, columns = self._block
            for start, stop in ranges(self.shape[0], rows):
                window = self.window(start, stop)
                FillPass(columns, window, out[start:stop]).run(self.shape[1])
        return np.asarray(out, dtype=dtype)
