"""Building an index: nothing good is lost to a refused, stopped or older build, nothing stays stale."""

from __future__ import annotations

from pathlib import Path

import dask
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
from trakstore.scores import index_build
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.group_documents import group_document
from trakstore.storage.growth import give_again

DIM, ROWS = 24, 300
PATH = "_indexes/train/rows.0"


def features(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)


def ids(split: str, first: int, rows: int) -> list[str]:
    return [f"{split}{first + i}" for i in range(rows)]


def write(store: ts.FeatureStore, epoch: int, split: str, rows: int, scale: float = 1) -> None:
    x, ones = scale * features(rows, 10 * epoch + rows), np.ones(rows, np.float32)
    store.write_split(epoch, split, x, out_to_loss=ones, ids=ids(split, 0, rows))


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    made = ts.FeatureStore.create(
        tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", dim=DIM), dtype="float32"
    )
    write(made, 0, "train", ROWS)
    write(made, 0, "test", 6)
    return made


def append(store: ts.FeatureStore, rows: int) -> ts.FeatureStore:
    """Append train rows, and open the store again."""
    first = store.split(0, "train").rows
    x, ones = features(rows, first), np.ones(rows, np.float32)
    store.append(0, "train", x, out_to_loss=ones, ids=ids("train", first, rows))
    return ts.open_store(store.location)


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """List of the chunks that are coded from now on."""
    chunks: list[tuple[int, int]] = []
    codes = index_build._EncodePass._codes
    monkeypatch.setattr(
        index_build._EncodePass, "_codes", lambda one, *at: chunks.append(at) or codes(one, *at)
    )
    return chunks


def stopped(scores: ts.Scores, at: int, **how: int) -> None:
    """Build an index up to the chunk that begins at a row."""
    codes = index_build._EncodePass._codes

    def failing(one, low, high):
        if low == at:
            raise OSError("the disk is full")
        return codes(one, low, high)

    with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler="synchronous"):
        patch.setattr(index_build._EncodePass, "_codes", failing)
        with pytest.raises(OSError, match="disk is full"):
            ts.build_index(scores, **how)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"k": 0, "seed": 1}, TrakStoreError),
        ({"k": 2.5, "seed": 1}, TrakStoreError),
        ({"checked": -1, "seed": 1}, TrakStoreError),
        ({"checked": "all", "seed": 1}, TrakStoreError),
        ({"seed": -1}, TrakStoreError),
        ({"seed": None}, TrakStoreError),
        ({"seed": 2**63}, TrakStoreError),
        ({"memory_limit": "20kB", "seed": 1}, MemoryLimitError),
    ],
)
def test_a_refused_build_leaves_the_index_that_is_there(store, options, error):
    scores = ts.trak_scores(store)
    before = ts.build_index(scores)
    with pytest.raises(error):
        ts.build_index(scores, **options)
    assert_equal(ts.open_index(scores), before)


def test_a_limit_for_the_codes_in_memory_is_looked_at_before(store):
    scores = ts.trak_scores(store)
    before = ts.build_index(scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_build, "_workers", lambda *_: 1)
        with pytest.raises(MemoryLimitError, match="in memory"):
            ts.build_index(scores, checked=0, seed=1, memory_limit="12kB")
    assert_equal(ts.open_index(scores), before)


def test_a_stopped_build_goes_on_with_its_own_directions(store, monkeypatch, coded):
    monkeypatch.setattr(index_build, "chunk_rows_of", lambda *_: 100)
    high, low = ts.trak_scores(store, damping=1e4), ts.trak_scores(store, damping=1e-3)
    stopped(high, 200)
    coded.clear()
    # The directions are those of rows, and serve all kernels.
    after = ts.build_index(low)
    assert sorted(coded) == [(200, 300)]
    store.location.delete_folder("_indexes")
    assert_equal(ts.build_index(high), after)
    stopped(low, 200, seed=1)
    coded.clear()
    ts.build_index(low, seed=2)
    assert sorted(coded) == [(0, 100), (100, 200), (200, 300)]


def test_scores_of_another_kind_code_nothing(store, coded):
    first = ts.build_index(ts.trak_scores(store))
    coded.clear()
    index = ts.build_index(ts.trak_scores(store, damping=10.0))
    assert not coded and len(index.recalls) == len(first.recalls) + 1
    assert_equal(index, first)


def test_indexes_of_an_earlier_trakstore_are_passed_over_and_go(store):
    ts.build_index(ts.trak_scores(store))
    older = Path(str(store.location)) / "_indexes/train/unweighted"
    older.mkdir()
    document = group_document({"kernel": "unweighted", "turned_rows": 300, "arrays": []})
    (older / layout.DOCUMENT).write_bytes(document)
    assert ts.verify_store(store.location).ok
    ts.build_index(ts.trak_scores(store))
    assert not older.exists() and ts.verify_store(store.location).ok


@pytest.mark.parametrize("how", [{}, {"damping": 10.0}, {"seed": 1}])
def test_older_scores_do_not_replace_a_longer_index(store, how):
    seed = how.pop("seed", 0)
    older = ts.trak_scores(store, **how)
    newer = ts.trak_scores(append(store, 40))
    index = ts.build_index(newer)
    with pytest.raises(
        SpecMismatchError, match=r"has 340 rows, these scores have 300.*open the store"
    ):
        ts.build_index(older, seed=seed)
    with pytest.raises(SpecMismatchError, match="open the store again ") as refused:
        ts.open_index(older)
    assert "trakstore index" not in str(refused.value)
    assert_equal(ts.open_index(newer), index)


def write_block_again(store: ts.FeatureStore, row: int) -> ts.FeatureStore:
    """Damage a block, drop it, and write it with other last bits under the same nonce."""
    split = store.split(0, "train")
    chunk = layout.chunk_key(f"{split.path}/features", (row // split.spec.chunk_rows, 0))
    path = Path(str(store.location)) / chunk
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(bytes(content))
    assert ts.verify_store(store.location, repair=True).findings[0].repaired
    again = ts.open_store(store.location)
    give_again(again.split(0, "train"), None)
    x, (start, stop) = features(ROWS, ROWS), split.spec.block_range(row // split.spec.block_rows)
    x[start:stop] *= 1.001
    ones = np.ones(ROWS, np.float32)
    how = {"block_rows": split.spec.block_rows} if split.spec.block_rows < ROWS else {}
    again.write_split(0, "train", x, out_to_loss=ones, ids=ids("train", 0, ROWS), **how)
    again = ts.open_store(store.location)
    assert again.split(0, "train").spec.nonce == split.spec.nonce
    return again


def test_a_block_that_was_written_again_is_coded_again(store):
    ts.build_index(ts.trak_scores(store))
    again = write_block_again(store, 0)
    scores = ts.trak_scores(again)
    with pytest.raises(DamagedError, match=r"not the one that was indexed.*build the index again"):
        ts.approximate_top_k(scores, 3, candidates=30)
    index = ts.build_index(scores)
    ts.approximate_top_k(scores, 3, candidates=30)
    again.location.delete_folder("_indexes")
    assert_equal(ts.build_index(scores), index)


def test_a_block_that_was_written_again_is_coded_again_after_an_append(tmp_path, monkeypatch):
    made = ts.FeatureStore.create(
        tmp_path / "b.zarr", projection=ts.ProjectionSpec("sjlt", dim=DIM), dtype="float32"
    )
    ones = np.ones(ROWS, np.float32)
    for split in ("train", "test"):
        x, own = features(ROWS, ROWS), ids(split, 0, ROWS)
        made.write_split(0, split, x, out_to_loss=ones, ids=own, block_rows=100)
    monkeypatch.setattr(index_build, "chunk_rows_of", lambda *_: 100)
    ts.build_index(ts.trak_scores(made))
    scores = ts.trak_scores(append(write_block_again(made, 100), 40))
    index = ts.build_index(scores)
    made.location.delete_folder("_indexes")
    assert_equal(ts.build_index(scores), index)


def test_arrays_have_documents_of_their_length_after_a_growth_that_was_stopped(store, monkeypatch):
    ts.build_index(ts.trak_scores(store))
    scores = ts.trak_scores(append(store, 40))
    put = Location.put

    def failing(place, values):
        if f"{PATH}/level/zarr.json" in values:
            raise LocationError("the disk is full")
        put(place, values)

    monkeypatch.setattr(Location, "put", failing)
    monkeypatch.setattr(index_build, "chunk_rows_of", lambda *_: ROWS)
    with pytest.raises(LocationError):
        ts.build_index(scores)
    monkeypatch.setattr(Location, "put", put)
    ts.build_index(scores)
    assert ts.verify_store(store.location).ok


def test_chunks_of_an_index_that_was_small_grow(store, coded):
    ts.build_index(ts.trak_scores(store))
    index = ts.build_index(ts.trak_scores(append(store, 900)))
    levels = Path(str(store.location)) / f"{PATH}/level/c"
    assert len(list(levels.iterdir())) == 1 and coded[-1] == (0, 1200)
    assert index.rows == 1200


def test_a_stopped_growth_and_another_append_keep_what_was_coded(store, monkeypatch, coded):
    monkeypatch.setattr(index_build, "chunk_rows_of", lambda *_: 100)
    ts.build_index(ts.trak_scores(store))
    grown = ts.trak_scores(append(store, 250))
    coded.clear()
    stopped(grown, 500)
    done = {*coded}
    coded.clear()
    scores = ts.trak_scores(append(ts.open_store(store.location), 30))
    index = ts.build_index(scores)
    assert done and sorted([*coded, *done]) == [(300, 400), (400, 500), (500, 580)]
    store.location.delete_folder("_indexes")
    whole = ts.build_index(scores)
    for one, other in zip(index.parts[0].codes, whole.parts[0].codes, strict=True):
        assert one.shape == other.shape
    assert ts.verify_store(store.location).ok


@pytest.mark.parametrize("whole", [True, False])
def test_indexes_of_dropped_rows_go(store, monkeypatch, whole):
    monkeypatch.setattr(index_build, "chunk_rows_of", lambda *_: 100)
    write(store, 1, "train", ROWS)
    write(store, 1, "test", 6)
    first, plain = ts.trak_scores(store, epochs=0), ts.grad_dot_scores(store, epochs=1)
    if whole:
        ts.build_index(first)
    else:
        stopped(first, 200)
    kept = ts.build_index(plain)
    store.drop(0, "train")
    assert not (Path(str(store.location)) / PATH).exists()
    assert_equal(ts.open_index(plain), kept)
    assert ts.verify_store(store.location).ok


@pytest.mark.parametrize("document", [b"{", b"", b"\x00garbage", b'{"attributes": {"pending": 3}}'])
def test_an_index_with_a_damaged_document_is_built_again(store, document):
    scores = ts.trak_scores(store)
    before = ts.build_index(scores)
    (Path(str(store.location)) / layout.document_key(PATH)).write_bytes(document)
    assert_equal(ts.build_index(scores), before)
    assert_equal(ts.open_index(scores), before)


def test_an_index_that_was_begun_is_told_as_such(store):
    scores = ts.trak_scores(store)
    stopped(scores, 0)
    with pytest.raises(NotFoundError, match="at epoch 0 that was built to its end: run") as told:
        ts.open_index(scores)
    assert "did you mean" not in str(told.value)


@pytest.mark.parametrize("rows", [0, 40])
def test_an_index_with_a_damaged_chunk_is_built_again(store, rows):
    ts.build_index(ts.trak_scores(store))
    path = Path(str(store.location)) / layout.chunk_key(f"{PATH}/level", (0, 0))
    path.write_bytes(path.read_bytes()[::-1])
    scores = ts.trak_scores(append(store, rows) if rows else store)
    index = ts.build_index(scores)
    assert ts.verify_store(store.location).ok
    store.location.delete_folder("_indexes")
    assert_equal(ts.build_index(scores), index)


def test_a_damaged_chunk_of_a_stopped_build_is_coded_again(store, monkeypatch, coded):
    monkeypatch.setattr(index_build, "chunk_rows_of", lambda *_: 100)
    scores = ts.trak_scores(store)
    stopped(scores, 200)
    chunk = Path(str(store.location)) / layout.chunk_key(f"{PATH}/level", (1, 0))
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(bytes(content))
    coded.clear()
    ts.build_index(scores)
    assert sorted(coded) == [(100, 200), (200, 300)]
    assert ts.verify_store(store.location).ok
