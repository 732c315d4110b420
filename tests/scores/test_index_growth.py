"""Indexes whose rows grew: turns that no longer fit are made anew, by themselves or when asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.scores import index_build
from trakstore.scores.index_rows import IndexedRows
from trakstore.storage import layout
from trakstore.storage.group_documents import group_document
from trakstore.storage.tables.saved_table import read_table

DIM, FEW, FIRST = 128, 16, 600


def rows(count: int, few: float, others: float, seed: int) -> np.ndarray:
    """Rows that vary in a few directions and in all others, by these standard deviations."""
    spread = np.where(np.arange(DIM) < FEW, few, others)
    return (np.random.default_rng(seed).standard_normal((count, DIM)) * spread).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ts.FeatureStore:
    """Rows of which chunks have 100, and lists 60 candidates."""
    monkeypatch.setattr(index_build, "chunk_rows_of", lambda *_: 100)
    monkeypatch.setattr("trakstore.scores.train_index.LEAST_CANDIDATES", 60)
    monkeypatch.setattr("trakstore.scores.train_index.CANDIDATES_PER_ENTRY", 1)
    made = ts.FeatureStore.create(
        tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", dim=DIM), dtype="float32"
    )
    ones = np.ones(FIRST, np.float32)
    made.write_split(0, "train", rows(FIRST, 1, 0.02, 0), out_to_loss=ones, block_rows=100)
    made.write_split(0, "test", rows(40, 1, 0.15, 1), out_to_loss=ones[:40])
    return made


def append(store: ts.FeatureStore, x: np.ndarray) -> ts.FeatureStore:
    """Append train rows, and open the store again."""
    store.append(0, "train", x, out_to_loss=np.ones(len(x), np.float32))
    return ts.open_store(store.location)


def recall(index: ts.TrainIndex) -> float:
    (told,) = index.document.recalls
    return told.recall


@pytest.fixture
def turned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of rows that turns are made of from now on."""
    counts: list[int] = []
    turns = IndexedRows.turns
    monkeypatch.setattr(
        IndexedRows,
        "turns",
        lambda one, seed: counts.append(one.columns[0].shape[0]) or turns(one, seed),
    )
    return counts


def test_rows_that_more_than_doubled_have_turns_of_their_own(store, turned):
    ts.build_index(ts.trak_scores(store), checked=40)
    grown = ts.trak_scores(append(store, rows(1800, 0.6, 0.3, 2)))
    index = ts.build_index(grown, checked=40)
    # By the turns of the first rows it is 0.41.
    assert turned == [FIRST, FIRST + 1800] and recall(index) > 0.7
    assert index.document.turned_rows == FIRST + 1800
    ts.build_index(grown, checked=40)
    assert len(turned) == 2


def test_turns_that_find_far_less_after_an_append_are_made_anew(store, turned, monkeypatch):
    ts.build_index(ts.trak_scores(store), checked=40)
    grown = ts.trak_scores(append(store, rows(600, 0.6, 0.3, 2)))
    # What was measured before the append is known to a call that goes on with one that was stopped.
    codes = index_build._EncodePass._codes
    monkeypatch.setattr(index_build._EncodePass, "_codes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ts.build_index(grown, checked=40)
    monkeypatch.setattr(index_build._EncodePass, "_codes", codes)
    index = ts.build_index(grown, checked=40)
    # It was 0.83, and is 0.66 by the turns of the first rows.
    assert turned == [FIRST, FIRST + 600] and recall(index) > 0.75


def test_turns_that_find_as_much_stay(store, turned):
    before = ts.build_index(ts.trak_scores(store), checked=40)
    after = ts.build_index(ts.trak_scores(append(store, rows(100, 1, 0.02, 2))), checked=40)
    assert turned == [FIRST] and after.document.turned_rows == FIRST
    np.testing.assert_array_equal(after.turns, before.turns)


def test_an_index_is_built_anew_where_that_is_asked(store, turned):
    x = rows(400, 0.6, 0.3, 2)
    ts.build_index(ts.trak_scores(store), checked=0)
    grown = ts.trak_scores(append(store, x))
    kept = ts.build_index(grown, checked=0)
    assert turned == [FIRST] and kept.document.rows == FIRST + 400
    index = ts.build_index(grown, checked=0, anew=True)
    assert turned == [FIRST, FIRST + 400] and not np.array_equal(index.turns, kept.turns)
    np.testing.assert_array_equal(ts.open_index(grown).signs, index.signs)
    for wrong in (1, "yes", None):
        with pytest.raises(TrakStoreError, match="anew must be True or False"):
            ts.build_index(grown, anew=wrong)


def test_an_index_of_more_rows_than_there_are_is_replaced_where_that_is_asked(store):
    scores = ts.trak_scores(store)
    first = ts.build_index(scores, checked=0)
    ts.build_index(ts.trak_scores(append(store, rows(100, 1, 0.02, 2))), checked=0)
    with pytest.raises(SpecMismatchError, match=r"700 rows, these scores have 600.*--anew"):
        ts.build_index(scores, checked=0)
    index = ts.build_index(scores, checked=0, anew=True)
    assert index.document == first.document
    np.testing.assert_array_equal(index.signs, first.signs)


def test_an_index_of_before_its_turns_were_told_opens_and_grows(store, turned):
    scores = ts.trak_scores(store)
    index = ts.build_index(scores, checked=0)
    document = read_table(store.location, index.path)
    del document["turned_rows"]
    key = layout.document_key(index.path)
    store.location.put({key: group_document(document)})
    old = ts.open_index(scores)
    assert old.document.turned_rows == 0
    np.testing.assert_array_equal(old.signs, index.signs)
    grown = store
    for count in (500, 500):
        grown = append(grown, rows(count, 1, 0.02, count + grown.split(0, "train").rows))
        index = ts.build_index(ts.trak_scores(grown), checked=0)
    assert turned == [FIRST, FIRST + 1000] and ts.verify_store(store.location).ok
