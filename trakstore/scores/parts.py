"""Parts of scores, one for each epoch, and windows of targets against all train rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NumericsError
from trakstore.kernels.solvers import Factor
from trakstore.passes.gpu import usable_device, working_on_gpu
from trakstore.passes.last_chunk import LastChunk
from trakstore.passes.rows import Rows, Taken, take, together
from trakstore.passes.scheduler import tile_rows
from trakstore.passes.sent import Sent
from trakstore.planning import ranges
from trakstore.scores.window_plans import SCRATCH_VALUES, solve_bytes
from trakstore.storage.backends.ahead import AHEAD_BYTES
from trakstore.storage.layout import Epoch

F32: TypeAlias = NDArray[np.float32]
# Targets of a window that are multiplied with float16 rows as they lie: of more, each row would be
# widened so often that a matrix product of float32 rows is faster.
FEW_TARGETS = 16
# Values of float16 features from which on these loops are used: 64 MB.
MANY_VALUES = 2**25
# Tiles that are computed as one at most, and their scores.
_MOST_STEPS, _WIDE_VALUES = 16, 2**17


class SampledRows(NamedTuple):
    """Nonce of a split of drawn labels, and its rows for each train row."""

    nonce: int
    draws: int


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
        Q of this epoch; ``Scores.average`` says how the epochs' Q enter.
    weight : float
    length : float
        Length of a gradient of this epoch, in a unit that all parts share: a mean over epochs weighs
        them by its inverse.
    kernel : str
        Name of the weighting of K, or of the mix of two: it tells factors of one λ apart.
    sampled : SampledRows, optional
        The rows of K, where these have labels that were drawn from the model.
    """

    epoch: Epoch
    target: Rows
    train: Rows
    factor: Factor | None = None
    row_scale: Rows | None = None
    column_scale: Rows | None = None
    weight: float = 1.0
    length: float = 1.0
    kernel: str = ""
    # In no token of scores: weight, length and λ differ from those of train rows, and scores that were
    # saved before this was told keep their token.
    sampled: SampledRows | None = None

    @property
    def solve_rows(self) -> int:
        """Number of targets that are solved at once."""
        rows = tile_rows(self.target)
        if self.factor is None:
            return rows
        rows = max(rows, self.factor.solve_rows)
        return rows if self.factor.most_rows is None else min(rows, self.factor.most_rows)

    def solve_memory(self, count: int) -> int:
        """Return the bytes that it takes to solve ``count`` targets."""
        rows, columns = count, self.target.shape[1]
        more = 0 if self.factor is None else self.factor.solve_memory(rows)
        return solve_bytes(rows, columns, self.target.dtype.itemsize) + more

    def left(self, start: int, stop: int) -> F32:
        """Compute L for a window of targets: solved in float64, kept as float32, (stop - start, k).

        Raises
        ------
        NumericsError
            When a target feature, or what becomes of it, is not finite.
        """
        # A tile of targets is solved in float64, and only its float32 rows are kept.
        out = np.empty((stop - start, self.target.shape[1]), dtype=np.float32)
        for low, high in self._solved(start, stop):
            out[low - start : high - start] = self._left_tile(low, high)
        return out

    def reads(self, start: int, stop: int) -> Iterator[tuple[Rows | None, int, int]]:
        """Yield the pieces of rows that :meth:`left` reads, in that order."""
        for tile in self._solved(start, stop):
            yield self.target, *tile
            yield self.row_scale, *tile

    def _solved(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        for low, high in ranges(stop - start, self.solve_rows):
            yield start + low, start + high

    def _left_tile(self, start: int, stop: int) -> NDArray[np.float64]:
        rows: NDArray[np.float64] = self.target.read(start, stop).astype(np.float64)
        rows = rows if self.factor is None else self.factor.solve(rows)
        scale = np.full(stop - start, self.weight)
        if self.row_scale is not None:
            scale *= self.row_scale.read(start, stop)
        rows *= scale[:, None]
        # Written so that NaN is refused too.
        if not (np.abs(rows) <= np.finfo(np.float32).max).all():
            raise NumericsError(
                f"features of targets {start}..{stop} at epoch {self.epoch!r} are not finite, or "
                f"do not fit float32 once preconditioned: featurize them again"
            )
        return rows

    def isel(self, target: Taken, train: Taken) -> Part:
        return replace(
            self,
            target=take(self.target, target),
            row_scale=self.row_scale and take(self.row_scale, target),
            train=take(self.train, train),
            column_scale=self.column_scale and take(self.column_scale, train),
        )


def held_bytes(parts: Iterable[Part]) -> int:
    """Count the bytes of the factors that the parts hold, each once."""
    # Parts of one selection share a factor, which is in memory once.
    factors = {id(part.factor): part.factor for part in parts if part.factor is not None}
    return sum(factor.memory for factor in factors.values())


class TileMaker(Protocol):
    """Tiles of a window, made one after the other: each may be gone when the next one is made."""

    def tile(self, start: int, stop: int) -> Any:
        """Compute scores with train rows start..stop, shape (w, stop - start), where they belong.

        That is a NumPy array, or a tensor on a GPU.
        """

    def host_tile(self, start: int, stop: int, out: F32 | None = None) -> F32:
        """Compute the same as a NumPy array, in ``out`` if given."""


@dataclass(frozen=True, eq=False)
class Window(Sent):
    """A window of targets against all train rows, as it is sent to workers.

    Attributes
    ----------
    lefts : tuple of float32 arrays, shape (w, k) each
    trains : tuple of Rows, shape (n, k) each
    scales : tuple of (Rows or None), shape (n,) each
        Column scale of each product.
    scale : Rows, shape (n,), optional
        Column scale of their sum.
    device : str
        Device that computes tiles.
    thresholds : ndarray of float32, shape (w,), optional
        Soft threshold of each target, see :class:`~trakstore.Scores`; without, scores stay as they are.
    ahead : int
        Bytes of stored train rows that each task may read before it asks for them.
    """

    lefts: tuple[F32, ...]
    trains: tuple[Rows, ...]
    scales: tuple[Rows | None, ...]
    scale: Rows | None
    device: str = "cpu"
    thresholds: F32 | None = None
    ahead: int = AHEAD_BYTES

    def reading(self, tiles: Iterable[tuple[int, int]]) -> AbstractContextManager[None]:
        """Read the train rows of these tiles ahead, in their order, while this thread is within."""
        columns = [rows for pair in zip(self.trains, self.scales, strict=True) for rows in pair]
        columns.append(self.scale)
        wanted = ((rows, low, high) for low, high in tiles for rows in columns)
        return together(wanted, self.ahead)

    def steps_at_once(self, step: int) -> int:
        """Return the tiles of ``step`` train rows that are best computed as one.

        More than one where targets are few and the files of train rows lie in memory: what there is to
        do around each tile would take as long as its scores.
        """
        targets = len(self.lefts[0])
        if targets > FEW_TARGETS or not all(map(_are_files, self.trains)):
            return 1
        return max(1, min(_MOST_STEPS, _WIDE_VALUES // (targets * step)))

    def tile_maker(self, step: int) -> TileMaker:
        """Return what makes tiles of at most ``step`` train rows, on the device of this window."""
        device = usable_device(self.device)
        if device == "cpu":
            return _HostTiles(self, step)
        from trakstore.scores.device_tiles import DeviceTiles

        return DeviceTiles(self, device)

    def of_targets(self, start: int, stop: int) -> Window:
        """Return the window of some of its targets."""
        thresholds = None if self.thresholds is None else self.thresholds[start:stop]
        lefts = tuple(left[start:stop] for left in self.lefts)
        return replace(self, lefts=lefts, thresholds=thresholds)

    def on_cpu(self) -> Window:
        """Return the same window with its tiles on the CPU."""
        return self if self.device == "cpu" else replace(self, device="cpu")

    def tile(self, start: int, stop: int, out: F32 | None = None) -> F32:
        """Compute scores with train rows start..stop, shape (w, stop - start), in ``out`` if given."""
        device = usable_device(self.device)
        if device != "cpu":
            with working_on_gpu(device):
                return self.tile_maker(stop - start).host_tile(start, stop, out)
        if out is None:
            out = np.empty((len(self.lefts[0]), stop - start), dtype=np.float32)
        self._fill(start, stop, out)
        return out if self.thresholds is None else _shrunk(out, self.thresholds[:, None])

    def entries(
        self, start: int, stop: int, targets: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> F32:
        """Compute single scores of targets with train rows start + columns, shape (e,)."""
        out = np.zeros(len(targets), dtype=np.float32)
        for left, train, scale in zip(self.lefts, self.trains, self.scales, strict=True):
            right = _float32(train.read(start, stop), train)
            product = _dots(left, right, targets, columns)
            out += product if scale is None else product * _column(scale, start, stop)[columns]
        if self.scale is not None:
            out *= _column(self.scale, start, stop)[columns]
        return out if self.thresholds is None else _shrunk(out, self.thresholds[targets])

    def _fill(self, start: int, stop: int, out: F32) -> None:
        # Whoever takes the tile looks for scores that are not finite.
        with np.errstate(over="ignore", invalid="ignore"):
            parts = zip(self.lefts, self.trains, self.scales, strict=True)
            for at, (left, train, scale) in enumerate(parts):
                if len(left) <= FEW_TARGETS and _are_many_halves(train):
                    product = out if at == 0 else np.empty_like(out)
                    _multiply_halves(left, train, start, stop, product)
                    if scale is not None:
                        product *= _column(scale, start, stop)
                    if at:
                        out += product
                    continue
                right = _float32(train.read(start, stop), train)
                if scale is not None:
                    right = right * _column(scale, start, stop)[:, None]
                # The first product goes straight into the tile; only the others need room of their own.
                if at == 0:
                    np.matmul(left, right.T, out=out)
                else:
                    _add_product(out, left, right.T)
            if self.scale is not None:
                out *= _column(self.scale, start, stop)


def _shrunk(out: F32, threshold: F32) -> F32:
    """Compute sign(τ)·max(|τ| − s, 0), which is τ less its share within −s..s, in place."""
    out -= np.clip(out, -threshold, threshold)
    return out


def _are_many_halves(train: Rows) -> bool:
    """Tell whether rows are float16, and so many that compiled loops are worth their start."""
    if train.dtype != np.float16 or math.prod(train.shape) < MANY_VALUES:
        return False
    # Imported here, since numba takes half a second to import.
    from trakstore.passes.half_precision import has_instructions

    return has_instructions()


def _are_files(train: Rows) -> bool:
    """Tell whether rows are many of float16, whose files are looked at where they lie in memory."""
    if not _are_many_halves(train):
        return False
    from trakstore.passes.checked_products import are_files

    return are_files(train)


def _multiply_halves(left: F32, train: Rows, start: int, stop: int, out: F32) -> None:
    """Compute products of few targets with train rows that are float16, without widening them first."""
    from trakstore.passes.checked_products import checked_products
    from trakstore.passes.half_precision import few_products

    if checked_products(left, train, start, stop, out):
        return
    for low, high in ranges(stop - start, tile_rows(train)):
        few_products(left, train.read(start + low, start + high), out[:, low:high])


def _float32(rows: NDArray[Any], train: Rows) -> F32:
    """Return rows of ``train`` as float32."""
    if _are_many_halves(train):
        from trakstore.passes.half_precision import widened

        return widened(rows)
    return np.asarray(rows, dtype=np.float32)


# One array for all tiles, since a cluster's workers give each freed one back to the system.
class _HostTiles:
    """Tiles in memory, each in the place of the one before it."""

    def __init__(self, window: Window, step: int) -> None:
        scales = tuple(one and LastChunk(one) for one in window.scales)
        scale = window.scale and LastChunk(window.scale)
        self._window, self._step = replace(window, scales=scales, scale=scale), step
        self._buffer: F32 | None = None

    def tile(self, start: int, stop: int) -> F32:
        if self._buffer is None:
            self._buffer = np.empty((len(self._window.lefts[0]), self._step), dtype=np.float32)
        return self._window.tile(start, stop, self._buffer[:, : stop - start])

    def host_tile(self, start: int, stop: int, out: F32 | None = None) -> F32:
        return self.tile(start, stop) if out is None else self._window.tile(start, stop, out)


def _add_product(out: F32, left: F32, right: F32) -> None:
    """Compute out += left @ right by rows, so that the product takes little memory."""
    for low, high in ranges(len(left), max(1, SCRATCH_VALUES // max(1, right.shape[1]))):
        out[low:high] += left[low:high] @ right


def _dots(left: F32, right: F32, i: NDArray[np.int64], j: NDArray[np.int64]) -> F32:
    """Compute ⟨left[i], right[j]⟩ of pairs, some at a time."""
    out = np.empty(len(i), dtype=np.float32)
    for low, high in ranges(len(i), max(1, SCRATCH_VALUES // left.shape[1])):
        pairs = left[i[low:high]], right[j[low:high]]
        np.einsum("ek,ek->e", *pairs, out=out[low:high])
    return out


def _column(scale: Rows, start: int, stop: int) -> F32:
    return np.asarray(scale.read(start, stop), dtype=np.float32)
