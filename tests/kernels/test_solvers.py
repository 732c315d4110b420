from __future__ import annotations

import warnings

import numpy as np
import pytest
import reference

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.kernels.gram import Gram, gram
from trakstore.kernels.iterative import ConjugateGradients, Dual, rows_kernel
from trakstore.kernels.solvers import Cholesky, Damping, IllConditionedWarning
from trakstore.passes.rows import ArrayRows


def kernel_of(features):
    return gram(ArrayRows(features, 16), dtype="float64")


@pytest.mark.parametrize("damping", [0.0, 0.1, 1, Damping(3.0), Damping(absolute=0.5)])
def test_solve_is_the_inverse_applied(draw, damping):
    features, rhs = draw(60, 12, dtype="float64"), draw(5, 12)
    kernel = kernel_of(features)
    factor = Cholesky().factor(kernel, damping)
    lam = Damping.of(damping).value(kernel.trace, kernel.rows)
    kept = rhs.copy()
    expected = rhs.astype(float) @ np.linalg.inv(reference.gram(features) + lam * np.eye(12))
    np.testing.assert_allclose(factor.solve(rhs), expected, rtol=1e-9)
    np.testing.assert_array_equal(rhs, kept)
    damped = kernel.matrix + lam * np.eye(12)
    assert factor.damping == lam
    assert factor.condition == pytest.approx(np.linalg.cond(damped, 1), rel=0.5)


def test_factoring_leaves_the_gram_as_it_was(draw):
    kernel = kernel_of(draw(60, 12))
    before = kernel.matrix.copy()
    Cholesky().factor(kernel).solve(draw(2, 12))
    np.testing.assert_array_equal(kernel.matrix, before)


def test_relative_damping_is_the_mean_squared_norm(draw):
    features = draw(60, 12)
    kernel = kernel_of(features)
    assert Damping(2.0).value(kernel.trace, kernel.rows) == pytest.approx(
        reference.damping(features, 2.0)
    )


def test_more_dimensions_than_rows_need_damping(draw):
    kernel = kernel_of(draw(8, 12))
    with pytest.raises(NumericsError, match=r"singular .* k=12 > n=8; use damping > 0, .*=1\.0"):
        Cholesky().factor(kernel, 0.0)
    assert Cholesky().factor(kernel, 1.0).condition < 100


@pytest.mark.parametrize("make", [lambda x: x * [1, 1, 0], lambda x: x @ np.ones((3, 3))])
def test_dependent_columns_are_singular(draw, make):
    kernel = kernel_of(make(draw(50, 3, dtype="float64")))
    with pytest.raises(NumericsError, match="dependent or zero columns"):
        Cholesky().factor(kernel, 0.0)


def test_a_zero_kernel_is_told():
    with pytest.raises(NumericsError, match="all 5 rows are zero"):
        Cholesky().factor(Gram(np.zeros((2, 2)), 5, 0.0), 1.0)


@pytest.mark.parametrize("solver", [Dual(), ConjugateGradients()])
def test_absolute_damping_solves_a_zero_kernel_as_every_solver_does(solver):
    rows = ArrayRows(np.zeros((3, 5), np.float32))
    right = np.ones((2, 5), np.float32)
    of_rows = solver.factor(rows_kernel(rows), Damping(absolute=0.5)).solve(right)
    in_memory = (
        Cholesky().factor(Gram(np.zeros((5, 5)), 3, 0.0), Damping(absolute=0.5)).solve(right)
    )
    np.testing.assert_allclose(of_rows, 2 * right)
    np.testing.assert_allclose(in_memory, 2 * right)


def test_nearly_singular_kernels_warn():
    kernel = Gram(np.diag([1.0, 1e-9]), 4, 1.0)
    with pytest.warns(
        IllConditionedWarning, match=r"1\.0e\+09.*use damping > 0.*gram_dtype='float64'"
    ):
        Cholesky().factor(kernel, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Cholesky().factor(kernel, 1e-3)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1", None, True])
def test_damping_must_be_a_number(value):
    with pytest.raises(TrakStoreError, match="damping must be a finite number >= 0"):
        Damping.of(value)


def test_absolute_damping_is_checked_too():
    with pytest.raises(TrakStoreError, match="damping must be"):
        Damping(absolute=-1e-3)


@pytest.mark.parametrize("limit", [80_000, 200_000, 10**9])
def test_the_dual_form_is_the_same_from_fewer_rows_and_right_hand_sides_at_once(draw, limit):
    features, right = draw(40, 300), draw(70, 300)
    rows = ArrayRows(features, 16)
    kernel = rows_kernel(rows, limit)
    factor = Dual(limit).factor(kernel, Damping(absolute=2.0))
    exact = np.linalg.inv(reference.gram(features) + 2 * np.eye(300))
    np.testing.assert_allclose(factor.solve(right), right @ exact, rtol=1e-7, atol=1e-10)
    assert kernel.step <= 40 and 1 <= kernel.batch <= 1024
    if limit == 80_000:
        assert kernel.batch < 70 and kernel.step < 40
    if limit == 10**9:
        assert factor.most_rows is None
        np.testing.assert_array_equal(
            factor.solve(right),
            Dual().factor(rows_kernel(rows), Damping(absolute=2.0)).solve(right),
        )
    assert factor.solve_memory(70) <= max(limit // 2, 200_000)
