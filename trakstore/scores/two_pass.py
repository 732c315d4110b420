"""Top-k in two passes: candidates from few columns, their exact scores from all; recall measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.passes.one_pass import ListPass, Tiles
from trakstore.passes.rows import RowByRow, Rows
from trakstore.progress import ProgressLine, on_terminal
from trakstore.quantities import as_whole
from trakstore.scores.factored import Scores
from trakstore.scores.parts import F32, Window
from trakstore.scores.running_lists import Lists, Order, check_finite, first_of, keys
from trakstore.scores.top_k import SelectPass, check_request, dataset_of, plan_top_k

# Runs of train rows that directions are computed from, and the rows of each.
SAMPLE_RUNS, SAMPLE_ROWS = 16, 64
ITERATIONS = 2


def approximate_top_k(
    scores: Scores,
    k: int,
    *,
    columns: int = 64,
    candidates: int | None = None,
    order: Order = "largest",
    checked: int = 32,
    seed: int = 0,
    memory_limit: int | str | None = None,
) -> xr.Dataset:
    r"""List exact scores of candidates that a product with few columns finds.

    With left factors L and train rows Φ, the directions U, orthonormal, of which the scores LΦᵀ of a
    sample of train rows have most, give the first pass as a product of ``columns`` columns,

    .. math:: L\Phi^T \approx U\,(\Phi L^T U)^T ,

    and its first ``candidates`` for each target are scored exactly. A train row that the first pass
    misses is not listed, so the answer says how much of the true lists it has: the lists of some
    targets are also computed by the exact pass.

    Parameters
    ----------
    scores : Scores, shape (m, n)
        Factored scores of m targets and n train rows.
    k : int
        Entries of each list.
    columns : int
        Columns of the first pass; fewer are faster and find less.
    candidates : int, optional
        Candidates of each target, k to n; 10 k by default.
    order : {"largest", "smallest", "magnitude"}
        Scores that come first. Equal scores are ordered by train position.
    checked : int
        Targets, drawn at random, whose exact lists are computed too.
    seed : int
        Seed of the directions, and of the choice of targets that are checked.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    Dataset
        As for :func:`top_k`. Its attribute ``recall`` is the share of the exact lists of ``checked``
        targets that is in the answer; NaN where none were checked.

    Raises
    ------
    TrakStoreError
        ``k``, ``columns`` or ``candidates`` out of range, an unknown order.
    NumericsError
        A score is NaN or infinite.
    MemoryLimitError
        The plan does not fit the memory limit.

    References
    ----------
    Halko, Martinsson and Tropp (2011), algorithm 4.4, for U.

    Examples
    --------
    >>> scores = ts.trak_scores(store)
    >>> top = ts.approximate_top_k(scores, 3, columns=8, candidates=12)
    >>> top["train"].values[0].tolist(), top.attrs["recall"]
    (['train-9', 'train-15', 'train-18'], 1.0)
    """
    rows, trains = scores.shape
    k, columns = check_request(k, trains, order), as_whole(columns, "columns")
    checked, seed = as_whole(checked, "checked"), as_whole(seed, "seed", 0)
    wide = min(trains, 10 * k) if candidates is None else as_whole(candidates, "candidates")
    if columns < 1 or checked < 0 or not k <= wide <= trains:
        raise TrakStoreError(
            f"needed columns >= 1, checked >= 0 and candidates in {k}..{trains} (k to the train "
            f"rows), got columns={columns}, checked={checked}, candidates={candidates}"
        )
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(rows, min(checked, rows), replace=False))
    plan = plan_top_k(scores.sizes, wide, None, memory_limit)
    step, lists, hits = scores.tile_rows, [], 0
    with ProgressLine(f"top-{k}", rows, unit="targets", show=on_terminal()) as progress:
        for start, stop in plan.windows(rows):
            window = scores.window(start, stop, plan.ahead)
            run = methodcaller("run", trains, workers=plan.workers)
            coarse = _coarse(window, columns, rng)
            # Coarse scores only choose candidates: exact ones put these in order.
            (near,) = run(SelectPass(step, coarse, start, wide, order, None))
            lists.append(_rescored(window, start, near.position, k, order, step, run))
            own = chosen[(chosen >= start) & (chosen < stop)] - start
            if len(own):
                checked_window = replace(window, lefts=tuple(left[own] for left in window.lefts))
                (exact,) = run(SelectPass(step, checked_window, start, k, order, None))
                hits += _shared(exact, lists[-1], own)
            progress.advance(stop - start)
    recall = hits / (len(chosen) * k) if len(chosen) else float("nan")
    result = dataset_of(lists, scores, order)
    how = {"columns": columns, "candidates": wide, "checked": len(chosen), "recall": recall}
    return result.assign_attrs(how)


def _coarse(window: Window, columns: int, rng: np.random.Generator) -> Window:
    """Return the window with as few columns as that, for scores that are near to its own."""
    lefts, trains = [], []
    for left, train, scale in zip(window.lefts, window.trains, window.scales, strict=True):
        # L Φᵀ becomes U (Φ LᵀU)ᵀ: U is the new left factor, and train rows are turned by LᵀU.
        if columns < min(left.shape):
            sample = _sampled(train, window.scale if scale is None else scale)
            basis = _leading(left @ sample.T, columns, rng)
            train = _Turned(train, np.ascontiguousarray(left.T @ basis))
            left = basis
        lefts.append(left)
        trains.append(train)
    return replace(window, lefts=tuple(lefts), trains=tuple(trains), soft_threshold=0.0)


def _sampled(train: Rows, scale: Rows | None) -> F32:
    """Read some runs of train rows, evenly spread, times their column scale."""
    rows = train.shape[0]
    starts = np.unique(np.linspace(0, max(0, rows - SAMPLE_ROWS), SAMPLE_RUNS).astype(int))
    pieces = [(at, min(rows, at + SAMPLE_ROWS)) for at in starts.tolist()]
    sample: F32 = np.concatenate([train.read(*piece) for piece in pieces]).astype(np.float32)
    if scale is not None:
        sample *= np.concatenate([scale.read(*piece) for piece in pieces])[:, None]
    return sample


def _leading(matrix: F32, columns: int, rng: np.random.Generator) -> F32:
    """Return orthonormal columns that span nearly the same as the leading left singular vectors."""
    basis = matrix @ rng.standard_normal((matrix.shape[1], columns)).astype(np.float32)
    # Each product with A Aᵀ squares the ratios of singular values. Without the QR factorisation
    # between, all columns would turn to the first vector.
    for _ in range(ITERATIONS):
        basis = matrix @ (matrix.T @ np.linalg.qr(basis)[0])
    return np.asarray(np.linalg.qr(basis)[0])


@dataclass(frozen=True, eq=False)
class _Turned(RowByRow):
    """Rows times a matrix, shapes (n, k) and (k, columns)."""

    matrix: F32
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.base.shape[0], self.matrix.shape[1])

    def read(self, start: int, stop: int) -> F32:
        rows: F32 = np.asarray(self.base.read(start, stop), dtype=np.float32)
        return rows @ self.matrix


def _rescored(
    window: Window,
    first: int,
    near: NDArray[np.int64],
    k: int,
    order: Order,
    step: int,
    run: Callable[..., Any],
) -> Lists:
    """Return the first k of each target's candidates (targets, candidates), by their exact scores."""
    # In order of columns, the entries of a tile are a range of them, found by bisection.
    flat = near.ravel()
    ascending = np.argsort(flat, kind="stable")
    targets = ascending // near.shape[1]
    values = np.empty(flat.shape, dtype=np.float32)
    values[ascending] = run(_RescorePass(step, window, targets, flat[ascending]))
    score = values.reshape(near.shape)
    # Coarse scores may be finite where exact ones are not.
    for row in np.flatnonzero(~np.isfinite(score).all(axis=1))[:1]:
        check_finite(score[row : row + 1], first + row, near[row])
    return first_of(Lists(keys(score, order), score, near), k)


@dataclass(frozen=True, eq=False)
class _RescorePass(ListPass):
    """Scores of single entries, in ascending order of columns."""

    window: Window
    targets: NDArray[np.int64]
    columns: NDArray[np.int64]

    def tiles(self, start: int, stop: int) -> Tiles:
        """Return the tiles that hold an entry."""
        return [one for one in super().tiles(start, stop) if len(self._entries(*one))]

    def reading(self, tiles: Tiles) -> AbstractContextManager[None]:
        return self.window.reading(tiles)

    def start(self) -> list[NDArray[Any]]:
        # A range may hold no entry.
        return [np.empty(0, dtype=np.float32)]

    def tile(self, low: int, high: int) -> F32:
        own = self._entries(low, high)
        pairs = self.targets[own.start : own.stop], self.columns[own.start : own.stop] - low
        return self.window.entries(low, high, *pairs)

    def _entries(self, low: int, high: int) -> range:
        return range(*np.searchsorted(self.columns, [low, high]).tolist())


def _shared(exact: Lists, lists: Lists, chosen: NDArray[np.int64]) -> int:
    """Count the entries of exact lists that are in the lists of these targets."""
    pairs = zip(exact.position, lists.position[chosen], strict=True)
    return sum(int(np.isin(*pair).sum()) for pair in pairs)
