"""A gram is computed once, topped up, and never trusted when it is not whole."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import xarray as xr

import trakstore as ts
from trakstore.kernels import stored_grams
from trakstore.kernels.stored_grams import origin_of, split_gram, stored_gram
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.claims import claimed

ROWS, DIM = 90, 16
FEATURES = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)


class Killed(BaseException):
    """Not an Exception, so that nothing recovers from it."""


class Spy:
    """A column that counts the rows that are read."""

    def __init__(self, column: Any, reads: list[int]) -> None:
        self._column, self._reads = column, reads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._column, name)

    def read(self, start: int, stop: int) -> Any:
        self._reads.append(stop - start)
        return self._column.read(start, stop)


@dataclass
class Watched:
    """A split as it was with fewer rows, or is with some masked."""

    split: Any
    rows: int = ROWS
    masked: tuple[int, ...] = ()
    reads: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.split, name)

    def column(self, name: str) -> Any:
        column = replace(self.split.column(name), shape=(self.rows, DIM))
        return Spy(column, self.reads)


@pytest.fixture(autouse=True)
def _sequential(monkeypatch: pytest.MonkeyPatch) -> None:
    import dask

    monkeypatch.setitem(dask.config.config, "scheduler", "synchronous")


@pytest.fixture
def split(tmp_path: Path) -> Any:
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", DIM))
    return store.write_split(3, "train", FEATURES, block_rows=7)


def check(found: Any, rows: int = ROWS, masked: tuple[int, ...] = ()) -> None:
    kept = np.delete(FEATURES[:rows], masked, axis=0)
    expected = reference.gram(kept)
    np.testing.assert_allclose(found.matrix, expected, rtol=1e-5, atol=1e-4)
    assert found.rows == len(kept)
    assert found.trace == pytest.approx(np.trace(expected), rel=1e-5)


def test_a_gram_is_read_once(split: Any) -> None:
    first, again = Watched(split), Watched(split)
    check(split_gram(first))
    found = split_gram(again)
    check(found)
    assert sum(first.reads) == ROWS
    assert not again.reads
    np.testing.assert_array_equal(found.matrix, split_gram(Watched(split)).matrix)


def test_it_opens_in_plain_xarray(split: Any) -> None:
    found = split_gram(split)
    address = split.location.address
    plain = xr.open_zarr(address, group="grams/3/train", consolidated=False)
    assert plain.gram.dims == ("feature", "feature_2")
    np.testing.assert_array_equal(plain.gram, found.matrix)
    tree = xr.open_datatree(address, engine="zarr", consolidated=False)
    assert tree["grams/3/train"].attrs["used"] == ROWS
    assert ts.open_store(address).epochs == (3,)


def test_only_rows_that_came_are_added(split: Any) -> None:
    check(split_gram(Watched(split, rows=60)), 60)
    after = Watched(split)
    check(split_gram(after))
    assert sum(after.reads) == ROWS - 60
    last = Watched(split)
    check(split_gram(last))
    assert not last.reads
    check(split_gram(Watched(split, rows=60)), 60)  # fewer than stored: from the start


def test_rows_that_were_masked_are_taken_out(split: Any) -> None:
    split_gram(split)
    few = Watched(split, masked=(80, 3, 4))
    check(split_gram(few), masked=(3, 4, 80))
    assert sum(few.reads) < 30
    again = Watched(split, masked=(3, 4, 80))
    check(split_gram(again), masked=(3, 4, 80))
    assert not again.reads
    many = tuple(range(20))
    recomputed = Watched(split, masked=many)
    check(split_gram(recomputed), masked=many)
    assert sum(recomputed.reads) == ROWS
    check(split_gram(split))  # unmasked again


def test_rows_come_and_go_at_once(split: Any) -> None:
    split_gram(Watched(split, rows=60, masked=(5,)))
    both = Watched(split, masked=(5, 7, 70))
    check(split_gram(both), masked=(5, 7, 70))
    assert sum(both.reads) == 30 + 1


def test_products_of_float64_serve_both(split: Any) -> None:
    narrow = split_gram(split)
    wide, after = Watched(split), Watched(split)
    exact = split_gram(wide, dtype="float64")
    assert sum(wide.reads) == ROWS
    np.testing.assert_array_equal(split_gram(after).matrix, exact.matrix)
    assert not after.reads
    assert exact.dtype == "float64" and narrow.dtype == "float32"


@pytest.mark.parametrize("stop_at", ["gram/c/0/0", "train/zarr.json"])
def test_a_writer_that_was_killed_leaves_no_valid_gram(
    split: Any, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    split_gram(Watched(split, rows=60))
    whole = type(split.location.store).set

    async def killed(self: Any, key: str, value: Any) -> None:
        if key.startswith("grams") and key.endswith(stop_at):
            raise Killed
        await whole(self, key, value)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(type(split.location.store), "set", killed)
        split_gram(split)
    for rows in (60, ROWS):
        check(split_gram(Watched(split, rows=rows)), rows)


def test_damage_and_another_split_are_seen(split: Any, tmp_path: Path) -> None:
    split_gram(split)
    chunk = tmp_path / "s.zarr" / layout.gram_path(3, "train") / "gram" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9] + b"123456789")
    after = Watched(split)
    check(split_gram(after))
    assert sum(after.reads) == ROWS
    store = ts.open_store(split.location)
    store.drop(3, "train")
    stale = Watched(store.write_split(3, "train", FEATURES, block_rows=7))
    split_gram(stale)
    assert sum(stale.reads) == ROWS


def test_a_place_that_cannot_be_written_is_no_error(split: Any) -> None:
    store = split.location.store.with_read_only(True)
    sealed = replace(split, location=Location("sealed", store, reopens=False))
    check(split_gram(sealed))
    assert split.location.get(layout.document_key(layout.gram_path(3, "train"))) is None


def test_a_gram_is_published_with_the_rows_it_was_computed_from_or_not_at_all(
    split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, whole = ts.open_store(split.location), stored_grams.gram

    def masked_meanwhile(*given: Any, **options: Any) -> Any:
        made = whole(*given, **options)
        store.mask("train", [3, 4])
        return made

    with monkeypatch.context() as patch:
        patch.setattr(stored_grams, "gram", masked_meanwhile)
        check(split_gram(split))  # of the split as it was when it was opened
    now = store.split(3, "train")
    assert stored_gram(now, origin_of(now, "float32")) is None
    check(split_gram(now), masked=(3, 4))
    assert stored_gram(now, origin_of(now, "float32")) is not None


def test_a_gram_that_another_process_writes_is_left_to_it(split: Any) -> None:
    path = layout.gram_path(3, "train")
    with claimed(split.location, path, "kernel"):
        check(split_gram(split))
    assert stored_gram(split, origin_of(split, "float32")) is None


def test_a_gram_of_another_epoch_is_none_of_this_one(tmp_path: Path) -> None:
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", DIM))
    for epoch, sign in ((1, 1), (2, 2)):
        store.write_split(epoch, "train", sign * FEATURES)
        split_gram(store.split(epoch, "train"))
    for name in ("zarr.json", "gram/c/0/0"):
        one, other = (tmp_path / f"s.zarr/grams/{epoch}/train/{name}" for epoch in (1, 2))
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        sealed = Location("s", store.location.store.with_read_only(True), reopens=False)
        check(split_gram(replace(store.split(1, "train"), location=sealed)))
        one.write_bytes(kept)
