"""Reads are counted, and do not wait for one another: many epochs are opened as fast as one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import xarray as xr
from zarr.abc.store import Store
from zarr.storage import MemoryStore, WrapperStore

import trakstore as ts
from trakstore.errors import LocationError
from trakstore.spec import OutputSpec
from trakstore.storage import markers
from trakstore.storage.backends.ahead import Wanted, read_ahead, read_key
from trakstore.storage.backends.location import open_location

EPOCHS, BLOCKS, ROWS, TARGETS, DIM = 20, 4, 240, 32, 16
QUIET = 0.1  # seconds without a new read, after which all that are under way end


class Watched(WrapperStore[Store]):
    """A store that counts its reads, and how many of them waited for one another.

    With ``held``, reads end together, once no other has begun for a while: what begins then was
    waiting, and is of the next wave.
    """

    reads = waves = 0
    delay, held = 0.0, False
    _last = 0.0

    async def _read(self) -> None:
        Watched.reads += 1
        if not Watched.held:
            await asyncio.sleep(Watched.delay)
            return
        Watched._last, own = time.monotonic(), Watched.waves
        while Watched.waves == own:
            left = Watched._last + QUIET - time.monotonic()
            if left <= 0:
                Watched.waves += 1
            await asyncio.sleep(max(0.0, left))

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        await self._read()
        return await self._store.get(*args, **kwargs)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        await self._read()
        async for name in self._store.list_dir(prefix):
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        await self._read()
        async for name in self._store.list_prefix(prefix):
            yield name


def made(epochs: int) -> Watched:
    place = Watched(MemoryStore())
    output = OutputSpec("margin")
    store = ts.FeatureStore.create(place, projection=ts.ProjectionSpec("sjlt", DIM), output=output)
    rng = np.random.default_rng(0)
    for epoch in range(epochs):
        for split, rows in (("train", ROWS), ("test", TARGETS)):
            features = rng.normal(size=(rows, DIM)).astype(np.float32)
            q = rng.uniform(size=rows).astype(np.float32)
            how = {"out_to_loss": q, "block_rows": rows // BLOCKS}
            store.write_split(epoch, split, features, **how)
    store.mask("train", [3])
    return place


@pytest.fixture(scope="module")
def place() -> Watched:
    return made(EPOCHS)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], int]:
    """How many reads a call makes, in a process that has read nothing before."""
    monkeypatch.setattr(Watched, "reads", 0)

    def count(call: Any) -> int:
        markers._known.clear()
        before = Watched.reads
        call()
        return Watched.reads - before

    return count


@pytest.fixture
def waves(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], int]:
    """How many reads of a call wait for one another."""

    def count(call: Any) -> int:
        markers._known.clear()
        monkeypatch.setattr(Watched, "waves", 0)
        monkeypatch.setattr(Watched, "held", True)
        call()
        monkeypatch.setattr(Watched, "held", False)
        return Watched.waves

    return count


def dots(place: Watched) -> xr.Dataset:
    return ts.top_k(ts.grad_dot_scores(ts.open_store(place)), 5)


def trak(place: Watched) -> xr.Dataset:
    return ts.top_k(ts.trak_scores(ts.open_store(place)), 5)


def test_to_look_at_what_is_open_reads_nothing(place: Watched, reads: Any) -> None:
    store = ts.open_store(place)
    split = store.split(3, "train")
    scores = ts.grad_dot_scores(store)
    for name in ("epochs", "splits", "spec", "format", "location"):
        assert reads(lambda: getattr(store, name)) == 0, name  # noqa: B023
    for name in ("rows", "dim", "columns", "masked", "complete", "state", "path", "row_bytes"):
        assert reads(lambda: getattr(split, name)) == 0, name  # noqa: B023
    for one in (store, split, scores, split.column("features"), ts.kernel_report(store, 3)):
        assert reads(lambda: repr(one)) == 0  # noqa: B023
        assert reads(lambda: getattr(one, "_repr_html_", str)()) == 0  # noqa: B023
    assert store.epochs == tuple(range(EPOCHS)) and store.splits == ("test", "train")
    assert split.masked.tolist() == [3]


def test_how_many_reads_each_operation_makes(place: Watched, reads: Any) -> None:
    store = ts.open_store(place)
    assert reads(lambda: ts.open_store(place)) == 2 + EPOCHS  # root, its names, those of each epoch
    # document, its columns and its blocks; and of what is left out names and document
    assert reads(lambda: store.split(0, "train")) == 3 + 2
    every = 1 + 2 * EPOCHS * 3 + 2 + 1  # epochs, splits, and what is left out of either
    # Ids of epochs are compared by the commit records, which are kept for the rows.
    records = 2 * EPOCHS * BLOCKS
    assert reads(lambda: ts.grad_dot_scores(store)) == every + records
    scores = ts.grad_dot_scores(store)
    each = EPOCHS * BLOCKS * 3  # features, their scale and their marker
    assert reads(lambda: scores.window(0, TARGETS)) == each
    assert reads(lambda: ts.top_k(scores, 5)) <= 2 * each + 2 * BLOCKS  # and ids
    assert reads(lambda: scores.block(0, 1, 0, 1)) == 2 * EPOCHS * 3
    ts.trak_scores(store)
    assert (
        reads(lambda: ts.trak_scores(store)) == every + records + EPOCHS * 2
    )  # a document and a chunk each
    split = store.split(0, "train")
    features = split.column("features")
    assert (
        reads(lambda: features.read(0, ROWS)) == 2 * BLOCKS
    )  # chunks, and markers where they are new
    before = Watched.reads
    features.read(0, ROWS)
    assert Watched.reads == before + BLOCKS
    assert reads(split.status) == 1
    assert reads(split.require_complete) == 0


def test_reads_of_many_epochs_do_not_wait_for_one_another(place: Watched, waves: Any) -> None:
    """A stall of the machine in the middle of a wave may cut it in two: hence a few more."""
    # root; names of epochs; of splits; what they are; what is left out; targets; train rows; ids
    assert waves(lambda: dots(place)) <= 8 + 3
    trak(place)
    assert waves(lambda: trak(place)) <= 8 + 2 + 3  # and what kernels are, and they themselves
    store = ts.open_store(place)
    assert waves(lambda: ts.open_store(place)) <= 3 + 1
    assert waves(lambda: store.open_splits(None, ("train", "test"))) <= 2 + 1
    assert waves(lambda: ts.influence_scores(store)) <= 23 + 3  # of which kernels are stored


def test_kernels_are_made_and_stored_at_once(waves: Any) -> None:
    """One epoch after the other, they took some 900 reads and writes in series; and to the bit."""
    place = made(6)
    assert waves(lambda: ts.trak_scores(ts.open_store(place))) <= 26 + 3
    again = made(6)
    store = ts.open_store(again)
    for epoch in range(6):
        ts.trak_scores(store, epochs=epoch)
    for own in ("gram/c/0/0", "masked/c/0"):
        for epoch in range(6):
            key = f"grams/{epoch}/train~logistic-2/{own}"
            assert open_location(place).get(key) == open_location(again).get(key) is not None
    xr.testing.assert_equal(trak(place), trak(again))


@pytest.mark.parametrize("score", [dots, trak])
def test_twenty_epochs_are_opened_and_scored_in_a_few_ways_there_and_back(
    place: Watched, score: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 30 ms a read; one after the other, some 600 reads would take 18 seconds."""
    expected = score(place)
    markers._known.clear()
    monkeypatch.setattr(Watched, "delay", 0.03)
    began = time.monotonic()
    top = score(place)
    seconds = time.monotonic() - began
    xr.testing.assert_equal(top, expected)
    assert seconds < 6, "reads of epochs wait for one another"  # 0.6 on a machine of its own


def test_what_is_read_ahead_stays_within_its_bytes() -> None:
    class Held(Watched):
        """What is under way."""

        keys: ClassVar[list[str]] = []

        async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
            Held.keys.append(key)
            return await super().get(key, *args, **kwargs)

    location = open_location(Held(MemoryStore()))
    location.put({f"a/{at}": bytes([at]) * 100 for at in range(6)})
    wanted = [Wanted(location, f"a/{at}", 100, 100) for at in (0, 1, 1, 2, 3)]
    wanted.append(Wanted(location, "a/4", 100, 400))

    def settled() -> list[str]:
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline:
            time.sleep(0.01)
        return Held.keys

    with read_ahead(wanted, 200):
        assert settled() == ["a/0", "a/1"]
        assert read_key(location, "a/1", 100) == bytes([1]) * 100  # is wanted once more
        assert settled() == ["a/0", "a/1"]
        assert read_key(location, "a/0", 100) == bytes(100)
        assert settled() == ["a/0", "a/1", "a/2"]
        assert read_key(location, "a/1", 100) == bytes([1]) * 100
        assert settled() == ["a/0", "a/1", "a/2", "a/3"]
        assert read_key(location, "a/4", 100) == bytes([4]) * 100  # larger than the room
        assert read_key(location, "a/5", 100) == bytes([5]) * 100  # never wanted
        assert read_key(location, "a/3", 100) == bytes([3]) * 100
        assert read_key(location, "a/3", 100) == bytes([3]) * 100  # more often than was said
    assert Held.keys[4:] == ["a/4", "a/5", "a/3"]


def test_an_error_of_what_was_read_ahead_is_told_where_it_is_asked_for() -> None:
    class Lost(Watched):
        """Nothing can be read."""

        async def get(self, *_: Any, **__: Any) -> Any:
            raise OSError("the line is cut")

    location = open_location(Lost(MemoryStore()))
    with read_ahead([Wanted(location, "a", 100, 100)] * 2):
        for _ in range(2):
            with pytest.raises(LocationError, match="the line is cut"):
                read_key(location, "a", 100)
