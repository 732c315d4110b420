"""Codes of rows: what they say of products has the error that is said, for rows of any kind."""

from __future__ import annotations

import numpy as np
import pytest

from trakstore.scores.row_codes import Coder, _mix, _parts, estimates
from trakstore.storage.tables.index_documents import code_bytes, direction_count


def coder_of(rows: np.ndarray, seed: int = 0) -> Coder:
    return Coder.of(Coder.directions_of(rows, seed), seed)


def told(coder: Coder, rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    out = np.empty((1, len(rows)), np.float32)
    estimates(out, coder.codes(rows), [coder.target(target)])
    return out[0]


@pytest.mark.parametrize("dim", [1, 2, 24, 63, 64, 65, 100, 1000, 2048])
def test_rows_are_mixed_by_an_orthogonal_map(dim: int) -> None:
    coder = coder_of(np.eye(dim, dtype=np.float32))
    assert set(np.unique(coder.signs)) <= {-1, 1}
    matrix = np.eye(dim, dtype=np.float32)
    _mix(matrix, coder.signs, _parts(dim))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(dim), atol=1e-5)
    # What is in one column is spread over many.
    if dim % _parts(dim) == 0:
        np.testing.assert_allclose(np.abs(matrix[matrix != 0]), _parts(dim) ** -0.5, rtol=1e-5)
    assert np.abs(matrix).max() < 0.6 or dim < 24
    assert _parts(dim) > min(dim, 64) / 2


@pytest.mark.parametrize("dim", [24, 100, 512])
@pytest.mark.parametrize("kind", ["normal", "single columns"])
def test_estimates_have_no_bias_and_the_error_that_is_said(dim: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3000, dim)).astype(np.float32)
    if kind == "single columns":  # a few large entries, and many tiny ones
        rows *= np.float32(1e-3) + (rng.random(rows.shape) < 0.1)
    target = rng.standard_normal(dim).astype(np.float32)
    coder, exact = coder_of(rows), rows @ target
    rest = rows - rows @ coder.directions.T @ coder.directions
    unit = np.linalg.norm(rest, axis=1) * np.linalg.norm(target) / dim**0.5
    error = (told(coder, rows, target) - exact) / unit
    # 16 levels leave 0.01154 of the variance of normal numbers.
    most = {"normal": 1.1, "single columns": 1.7}[kind]
    assert abs(error.mean()) < 0.02 and error.std() < most * 0.01154**0.5


def test_what_is_small_in_rows_and_large_in_a_target_is_not_lost() -> None:
    """A kernel's inverse raises directions that hardly show beside the largest ones."""
    rng, dim = np.random.default_rng(0), 512
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    spread = np.arange(1, dim + 1) ** -0.95
    rows = ((rng.standard_normal((4000, dim)) * spread) @ basis).astype(np.float32)
    whitened = (rng.standard_normal((5, dim)) / spread) @ basis
    coder = coder_of(rows)
    for target in whitened.astype(np.float32):
        exact = rows @ target
        assert np.corrcoef(told(coder, rows, target), exact)[0, 1] > 0.9
    # Without the directions apart, most of what is told is noise.
    none = Coder(np.zeros_like(coder.directions), coder.signs)
    assert np.corrcoef(told(none, rows, target), exact)[0, 1] < 0.65


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_rows_of_any_size(size: float) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 128)).astype(np.float32)
    target = rng.standard_normal(128).astype(np.float32)
    plain, sized = coder_of(rows), coder_of(rows * np.float32(size))
    np.testing.assert_allclose(np.abs(sized.directions), np.abs(plain.directions), atol=1e-4)
    own = Coder(plain.directions, plain.signs)
    want, got = told(own, rows, target), told(own, rows * np.float32(size), target)
    np.testing.assert_allclose(got / size, want, atol=0.15 * np.abs(want).max())


def test_rows_of_zeros_are_zeros_and_rows_along_a_direction_are_exact() -> None:
    rng, dim = np.random.default_rng(0), 128
    rows = rng.standard_normal((300, dim)).astype(np.float32)
    coder, target = coder_of(rows), rng.standard_normal(dim).astype(np.float32)
    assert coder.directions.shape == (direction_count(dim), dim) == (2, dim)
    along = 3 * coder.directions
    np.testing.assert_allclose(told(coder, along, target), along @ target, rtol=1e-2)
    np.testing.assert_array_equal(told(coder, np.zeros((4, dim), np.float32), target), 0)
    np.testing.assert_array_equal(told(coder, rows, np.zeros(dim, np.float32)), 0)
    # Of rows of zeros alone any directions will do.
    none = coder_of(np.zeros((5, dim), np.float32))
    np.testing.assert_allclose(none.directions @ none.directions.T, np.eye(2), atol=1e-5)


def test_codes_follow_from_the_seed_and_hold_each_row_by_itself() -> None:
    rows = np.random.default_rng(0).standard_normal((1300, 100)).astype(np.float32)
    directions = Coder.directions_of(rows, 3)
    whole = Coder.of(directions, 3).codes(rows)
    assert whole.levels.shape == (1300, code_bytes(100))
    few = Coder.of(directions, 3).codes(rows[700:900])
    for one, other in zip(few, whole.rows(700, 900), strict=True):
        assert (one != other).mean() < 0.01  # products of other counts are rounded otherwise
    assert (Coder.of(directions, 4).codes(rows).levels != whole.levels).mean() > 0.5


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_were_bad_count_as_zeros_and_others_stay(dtype: str, bad: float) -> None:
    rows = np.random.default_rng(0).standard_normal((300, 70)).astype(dtype)
    # Finite numbers whose sum of squares is not, in float16.
    rows[200] = np.finfo(np.float16).max
    coder, places = coder_of(rows.astype(np.float32)), [3, 129, 130, 299]
    zeros = rows.copy()
    zeros[places] = 0
    rows[places, [0, 69, 5, 7]] = bad
    made, wanted = coder.codes(rows), coder.codes(zeros)
    assert not made.steps[places].any() and (np.delete(made.steps, places) > 0).all()
    for one, other in zip(made, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
