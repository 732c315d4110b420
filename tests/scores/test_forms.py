"""Every solver solves the same kernel, measured by backward error against float64 dense."""

from __future__ import annotations

import gc
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference

import trakstore as ts
from trakstore.errors import MemoryLimitError, NumericsError, TrakStoreError
from trakstore.kernels import (
    BlockedCholesky,
    Cholesky,
    ConjugateGradients,
    Damping,
    Dual,
    Eigen,
    factor_split,
    inverse,
    save_inverse,
    tiled_gram,
)
from trakstore.kernels.choice import choose_solver, factor_rows, split_kernel
from trakstore.kernels.solvers import IllConditionedWarning
from trakstore.passes.rows import ArrayRows
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.checking.verification import verify_store
from trakstore.storage.tables import gram_documents

SOLVERS = [Cholesky(), Eigen(), ConjugateGradients(1e-11, 2000), Dual(), BlockedCholesky()]


@pytest.fixture(autouse=True)
def _small_gram_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gram_documents, tiled_gram):
        monkeypatch.setattr(module, "GRAM_CHUNK", 16)
    monkeypatch.setattr(tiled_gram, "STRIP_ROWS", 16)


@pytest.fixture
def split_of(tmp_path: Path) -> Any:
    numbers = count()

    def make(features: Any) -> Any:
        projection = ts.ProjectionSpec("sjlt", features.shape[1])
        store = ts.FeatureStore.create(tmp_path / f"{next(numbers)}.zarr", projection=projection)
        return store.write_split(0, "train", features.astype(np.float32), block_rows=9)

    return make


def spread(n: int, k: int, condition: float) -> Any:
    """Features whose gram has eigenvalues from 1 down to 1/condition."""
    rng = np.random.default_rng(5)
    left = np.linalg.qr(rng.standard_normal((max(n, k), max(n, k))))[0][:n, : min(n, k)]
    right = np.linalg.qr(rng.standard_normal((k, k)))[0][: min(n, k)]
    return (left * np.geomspace(1, condition**-0.5, min(n, k))) @ right


def backward_error(solved: Any, matrix: Any, rhs: Any) -> float:
    """‖x A − b‖ / (‖A‖ ‖x‖ + ‖b‖), the worst of the rows."""
    missed = np.linalg.norm(solved @ matrix - rhs, axis=1)
    size = np.linalg.norm(matrix, 2) * np.linalg.norm(solved, axis=1)
    return float((missed / (size + np.linalg.norm(rhs, axis=1))).max())


def damped_gram(split: Any, lam: float) -> Any:
    stored = split.column("features").read(0, split.rows)
    return reference.gram(stored) + lam * np.eye(stored.shape[1])


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("n", "k"), [(90, 40), (25, 40)])
def test_solvers_agree(split_of: Any, solver: Any, n: int, k: int) -> None:
    split, rhs = split_of(spread(n, k, 100.0)), np.random.default_rng(1).standard_normal((5, k))
    kept = rhs.copy()
    factor = factor_split(split, 0.7, solver=solver, dtype="float64")
    matrix = damped_gram(split, factor.damping)
    assert factor.dim == k
    assert factor.damping == pytest.approx(0.7 * np.trace(matrix - factor.damping * np.eye(k)) / n)
    assert backward_error(factor.solve(rhs), matrix, rhs) < 1e-11
    np.testing.assert_array_equal(rhs, kept)


@pytest.mark.parametrize("condition", [1e2, 1e5, 1e8])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_backward_error_does_not_grow_with_the_condition_number(
    split_of: Any, solver: Any, condition: float
) -> None:
    split, rhs = split_of(spread(90, 40, 1e12)), np.random.default_rng(1).standard_normal((3, 40))
    damping = Damping(absolute=1 / condition)
    factor = factor_split(split, damping, solver=solver, dtype="float64")
    assert backward_error(factor.solve(rhs), damped_gram(split, 1 / condition), rhs) < 1e-10


def test_products_of_float32_show_at_small_damping(split_of: Any) -> None:
    split, rhs = split_of(spread(90, 40, 1e12)), np.random.default_rng(1).standard_normal((3, 40))
    damping = Damping(absolute=1e-8)
    with pytest.warns(IllConditionedWarning, match="gram_dtype='float64'"):
        factor = factor_split(split, damping, solver=Cholesky())
    assert backward_error(factor.solve(rhs), damped_gram(split, 1e-8), rhs) > 1e-10


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_beyond_float64_is_refused(split_of: Any, solver: Any) -> None:
    split = split_of(spread(90, 40, 1.0)[:, :3] @ np.ones((3, 40)))
    rhs = np.random.default_rng(1).standard_normal((2, 40))
    with pytest.raises(NumericsError, match=r"singular|residual"):
        factor_split(split, 0.0, solver=solver, dtype="float64").solve(rhs)
    with pytest.raises(NumericsError, match="all 20 rows are zero"):
        factor_split(split_of(np.zeros((20, 8))), 1.0, solver=solver)


def test_a_whole_damping_path_from_one_factor(split_of: Any) -> None:
    split, rhs = split_of(spread(90, 40, 1e4)), np.random.default_rng(1).standard_normal((3, 40))
    kernel = split_kernel(split, "matrix", dtype="float64")
    factor = Eigen().factor(kernel, 1.0)
    for c in (1e-3, 0.1, 10.0):
        expected = Cholesky().factor(kernel, c)
        np.testing.assert_allclose(factor.at(c).solve(rhs), expected.solve(rhs), rtol=1e-9)
        assert factor.at(c).damping == expected.damping
    assert factor.condition == pytest.approx(np.linalg.cond(damped_gram(split, factor.damping)))


@pytest.mark.parametrize("limit", ["20kB", "60kB", None])
def test_blocked_is_cholesky_whatever_the_memory(split_of: Any, limit: str | None) -> None:
    split = split_of(spread(200, 70, 1e3))
    whole = factor_split(split, solver=Cholesky(), dtype="float64")
    fresh = split_of(spread(200, 70, 1e3))
    options: Any = {"dtype": "float64", "memory_limit": limit and "200kB"}
    blocked = factor_split(fresh, solver=BlockedCholesky(limit), **options)
    lower = np.tril(whole.lower)
    np.testing.assert_allclose(np.tril(blocked.lower[:]), lower, atol=1e-12)
    tiles = split_kernel(fresh, "tiles", dtype="float64").array
    assert tiles.chunks == (16, 16)
    np.testing.assert_array_equal(tiles[:], tiles[:].T)
    again = split_kernel(fresh, "matrix", dtype="float64")  # the stored tiles are a stored gram
    np.testing.assert_array_equal(again.matrix, tiles[:])
    assert verify_store(fresh.location.address).ok
    folder = Path(blocked.scratch.location.address)
    assert folder.exists()
    del blocked
    assert not folder.exists()


def test_strips_are_as_tall_as_planned_however_many_there_are(
    split_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trakstore.kernels import tiled_gram

    split, heights, add = split_of(spread(60, 400, 1e3)), [], tiled_gram._add

    def noted(total: Any, part: Any, height: int) -> None:
        heights.append(len(total))
        add(total, part, height)

    monkeypatch.setattr(tiled_gram, "_add", noted)
    kernel = split_kernel(split, "tiles", dtype="float64", memory_limit="420kB")
    plan = tiled_gram.strip_plan(split.column("features"), "float64", "420kB")
    assert max(heights) == plan.height < 400 // 8  # more strips than ranges
    rows = split.column("features").read(0, 60).astype(np.float64)
    np.testing.assert_allclose(kernel.array[:], rows.T @ rows, rtol=1e-10)


def test_too_little_memory_for_blocks_is_told(split_of: Any) -> None:
    split = split_of(spread(200, 70, 1e3))
    with pytest.raises(MemoryLimitError, match="in tiles needs at least"):
        factor_split(split, solver=BlockedCholesky(), memory_limit="9kB")
    assert not split.location.names(layout.GRAMS)  # refused before anything was written
    with pytest.raises(MemoryLimitError, match=r"blocked factorisation .* needs at least"):
        factor_split(split, solver=BlockedCholesky("9kB"))
    with pytest.raises(MemoryLimitError, match=r"or solver=BlockedCholesky\(\)") as told:
        factor_split(split_of(spread(90, 40, 1.0)), solver=Cholesky(), memory_limit="9kB")
    advice = str(told.value).rpartition("(")[2].removesuffix(")")
    names: dict[str, Any] = {}
    exec(advice, names)  # noqa: S102
    assert names["BlockedCholesky"] is BlockedCholesky
    with pytest.raises(MemoryLimitError, match="the dual form of 25 rows"):
        factor_split(split_of(spread(25, 40, 1.0)), solver=Dual("5kB"))


def test_tiles_of_a_sealed_store_live_in_a_folder_of_their_own(split_of: Any) -> None:
    from dataclasses import replace

    split = split_of(spread(90, 40, 1e3))
    sealed = Location("sealed", split.location.store.with_read_only(True), reopens=False)
    gc.disable()  # the folder goes with its kernel, not when the collector comes by
    try:
        kernel = split_kernel(replace(split, location=sealed), "tiles")
        np.testing.assert_allclose(kernel.array[:], damped_gram(split, 0), atol=1e-5)
        folder = Path(kernel.location.address)
        assert folder.exists()
        del kernel
        assert not folder.exists()
    finally:
        gc.enable()


def test_masked_rows_leave_every_form(split_of: Any) -> None:
    class Masked:
        masked = (3, 4, 88)

        def __init__(self, split: Any) -> None:
            self._split = split

        def __getattr__(self, name: str) -> Any:
            return getattr(self._split, name)

    split, rhs = split_of(spread(90, 40, 10.0)), np.eye(40)
    found = [
        factor_split(Masked(split), 0.5, solver=solver, dtype="float64").solve(rhs)
        for solver in SOLVERS
    ]
    rows = np.delete(split.column("features").read(0, 90), (3, 4, 88), axis=0)
    lam = reference.damping(rows, 0.5)
    expected = np.linalg.inv(reference.gram(rows) + lam * np.eye(40))
    for solved in found:
        np.testing.assert_allclose(solved, expected, rtol=1e-6, atol=1e-8)


def test_the_solver_is_chosen_by_shape_and_memory(split_of: Any) -> None:
    assert isinstance(choose_solver(90, 40, Damping()), Cholesky)
    assert isinstance(choose_solver(90, 40, Damping(), "40kB"), BlockedCholesky)
    assert isinstance(choose_solver(90, 40, Damping(), "130kB", held=15_000), Cholesky)
    assert isinstance(choose_solver(90, 40, Damping(), "130kB", held=20_000), BlockedCholesky)
    assert isinstance(choose_solver(25, 40, Damping()), Dual)
    # Four factors of 25 x 25 beside one another; Cholesky's would be of 40 x 40.
    assert isinstance(choose_solver(25, 40, Damping(), "45kB", held=15_000), Dual)
    assert isinstance(choose_solver(25, 40, Damping(), "45kB", held=20_000), BlockedCholesky)
    assert isinstance(choose_solver(25, 40, Damping(0.0)), Cholesky)
    with pytest.raises(TrakStoreError, match="Cholesky works on a Gram, got a RowsKernel"):
        Cholesky().factor(split_kernel(split_of(spread(90, 40, 1.0)), "rows"))


@pytest.mark.parametrize("solver", [*SOLVERS, None], ids=lambda s: type(s).__name__)
def test_rows_in_memory_have_the_same_factors(split_of: Any, solver: Any) -> None:
    rows, rhs = spread(90, 40, 10.0), np.eye(40)
    options: Any = {"solver": solver, "dtype": "float64"}
    expected = factor_split(split_of(rows), 0.5, **options).solve(rhs)
    found = factor_rows(ArrayRows(rows.astype(np.float32)), 0.5, **options).solve(rhs)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-10)


def test_gradients_that_do_not_converge_say_so(split_of: Any) -> None:
    split = split_of(spread(90, 40, 1e6))
    factor = factor_split(split, 1e-6, solver=ConjugateGradients(1e-10, iterations=3))
    with pytest.raises(NumericsError, match=r"after 3 passes over the rows, needed 1\.0e-10"):
        factor.solve(np.eye(40))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_the_inverse_on_request(split_of: Any, solver: Any) -> None:
    split = split_of(spread(90, 40, 10.0))
    factor = factor_split(split, 0.5, solver=solver, dtype="float64")
    expected = np.linalg.inv(damped_gram(split, factor.damping))
    found, written = inverse(factor), np.empty((40, 40))
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    save_inverse(factor, written, memory_limit="30kB")
    np.testing.assert_allclose(written, expected, rtol=1e-7, atol=1e-9)
    with pytest.raises(MemoryLimitError, match="the inverse of a kernel of 40"):
        inverse(factor, memory_limit="5kB")
