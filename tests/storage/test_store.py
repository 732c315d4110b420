from __future__ import annotations

import pickle
import re
import threading
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import trakstore as ts
from trakstore.errors import (
    DamagedError,
    IncompleteError,
    LocationError,
    NotFoundError,
    NumericsError,
    SpecMismatchError,
    TrakStoreError,
)
from trakstore.spec import SplitSpec
from trakstore.storage import layout
from trakstore.storage.arrays import block_keys
from trakstore.storage.backends.location import DurableLocalStore, Location, open_location
from trakstore.storage.columns import stored_rows
from trakstore.storage.group_documents import attributes, group_document
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.writer import BlockWriter

SPEC = ts.ProjectionSpec("sjlt", dim=8)


def rows_of(n: int, dim: int = 8, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def make(path: Any, dim: int = 8, dtype: Any = "float32") -> ts.FeatureStore:
    return ts.FeatureStore.create(path, projection=ts.ProjectionSpec("sjlt", dim=dim), dtype=dtype)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 60), block=st.integers(1, 70), strings=st.booleans())
def test_what_is_written_is_read(n: int, block: int, strings: bool) -> None:
    store = make(zarr.storage.MemoryStore())
    X, q, y = rows_of(n), np.linspace(0, 1, n, dtype=np.float32), np.arange(n) % 3
    ids = [f"row {i}" for i in range(n)] if strings else list(range(5, 5 + n))
    split = store.write_split(3, "train", X, out_to_loss=q, ids=ids, labels=y, block_rows=block)
    got = split.to_xarray().compute()
    np.testing.assert_array_equal(got.features, X)
    np.testing.assert_array_equal(got.out_to_loss, q)
    np.testing.assert_array_equal(got.label, y)
    np.testing.assert_allclose(got.norm, np.linalg.norm(X, axis=1), rtol=1e-6)
    assert got.sample_id.values.tolist() == ids
    assert split.status().complete
    column = split.column("features")
    np.testing.assert_array_equal(column.read(n // 3, n), X[n // 3 :])


def test_features_are_labelled_and_lazy(tmp_path: Path) -> None:
    X = rows_of(100)
    store = make(tmp_path / "s.zarr")
    store.write_split(10, "train", da.from_array(X, chunks=(7, 8)), ids=np.arange(100) + 1)
    F = store.features(10, "train")
    assert F.dims == ("sample", "feature") and isinstance(F.data, da.Array)
    assert "sample_id" in F.coords and "sample_id" not in F.indexes
    np.testing.assert_array_equal(F, X)
    assert store.epochs == (10,) and store.splits == ("train",)


def test_plain_readers_open_it(tmp_path: Path) -> None:
    X = rows_of(20)
    where = tmp_path / "s.zarr"
    make(where).write_split(10, "train", X, ids=[f"r{i}" for i in range(20)])
    group = zarr.open_group(where, mode="r", use_consolidated=False)
    np.testing.assert_array_equal(group["10/train/features"][:], X)
    assert group["10/train/features"].metadata.dimension_names == ("sample", "feature")
    opened = xr.open_zarr(where, group="10/train", consolidated=False, zarr_format=3)
    np.testing.assert_array_equal(opened.features, X)
    tree = xr.open_datatree(where, engine="zarr", consolidated=False)
    np.testing.assert_array_equal(tree["10/train"]["features"], X)


def test_a_column_pickles_as_an_address(tmp_path: Path) -> None:
    X = rows_of(50)
    split = make(tmp_path / "s.zarr").write_split(0, "train", X)
    frozen = pickle.dumps(split.column("features"))
    assert len(frozen) < 1000
    np.testing.assert_array_equal(pickle.loads(frozen).read(3, 9), X[3:9])  # noqa: S301


def incomplete(path: Any) -> tuple[ts.FeatureStore, Any, np.ndarray[Any, Any]]:
    """A split of 10 rows in blocks of 3, of which blocks 0 and 2 are written; row 1 is zero."""
    store = make(path)
    columns = (("features", "float32"), ("norm", "float32"), ("sample_id", "int64"))
    split = store.create_split(0, "train", SplitSpec(10, 8, columns, block_rows=3))
    X = rows_of(10)
    X[1] = 0
    for block in (0, 2):
        a, b = split.spec.block_range(block)
        BlockWriter(split).write(
            block, stored_rows(X[a:b], "float32", a) | {"sample_id": np.arange(a, b)}
        )
    return store, split, X


def test_missing_rows_are_named_and_told_from_zero_rows(tmp_path: Path) -> None:
    store, split, X = incomplete(tmp_path / "s.zarr")
    assert split.status().missing == ((3, 6), (9, 10))
    with pytest.raises(IncompleteError, match="6 of 10 rows; missing 3-5, 9-9"):
        store.features(0, "train")
    F = store.features(0, "train", allow_missing=True).values
    np.testing.assert_array_equal(np.isnan(F).all(axis=1), [i in (3, 4, 5, 9) for i in range(10)])
    np.testing.assert_array_equal(F[[0, 1, 2, 6, 7, 8]], X[[0, 1, 2, 6, 7, 8]])
    ids = split.to_xarray(allow_missing=True).sample_id.values
    assert ids.tolist() == [0, 1, 2, -1, -1, -1, 6, 7, 8, -1]


def test_write_split_goes_on_where_it_was(tmp_path: Path) -> None:
    store, _, X = incomplete(tmp_path / "s.zarr")
    store.write_split(0, "train", X)
    np.testing.assert_array_equal(store.features(0, "train"), X)


def test_a_missing_chunk_under_a_marker_is_an_error(tmp_path: Path) -> None:
    _, split, _ = incomplete(tmp_path / "s.zarr")
    (tmp_path / "s.zarr/0/train/features/c/2/0").unlink()
    with pytest.raises(DamagedError, match="missing though its block was committed"):
        split.column("features").read(6, 9)


def test_a_flipped_bit_and_a_truncation_are_errors(tmp_path: Path) -> None:
    _, split, _ = incomplete(tmp_path / "s.zarr")
    chunk = tmp_path / "s.zarr/0/train/features/c/0/0"
    good = chunk.read_bytes()
    chunk.write_bytes(good[:10] + bytes([good[10] ^ 4]) + good[11:])
    with pytest.raises(DamagedError, match="damaged"):
        split.column("features").read(0, 3)
    chunk.write_bytes(good[:-1])
    with pytest.raises(DamagedError, match="damaged"):
        split.column("features").read(0, 3)


def test_a_marker_holds_rows_nonce_and_checksums(tmp_path: Path) -> None:
    _, split, _ = incomplete(tmp_path / "s.zarr")
    where = tmp_path / "s.zarr/0/train"
    marker = zarr.open_array(where / "written", mode="r")[2]
    tails = [(where / key).read_bytes()[-4:] for key in block_keys(split.spec, 2)]
    expected = [3, split.spec.nonce, *(int.from_bytes(tail, "little") for tail in tails)]
    assert marker.tolist() == expected


def test_a_block_that_is_withdrawn_is_missing_until_it_is_written_again(tmp_path: Path) -> None:
    _, split, X = incomplete(tmp_path / "s.zarr")
    writer = BlockWriter(split)
    columns = stored_rows(X[6:9], "float32", 6) | {"sample_id": np.arange(6, 9)}
    writer.write(2, columns | {"skipped": np.array([0, 1, 0], np.uint8)})
    note = tmp_path / "s.zarr" / layout.skipped_key(split.path, 2)
    assert note.exists() and 2 not in split.missing_blocks()
    writer.withdraw(2)
    assert not note.exists() and split.missing_blocks() == [1, 2, 3]
    writer.write(2, columns)
    assert split.missing_blocks() == [1, 3]


def test_a_writer_of_a_dropped_split_commits_nothing(tmp_path: Path) -> None:
    _, split, _ = incomplete(tmp_path / "s.zarr")
    document = tmp_path / "s.zarr/0/train/zarr.json"
    content = attributes(document.read_bytes(), "here")
    document.write_bytes(group_document(content | {"nonce": content["nonce"] ^ 1}))
    block = stored_rows(rows_of(3), "float32", 3) | {"sample_id": np.arange(3, 6)}
    with pytest.raises(SpecMismatchError, match="dropped or replaced"):
        BlockWriter(split).write(1, block)
    assert 1 in split.missing_blocks()


def test_the_same_create_opens_and_another_is_refused(tmp_path: Path) -> None:
    assert make(tmp_path / "s.zarr").spec == make(tmp_path / "s.zarr").spec
    with pytest.raises(SpecMismatchError, match=r"dim=8.*dim=9"):
        make(tmp_path / "s.zarr", dim=9)


@pytest.mark.parametrize("leftover", ["zarr.json.0758.partial", "zarr.json#1"])
def test_a_store_is_made_beside_what_another_creator_has_begun(
    tmp_path: Path, leftover: str
) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / leftover).write_bytes(b"{")
    assert ts.FeatureStore.create(tmp_path / "s", projection=SPEC).epochs == ()


def test_a_store_that_appears_meanwhile_is_no_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever call of ours another process makes the store, we end with that store."""
    at, calls = 0, 0
    real = {name: getattr(Location, name) for name in ("get", "names", "put_if_absent")}

    def meddling(name: str, where: Path) -> Any:
        def call(self: Location, *arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                with monkeypatch.context() as honest:
                    for one, method in real.items():
                        honest.setattr(Location, one, method)
                    other = ts.FeatureStore.create(where, projection=SPEC)
                    other.write_split(0, "train", np.eye(8, dtype=np.float32)[:5])
            return real[name](self, *arguments, **options)

        return call

    while calls >= at:
        at, calls = at + 1, 0
        where = tmp_path / str(at)
        with monkeypatch.context() as meddled:
            for name in real:
                meddled.setattr(Location, name, meddling(name, where))
            store = ts.FeatureStore.create(where, projection=SPEC)
        assert store.epochs == ((0,) if calls >= at else ())
    assert at > 3


def test_looking_at_a_new_place_makes_no_folder(tmp_path: Path) -> None:
    place = open_location(tmp_path / "a.zarr", create=True)
    assert place.get("zarr.json") is None
    assert place.names("") == place.find("runs", lambda _: True) == []
    assert place.get_tails(["zarr.json"], 4) == [None]
    place.delete(["zarr.json"])
    assert not (tmp_path / "a.zarr").exists()
    place.put({"zarr.json": b"{}"})
    assert [one.name for one in tmp_path.rglob("*")] == ["a.zarr", "zarr.json"]


def test_a_process_that_may_start_no_threads_does_not_wait_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make(tmp_path / "a.zarr").location

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(zarr.core.sync, "loop", [None])  # as in a new process
    monkeypatch.setattr(zarr.core.sync, "iothread", [None])
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", start)
        for _ in range(2):
            with pytest.raises(LocationError, match=r"no more threads; raise .*ulimit -u"):
                place.get("zarr.json")
    assert place.get("zarr.json") is not None
    (loop,), (thread,) = zarr.core.sync.loop, zarr.core.sync.iothread
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_no_pipeline_of_zarr_passes_by_the_way_chunks_are_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(zarr.core.codec_pipeline, "FusedCodecPipeline"):
        pytest.skip("this zarr has one pipeline")
    written: list[str] = []
    write = DurableLocalStore.write

    def watched(self: DurableLocalStore, key: str, *parts: Any, **how: Any) -> None:
        written.append(key)
        write(self, key, *parts, **how)

    monkeypatch.setattr(DurableLocalStore, "write", watched)
    place = make(tmp_path / "a.zarr").location
    array = SavedArray("gram", "float64", (4, 4), (2, 4), ("a", "b"))
    array.create(place, "grams/0/train")
    fused = "zarr.core.codec_pipeline.FusedCodecPipeline"
    with zarr.config.set({"codec_pipeline.path": fused}):
        zarr.open_array(place.store, path="grams/0/train/gram", mode="r+")[...] = np.ones((4, 4))
        assert {"grams/0/train/gram/c/0/0", "grams/0/train/gram/c/1/0"} <= set(written)
        place.delete(["grams/0/train/gram/c/1/0"])
        with pytest.raises(DamagedError, match="gram/c/1/0 is missing"):
            array.open(place, "grams/0/train")[...]


def test_another_shape_is_refused_with_both(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr")
    store.write_split(0, "train", rows_of(10))
    with pytest.raises(SpecMismatchError, match="rows 10, this run has 11"):
        store.write_split(0, "train", rows_of(11))
    with pytest.raises(SpecMismatchError, match="dimension 8, got 9"):
        store.write_split(0, "test", rows_of(10, 9))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    X = rows_of(10)
    X[7, 3] = bad
    store = make(tmp_path / "s.zarr")
    with pytest.raises(NumericsError, match=r"^train at epoch 0: 1 row has NaN .* \(row 7\)"):
        store.write_split(0, "train", X)
    assert not store.split(0, "train").status().complete


def test_float16_refuses_overflow_and_underflow(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", dtype="float16")
    with pytest.raises(NumericsError, match=r"overflows? float16"):
        store.write_split(0, "big", rows_of(5) * 1e6)
    with pytest.raises(NumericsError, match=r"underflows? float16"):
        store.write_split(0, "small", rows_of(5) * 1e-7)
    X = rows_of(5)
    X[0] = 0
    store.write_split(0, "fine", X)
    np.testing.assert_array_equal(store.features(0, "fine"), X.astype(np.float16))


def test_names_that_do_not_exist_get_the_nearest(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr")
    store.write_split(10, "train", rows_of(5))
    with pytest.raises(NotFoundError, match="did you mean 'train'"):
        store.split(10, "trian")
    with pytest.raises(NotFoundError, match="no epoch 11; there are 10"):
        store.split(11, "train")
    with pytest.raises(NotFoundError, match="did you mean 'norm'"):
        store.split(10, "train").column("norms")


def test_stores_in_a_place_that_is_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"picture")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "zarr.json").write_text("{")
    zarr.open_group(tmp_path / "group", mode="w")
    with pytest.raises(LocationError, match=r"there is no store at .*; make one with"):
        ts.open_store(tmp_path)
    for name in ("a.zarr", "b.zarr"):
        make(tmp_path / name)
    for look in (ts.open_store, ts.verify_store):
        with pytest.raises(
            LocationError, match=r"no store at .*; in it there is a\.zarr, b\.zarr$"
        ):
            look(tmp_path)


def test_groups_beside_a_folder_that_is_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(LocationError, match=r"no such folder$"):
        ts.open_store(tmp_path / "nowhere" / "c.zarr")
    make(tmp_path / "a.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LocationError, match=r"no such folder; beside it there is a\.zarr$"):
        ts.open_store(tmp_path / "c.zarr")


def test_places_that_are_no_stores(tmp_path: Path) -> None:
    with pytest.raises(LocationError, match="no such folder"):
        ts.open_store(tmp_path / "nothing.zarr")
    with pytest.raises(LocationError, match="there is no store at"):
        ts.open_store(tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(LocationError, match=re.escape("not empty and is not a store")):
        make(tmp_path)
    with pytest.raises(LocationError, match="is a file"):
        make(tmp_path / "thesis.txt")
    zarr.open_group(tmp_path / "other", mode="w")
    with pytest.raises(LocationError, match="not a trakstore store"):
        ts.open_store(tmp_path / "other")
    assert not (tmp_path / "nothing.zarr").exists()


@pytest.mark.parametrize("root", [10**30, "text", [1], True])
def test_a_root_document_without_fields_is_refused(tmp_path: Path, root: Any) -> None:
    store = make(tmp_path / "s.zarr")
    store.location.put({layout.DOCUMENT: group_document({"trakstore": root})})
    with pytest.raises(DamagedError, match="the document must have named fields, got"):
        ts.open_store(tmp_path / "s.zarr")


def test_a_newer_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    make(tmp_path / "s.zarr")
    document = tmp_path / "s.zarr/zarr.json"
    document.write_text(document.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(SpecMismatchError, match=r"format 3.*pip install"):
        ts.open_store(tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": np.zeros(5)}, "shape"),
        ({"out_to_loss": np.zeros(4)}, "out_to_loss must have shape"),
        ({"out_to_loss": np.full(5, np.nan)}, "NaN"),
        ({"ids": [1, 1, 2, 3, 4]}, "1 of 5 repeat"),
        ({"ids": [1.5, 2, 3, 4, 5]}, "integers or strings"),
        ({"split": "a/b"}, "cannot name a split"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    store = make(tmp_path / "s.zarr")
    with pytest.raises(TrakStoreError, match=message):
        store.write_split(**{"epoch": 0, "split": "train", "features": rows_of(5), **arguments})
    assert store.epochs == ()


def test_large_rows_are_cut_into_column_chunks(tmp_path: Path) -> None:
    dim = 5_000_000
    X = np.ones((3, dim), dtype=np.float32)
    X[2, -1] = 7
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("identity"))
    split = store.write_split(0, "train", X)
    assert split.spec.chunk_columns < dim
    assert split.status().complete
    np.testing.assert_array_equal(split.column("features").read(2, 3), X[2:])


@pytest.mark.parametrize(
    ("rows", "dim", "block_rows"),
    [(5, 3, 64), (130, 3, 64), (64 * 100, 3, 128), (3, 2**20, 2)],
)
def test_blocks_of_given_rows_are_few_and_fit(
    rows: int, dim: int, block_rows: int, tmp_path: Path
) -> None:
    spec = ts.ProjectionSpec("sjlt", dim=dim)
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=spec)
    made = store.write_split(0, "train", np.broadcast_to(np.float32(1), (rows, dim)))
    assert made.spec.block_rows == block_rows
