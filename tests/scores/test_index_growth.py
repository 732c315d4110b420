"""Indexes whose rows grew: directions that no longer fit are found anew, also when that is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.scores import index_build
from trakstore.scores.row_codes import Coder

DIM, FEW, FIRST = 128, 16, 600


def rows(count: int, few: float, others: float, seed: int) -> np.ndarray:
    """Rows that vary in a few directions and in all others, by these standard deviations."""
    spread = np.where(np.arange(DIM) < FEW, few, others)
    return (np.random.default_rng(seed).standard_normal((count, DIM)) * spread).astype(np.float32)


def others(count: int) -> np.ndarray:
    """Rows that are huge in two directions of their own, beside which all others are rounded away."""
    x = rows(count, 1, 0.15, 2)
    x[:, -2:] *= 30_000
    return x


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
    (told,) = index.recalls
    return told.recall


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts of the times that directions are found from now on."""
    counts: list[int] = []
    own = Coder.directions_of
    monkeypatch.setattr(
        Coder,
        "directions_of",
        staticmethod(lambda rows, seed: counts.append(len(rows)) or own(rows, seed)),
    )
    return counts


def test_rows_that_more_than_doubled_have_directions_of_their_own(store, found):
    ts.build_index(ts.trak_scores(store), checked=40)
    grown = ts.trak_scores(append(store, rows(1800, 0.6, 0.3, 2)))
    index = ts.build_index(grown, checked=40)
    assert len(found) == 2 and index.parts[0].document.first_rows == FIRST + 1800
    ts.build_index(grown, checked=40)
    assert len(found) == 2


def test_directions_that_find_far_less_after_an_append_are_found_anew(store, found, monkeypatch):
    before = ts.build_index(ts.trak_scores(store), checked=40)
    grown = ts.trak_scores(append(store, others(600)))
    # What was measured before the append is known to a call that goes on with one that was stopped.
    codes = index_build._EncodePass._codes
    monkeypatch.setattr(index_build._EncodePass, "_codes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ts.build_index(grown, checked=40)
    monkeypatch.setattr(index_build._EncodePass, "_codes", codes)
    made, measured = [], index_build.measured
    monkeypatch.setattr(
        index_build, "measured", lambda *given: made.append(measured(*given)) or made[-1]
    )
    index = ts.build_index(grown, checked=40)
    assert len(found) == 2 and index.parts[0].document.first_rows == FIRST + 600
    by_old, by_new = (one.recalls[0].recall for one in made)
    assert by_old < recall(before) - 0.1 < by_new == recall(index)


def test_directions_that_find_as_much_stay(store, found):
    before = ts.build_index(ts.trak_scores(store), checked=40)
    after = ts.build_index(ts.trak_scores(append(store, rows(100, 1, 0.02, 2))), checked=40)
    assert len(found) == 1 and after.parts[0].document.first_rows == FIRST
    np.testing.assert_array_equal(after.parts[0].coder.directions, before.parts[0].coder.directions)


def test_an_index_is_built_anew_where_that_is_asked(store, found):
    x = rows(400, 0.6, 0.3, 2)
    ts.build_index(ts.trak_scores(store), checked=0)
    grown = ts.trak_scores(append(store, x))
    kept = ts.build_index(grown, checked=0)
    assert len(found) == 1 and kept.rows == FIRST + 400
    index = ts.build_index(grown, checked=0, anew=True)
    assert len(found) == 2
    one, other = index.parts[0], kept.parts[0]
    assert not np.array_equal(one.coder.directions, other.coder.directions)
    np.testing.assert_array_equal(ts.open_index(grown).parts[0].codes.levels, one.codes.levels)
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
    assert index.parts[0].document == first.parts[0].document
    np.testing.assert_array_equal(index.parts[0].codes.levels, first.parts[0].codes.levels)
