from __future__ import annotations

import tracemalloc
from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
import reference
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trakstore.errors import MemoryLimitError, NumericsError, TrakStoreError
from trakstore.passes.rows import ArrayRows
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part
from trakstore.scores.top_k import top_k

ORDERS = ["largest", "smallest", "magnitude"]


def factored(matrix, chunk=5):
    """Scores that are ``matrix`` to the bit: identity features."""
    matrix = np.asarray(matrix, dtype=np.float32)
    m, n = matrix.shape
    part = Part(0, ArrayRows(np.eye(m, dtype=np.float32)), ArrayRows(matrix.T.copy(), chunk))
    return Scores("given", (part,), ArrayRows(np.arange(m)), ArrayRows(np.arange(n) * 3, chunk))


def check(found, matrix, k, order):
    expected = reference.top_k(matrix, k, order)
    np.testing.assert_array_equal(found["position"], expected)
    np.testing.assert_array_equal(found["score"], np.take_along_axis(matrix, expected, 1))
    assert found["score"].dims == ("target", "rank")
    assert found["position"].dtype == np.int64


matrices = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
    elements=st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0, 3.5]),  # ties everywhere
)


@settings(max_examples=60, deadline=None)
@given(matrix=matrices, order=st.sampled_from(ORDERS), chunk=st.integers(1, 50), data=st.data())
def test_top_k_is_the_head_of_a_full_sort(matrix, order, chunk, data):
    k = data.draw(st.integers(1, matrix.shape[1]))
    found = top_k(factored(matrix, chunk), k, order=order)
    check(found, matrix, k, order)
    np.testing.assert_array_equal(found["train"], found["position"] * 3)
    lazy = xr.DataArray(da.from_array(matrix, chunks=(7, chunk)), dims=("target", "train"))
    check(top_k(lazy, k, order=order), matrix, k, order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ramp", [1, -1], ids=["rising", "falling"])
def test_sorted_scores_do_not_break_the_threshold(order, ramp):
    matrix = ramp * np.arange(-300, 300, dtype=np.float32) * np.ones((3, 1), dtype=np.float32)
    check(top_k(factored(matrix, 64), 4, order=order), matrix, 4, order)


@pytest.mark.parametrize("order", ORDERS)
def test_real_scores_of_several_epochs(make_scores, order, monkeypatch):
    monkeypatch.setattr("trakstore.scores.running_lists.SELECT_VALUES", 20)
    scores, _ = make_scores(m=30, n=205)
    found = top_k(scores, 7, order=order)
    tiles = [scores.block(0, 30, at, min(205, at + 8)) for at in range(0, 205, 8)]
    check(found, np.concatenate(tiles, axis=1), 7, order)
    np.testing.assert_array_equal(found["target_id"], np.arange(30) + 1000)
    assert found.attrs == {"method": "test", "order": order}


def test_windows_of_targets_give_the_same(make_scores, monkeypatch):
    scores, _ = make_scores(m=30, n=205)
    expected = top_k(scores, 7)
    seen = []
    window = Scores.window
    monkeypatch.setattr(
        Scores, "window", lambda self, *how: seen.append(how[:2]) or window(self, *how)
    )
    monkeypatch.setattr("trakstore.scores.top_k.select_bytes", lambda *_: 0)
    xr.testing.assert_allclose(top_k(scores, 7, memory_limit="20kB"), expected)
    assert len(seen) > 1
    assert [row for pair in seen for row in range(*pair)] == list(range(30))


def test_string_ids():
    matrix = np.array([[1.0, 3.0, 2.0]])
    scores = factored(matrix)
    names = ArrayRows(np.array(["a", "bb", "ccc"], dtype=np.dtypes.StringDType()))
    named = Scores("x", scores.parts, ArrayRows(np.array(["t"])), names)
    assert top_k(named, 2)["train"].values.tolist() == [["bb", "ccc"]]
    assert named.to_xarray()["train_id"].values.tolist() == ["a", "bb", "ccc"]


def test_array_keeps_its_ids_dtype_and_either_order_of_dims():
    values = np.array([[1, 5, 3], [9, 7, 8]])
    array = xr.DataArray(
        values, dims=("target", "train"), coords={"train_id": ("train", [5, 6, 7])}
    )
    found = top_k(array.T, 2)
    check(found, values.astype(float), 2, "largest")
    assert found["train"].values.tolist() == [[6, 7], [5, 7]]
    with pytest.raises(TrakStoreError, match="dimensions"):
        top_k(array.rename(train="other"), 1)


def test_float64_arrays_are_ranked_as_float64():
    matrix = np.array([[1.0, 1.0 + 1e-12]])
    array = xr.DataArray(matrix, dims=("target", "train"))
    check(top_k(array, 1), matrix, 1, "largest")


@pytest.mark.parametrize("k", [0, -1, 11])
def test_k_must_be_there(k):
    for scores in (factored(np.ones((2, 10))), factored(np.ones((2, 10))).to_xarray()):
        with pytest.raises(TrakStoreError, match=r"k must be in 1\.\.10"):
            top_k(scores, k)


def test_unknown_order():
    with pytest.raises(TrakStoreError, match="largest, smallest, magnitude"):
        top_k(factored(np.ones((2, 10))), 1, order="best")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_scores_are_named(value):
    matrix = np.ones((3, 20))
    matrix[1, 13] = value
    array = xr.DataArray(da.from_array(matrix, chunks=(2, 4)), dims=("target", "train"))
    with pytest.raises(NumericsError, match="score of target 1 with train row 13 is"):
        top_k(array, 2)
    with pytest.raises(NumericsError, match="with train row 13 is"):
        top_k(factored(matrix), 2)


def test_large_finite_scores_are_fine():
    matrix = np.full((1, 30), 3e38, dtype=np.float32)  # their sum is not
    matrix[0, 4] = 2e38
    check(top_k(factored(matrix), 5), matrix, 5, "largest")


def test_too_little_memory_is_refused_with_the_numbers(make_scores):
    scores, _ = make_scores()
    with pytest.raises(MemoryLimitError, match=r"top-3 of 9 targets needs at least .* is 1\.0 kB"):
        top_k(scores, 3, memory_limit=1000)
    with pytest.raises(MemoryLimitError, match="rechunk"):
        top_k(scores.to_xarray(), 3, memory_limit=1000)


def test_peak_memory_stays_below_the_limit(draw):
    """Rows made as they are read: 64 MB of features and 64 MB of scores within 24 MB."""

    class Made(ArrayRows):
        shape = (250_000, 64)

        def read(self, start, stop):
            rng = np.random.default_rng(start)
            return rng.standard_normal((stop - start, 64), dtype=np.float32)

    train = Made(np.empty((1, 64), dtype=np.float32), 4096)
    part = Part(0, ArrayRows(draw(64, 64)), train)
    scores = Scores("x", (part,), ArrayRows(np.arange(64)), ArrayRows(np.arange(250_000)))
    tracemalloc.start()
    try:
        top_k(scores, 10, memory_limit="24MB")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24e6


def labelled(m=6, n=50, classes=4):
    rng = np.random.default_rng(2)
    matrix = rng.integers(-5, 6, (m, n)).astype(np.float32)  # ties
    labels = rng.integers(0, classes, n) * 10
    scores = factored(matrix)
    return replace(scores, train_labels=ArrayRows(labels, 7)), matrix, labels


def listed(matrix, allowed, k, order):
    places = np.flatnonzero(allowed)
    return places[reference.top_k(matrix[:, places], k, order)]


@pytest.mark.parametrize("order", ORDERS)
def test_where_leaves_rows_out(order):
    scores, matrix, labels = labelled()
    mask = np.arange(50) % 3 == 1
    ids = [3 * at for at in (4, 9, 20, 21, 49)]
    for where, allowed in (
        (mask, mask),
        ({"id": ids}, np.isin(np.arange(50) * 3, ids)),
        ({"label": [10, 30]}, np.isin(labels, [10, 30])),
        ({"label": 20, "id": np.arange(0, 90, 3)}, (labels == 20) & (np.arange(50) < 30)),
    ):
        found = top_k(scores, 3, order=order, where=where)
        np.testing.assert_array_equal(found["position"], listed(matrix, allowed, 3, order))
        np.testing.assert_array_equal(found["train"], found["position"] * 3)


def test_positions_are_those_of_the_stored_rows():
    scores, matrix, labels = labelled()
    left = np.delete(np.arange(52), [7, 20])
    masked = replace(scores, train_positions=ArrayRows(left))
    found = top_k(masked, 4)
    np.testing.assert_array_equal(found["position"], left[reference.top_k(matrix, 4)])
    part = masked.isel(train=[8, 7, 6])
    assert sorted(top_k(part, 3)["position"][0].values) == left[[6, 7, 8]].tolist()
    with pytest.raises(TrakStoreError, match=r"k must be in 1\.\.50"):
        top_k(masked, 51)
    some = top_k(masked, 2, where={"label": 10})
    np.testing.assert_array_equal(
        some["position"], left[listed(matrix, labels == 10, 2, "largest")]
    )
    fewest = np.bincount(labels)[::10].min()
    each = top_k(masked, int(fewest) + 1, per_class=True)
    assert ((each["position"] == -1) == np.isnan(each["score"])).all()
    assert (each["position"] == -1).any()


@pytest.mark.parametrize("order", ORDERS)
def test_a_list_for_each_class_in_one_pass(order):
    scores, matrix, labels = labelled()
    few = labels == 30
    labels[few] = 0
    labels[np.flatnonzero(few)[:2]] = 30  # two rows only
    scores = replace(scores, train_labels=ArrayRows(labels, 7))
    found = top_k(scores, 3, order=order, per_class=True)
    assert found["position"].dims == ("target", "class", "rank")
    assert found["class"].values.tolist() == [0, 10, 20, 30]
    for label in (0, 10, 20):
        np.testing.assert_array_equal(
            found["position"].sel({"class": label}), listed(matrix, labels == label, 3, order)
        )
    last = found.sel({"class": 30})
    np.testing.assert_array_equal(last["position"][:, :2], listed(matrix, labels == 30, 2, order))
    assert (last["position"][:, 2] == -1).all()
    assert np.isnan(last["score"][:, 2]).all()
    assert (last["train"][:, 2] == -1).all()


@pytest.mark.parametrize(
    ("where", "match"),
    [
        (np.ones(3, dtype=bool), "a boolean for each of 50"),
        (np.arange(50), "got int64"),
        ({"name": 3}, "'id' or 'label'"),
        ({"id": [0, 4]}, "no train row has the id 4"),
        ({"label": 11}, "no train row has the label 11"),
    ],
)
def test_bad_selections(where, match):
    scores, _, _ = labelled()
    with pytest.raises(TrakStoreError, match=match):
        top_k(scores, 1, where=where)
    with pytest.raises(TrakStoreError, match="no train labels"):
        top_k(factored(np.ones((2, 3))), 1, per_class=True)
    with pytest.raises(TrakStoreError, match="are for Scores"):
        top_k(scores.to_xarray(), 1, where=where)
