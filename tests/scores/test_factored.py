from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from trakstore.errors import NotFoundError, NumericsError, TrakStoreError
from trakstore.kernels.gram import gram
from trakstore.kernels.solvers import Cholesky
from trakstore.passes.rows import ArrayRows
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part


def dense(arrays, *, reduce="mean", average="factors"):
    total = np.mean if reduce == "mean" else np.sum
    products = [1.5 * np.float64(t) @ np.float64(f).T for t, f, _ in arrays]
    if arrays[0][2] is None:
        return total(products, axis=0)
    scales = [q for *_, q in arrays]
    if average == "factors":
        return total(products, axis=0) * np.mean(scales, axis=0)
    return total([p * q for p, q in zip(products, scales, strict=True)], axis=0)


OPTIONS = [
    {},
    {"average": "scores"},
    {"reduce": "sum"},
    {"reduce": "sum", "average": "scores"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("make", [{}, {"scaled": False}, {"dtype": "float16"}, {"epochs": ("a",)}])
def test_every_way_to_the_matrix_gives_the_dense_one(make_scores, options, make):
    scores, arrays = make_scores(**make, **options)
    expected = dense(arrays, **options)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(np.asarray(scores), expected, **close)
    np.testing.assert_allclose(scores.to_xarray().values, expected, **close)
    np.testing.assert_allclose(scores.block(2, 5, 30, 51), expected[2:5, 30:51], **close)
    assert np.asarray(scores).dtype == np.float32
    assert np.asarray(scores, dtype=np.float64).dtype == np.float64


def test_part_preconditions_and_scales_rows(draw):
    target, train, norms = draw(9, 5), draw(50, 5), np.abs(draw(9))
    factor = Cholesky().factor(gram(ArrayRows(train, 8)), 1.0)
    part = Part(
        0, ArrayRows(target, 4), ArrayRows(train, 8), factor, row_scale=ArrayRows(norms), weight=2.0
    )
    lam = np.mean((train.astype(float) ** 2).sum(1))
    inverse = np.linalg.inv(train.astype(float).T @ train + lam * np.eye(5))
    expected = 2 * norms[:, None] * (target @ inverse)
    np.testing.assert_allclose(part.left(1, 8), expected[1:8], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("target", "train"),
    [
        (3, slice(None)),
        (-1, 100),
        (slice(2, 7), slice(5, 60)),
        (slice(None, None, -2), slice(90, 3, -7)),
        ([4, 0, 4, -2], np.array([100, 0, 55, 55, 8])),
        (np.arange(9) % 2 == 0, slice(None)),
    ],
)
def test_isel_is_lazy_indexing(make_scores, target, train):
    scores, arrays = make_scores()
    some, matrix = scores.isel(target=target, train=train), dense(arrays)

    def rows(index, size):
        return np.atleast_1d(np.arange(size)[index])

    picked = rows(target, 9), rows(train, 101)
    np.testing.assert_allclose(np.asarray(some), matrix[np.ix_(*picked)], rtol=1e-4, atol=1e-5)
    assert some.shape == (len(picked[0]), len(picked[1]))
    lazy = some.to_xarray()
    np.testing.assert_array_equal(lazy["target_id"], picked[0] + 1000)
    np.testing.assert_array_equal(lazy["train_id"], picked[1] * 10)
    again = np.asarray(some.isel(target=0, train=slice(1)))
    np.testing.assert_allclose(again, matrix[picked[0][:1], picked[1][:1]][None], 1e-4, 1e-5)


@pytest.mark.parametrize("index", [9, -10, [0, 9], 0.5, "0", [[1]], [True, False]])
def test_isel_refuses_what_is_no_position(make_scores, index):
    with pytest.raises(TrakStoreError, match="target"):
        make_scores()[0].isel(target=index)


@pytest.mark.parametrize("options", OPTIONS)
def test_epoch_is_that_epoch_alone_with_its_own_scale(make_scores, options):
    scores, arrays = make_scores(**options)
    one = scores.epoch(5)
    assert one.epochs == (5,)
    np.testing.assert_allclose(np.asarray(one), dense(arrays[1:]), rtol=1e-4, atol=1e-5)
    with pytest.raises(NotFoundError, match="no epoch 7"):
        scores.epoch(7)


def test_xarray_is_lazy_and_named(make_scores):
    scores, _ = make_scores()

    class Bomb(ArrayRows):
        def read(self, *_):
            raise AssertionError("read")

    part = Part(0, Bomb(np.ones((3, 2))), Bomb(np.ones((4, 2))))
    lazy = Scores("bomb", (part,), Bomb(np.arange(3)), Bomb(np.arange(4))).to_xarray()
    assert lazy.dims == scores.dims == ("target", "train")
    assert set(lazy.coords) == {"target_id", "train_id"}
    assert not lazy.xindexes
    with pytest.raises(AssertionError, match="read"):
        lazy.compute()
    assert isinstance(scores.to_xarray().sum("train").compute(), xr.DataArray)
    assert scores.to_xarray().data.name == scores.to_xarray().data.name
    assert scores.to_xarray().data.name != scores.epoch(1).to_xarray().data.name


def test_chunks_are_windows_and_tiles(make_scores, monkeypatch):
    monkeypatch.setattr("trakstore.scores.factored.BLOCK_VALUES", 4 * 8)
    scores, arrays = make_scores()
    lazy = scores.to_xarray()
    assert lazy.chunks[0] == (4, 4, 1)
    assert lazy.chunks[1] == (8,) * 12 + (5,)
    np.testing.assert_allclose(lazy.values, dense(arrays), rtol=1e-4, atol=1e-5)


def test_non_finite_targets_are_named(make_scores):
    scores, arrays = make_scores()
    arrays[0][0][6, 1] = np.nan
    scores.block(0, 4, 0, 1)
    with pytest.raises(NumericsError, match=r"targets 4\.\.8 at epoch 1 "):
        scores.block(0, 9, 0, 1)


def test_shapes_must_agree(draw):
    ids = ArrayRows(np.arange(3)), ArrayRows(np.arange(4))

    def part(m, n, k, kt=None):
        return Part(0, ArrayRows(draw(m, kt or k)), ArrayRows(draw(n, k)))

    with pytest.raises(TrakStoreError, match="needed 3 and 4 rows"):
        Scores("x", (part(3, 4, 2), part(3, 5, 2)), *ids)
    with pytest.raises(TrakStoreError, match="one dimension"):
        Scores("x", (part(3, 4, 2, kt=3),), *ids)
    with pytest.raises(TrakStoreError, match="at least one epoch"):
        Scores("x", (), *ids)


def test_repr_and_copy(make_scores):
    scores, _ = make_scores()
    assert repr(scores) == "<Scores test (target: 9, train: 101), epochs 1, 5>"
    with pytest.raises(ValueError, match="copy=False"):
        np.array(scores, copy=False)


@pytest.mark.parametrize("none", [{"target": []}, {"train": slice(0, 0)}])
def test_a_lazy_array_of_no_rows(make_scores, none):
    scores, _ = make_scores()
    some = scores.isel(**none)
    lazy = some.to_xarray()
    assert lazy.shape == some.shape
    assert lazy.load().size == 0
    assert lazy["train_id"].dtype == scores.train_ids.dtype
    assert lazy["target_id"].dtype == scores.target_ids.dtype
