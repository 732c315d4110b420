from __future__ import annotations

import numpy as np
import pytest
import reference

from trakstore.errors import (
    IncompleteError,
    NotFoundError,
    NumericsError,
    SpecMismatchError,
    TrakStoreError,
)
from trakstore.kernels import BlockedCholesky, Dual
from trakstore.kernels.solvers import Damping
from trakstore.methods.trak import trak_scores, trak_scores_of_arrays
from trakstore.scores.top_k import top_k


def arrays(columns):
    wanted = [("test", "features"), ("train", "features"), ("train", "out_to_loss")]
    return [
        [given[name] for (_, split), given in columns.items() if split == side]
        for side, name in wanted
    ]


def assert_close(found, expected):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=2e-4, atol=2e-5 * expected.std())


@pytest.mark.parametrize("average", ["factors", "scores"])
@pytest.mark.parametrize("c", [0.0, 0.3, 1.0])
def test_trak_is_the_dense_formula(store, columns, average, c):
    scores = trak_scores(store, damping=c, average=average)
    assert_close(scores, reference.trak(*arrays(columns), c=c, average=average))
    assert scores.epochs == (0, "final")
    assert scores.shape == (7, 60)
    ids = scores.to_xarray()
    np.testing.assert_array_equal(ids["target_id"], np.arange(7) + 1000)
    np.testing.assert_array_equal(ids["train_id"], np.arange(60))


def test_the_two_orders_differ_and_each_checkpoint_keeps_its_scale(store):
    factors, scores = (
        np.asarray(trak_scores(store, average=average)) for average in ("factors", "scores")
    )
    assert np.abs(factors - scores).max() > 0.1 * np.abs(factors).max()


def test_absolute_damping(store, columns):
    scores = trak_scores(store, damping=Damping(absolute=0.5))
    assert_close(scores, reference.trak(*arrays(columns), lam=0.5))


@pytest.mark.parametrize("average", ["factors", "scores"])
def test_one_epoch_and_the_part_of_one_are_the_same(store, columns, average):
    one = trak_scores(store, epochs="final", average=average)
    expected = reference.trak(*([x[1]] for x in arrays(columns)))
    assert_close(one, expected)
    assert_close(trak_scores(store, average=average).epoch("final"), expected)


def test_train_scored_on_itself(store, columns):
    _, trains, scales = arrays(columns)
    found = trak_scores(store, targets="train", gram_dtype="float64")
    assert found.shape == (60, 60)
    assert_close(found, reference.trak(trains, trains, scales))


def test_top_k_of_trak(store, columns):
    found = top_k(trak_scores(store), 4)
    expected = reference.top_k(reference.trak(*arrays(columns)), 4)
    np.testing.assert_array_equal(found["position"], expected)


def test_more_dimensions_than_rows_need_damping(columns, store_of):
    for (_, split), given in columns.items():
        if split == "train":
            given.update({name: values[:9] for name, values in given.items()})
    store = store_of(columns)
    with pytest.raises(NumericsError, match="k=12 > n=9"):
        trak_scores(store, damping=0)
    assert_close(trak_scores(store), reference.trak(*arrays(columns)))


def narrower(given):
    given["features"] = given["features"][:, :8]


def shorter(given):
    given.update({name: values[:-1] for name, values in given.items()})


@pytest.mark.parametrize(
    ("key", "change", "error", "match"),
    [
        (("final", "train"), narrower, SpecMismatchError, "dimension 8.* has 12"),
        (("final", "train"), shorter, SpecMismatchError, "59 rows.* has 60"),
        (("final", "test"), shorter, SpecMismatchError, "6 rows.* has 7"),
        ((0, "test"), None, IncompleteError, "test at epoch 0 has 4 of 7 rows; missing 4-6"),
        ((0, "train"), None, IncompleteError, "train at epoch 0 has 56 of 60 rows; missing 4-7"),
    ],
)
def test_splits_are_checked_before_features_are_read(
    columns, store_of, reads, key, change, error, match
):
    if change is not None:
        change(columns[key])
    store = store_of(columns, lacking=None if change else key)
    reads.clear()
    with pytest.raises(error, match=match):
        trak_scores(store)
    assert not reads


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"epochs": "finale"}, NotFoundError, "did you mean 'final'"),
        ({"epochs": [0, 3]}, NotFoundError, "no epoch 3; there are 0, final"),
        ({"epochs": []}, TrakStoreError, "each named once"),
        ({"epochs": [0, 0]}, TrakStoreError, "each named once"),
        ({"targets": "val"}, NotFoundError, "no epoch has a split 'val'; there are test, train"),
        ({"targets": "val", "epochs": 0}, NotFoundError, "no split 'val'"),
        ({"damping": -1}, TrakStoreError, "damping must be"),
        ({"average": "mean"}, TrakStoreError, "'factors' or 'scores'"),
    ],
)
def test_bad_requests(store, reads, options, error, match):
    with pytest.raises(error, match=match):
        trak_scores(store, **options)
    assert not reads


def test_what_is_read_is_seen(store, reads):
    np.asarray(trak_scores(store))
    assert {path.rpartition("/")[2] for path in reads} >= {"features", "out_to_loss"}


def test_a_split_without_scales_is_told(columns, store_of):
    del columns[0, "train"]["out_to_loss"]
    with pytest.raises(NotFoundError, match="out_to_loss"):
        trak_scores(store_of(columns))


def test_epochs_that_lack_a_split_are_left_out(columns, store_of):
    columns[5, "train"] = columns[0, "train"]
    assert trak_scores(store_of(columns)).epochs == (0, "final")


def test_arrays_in_memory_give_the_same_scores(columns):
    targets, trains, scales = arrays(columns)
    scores = trak_scores_of_arrays(targets[0], trains[0], scales[0], 0.3)
    assert_close(scores, reference.trak([targets[0]], [trains[0]], [scales[0]], c=0.3))
    ones = np.ones(len(trains[0]))
    assert_close(
        trak_scores_of_arrays(targets[0], trains[0], damping=Damping(absolute=0.5)),
        reference.trak([targets[0]], [trains[0]], [ones], lam=0.5),
    )
    assert top_k(scores, 3)["position"].shape == (7, 3)


def test_arrays_that_do_not_go_together_are_told():
    rows = np.ones((4, 3), np.float32)
    with pytest.raises(TrakStoreError, match=r"targets must be floats of shape .* got int64"):
        trak_scores_of_arrays(np.ones((2, 3), int), rows)
    with pytest.raises(TrakStoreError, match=r"out_to_loss has shape \(5,\), needed \(4,\)"):
        trak_scores_of_arrays(rows, rows, np.ones(5))
    with pytest.raises(TrakStoreError, match="of one dimension"):
        trak_scores_of_arrays(np.ones((2, 5)), rows)


@pytest.mark.parametrize("size", [1e-18, 1e-22, 1e-30])
@pytest.mark.parametrize("solver", [None, BlockedCholesky(), Dual()], ids=["own", "tiles", "dual"])
def test_tiny_gradients_have_the_scores_of_large_ones(store_of, columns, size, solver):
    """Scores do not depend on the unit of gradients, whose squares float32 does not hold here."""
    for one in columns.values():
        one["features"] = (one["features"] * size).astype(np.float32)
    found = trak_scores(store_of(columns), solver=solver, temperature=None)
    targets, train, q = arrays(columns)
    wide = [[rows.astype(np.float64) / size for rows in side] for side in (targets, train)]
    assert_close(found, reference.trak(*wide, q))
