from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from trakstore.errors import MemoryLimitError, NumericsError, TrakStoreError
from trakstore.kernels.gram import gram
from trakstore.passes.rows import ArrayRows


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 90),
    k=st.sampled_from([1, 3, 130, 300]),
    chunk=st.integers(1, 40),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
)
def test_gram_is_the_sum_of_outer_products(n, k, chunk, dtype):
    features = np.random.default_rng(n).standard_normal((n, k)).astype(dtype)
    found = gram(ArrayRows(features, chunk))
    expected = reference.gram(features)
    assert found.matrix.dtype == np.float64
    np.testing.assert_array_equal(found.matrix, found.matrix.T)
    np.testing.assert_allclose(found.matrix, expected, atol=1e-5 * n, rtol=1e-5)
    assert found.trace == pytest.approx(np.trace(expected), rel=1e-5)
    assert found.rows == n


def test_float64_products_are_float64(draw):
    features = draw(200, 20, dtype="float64")
    exact = gram(ArrayRows(features, 16), dtype="float64").matrix
    np.testing.assert_allclose(exact, reference.gram(features), rtol=1e-12, atol=1e-12)
    assert np.abs(gram(ArrayRows(features, 16)).matrix - exact).max() > 1e-10


@pytest.mark.parametrize("size", [1e-18, 1e-22, 1e-23, 1e-30])
@pytest.mark.parametrize("weighted", [False, True])
def test_products_of_tiny_rows_do_not_vanish(draw, size, weighted):
    features = draw(60, 7).astype(np.float32)
    weights = np.full(60, size * size) if weighted else None  # roots are as small as the rows
    rows = features if weighted else (features * size).astype(np.float32)
    found = gram(ArrayRows(rows, 16), None if weights is None else ArrayRows(weights))
    expected = reference.gram(rows.astype(np.float64) * (size if weighted else 1.0))
    np.testing.assert_allclose(
        found.matrix, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max()
    )
    assert found.trace == pytest.approx(np.trace(expected), rel=1e-6)
    assert (found.dtype, found.rows) == ("float32", 60)


def test_rows_of_zeros_stay_zeros():
    assert not gram(ArrayRows(np.zeros((20, 3), np.float32))).matrix.any()


def test_sums_over_tiles_are_float64():
    features = np.ones((3, 1), dtype=np.float32) * np.float32(2.0**13)
    features[1:] = 1.0  # 2**26 + 1 + 1: lost in float32
    assert gram(ArrayRows(features, 1)).trace == 2.0**26 + 2


def test_weights_count_rows_and_mask_them(draw):
    features, weights = draw(50, 4), np.abs(draw(50)).astype(np.float64)
    weights[::7] = 0
    features[0] = np.nan  # masked
    found = gram(ArrayRows(features, 8), ArrayRows(weights, 16))
    expected = reference.gram(np.nan_to_num(features), weights)
    np.testing.assert_allclose(found.matrix, expected, rtol=1e-4, atol=1e-4)
    assert found.rows == np.count_nonzero(weights)
    with pytest.raises(NumericsError, match="weights of rows 16"):
        bad = weights.copy()
        bad[17] = -1
        gram(ArrayRows(features, 8), ArrayRows(bad, 16))
    with pytest.raises(TrakStoreError, match="weights have shape"):
        gram(ArrayRows(features, 8), ArrayRows(weights[1:], 16))


@pytest.mark.parametrize(
    ("value", "why"), [(np.nan, "1 of them"), (np.inf, "NaN or inf"), (1e30, "too large")]
)
def test_features_that_cannot_enter_are_named(draw, value, why):
    features = draw(40, 3)
    features[21, 1] = value
    with pytest.raises(NumericsError, match=rf"rows 16\.\.24 .*{why}"):
        gram(ArrayRows(features, 8))


def test_too_little_memory_is_refused_before_reading(draw):
    class Unread(ArrayRows):
        def read(self, *_):
            raise AssertionError("read")

    with pytest.raises(MemoryLimitError, match="a gram of 512 needs at least"):
        gram(Unread(draw(10, 512)), memory_limit="1MB")
