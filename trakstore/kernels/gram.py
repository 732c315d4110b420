"""The gram matrix of stored rows: float32 products of tiles, summed in float64."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.passes.gpu import usable_device
from trakstore.passes.memory import device_slots, fitting_slots, memory_budget, room_ahead
from trakstore.passes.one_pass import Pass, Tiles
from trakstore.passes.rows import Rows, together
from trakstore.passes.scheduler import MOST_RANGES, tile_rows
from trakstore.planning import ranges
from trakstore.quantities import is_one_of

if TYPE_CHECKING:
    from trakstore.kernels.device_gram import DeviceSums

GramDtype = Literal["float32", "float64"]
# Rows whose products are summed in float32, before the sum is added in float64.
PRODUCT_ROWS = 4096
# Mean square of the numbers in rows below which products are not taken in float32: it has fewer digits
# below 2**-126, and none below 2**-149.
_LEAST_SQUARE = 2.0**-110
# Columns of the squares on the diagonal; in measurements 256 to 1024 differed little.
SQUARE = 512


def check_gram_dtype(dtype: str) -> None:
    """Raise a :class:`TrakStoreError` for products of another dtype."""
    if not is_one_of(dtype, get_args(GramDtype)):
        raise TrakStoreError(f"gram_dtype is {' or '.join(get_args(GramDtype))}, got {dtype!r}")


class Kernel(Protocol):
    """K = ΦᵀΦ in some form: a matrix, tiles on disk, or the rows themselves."""

    @property
    def rows(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def trace(self) -> float: ...


@dataclass(frozen=True, eq=False)
class Gram:
    """K = Φᵀ diag(w) Φ.

    Attributes
    ----------
    matrix : ndarray of float64, shape (k, k)
        K, symmetric to the bit.
    rows : int
        Number of rows with a weight above zero; in a gram from :func:`.stored_grams.split_gram`, number
        of all unmasked rows, the n of the damping.
    trace : float
        tr(K): the sum of the squared norms of the rows.
    dtype : {"float32", "float64"}
        Dtype of the products that were summed, or the narrower one that was asked for: it says how far
        to trust small eigenvalues.
    """

    matrix: NDArray[np.float64]
    rows: int
    trace: float
    dtype: GramDtype = "float32"

    @property
    def dim(self) -> int:
        return int(self.matrix.shape[0])


def gram(
    rows: Rows,
    weights: Rows | None = None,
    *,
    dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
    device: str = "cpu",
) -> Gram:
    """Compute K = Σᵢ wᵢ φᵢ φᵢᵀ in one pass over the rows.

    Parameters
    ----------
    rows : Rows, shape (n, k)
        Features, of any float dtype.
    weights : Rows, shape (n,), optional
        Non-negative weights wᵢ; all 1 when None.
    dtype : {"float32", "float64"}
        Dtype of the products within a tile. Sums over tiles are always float64, as are products of rows
        so small that float32 would lose them.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.
    device : str
        Device of products and sums, such as ``"cuda"``; a worker that cannot use it works on the CPU.

    Returns
    -------
    Gram
        Float64.

    Raises
    ------
    NumericsError
        When a feature or weight is not finite, or a weight is negative.
    MemoryLimitError
        When the matrix and one tile do not fit, here or on the device.

    Examples
    --------
    >>> from trakstore.passes.rows import ArrayRows
    >>> gram(ArrayRows(np.array([[1.0, 2.0], [0.0, 1.0]]))).matrix
    array([[1., 2.],
           [2., 5.]])
    """
    if len(rows.shape) != 2:
        raise TrakStoreError(f"a gram needs rows of shape (n, k), got {rows.shape}")
    if weights is not None and weights.shape != rows.shape[:1]:
        raise TrakStoreError(f"weights have shape {weights.shape}, needed {rows.shape[:1]}")
    (count, dim), step, limit = rows.shape, tile_rows(rows), memory_budget(memory_limit)
    waiting, each = gram_bytes(dim, step, rows.dtype.itemsize, np.dtype(dtype).itemsize)
    workers = fitting_slots(waiting, each, limit, f"a gram of {dim}")
    if device != "cpu":
        workers = min(workers, _device_slots(rows, step, dtype, device))
    ahead = room_ahead(limit, waiting + workers * each, workers)
    one = _GramPass(step, rows, weights, dtype, ahead, device)
    total, used = one.run(count, parts=_parts(dim), workers=workers)
    if products_vanish(float(np.trace(total)), rows.shape, dtype):
        how: Any = {"memory_limit": memory_limit, "device": device}
        return replace(gram(rows, weights, dtype="float64", **how), dtype=dtype)
    # Passes fill only the upper block triangle.
    for low, high in ranges(dim, SQUARE):
        total[high:, low:high] = total[low:high, high:].T
    return Gram(total, used, float(np.trace(total)), dtype)


def products_vanish(trace: float, shape: tuple[int, ...], dtype: GramDtype) -> bool:
    """Tell whether rows are so small that float32 loses their products.

    Rows of zeros count as such: they cost a pass in float64, in which products of float32 numbers never
    vanish.
    """
    return dtype == "float32" and trace < _LEAST_SQUARE * math.prod(shape)


def _device_slots(rows: Rows, step: int, dtype: GramDtype, device: str) -> int:
    from trakstore.kernels.device_gram import device_gram_bytes

    dim, computed = rows.shape[1], np.dtype(dtype).itemsize
    each = device_gram_bytes(dim, step, rows.dtype.itemsize, computed)
    return device_slots(device, each, f"a gram of {dim}")


def _parts(dim: int) -> int:
    """Return the most ranges of rows that are summed apart: fewer if a partial matrix is large.

    The number depends on the shape alone, since the bits of the sum depend on it.
    """
    return max(1, min(MOST_RANGES, 2**31 // (8 * dim * dim)))


def gram_bytes(dim: int, step: int, stored: int, computed: int) -> tuple[int, int]:
    """Return the bytes of results that wait in the merge tree, and of one task.

    A task has its sum, a product, a tile of ``step`` rows as stored, its bytes in a codec, and the tile
    as computed.
    """
    waiting = (_parts(dim).bit_length() + 1) * 8 * dim * dim
    return waiting, dim * dim * (8 + computed) + step * dim * (2 * stored + computed)


def gram_flops(rows: int, dim: int) -> int:
    """Count the operations of the upper triangle: k(k + 1)/2 sums of n products."""
    return rows * dim * (dim + 1)


Partial = tuple[NDArray[np.float64], int]


@dataclass
class _Sums:
    """The sum of a range so far, its number of rows, and arrays that every tile reuses."""

    total: NDArray[np.float64]
    used: int
    computed: NDArray[Any]
    product: NDArray[Any]


@dataclass(frozen=True, eq=False)
class _GramPass(Pass["_Sums | DeviceSums", Partial]):
    rows: Rows
    weights: Rows | None
    dtype: GramDtype
    ahead: int
    wanted_device: str

    @staticmethod
    def merge(left: Partial, right: Partial) -> Partial:
        return left[0] + right[0], left[1] + right[1]

    @property
    def device(self) -> str:
        return usable_device(self.wanted_device)

    def on_cpu(self) -> _GramPass:
        return replace(self, wanted_device="cpu")

    def reading(self, tiles: Tiles) -> AbstractContextManager[None]:
        reads = ((rows, *tile) for tile in tiles for rows in (self.rows, self.weights))
        return together(reads, self.ahead)

    def start(self) -> _Sums | DeviceSums:
        (rows, dim), device = self.rows.shape, self.device
        if device != "cpu":
            from trakstore.kernels.device_gram import DeviceSums

            return DeviceSums(dim, self.dtype, PRODUCT_ROWS, device)
        # Made once, since on a cluster's workers a new array costs as much as reading its values.
        computed = np.empty((min(self.step, rows), dim), dtype=self.dtype)
        product = np.empty(min(SQUARE, dim) * dim, dtype=self.dtype)
        return _Sums(np.zeros((dim, dim)), 0, computed, product)

    def visit(self, state: _Sums | DeviceSums, low: int, high: int) -> _Sums | DeviceSums:
        if not isinstance(state, _Sums):
            state.add(self.rows, low, high, self._roots(low, high))
            return state
        tile, count = self._tile(low, high, state.computed[: high - low])
        for first in range(0, len(tile), PRODUCT_ROWS):
            _add_product(state.total, tile[first : first + PRODUCT_ROWS], state.product)
        # Column j's own square has the square of every value in it: one that is not finite shows on the
        # diagonal.
        if not np.isfinite(np.einsum("ii->i", state.total)).all():
            raise NumericsError(_complaint(tile, low, high))
        state.used += count
        return state

    def finish(self, state: _Sums | DeviceSums) -> Partial:
        return (state.total if isinstance(state, _Sums) else state.matrix()), state.used

    def _tile(self, low: int, high: int, out: NDArray[Any]) -> tuple[NDArray[Any], int]:
        """Return rows times the square roots of their weights, and how many have a weight.

        Rows that change are written to ``out``.
        """
        rows, roots = self.rows.read(low, high), self._roots(low, high)
        if roots is None and rows.dtype == out.dtype:
            return rows, len(rows)
        # An overflow here makes the sum infinite, which is checked at the end.
        with np.errstate(over="ignore", invalid="ignore"):
            if roots is None:
                np.copyto(out, rows, casting="same_kind")
                return out, len(rows)
            np.multiply(rows, roots[:, None], out=out, casting="same_kind")
        # A row without weight may hold NaN, which times 0 is NaN.
        out[roots == 0] = 0
        return out, int(np.count_nonzero(roots))

    def _roots(self, low: int, high: int) -> NDArray[Any] | None:
        """Return the square roots of the weights; None if all are 1."""
        if self.weights is None:
            return None
        weights = np.asarray(self.weights.read(low, high), dtype=np.float64)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise NumericsError(f"weights of rows {low}..{high} are not all finite and >= 0")
        return None if (weights == 1).all() else np.sqrt(weights).astype(self.dtype)


def _add_product(total: NDArray[np.float64], tile: NDArray[Any], scratch: NDArray[Any]) -> None:
    """Add the upper block triangle of tileᵀ·tile: half the products of the whole."""
    with np.errstate(over="ignore", invalid="ignore"):
        for low, high in ranges(len(total), SQUARE):
            part = tile[:, low:high]
            for first, last in ((low, high), (high, len(total))):
                shape = high - low, last - first
                product = scratch[: math.prod(shape)].reshape(shape)
                # For aᵀ·a of one array numpy calls syrk, which does half the work, and whose result is
                # symmetric to the bit. (scipy's own syrk keeps the GIL.)
                other = part if first == low else tile[:, first:last]
                total[low:high, first:last] += np.matmul(part.T, other, out=product)


def _complaint(tile: NDArray[Any], low: int, high: int) -> str:
    bad = int((~np.isfinite(tile).all(axis=1)).sum())
    what = f"{bad} of them hold NaN or inf" if bad else "too large for float32 products"
    return f"features of rows {low}..{high} cannot enter a gram: {what}; featurize them again"
