"""Top-k in two passes: few columns to find candidates, all of them to score those; recall measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.passes.one_pass import Pass, Tiles, beside
from trakstore.passes.rows import RowByRow, Rows
from trakstore.progress import ProgressLine, on_terminal
from trakstore.quantities import as_whole
from trakstore.scores.factored import Scores
from trakstore.scores.parts import F32, Window
from trakstore.scores.running_lists import Found, Order, check_finite, first_of, keys
from trakstore.scores.top_k import SelectPass, check_request, listed, plan_top_k

__all__ = ["approximate_top_k"]

SAMPLE_RUNS, SAMPLE_ROWS = 16, 64  # train rows that directions are found from: runs of rows
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
    r"""Lists of exact scores, from candidates that a product with few columns finds.

    With left factors L and train rows Φ, the directions U, orthonormal, of which the scores LΦᵀ of a
    sample of train rows have most, give the first pass as a product of ``columns`` columns,

    .. math:: L\Phi^T \approx U\,(\Phi L^T U)^T ,

    and its first ``candidates`` for each target are scored exactly. A train row that the first pass
    misses is not listed, so the answer says how much of the true lists it has: the lists of some
    targets are also computed by the exact pass.

    Parameters
    ----------
    scores : Scores, shape (m, n)
    k : int
        Entries of each list.
    columns : int
        Of the first pass; fewer are faster and find less.
    candidates : int, optional
        For each target, k to n; 10 k by default.
    order : {"largest", "smallest", "magnitude"}
    checked : int
        Targets, drawn at random, whose exact lists are computed too.
    seed : int
        Of the directions and of the targets that are checked.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    Dataset
        As of :func:`top_k`. Its attribute ``recall`` is the share of the exact lists of ``checked``
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
    step, found, hits = scores.tile_rows, [], 0
    with ProgressLine(f"top-{k}", rows, unit="targets", show=on_terminal()) as progress:
        for start, stop in plan.windows(rows):
            window = scores.window(start, stop, plan.ahead)
            run = partial(_run, rows=trains, workers=plan.workers)
            coarse = _coarse(window, columns, rng)
            (near,) = run(SelectPass(step, coarse, start, wide, order, None))
            lists = _rescored(window, start, near.position, k, order, step, run)
            found.append(lists)
            own = chosen[(chosen >= start) & (chosen < stop)] - start
            if len(own):
                exact = SelectPass(step, _targets(window, own), start, k, order, None)
                hits += _shared(run(exact)[0], lists, own)
            progress.advance(stop - start)
    recall = hits / (len(chosen) * k) if len(chosen) else float("nan")
    result = listed(found, scores, order)
    how = {"columns": columns, "candidates": wide, "checked": len(chosen), "recall": recall}
    return result.assign_attrs(how)


def _run(one: Pass[Any, Any], rows: int, workers: int) -> Any:
    return one.run(rows, workers=workers)


def _coarse(window: Window, columns: int, rng: np.random.Generator) -> Window:
    """The window with as few columns as that, for scores that are near to its own."""
    lefts, trains = [], []
    for left, train, scale in zip(window.lefts, window.trains, window.scales, strict=True):
        if columns < min(left.shape):
            sample = _sampled(train, window.scale if scale is None else scale)
            basis = _leading(left @ sample.T, columns, rng)
            train = _Turned(train, np.ascontiguousarray(left.T @ basis))
            left = basis
        lefts.append(left)
        trains.append(train)
    return replace(window, lefts=tuple(lefts), trains=tuple(trains), soft_threshold=0.0)


def _sampled(train: Rows, scale: Rows | None) -> F32:
    """Some runs of train rows, evenly spread, times their column scale."""
    rows = train.shape[0]
    starts = np.unique(np.linspace(0, max(0, rows - SAMPLE_ROWS), SAMPLE_RUNS).astype(int))
    pieces = [(at, min(rows, at + SAMPLE_ROWS)) for at in starts.tolist()]
    found: F32 = np.concatenate([train.read(*piece) for piece in pieces]).astype(np.float32)
    if scale is not None:
        found *= np.concatenate([scale.read(*piece) for piece in pieces])[:, None]
    return found


def _leading(matrix: F32, columns: int, rng: np.random.Generator) -> F32:
    """Orthonormal columns that span about what the leading left singular vectors span."""
    basis = matrix @ rng.standard_normal((matrix.shape[1], columns)).astype(np.float32)
    for _ in range(ITERATIONS):
        basis = matrix @ (matrix.T @ np.linalg.qr(basis)[0])
    found: F32 = np.linalg.qr(basis)[0]
    return found


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
) -> Found:
    """The first k of each target's candidates (targets, candidates), by their exact scores."""
    flat = near.ravel()
    ascending = np.argsort(flat, kind="stable")
    targets = ascending // near.shape[1]
    values = np.empty(flat.shape, dtype=np.float32)
    values[ascending] = run(_RescorePass(step, window, targets, flat[ascending]))
    score = values.reshape(near.shape)
    for row in np.flatnonzero(~np.isfinite(score).all(axis=1))[:1]:
        check_finite(score[row : row + 1], first + row, near[row])
    return first_of(Found(keys(score, order), score, near), k)


@dataclass(frozen=True, eq=False)
class _RescorePass(Pass[list[F32], F32]):
    """Scores of single entries, in ascending order of columns."""

    window: Window
    targets: NDArray[np.int64]
    columns: NDArray[np.int64]
    merge = staticmethod(beside)

    def tiles(self, start: int, stop: int) -> Tiles:
        """Those that hold an entry."""
        return [one for one in super().tiles(start, stop) if len(self._entries(*one))]

    def reading(self, tiles: Tiles) -> AbstractContextManager[None]:
        return self.window.reading(tiles)

    def start(self, tiles: Tiles) -> list[F32]:  # noqa: ARG002
        return [np.empty(0, dtype=np.float32)]

    def visit(self, state: list[F32], low: int, high: int) -> list[F32]:
        own = self._entries(low, high)
        pairs = self.targets[own.start : own.stop], self.columns[own.start : own.stop] - low
        state.append(self.window.entries(low, high, *pairs))
        return state

    def finish(self, state: list[F32]) -> F32:
        return np.concatenate(state)

    def _entries(self, low: int, high: int) -> range:
        return range(*np.searchsorted(self.columns, [low, high]).tolist())


def _targets(window: Window, chosen: NDArray[np.int64]) -> Window:
    return replace(window, lefts=tuple(left[chosen] for left in window.lefts))


def _shared(exact: Found, lists: Found, chosen: NDArray[np.int64]) -> int:
    """How many entries of exact lists are in the lists of these targets."""
    pairs = zip(exact.position, lists.position[chosen], strict=True)
    return sum(int(np.isin(*pair).sum()) for pair in pairs)
