"""Appending, masking, dropping: what is there stays as it was, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import trakstore as ts
from trakstore.errors import (
    DamagedError,
    IncompleteError,
    LocationError,
    NotFoundError,
    SpecMismatchError,
    TrakStoreError,
)
from trakstore.spec import SplitSpec
from trakstore.storage import growth
from trakstore.storage.claims import claimed
from trakstore.storage.growth import finish_withdrawal, withdraw_rows
from trakstore.storage.writer import BlockWriter, WithdrawnError

Array = np.ndarray[Any, Any]


def rows_of(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    made = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", 8))
    ids = [f"r{i}" for i in range(10)]
    made.write_split(0, "train", rows_of(10), ids=ids, labels=np.arange(10), block_rows=4)
    return made


def more(n: int, first: int = 10) -> dict[str, Any]:
    ids = [f"r{i}" for i in range(first, first + n)]
    return {"features": rows_of(n, seed=1), "ids": ids, "labels": np.arange(first, first + n)}


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_appended_rows_come_behind_the_old_ones(store: ts.FeatureStore, n: int) -> None:
    store.append(0, "train", **more(n))
    got = store.split(0, "train").to_xarray().compute()
    np.testing.assert_array_equal(got.features, np.concatenate([rows_of(10), rows_of(n, seed=1)]))
    assert got.sample_id.values.tolist() == [f"r{i}" for i in range(10 + n)]
    np.testing.assert_array_equal(got.label, np.arange(10 + n))
    assert store.split(0, "train").status().complete
    plain = xr.open_zarr(store.location.address, group="0/train", consolidated=False)
    assert plain.sizes["sample"] == 10 + n


def test_append_twice_is_append_once(store: ts.FeatureStore, tmp_path: Path) -> None:
    other = ts.FeatureStore.create(tmp_path / "o.zarr", projection=ts.ProjectionSpec("sjlt", 8))
    both = np.concatenate([rows_of(10), rows_of(5, 1), rows_of(3, 1)])
    ids = [f"r{i}" for i in range(18)]
    other.write_split(0, "train", both, ids=ids, labels=np.arange(18), block_rows=4)
    store.append(0, "train", **more(5))
    store.append(0, "train", **more(3, first=15))
    for path in sorted((tmp_path / "o.zarr/0/train").rglob("c/*")):
        if path.is_file():
            same = tmp_path / "s.zarr" / path.relative_to(tmp_path / "o.zarr")
            assert same.read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize("stop_at", range(6))
def test_an_append_that_was_stopped_is_not_there_and_is_done_again(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Stopped at its nth write of keys: chunks and markers of 3 blocks, then documents."""
    place, calls = type(store.location), iter(range(100))
    whole = place.put

    def put(self: Any, values: Any) -> None:
        if next(calls) == stop_at:
            raise KeyboardInterrupt
        whole(self, values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, "put", put)
        store.append(0, "train", **more(5))
    assert store.split(0, "train").rows == 10
    np.testing.assert_array_equal(store.features(0, "train"), rows_of(10))
    store.append(0, "train", **more(5))
    np.testing.assert_array_equal(
        store.features(0, "train"), np.concatenate([rows_of(10), rows_of(5, 1)])
    )


def test_what_cannot_be_appended(store: ts.FeatureStore) -> None:
    with pytest.raises(TrakStoreError, match="has sample r9 already"):
        store.append(0, "train", **more(3, first=9))
    with pytest.raises(TrakStoreError, match="label"):
        store.append(0, "train", rows_of(2), ids=["a", "b"])
    with pytest.raises(TrakStoreError, match=r"got 8 and .*'sample_id': 'int64'"):
        store.append(0, "train", rows_of(2), labels=[0, 1])
    columns = (("features", "float32"), ("norm", "float32"), ("sample_id", "int64"))
    store.create_split(0, "half", SplitSpec(5, 8, columns))
    with pytest.raises(IncompleteError):
        store.append(0, "half", rows_of(2))
    assert store.split(0, "train").rows == 10


def test_masked_samples_keep_their_place_and_come_back(store: ts.FeatureStore) -> None:
    before = store.features(0, "train").values
    assert store.mask("train", ["r3", "r9", "r4"]) == 3
    assert store.mask("train", ["r3"]) == 0
    assert store.split(0, "train").masked.tolist() == [3, 4, 9]
    np.testing.assert_array_equal(store.features(0, "train"), before)
    assert store.mask("train", ["r4"], masked=False) == 1
    assert store.split(0, "train").masked.tolist() == [3, 9]
    store.append(0, "train", **more(5))
    assert store.split(0, "train").masked.tolist() == [3, 9]
    store.mask("train", ["r14"])
    assert store.split(0, "train").masked.tolist() == [3, 9, 14]
    with pytest.raises(NotFoundError, match=r"no samples \['r99'\] \(1 of 2\)"):
        store.mask("train", ["r99", "r1"])
    assert store.split(0, "train").masked.tolist() == [3, 9, 14]
    with pytest.raises(NotFoundError, match="did you mean 'train'"):
        store.mask("trian", ["r1"])


def test_a_dropped_split_is_gone_and_can_be_made_anew(store: ts.FeatureStore) -> None:
    store.write_split(0, "test", rows_of(3))
    store.write_split(1, "train", rows_of(3))
    store.mask("train", ["r1"], epochs=[0])
    store.drop(0, "train")
    assert store.splits_of(0) == ("test",)
    with pytest.raises(NotFoundError):
        store.split(0, "train")
    store.write_split(0, "train", rows_of(7, seed=5))
    np.testing.assert_array_equal(store.features(0, "train"), rows_of(7, seed=5))
    assert store.split(0, "train").masked.tolist() == []
    store.drop(0)
    assert store.epochs == (1,)
    with pytest.raises(NotFoundError, match="no epoch 0"):
        store.drop(0)


def test_a_writer_that_outlives_a_drop_leaves_nothing_that_counts(store: ts.FeatureStore) -> None:
    """Its marker slips in behind the drop's check; the next split of that name sweeps it away."""
    split = store.split(0, "train")
    marker = store.location.get("0/train/written/c.1.0")
    assert marker is not None
    store.drop(0, "train")
    store.location.put({"0/train/written/c.1.0": marker})
    made = store.create_split(0, "train", split.spec)
    assert made.missing_blocks() == [0, 1, 2]
    with pytest.raises(SpecMismatchError, match="dropped or replaced"):
        BlockWriter(split).refuse_replaced()


def test_a_drop_that_was_stopped_is_finished_by_the_same_call(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(store.location), "delete_folder", stop)
        store.drop(0, "train")
    assert store.split(0, "train").status().written_rows == 0
    store.drop(0, "train")
    assert store.splits_of(0) == ()


@pytest.mark.parametrize("keep_bits", [4, 10, 23])
def test_rounded_features_are_near_and_smaller(tmp_path: Path, keep_bits: int) -> None:
    X = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)
    store = ts.FeatureStore.create(
        tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", 64), keep_bits=keep_bits
    )
    store.write_split(0, "train", X)
    got = store.features(0, "train").values
    assert np.abs(got - X).max() <= 2.0 ** -(keep_bits + 1) * np.abs(X).max() * 1.01
    assert (got != X).any() == (keep_bits < 23)
    size = sum(f.stat().st_size for f in (tmp_path / "s.zarr/0/train/features").rglob("c/*/*"))
    assert size < X.nbytes * (1 if keep_bits == 23 else (keep_bits + 12) / 32)
    plain = xr.open_zarr(tmp_path / "s.zarr", group="0/train", consolidated=False)
    np.testing.assert_array_equal(plain.features, got)


def test_rounding_is_part_of_the_spec(tmp_path: Path) -> None:
    spec = ts.ProjectionSpec("sjlt", 8)
    ts.FeatureStore.create(tmp_path / "s.zarr", projection=spec, keep_bits=9)
    with pytest.raises(SpecMismatchError, match="keep_bits 9, this run has None"):
        ts.FeatureStore.create(tmp_path / "s.zarr", projection=spec)
    with pytest.raises(TrakStoreError, match="keep_bits rounds float32"):
        ts.FeatureStore.create(tmp_path / "t", projection=spec, keep_bits=3, dtype="float16")


def test_chunks_of_other_blocks_and_epochs_are_not_read(store: ts.FeatureStore) -> None:
    ids, labels = [f"r{i}" for i in range(10)], np.arange(10)
    store.write_split(1, "train", rows_of(10, 4), ids=ids, labels=labels, block_rows=4)
    place = Path(store.location.address)
    for name, other in (
        ("features/c/0/0", "0/train/features/c/1/0"),
        ("features/c/0/0", "1/train/features/c/0/0"),
        ("sample_id/c/0", "0/train/sample_id/c/1"),
        ("label/c/2", "0/train/label/c/1"),
    ):
        own = place / "0/train" / name
        whole = own.read_bytes()
        own.write_bytes((place / other).read_bytes())
        column = ts.open_store(place).split(0, "train").column(name.partition("/")[0])
        with pytest.raises(DamagedError, match="not the one that its block's marker commits"):
            column.read(0, 10)
        own.write_bytes(whole)
        column.read(0, 10)


def test_a_document_from_before_an_append_is_not_taken_for_the_split(
    store: ts.FeatureStore,
) -> None:
    document = Path(store.location.address) / "0/train/zarr.json"
    old = document.read_bytes()
    held = store.split(0, "train")  # opened before: it stays what it was
    store.append(0, "train", **more(5))
    np.testing.assert_array_equal(held.column("features").read(0, 10), rows_of(10))
    document.write_bytes(old)
    with pytest.raises(DamagedError, match="says 10 rows, but 15 were stored"):
        store.split(0, "train")
    assert [one.key for one in ts.verify_store(store).findings] == ["0/train/zarr.json"]


def test_a_writer_of_a_dropped_split_stops_before_it_writes(store: ts.FeatureStore) -> None:
    old = store.split(0, "train")
    block = {name: old.column(name).read(0, 4) for name in old.columns}
    store.drop(0, "train")
    ids = [f"r{i}" for i in range(10)]
    store.write_split(0, "train", rows_of(10, 8), ids=ids, labels=np.arange(10), block_rows=4)
    with pytest.raises(SpecMismatchError, match="dropped or replaced"):
        BlockWriter(old).write(0, block)
    np.testing.assert_array_equal(store.features(0, "train"), rows_of(10, 8))
    with pytest.raises(DamagedError, match="of another split"):
        old.column("features").read(4, 8)
    store.drop(0, "train")
    with pytest.raises(SpecMismatchError, match="dropped or replaced"):
        BlockWriter(old).write(0, block)
    assert not (Path(store.location.address) / "0/train").exists()


def test_rows_that_are_withdrawn_are_missing_and_masks_stay(store: ts.FeatureStore) -> None:
    store.mask("train", ["r3", "r9"])
    old = store.split(0, "train")
    withdraw_rows(old, "engine")
    now = store.split(0, "train")
    assert (
        now.spec.doubted == "engine"
        and old.spec.nonce in now.spec.nonces_before
        and now.state != old.state
    )
    assert now.status().written_rows == 0 and now.masked.tolist() == [3, 9]
    with pytest.raises(IncompleteError, match="0 of 10 rows"):
        store.features(0, "train")
    (tmp,) = ts.verify_store(store).splits
    assert (tmp.blocks, tmp.written_blocks) == (3, 0)


def test_withdrawn_by_several_workers_is_withdrawn_once(store: ts.FeatureStore) -> None:
    old = store.split(0, "train")
    withdraw_rows(old, "engine")
    document = store.location.get("0/train/zarr.json")
    columns = {name: old.column_as_stored(name) for name in old.columns}
    assert BlockWriter(old).doubt() == BlockWriter(store.split(0, "train")).doubt() == "engine"
    for doubt in ("engine", "padding"):
        assert withdraw_rows(old, doubt).spec.doubted == "engine"
        assert store.location.get("0/train/zarr.json") == document
    fresh = {name: np.zeros((4, *one.shape[1:]), one.dtype) for name, one in columns.items()}
    with pytest.raises(WithdrawnError, match="withdrew all rows"):
        BlockWriter(old).write(0, fresh)
    assert store.split(0, "train").status().written_rows == 0


def test_rows_may_be_doubted_more_and_not_less(store: ts.FeatureStore) -> None:
    """One worker finds that padding changes rows, and another one that an engine is wrong."""
    store.mask("train", ["r3"])
    old = store.split(0, "train")
    first = withdraw_rows(old, "padding")
    assert store.split(0, "train").spec.doubted == first.spec.doubted == "padding"
    with pytest.raises(WithdrawnError):
        BlockWriter(old).refuse_replaced()
    BlockWriter(first).refuse_replaced()
    assert withdraw_rows(old, "engine").spec == withdraw_rows(first, "engine").spec
    now = store.split(0, "train")
    assert now.spec.doubted == "engine" and now.masked.tolist() == [3]
    assert now.spec.nonce == old.spec.withdrawn("engine").nonce
    with pytest.raises(WithdrawnError):
        BlockWriter(first).refuse_replaced()


def test_markers_that_outlive_a_withdrawal_commit_nothing(store: ts.FeatureStore) -> None:
    """As a run leaves them that was killed, or a worker that was slow."""
    old, key = store.split(0, "train"), "0/train/written/c.1.0"
    marker = store.location.get(key)
    assert marker is not None
    withdraw_rows(old, "engine")
    now = store.split(0, "train")
    store.location.put({key: marker})
    with pytest.raises(
        DamagedError, match=r"c\.1\.0 is of rows that were withdrawn.*featurize again"
    ):
        now.column("norm", allow_missing=True).read(4, 8)
    (finding,) = ts.verify_store(store).findings
    assert (finding.kind, finding.block) == ("marker", 1) and "were withdrawn" in finding.message
    store.location.put({"0/train/written/skipped.1": b"1234"})
    finish_withdrawal(now)
    assert store.location.names("0/train/written") == ["zarr.json"]


def test_rows_that_cannot_be_withdrawn_end_the_run(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "_WAITS", (0.0,))
    old = store.split(0, "train")
    with (
        claimed(store.location, "0/train", "repair"),
        pytest.raises(LocationError, match=r"not be withdrawn \(.*repair by process.*same command"),
    ):
        withdraw_rows(old, "engine")
    store.drop(0, "train")
    with pytest.raises(SpecMismatchError, match="dropped or replaced"):
        withdraw_rows(old, "engine")
    assert store.location.get("0/train/zarr.json") is None


def test_the_index_of_withdrawn_rows_goes_with_the_split(store: ts.FeatureStore) -> None:
    store.write_split(0, "test", rows_of(2))
    ts.build_index(ts.grad_dot_scores(store, of="output"))
    assert store.location.names("_indexes/train/rows.0")
    withdraw_rows(store.split(0, "train"), "engine")
    store.drop(0, "train")
    assert not store.location.names("_indexes/train/rows.0")
