"""What is left out: for all epochs or none, nothing lost among many who mask, nothing unsaid."""

from __future__ import annotations

import base64
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import trakstore as ts
from trakstore.errors import DamagedError, NotFoundError
from trakstore.storage import masks
from trakstore.storage.checking.verification import verify_store
from trakstore.storage.group_documents import attributes, group_document
from trakstore.storage.layout import document_key, kept_path
from trakstore.storage.masks import change_masks, read_masks

ROWS = 24


@pytest.fixture
def where(tmp_path: Path) -> Path:
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", 4))
    for epoch in (0, 1):
        rows = np.random.default_rng(epoch).normal(size=(ROWS, 4)).astype(np.float32)
        store.write_split(epoch, "train", rows, block_rows=8)
    return tmp_path / "s.zarr"


def masked(where: Any, epoch: int = 0) -> list[int]:
    return ts.open_store(where).split(epoch, "train").masked.tolist()


def test_of_many_who_mask_at_once_all_are_heard(where: Path) -> None:
    def mask(first: int) -> int:
        return ts.open_store(where).mask("train", [first, first + 8, first + 16])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(mask, range(8))) == [6] * 8
    assert masked(where) == masked(where, 1) == list(range(ROWS))
    assert verify_store(where).ok


def test_a_mask_that_loses_is_made_again_on_top_of_the_other(where: Path) -> None:
    store = ts.open_store(where)
    other = iter([lambda: ts.open_store(where).mask("train", [1])])
    calls = []

    def change(now: masks.Masks) -> Any:
        calls.append(now.number)
        next(other, lambda: 0)()  # another process, between the look and the writing
        none = masks.MaskEntry.of(store.split(0, "train").spec.nonce, ROWS, np.empty(0, int))
        return {"0": now.entries.get("0", none).altered(np.array([2]), True, ROWS)[0]}

    change_masks(store.location, "train", change)
    assert calls == [0, 1] and masked(where) == [1, 2]


def test_a_mask_that_others_build_on_at_once_counts_its_rows(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ts.open_store(where)
    place, other = type(store.location), iter([lambda: ts.open_store(where).mask("train", [1, 2])])
    put = place.put_if_absent

    def noted(self: Any, key: str, value: bytes) -> bytes:
        there = put(self, key, value)
        if key.endswith("train/1/zarr.json"):
            next(other, lambda: 0)()  # another process, as soon as the document is there
        return there

    monkeypatch.setattr(place, "put_if_absent", noted)
    assert store.mask("train", [3]) == 2  # a row at two epochs
    assert masked(where) == masked(where, 1) == [1, 2, 3]
    assert verify_store(where).ok


def test_all_epochs_or_none(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ts.open_store(where)
    store.append(1, "train", np.ones((1, 4), np.float32), ids=[99])
    with pytest.raises(NotFoundError, match="no samples"):
        store.mask("train", [3, 99])  # epoch 0 has no 99
    assert masked(where) == masked(where, 1) == []
    place = type(store.location)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        whole = place.put_if_absent

        def stopped(self: Any, key: str, value: bytes) -> bytes:
            if key.endswith("train/1/zarr.json"):
                raise KeyboardInterrupt
            return whole(self, key, value)

        patch.setattr(place, "put_if_absent", stopped)
        store.mask("train", [3])
    assert masked(where) == masked(where, 1) == []
    assert store.mask("train", [3], epochs=[1]) == 1
    assert (masked(where), masked(where, 1)) == ([], [3])
    assert store.mask("train", [3]) == 1
    assert (masked(where), masked(where, 1)) == ([3], [3])


def test_a_mask_that_was_stopped_just_after_it_counted_is_finished_by_the_same_call(
    where: Path,
) -> None:
    store = ts.open_store(where)
    store.mask("train", [3])
    store.location.delete([document_key(kept_path("_masks/train", 1))])
    assert [one.key for one in verify_store(where).findings] == [
        document_key(kept_path("_masks/train", 1))
    ]
    assert store.mask("train", [3]) == 0
    assert verify_store(where).ok and masked(where) == [3]


@pytest.mark.parametrize("how", ["deleted", "older", "emptied", "of another split"])
def test_a_mask_that_is_not_the_last_one_is_not_taken_for_it(where: Path, how: str) -> None:
    store = ts.open_store(where)
    store.write_split(0, "test", np.ones((ROWS, 4), np.float32))
    for split in ("train", "test"):
        store.mask(split, [3])
        store.mask(split, [5, 7])
    place, key = store.location, document_key("_masks/train/2")
    if how == "deleted":
        place.delete([key])
    else:
        other = {"older": "_masks/train/1", "of another split": "_masks/test/2"}
        source = document_key(other.get(how, "_masks"))
        place.put({key: place.get(source) or b""})
    with pytest.raises(DamagedError, match="_masks/train/2"):
        ts.open_store(where).split(0, "train")
    assert key in {one.key for one in verify_store(where).findings}
    assert ts.open_store(where).split(0, "test").masked.tolist() == [3, 5, 7]


def test_a_mask_says_nothing_of_another_split_of_that_name(where: Path) -> None:
    store = ts.open_store(where)
    store.mask("train", [3])
    store.drop(0, "train")
    store.write_split(0, "train", np.ones((ROWS, 4), np.float32))
    assert (masked(where), masked(where, 1)) == ([], [3])


def test_masks_in_memory_and_in_bits() -> None:
    memory = zarr.storage.MemoryStore()
    store = ts.FeatureStore.create(memory, projection=ts.ProjectionSpec("sjlt", 4))
    store.write_split("final", "train", np.ones((ROWS, 4), np.float32))
    assert store.mask("train", range(0, ROWS, 2)) == 12
    found = read_masks(store.location, "train")
    assert found.number == 1
    entry = found.entries["final"]
    assert entry.rows == ROWS and entry.positions(ROWS).tolist() == list(range(0, ROWS, 2))
    assert store.mask("train", [0, 1], masked=False) == 1
    assert store.split("final", "train").masked.tolist() == list(range(2, ROWS, 2))


@pytest.mark.parametrize("of_the_split", [True, False])
def test_no_more_rows_are_unpacked_than_the_split_has(where: Path, of_the_split: bool) -> None:
    """A document of a few kilobytes may say that 2^28 rows are left out: 2 GB as positions."""
    store, rows = ts.open_store(where), 2**28
    ones = base64.b64encode(zlib.compress(b"\xff" * (rows // 8))).decode()
    nonce = store.split(0, "train").spec.nonce + (0 if of_the_split else 1)
    entry = {"nonce": nonce, "rows": rows, "mask": 0}
    told = {"place": "_masks/train/1", "writing": "x", "masks": [ones], "epochs": {"0": entry}}
    for path in ("_masks", "_masks/train", "_masks/train/1.kept"):
        store.location.put({document_key(path): group_document({})})
    store.location.put({document_key("_masks/train/1"): group_document(told)})
    tracemalloc.start()
    left_out = masked(where)
    assert verify_store(where).ok
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert left_out == (list(range(ROWS)) if of_the_split else []) and peak < 8 * 2**20
    assert store.mask("train", [2], masked=False) == int(of_the_split)
    assert masked(where) == ([*range(2), *range(3, ROWS)] if of_the_split else [])


@pytest.mark.parametrize("packed", ["?", "", base64.b64encode(b"x").decode(), 7])
def test_a_mask_that_cannot_be_unpacked_is_damage(where: Path, packed: Any) -> None:
    store = ts.open_store(where)
    store.mask("train", [3], epochs=[0])
    key = document_key("_masks/train/1")
    told = attributes(store.location.get(key) or b"", key)
    store.location.put({key: group_document({**told, "masks": [packed]})})
    with pytest.raises(DamagedError, match="_masks/train/1"):
        store.split(0, "train")
    assert [one.key for one in verify_store(where).findings] == [key]
