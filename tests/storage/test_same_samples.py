"""Splits of several epochs whose rows are of the same samples, or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from zarr.storage import MemoryStore

import trakstore as ts
from trakstore.errors import SpecMismatchError
from trakstore.storage.backends.chunks import tail_of
from trakstore.storage.backends.location import Location
from trakstore.storage.markers import marker_of
from trakstore.storage.same_samples import OtherSample, first_other_sample, need_same_samples
from trakstore.storage.split import Split
from trakstore.storage.stored import StoredColumn

ROWS = 300


def split_of(store: ts.FeatureStore, epoch: int, ids: Any, block_rows: int = 64) -> Split:
    """Write a split with these ids, in blocks of so many rows."""
    features = np.ones((len(ids), 8), np.float32)
    return store.write_split(epoch, "train", features, ids=ids, block_rows=block_rows)


@pytest.fixture
def store() -> ts.FeatureStore:
    return ts.FeatureStore.create(MemoryStore(), projection=ts.ProjectionSpec("sjlt", dim=8))


@pytest.fixture
def id_reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Rows of ids that are read from now on."""
    seen, read = [], StoredColumn.read

    def noted(self: StoredColumn, start: int, stop: int) -> Any:
        if self.path.endswith("/sample_id"):
            seen.append((self.path, start, stop))
        return read(self, start, stop)

    monkeypatch.setattr(StoredColumn, "read", noted)
    return seen


@pytest.mark.parametrize("name", [int, "s{}".format])
def test_ids_are_not_read_where_blocks_agree(store: Any, id_reads: Any, name: Any) -> None:
    ids = [name(i) for i in range(ROWS)]
    splits = [split_of(store, epoch, ids) for epoch in range(3)]
    need_same_samples(splits)
    assert id_reads == []


@pytest.mark.parametrize("name", [int, "s{}".format])
@pytest.mark.parametrize("block_rows", [64, 48, 300])
def test_first_row_that_differs(store: Any, id_reads: Any, name: Any, block_rows: int) -> None:
    order = np.arange(ROWS)
    order[[150, 290]] = order[[290, 150]]
    like = split_of(store, 0, [name(i) for i in range(ROWS)])
    split = split_of(store, 1, [name(i) for i in order], block_rows)
    assert first_other_sample(split, like) == OtherSample(150, name(290), name(150))
    # No block is read twice, and none behind the row.
    assert len(set(id_reads)) == len(id_reads)
    assert all(start <= 150 for _, start, _ in id_reads)


def test_other_blocks_of_the_same_ids_agree(store: Any, id_reads: Any) -> None:
    splits = [split_of(store, epoch, range(ROWS), size) for epoch, size in enumerate((64, 48, 300))]
    need_same_samples(splits)
    # Each of the 5 blocks of the first epoch and of the 7 and 1 of the others, once in a comparison.
    assert len(id_reads) == (5 + 7) + (5 + 1)
    assert len(set(id_reads[:12])) == 12


def test_a_number_is_no_text(store: Any) -> None:
    like, split = split_of(store, 0, range(ROWS)), split_of(store, 1, [str(i) for i in range(ROWS)])
    assert first_other_sample(split, like) == OtherSample(0, "0", 0)


def test_the_error_says_where_and_what_to_do(store: Any) -> None:
    splits = [split_of(store, 3, [5, 6, 7]), split_of(store, 4, [5, 6, 7])]
    splits.append(split_of(store, 5, [5, 7, 6]))
    with pytest.raises(SpecMismatchError) as caught:
        need_same_samples(splits)
    for part in (
        "split 'train' of epoch 5 has sample 7 in row 1, where split 'train' of epoch 3 has 6",
        "featurize that epoch again (store.drop first) with the same samples and ids in the same order",
        "leave it out (epochs=, --epoch)",
    ):
        assert part in str(caught.value)


def test_an_append_that_was_stopped_changes_no_ids(store: Any) -> None:
    like, split = split_of(store, 0, range(70)), split_of(store, 1, range(70))
    # As a stopped append leaves it: the last block has one more row than the split's document says.
    longer = split_of(store, 2, range(71))
    for key in split.location.find(split.path, lambda key: key.endswith(("c/1", "c/1/0", "c.1.0"))):
        content = split.location.get(key.replace("1/train", "2/train", 1))
        if "/written/" in key:
            words = np.frombuffer(content[:-4], "<u4").copy()
            words[1] = split.spec.nonce
            content = words.tobytes() + tail_of(words.tobytes())
        split.location.put({key: content})
    split = store.refresh().split(1, "train")
    assert (split.rows, longer.rows) == (70, 71)
    assert marker_of(split.location, split.path, split.spec, 1, fresh=True).rows == 7
    assert first_other_sample(split, like) is None


def test_records_are_read_together_from_afar(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = [split_of(store, epoch, range(ROWS)) for epoch in range(3)]
    monkeypatch.setattr("trakstore.storage.markers._known", {})
    begun, begin = [], Location.begin

    def noted(self: Location, wanted: Any, *rest: Any) -> Any:
        begun.append(sorted(wanted))
        return begin(self, wanted, *rest)

    monkeypatch.setattr(Location, "begin", noted)
    need_same_samples(splits)
    assert begun == [[f"{epoch}/train/written/c.{b}.0" for epoch in range(3) for b in range(5)]]
    need_same_samples(splits)
    assert len(begun) == 1
