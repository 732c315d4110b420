"""Lists by an index: their scores are exact, what they miss is said, no row is taken for another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path

import dask
import numba
import numpy as np
import pytest
from scores.same_index import assert_equal

import trakstore as ts
from trakstore.errors import (
    DamagedError,
    LocationError,
    MemoryLimitError,
    NotFoundError,
    SpecMismatchError,
    TrakStoreError,
)
from trakstore.kernels import Cholesky, Dual, Eigen
from trakstore.passes.rows import ArrayRows
from trakstore.scores import index_build, index_recall, train_index
from trakstore.storage import layout
from trakstore.storage.tables.saved_table import read_table

DIM, ROWS, TARGETS = 48, 1200, 24


def features(rows: int, seed: int, dim: int = DIM) -> np.ndarray:
    """Rows whose i-th direction has the share 1/i of the norm, in a random basis."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(99).standard_normal((dim, dim)))[0]
    spread = np.arange(1, dim + 1) ** -0.5
    return ((rng.standard_normal((rows, dim)) * spread) @ basis).astype(np.float32)


def make(
    where: Path, dtype: str = "float16", epochs: tuple[int, ...] = (0,), **how
) -> ts.FeatureStore:
    store = ts.FeatureStore.create(
        where, projection=ts.ProjectionSpec("sjlt", dim=DIM), dtype=dtype, **how
    )
    for epoch in epochs:
        for split, rows in (("train", ROWS), ("test", TARGETS)):
            q = np.random.default_rng(rows).uniform(0.1, 1, rows).astype(np.float32)
            x = features(rows, 10 * epoch + rows)
            store.write_split(
                epoch, split, x, out_to_loss=q, ids=[f"{split}{i}" for i in range(rows)]
            )
    return store


@pytest.fixture
def store(tmp_path):
    return make(tmp_path / "s.zarr")


def recall(listed, exact) -> float:
    pairs = zip(listed["position"].values, exact["position"].values, strict=True)
    return float(np.mean([np.isin(*pair).mean() for pair in pairs]))


def check_lists(scores, candidates, order="largest", k=10, **how):
    """Compare lists with the exact pass: the same scores and ids for the same rows, in order."""
    found = ts.approximate_top_k(scores, k, candidates=candidates, order=order, **how)
    dense, positions = np.asarray(scores), scores.train_positions
    columns = np.searchsorted(positions.read(0, scores.shape[1]), found["position"].values)
    own = np.take_along_axis(dense, columns, 1)
    np.testing.assert_allclose(found["score"], own, rtol=1e-4, atol=1e-5 * np.abs(dense).max())
    key = {"largest": own, "smallest": -own, "magnitude": np.abs(own)}[order]
    assert (np.diff(key) <= 1e-5 * np.abs(dense).max()).all()
    assert all(len(set(row)) == k for row in found["position"].values.tolist())
    ids = np.array([f"train{i}" for i in range(ROWS)])
    np.testing.assert_array_equal(found["train"], ids[found["position"].values])
    return found


@pytest.mark.parametrize(
    ("order", "temperature"), [("largest", None), ("smallest", 2.0), ("magnitude", None)]
)
def test_scores_are_those_of_top_k(store, order, temperature):
    scores = ts.trak_scores(store, temperature=temperature)
    ts.build_index(scores)
    some = check_lists(scores, 300, order)
    exact = ts.top_k(scores, 10, order=order)
    assert recall(some, exact) > 0.9
    few = check_lists(scores, 10, order)
    assert 0.5 < recall(few, exact) < recall(some, exact)
    # One less than all, so that the index is asked: what it finds is the whole list.
    nearly = check_lists(scores, ROWS - 1, order)
    assert recall(nearly, exact) > 0.995
    assert some.attrs["candidates"] == 300 and some.attrs["order"] == order


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_rows_of_other_dtypes(tmp_path, dtype):
    scores = ts.trak_scores(make(tmp_path / "s.zarr", dtype))
    ts.build_index(scores)
    assert recall(check_lists(scores, 400), ts.top_k(scores, 10)) > 0.95


def test_compressed_rows_and_a_store_that_is_not_a_folder():
    store = make("memory://index", "float32", keep_bits=7)
    scores = ts.trak_scores(store)
    ts.build_index(scores)
    assert recall(check_lists(scores, 400), ts.top_k(scores, 10)) > 0.95


def test_one_index_serves_all_methods_kernels_and_dampings(store):
    index = ts.build_index(ts.grad_dot_scores(store), checked=0)
    for scores in (
        ts.trak_scores(store),
        ts.trak_scores(store, damping=10.0, temperature=None),
        ts.trak_scores(store, solver=Dual()),
        ts.whitened_cos_scores(store, mix=0.5),
        sampled_rows(store, 2, 5),
    ):
        assert recall(check_lists(scores, 100, index=index), ts.top_k(scores, 10)) > 0.95
        assert np.isnan(told(scores, index=index))
    assert index.parts[0].path == "_indexes/train/rows.0"


@pytest.mark.parametrize(
    "method",
    [
        ts.grad_dot_scores,
        ts.grad_cos_scores,
        partial(ts.influence_scores, hessian="loss"),
        ts.whitened_cos_scores,
    ],
)
def test_other_methods_that_are_one_product(store, method):
    scores = method(store)
    ts.build_index(scores)
    assert recall(check_lists(scores, 400), ts.top_k(scores, 10)) > 0.9


def test_each_epoch_has_its_own_scale(tmp_path):
    scores = ts.grad_dot_scores(make(tmp_path / "s.zarr", epochs=(0, 1)))
    index, window = ts.build_index(scores, checked=0), scores.window(0, 3)
    only = [np.zeros(ROWS, np.float32) for _ in range(2)]
    only[0][:100], only[1][100:200] = 1, 1
    scaled = replace(window, scales=tuple(map(ArrayRows, only)))
    for found in index.candidates(scores, scaled, 50, "magnitude"):
        assert (found < 100).any() and (found >= 100).any() and found.max() < 200


def sampled_rows(store, draws: int, seed: int):
    """Write rows of drawn labels; return scores whose kernel is of them."""
    x = np.concatenate([features(ROWS, seed + draw) for draw in range(draws)])
    x = x.reshape(draws, ROWS, DIM).swapaxes(0, 1).reshape(-1, DIM)
    ids = [f"train{i}~{draw}" for i in range(ROWS) for draw in range(draws)]
    more = {"out_to_loss": np.full(len(x), 0.5, np.float32), "ids": ids}
    store.write_split(0, "train~sampled", x, **more)
    return ts.influence_scores(store, kernel="sampled")


def test_recall_is_told_by_kernel_and_damping(store):
    plain, sampled = ts.influence_scores(store, hessian="loss"), sampled_rows(store, 2, 5)
    ts.build_index(plain)
    assert told(plain) == 1 and np.isnan(told(sampled))
    known = ts.build_index(sampled).recalls
    assert told(plain) == told(sampled) == 1
    assert [one.scaling.split(",")[0] for one in known] == ["kernel loss", "kernel of sampled rows"]
    for damping, is_known in ((1.0, True), (1.1, True), (2.0, False)):
        scores = ts.influence_scores(store, kernel="sampled", damping=ts.Damping(absolute=damping))
        ts.build_index(scores, checked=3 if damping == 1 else 0)
        assert np.isnan(told(scores)) != is_known


def test_several_epochs(tmp_path):
    store = make(tmp_path / "s.zarr", epochs=(0, 1))
    scores = ts.trak_scores(store)
    with pytest.raises(NotFoundError, match="has no index of 'train' at epoch 0: run"):
        ts.open_index(scores)
    index = ts.build_index(scores)
    assert [one.path for one in index.parts] == ["_indexes/train/rows.0", "_indexes/train/rows.1"]
    assert recall(check_lists(scores, 400), ts.top_k(scores, 10)) > 0.95
    # Each of them, and both in another order, are served as well; the recall is that of both.
    for epochs in (1, [1, 0]):
        some = ts.trak_scores(store, epochs=epochs)
        assert recall(check_lists(some, 400), ts.top_k(some, 10)) > 0.95
        assert np.isnan(told(some)) and told(scores) == 1
    with pytest.raises(TrakStoreError, match=r"rows\.0, .*rows\.1 is given; these .*rows.1, "):
        ts.approximate_top_k(some.isel(target=[0]), 3, index=index, candidates=30)


def test_a_recall_is_of_the_codes_that_it_was_measured_on(tmp_path):
    store = make(tmp_path / "s.zarr", epochs=(0, 1))
    both, one = ts.trak_scores(store), ts.trak_scores(store, epochs=0)
    ts.build_index(both)
    ts.build_index(one)
    assert told(both) == told(one) == 1
    store.drop(1, "train")
    x, ids = features(ROWS, 7), [f"train{i}" for i in range(ROWS)]
    store.write_split(1, "train", x, out_to_loss=np.ones(ROWS, np.float32), ids=ids)
    ts.build_index(ts.trak_scores(store, epochs=1), checked=0)
    assert np.isnan(told(ts.trak_scores(store))) and told(ts.trak_scores(store, epochs=0)) == 1
    ts.build_index(ts.trak_scores(store))
    assert told(ts.trak_scores(store)) == 1


def test_a_recall_is_of_the_weights_of_epochs(tmp_path):
    store = make(tmp_path / "s.zarr", epochs=(0, 1))
    first, last = ({0: 1.0, 1: 1e-9}, {0: 1e-9, 1: 1.0})
    ts.build_index(ts.tracin_scores(store, learning_rates=first))
    assert told(ts.tracin_scores(store, learning_rates=first)) == 1
    assert told(ts.tracin_scores(store, learning_rates={0: 2.0, 1: 2e-9})) == 1
    assert np.isnan(told(ts.tracin_scores(store, learning_rates=last)))


def test_an_epoch_more_codes_its_rows_alone(tmp_path, monkeypatch):
    store = make(tmp_path / "s.zarr", epochs=(0,))
    ts.build_index(ts.trak_scores(store))
    q = np.random.default_rng(ROWS).uniform(0.1, 1, ROWS).astype(np.float32)
    for split, rows in (("train", ROWS), ("test", TARGETS)):
        ids = [f"{split}{i}" for i in range(rows)]
        store.write_split(1, split, features(rows, 10 + rows), out_to_loss=q[:rows], ids=ids)
    coded, codes = [], index_build._EncodePass._codes
    monkeypatch.setattr(
        index_build._EncodePass,
        "_codes",
        lambda one, *at: coded.append(one.column.path) or codes(one, *at),
    )
    ts.build_index(ts.trak_scores(store))
    assert coded == ["1/train/features"]


@pytest.mark.parametrize("size", [1e-31, 1e30])
def test_lists_of_targets_of_any_size(store, size):
    """Ranks do not depend on the size of a target."""
    scores = ts.trak_scores(store)
    index, window = ts.build_index(scores, checked=0), scores.window(0, 4)
    sized = replace(window, lefts=tuple(left * np.float32(size) for left in window.lefts))
    wanted = index.candidates(scores, window, 100, "largest")
    got = index.candidates(scores, sized, 100, "largest")
    for pair in zip(got, wanted, strict=True):
        assert np.isin(*pair).mean() > 0.95


def test_targets_that_are_compared_together_have_the_candidates_of_each(store):
    scores = ts.trak_scores(store)
    index, window = ts.build_index(scores, checked=0), scores.window(0, 7)
    together = index.candidates(scores, window, 60, "largest")
    for at, found in enumerate(together):
        (alone,) = index.candidates(scores, window.of_targets(at, at + 1), 60, "largest")
        np.testing.assert_array_equal(found, alone)


def test_an_index_keeps_the_columns_of_the_latest_selections(store):
    scores = ts.trak_scores(store)
    index = ts.build_index(scores, checked=0)
    for first in range(0, 200, 10):
        check_lists(scores.isel(train=slice(first, 900)), 60, index=index)
    assert len(index._columns) <= 6


@pytest.mark.parametrize("solver", [Eigen(), Cholesky(), Dual()])
def test_factors_of_any_kind(store, solver):
    scores = ts.trak_scores(store, solver=solver)
    ts.build_index(scores)
    assert recall(check_lists(scores, 300), ts.top_k(scores, 10)) > 0.9


def test_measured_recall_is_stored_and_said(store, monkeypatch):
    monkeypatch.setattr("trakstore.scores.train_index.LEAST_CANDIDATES", ROWS)
    scores = ts.trak_scores(store)
    index = ts.build_index(scores, k=5, checked=6)
    (told,) = index.recalls
    assert (told.k, told.checked) == (5, 6)
    # All rows are usual candidates of so few.
    assert told.recall == 1 and told.candidates == ROWS
    found = ts.approximate_top_k(scores, 3, candidates=30)
    said = {name: found.attrs[name] for name in ("recall", "recall_k", "checked", "candidates")}
    assert said == {"recall": 1, "recall_k": 5, "checked": 6, "candidates": 30}
    # Where nothing is measured, what is known of the same codes stays.
    for few in (scores, scores.isel(train=range(300))):
        assert ts.build_index(few, checked=0).recalls == index.recalls
        assert ts.build_index(few.isel(target=[])).recalls == index.recalls
    unmeasured = ts.build_index(scores, checked=0, anew=True)
    assert np.isnan(ts.approximate_top_k(scores, 3, candidates=30).attrs["recall"])
    assert "not measured" in repr(unmeasured)
    # Without an index: all rows are candidates.
    plain = ts.approximate_top_k(ts.grad_dot_scores(store), 3)
    assert plain.attrs["recall"] == 1 and plain.attrs["candidates"] == ROWS
    assert plain.identical(ts.top_k(ts.grad_dot_scores(store), 3).assign_attrs(plain.attrs))


def test_recall_is_that_of_the_targets_it_was_measured_on(store, monkeypatch):
    monkeypatch.setattr("trakstore.scores.train_index.LEAST_CANDIDATES", 12)
    monkeypatch.setattr("trakstore.scores.train_index.CANDIDATES_PER_ENTRY", 1)
    scores = ts.trak_scores(store)
    index = ts.build_index(scores, checked=TARGETS)
    found, exact = ts.approximate_top_k(scores, 10), ts.top_k(scores, 10)
    (told,) = index.recalls
    assert told.recall == pytest.approx(recall(found, exact)) and told.recall < 1


def test_a_list_of_all_rows_replaces_no_recall_that_was_measured(store, monkeypatch):
    monkeypatch.setattr("trakstore.scores.train_index.LEAST_CANDIDATES", 40)
    scores = ts.trak_scores(store)
    with pytest.raises(TrakStoreError, match=rf"k must be .* 1 to {ROWS}, got {ROWS + 1}"):
        ts.build_index(scores, k=ROWS + 1)
    (whole,) = ts.build_index(scores, k=ROWS, checked=2).recalls
    assert (whole.recall, whole.candidates) == (1, ROWS)
    index = ts.build_index(scores, checked=4)
    assert [one.candidates for one in index.recalls] == [100]
    assert ts.build_index(scores, k=ROWS, checked=2).recalls == index.recalls


def test_any_of_equal_scores_counts_as_found(tmp_path, monkeypatch):
    """Half of the rows, and two of three targets, have no gradient; others are there three times."""
    monkeypatch.setattr("trakstore.scores.train_index.LEAST_CANDIDATES", 40)
    monkeypatch.setattr("trakstore.scores.train_index.CANDIDATES_PER_ENTRY", 1)
    made = ts.FeatureStore.create(
        tmp_path / "e.zarr", projection=ts.ProjectionSpec("sjlt", dim=DIM), dtype="float16"
    )
    x = np.zeros((600, DIM), np.float32)
    x[300:] = np.repeat(features(100, 3), 3, axis=0)
    for split, own in (("train", x), ("test", np.stack([x[0], x[1], x[400]]))):
        made.write_split(0, split, own, out_to_loss=np.ones(len(own), np.float32))
    for scores in (ts.trak_scores(made), ts.grad_dot_scores(made)):
        # Of the third target, the row itself three times, and the next ones.
        index = ts.build_index(scores, k=4, checked=3)
        found, exact = ts.approximate_top_k(scores, 4), ts.top_k(scores, 4)
        np.testing.assert_allclose(found["score"], exact["score"], rtol=1e-5, atol=1e-6)
        assert recall(found, exact) < 1
        assert [one.recall for one in index.recalls][-1] == 1


def test_recall_with_a_threshold_is_told_apart(store, monkeypatch):
    monkeypatch.setattr("trakstore.scores.train_index.LEAST_CANDIDATES", 12)
    monkeypatch.setattr("trakstore.scores.train_index.CANDIDATES_PER_ENTRY", 1)
    plain = ts.trak_scores(store)
    index = ts.build_index(plain, checked=TARGETS)
    most = float(np.abs(np.asarray(plain)).max())
    shrunk = ts.trak_scores(store, soft_threshold=0.9 * most)
    assert np.isnan(told(shrunk))
    both = ts.build_index(shrunk, checked=TARGETS).recalls
    assert both[0] == index.recalls[0] and both[0].recall < 0.9
    # Nearly all scores are 0 now: any are as good as those of the exact lists.
    assert both[1].recall > 0.98 and told(shrunk) == both[1].recall != told(plain)
    assert str(shrunk.soft_threshold) in both[1].scaling


def test_scores_of_a_target_have_its_own_threshold(store):
    scores = ts.trak_scores(store)
    index, window = ts.build_index(scores, checked=0), scores.window(0, 3)
    own = replace(window, thresholds=np.array([0.1, 0, 0.2], np.float32))
    near = np.arange(50)
    for at, threshold in enumerate((0.1, 0.0, 0.2)):
        plain, _ = index.rescored(scores, window, at, near, 0)
        score, _ = index.rescored(scores, own, at, near, 0)
        wanted = np.sign(plain) * np.maximum(np.abs(plain) - threshold, 0)
        np.testing.assert_allclose(score, wanted, rtol=1e-5, atol=1e-6)
    # Chosen by the scores themselves.
    chosen = ts.trak_scores(store, soft_threshold="auto")
    (*_, known) = ts.build_index(chosen, checked=TARGETS).recalls
    assert known.scaling.endswith("threshold auto") and known.recall == 1
    assert told(chosen) == 1 and np.isnan(told(scores))
    check_lists(chosen, 300)


def told(scores, **how) -> float:
    return ts.approximate_top_k(scores, 3, candidates=30, **how).attrs["recall"]


def test_recall_is_told_only_where_it_was_measured(store):
    loss, output = (ts.grad_dot_scores(store, of=of) for of in ("loss", "output"))
    cosines = ts.grad_cos_scores(store)
    ts.build_index(loss)
    assert told(loss) == 1
    for order in ("smallest", "magnitude"):
        assert np.isnan(told(loss, order=order))
    assert np.isnan(told(output)) and np.isnan(told(cosines))
    assert np.isnan(told(loss.isel(train=slice(0, 1000))))
    # What was measured on one kind of scores stays when another is.
    index = ts.build_index(cosines, checked=5)
    assert {one.method: one.checked for one in index.recalls} == {
        "grad_dot": 16,
        "grad_cos": 5,
    }
    assert told(loss) == 1 and told(cosines) == 1 and np.isnan(told(output))
    assert ts.open_index(loss).recalls == index.recalls
    store.mask("train", ["train5", "train7"])
    again = ts.open_store(store.location)
    assert told(ts.grad_cos_scores(again)) == 1 and told(ts.grad_dot_scores(again)) == 1


def test_no_recall_of_a_selection_is_measured(store):
    scores = ts.trak_scores(store)
    index = ts.build_index(scores.isel(train=range(300)))
    assert index.recalls == () and index.rows == ROWS
    assert np.isnan(told(scores))


def test_targets_whose_recall_is_measured_come_in_windows_that_fit(store, monkeypatch):
    scores, sizes = ts.trak_scores(store), []
    window = type(scores).window

    def counted(one, low, high, *more):
        sizes.append(high - low)
        return window(one, low, high, *more)

    monkeypatch.setattr(type(scores), "window", counted)
    plan = index_recall.plan_top_k
    monkeypatch.setattr(index_recall, "plan_top_k", lambda *given: replace(plan(*given), targets=5))
    ts.build_index(scores, checked=12)
    assert sizes[-3:] == [5, 5, 2]


def test_masked_rows_are_in_no_answer(store):
    scores = ts.trak_scores(store)
    index = ts.build_index(scores)
    gone = np.unique(ts.top_k(scores, 3)["position"].values)[:40]
    store.mask("train", [f"train{i}" for i in gone])
    masked = ts.trak_scores(ts.open_store(store.location))
    for own in (None, index):
        found = check_lists(masked, 300, index=own)
        assert not np.isin(found["position"], gone).any()
        assert recall(found, ts.top_k(masked, 10)) > 0.9
    assert (
        recall(
            check_lists(masked.isel(train=slice(100, 900)), 300),
            ts.top_k(masked.isel(train=slice(100, 900)), 10),
        )
        > 0.9
    )


def test_appended_rows_are_added_and_no_others_are_coded_again(store, monkeypatch):
    scores = ts.trak_scores(store)
    monkeypatch.setattr(index_build, "chunk_rows_of", lambda *_: 500)
    before = ts.build_index(scores)
    more = 1.4 * features(150, 77)
    ids = [f"train{ROWS + i}" for i in range(150)]
    store.append(0, "train", more, out_to_loss=np.ones(150, np.float32), ids=ids)
    grown = ts.trak_scores(ts.open_store(store.location))
    with pytest.raises(SpecMismatchError, match="has 1200 rows of 1350: rows were appended"):
        ts.open_index(grown)
    with pytest.raises(SpecMismatchError, match="1200 rows of 1350"):
        ts.approximate_top_k(grown, 3, index=before, candidates=50)
    coded = []
    codes = index_build._EncodePass._codes
    monkeypatch.setattr(
        index_build._EncodePass, "_codes", lambda one, *at: coded.append(at) or codes(one, *at)
    )
    after = ts.build_index(grown)
    # The last chunk had some of the rows.
    assert coded == [(1000, 1350)]
    np.testing.assert_array_equal(after.parts[0].codes.levels[:ROWS], before.parts[0].codes.levels)
    np.testing.assert_array_equal(after.parts[0].coder.directions, before.parts[0].coder.directions)
    exact, found = ts.top_k(grown, 10), ts.approximate_top_k(grown, 10, candidates=400)
    assert recall(found, exact) > 0.9 and (exact["position"].values >= ROWS).any()
    assert ts.verify_store(store.location).ok
    coded.clear()
    again = ts.build_index(grown)
    assert not coded and again.parts[0].document == after.parts[0].document


def test_other_features_are_refused(store):
    index = ts.build_index(ts.trak_scores(store))
    other = make(Path(str(store.location)).with_name("other.zarr"))
    with pytest.raises(SpecMismatchError, match="features that were replaced"):
        ts.approximate_top_k(ts.trak_scores(other), 3, index=index, candidates=30)


def test_refusals(store, make_scores):
    scores = ts.trak_scores(store)
    arrays, _ = make_scores()
    with pytest.raises(TrakStoreError, match="an index is of the train rows of a store"):
        ts.build_index(arrays)
    for first in (ts.top_k, ts.approximate_top_k):
        with pytest.raises(TrakStoreError, match="these scores have no targets: select one"):
            first(scores.isel(target=[]), 3)
    with pytest.raises(NotFoundError, match="run `trakstore index`"):
        ts.approximate_top_k(scores, 3, candidates=30)
    for options in ({"candidates": 4}, {"candidates": ROWS + 1}):
        with pytest.raises(TrakStoreError, match="candidates must be in"):
            ts.approximate_top_k(scores, 5, **options)
    with pytest.raises(TrakStoreError, match="order must be one of"):
        ts.approximate_top_k(scores, 5, order="first")
    with pytest.raises(TrakStoreError, match="index must be a TrainIndex"):
        ts.approximate_top_k(scores, 5, index="here", candidates=30)
    with pytest.raises(MemoryLimitError):
        ts.build_index(scores, memory_limit="20kB")
    ts.build_index(scores)
    with pytest.raises(MemoryLimitError, match="in memory"):
        ts.open_index(scores, memory_limit="20kB")


def test_an_index_that_is_built_while_it_is_read_is_no_damage(store, monkeypatch):
    scores = ts.trak_scores(store)
    index = ts.build_index(scores, checked=0)
    read = train_index.read_index
    stale = read(store.location, index.parts[0].path)
    more = features(100, 77)
    ids = [f"train{ROWS + i}" for i in range(100)]
    store.append(0, "train", more, out_to_loss=np.ones(100, np.float32), ids=ids)
    ts.build_index(ts.trak_scores(ts.open_store(store.location)), checked=0)
    documents = [stale]
    monkeypatch.setattr(
        train_index, "read_index", lambda *at: documents.pop() if documents else read(*at)
    )
    with pytest.raises(LocationError, match=r"was built again, or is being built.*try again"):
        ts.open_index(scores)


def test_an_index_fits_where_its_codes_do(tmp_path):
    made = ts.FeatureStore.create(
        tmp_path / "w.zarr", projection=ts.ProjectionSpec("sjlt", dim=1024), dtype="float16"
    )
    for split, rows in (("train", 2000), ("test", 2)):
        made.write_split(0, split, np.random.default_rng(rows).standard_normal((rows, 1024)))
    scores = ts.grad_dot_scores(made, of="output")
    ts.build_index(scores, checked=0)
    # 512 bytes of levels a row, 32 of shares, and two numbers.
    assert ts.open_index(scores, memory_limit="3MB").nbytes == 2000 * (512 + 32 + 8)
    with pytest.raises(MemoryLimitError, match="the index in memory needs at least"):
        ts.open_index(scores, memory_limit="2MB")


def test_few_of_many_candidates_take_the_memory_of_their_rows(tmp_path):
    """Lists of as many entries as there are candidates would take six times as much."""
    made = ts.FeatureStore.create(
        tmp_path / "m.zarr", projection=ts.ProjectionSpec("sjlt", dim=64), dtype="float16"
    )
    for split, rows in (("train", 3000), ("test", 2)):
        made.write_split(0, split, np.random.default_rng(rows).standard_normal((rows, 64)))
    scores = ts.grad_dot_scores(made, of="output")
    ts.build_index(scores, checked=0)
    listed = ts.approximate_top_k(scores, 5, memory_limit="20MB")
    assert listed.attrs["candidates"] == 512
    np.testing.assert_allclose(listed["score"][:, 0], np.asarray(scores).max(axis=1), rtol=1e-4)
    with pytest.raises(MemoryLimitError, match="needs at least"):
        ts.approximate_top_k(scores, 5, memory_limit="5MB")


def test_an_index_without_the_compiler_is_refused(store, monkeypatch):
    scores = ts.trak_scores(store)
    ts.build_index(scores, checked=0)
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    for call in (ts.build_index, ts.open_index, partial(ts.approximate_top_k, k=3, candidates=30)):
        with pytest.raises(TrakStoreError, match="unset NUMBA_DISABLE_JIT"):
            call(scores)


def test_a_row_that_is_not_the_indexed_one_is_refused(store):
    scores = ts.trak_scores(store)
    ts.build_index(scores)
    first = int(ts.top_k(scores.isel(target=0), 1)["position"][0, 0])
    column = scores.parts[0].train
    row = first % column.chunk_rows
    key = layout.chunk_key(column.path, (first // column.chunk_rows, 0))
    path = Path(str(store.location)) / key
    content = bytearray(path.read_bytes())
    content[row * DIM * 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DamagedError, match=f"row {first} of 0/train/features is not the one"):
        ts.approximate_top_k(scores.isel(target=0), 5, candidates=30)


def test_verify_finds_a_bad_index_and_repair_drops_it(store):
    scores = ts.trak_scores(store)
    path = ts.build_index(scores).parts[0].path
    assert ts.verify_store(store.location).ok
    chunk = Path(str(store.location)) / layout.chunk_key(f"{path}/level", (0, 0))
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(bytes(content))
    with pytest.raises(DamagedError):
        ts.open_index(scores)
    found = ts.verify_store(store.location)
    assert [one.key for one in found.findings] == [f"{path}/level/c/0/0"]
    assert ts.verify_store(store.location, repair=True).findings[0].repaired
    assert ts.verify_store(store.location).ok
    with pytest.raises(NotFoundError):
        ts.open_index(scores)


def test_a_build_that_failed_in_the_middle_goes_on(store, monkeypatch):
    scores = ts.trak_scores(store)
    monkeypatch.setattr(index_build, "chunk_rows_of", lambda *_: 100)
    whole = ts.build_index(scores)
    store.location.delete_folder("_indexes")
    codes, coded = index_build._EncodePass._codes, []

    def failing(one, low, high):
        if low == 500:
            raise OSError("the disk is full")
        return codes(one, low, high)

    monkeypatch.setattr(index_build._EncodePass, "_codes", failing)
    with pytest.raises(OSError, match="disk is full"), dask.config.set(scheduler="synchronous"):
        ts.build_index(scores)
    with pytest.raises(NotFoundError):
        ts.open_index(scores)
    steps = Path(str(store.location)) / "_indexes/train/rows.0/step/c"
    done = {100 * int(one.name) for one in steps.iterdir()}
    monkeypatch.setattr(
        index_build._EncodePass, "_codes", lambda one, *at: coded.append(at[0]) or codes(one, *at)
    )
    resumed = ts.build_index(scores)
    assert done and sorted(coded) == sorted({*range(0, ROWS, 100)} - done)
    assert_equal(resumed, whole)


KILLED = """
    import os, signal, sys
    import dask
    import trakstore as ts
    from trakstore.scores import index_build

    dask.config.set(scheduler="synchronous")
    index_build.chunk_rows_of = lambda *_: 100
    codes, left = index_build._EncodePass._codes, [int(sys.argv[2])]
    def counted(one, low, high):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return codes(one, low, high)
    index_build._EncodePass._codes = counted
    ts.build_index(ts.trak_scores(ts.open_store(sys.argv[1])))
"""


def killed(store, after: int) -> None:
    place = Path(index_build.__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(store.location), str(after)],
        check=False,
        env={**os.environ, "PYTHONPATH": str(place)},
    )
    assert ran.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_build_goes_on_where_it_was(store, monkeypatch):
    scores = ts.trak_scores(store)
    killed(store, 5)
    assert read_table(store.location, "_indexes/train/rows.0") == {}
    assert ts.verify_store(store.location).ok
    with pytest.raises(NotFoundError):
        ts.open_index(scores)
    steps = Path(str(store.location)) / "_indexes/train/rows.0/step/c"
    done = {100 * int(one.name) for one in steps.iterdir()}
    coded = []
    codes = index_build._EncodePass._codes
    monkeypatch.setattr(
        index_build._EncodePass, "_codes", lambda one, *at: coded.append(at[0]) or codes(one, *at)
    )
    resumed = ts.build_index(scores)
    assert len(done) == 5 and sorted(coded) == sorted({*range(0, ROWS, 100)} - done)
    assert recall(check_lists(scores, 300), ts.top_k(scores, 10)) > 0.9
    store.location.delete_folder("_indexes")
    monkeypatch.setattr(index_build, "chunk_rows_of", lambda *_: 100)
    whole = ts.build_index(scores)
    assert_equal(resumed, whole)
    assert ts.verify_store(store.location).ok
