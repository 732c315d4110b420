"""Reads are counted, and do not wait for one another: many epochs are opened as fast as one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from zarr.abc.store import Store
from zarr.storage import MemoryStore, WrapperStore

import trakstore as ts

EPOCHS, ROWS, TARGETS = 20, 60, 8


class Watched(WrapperStore[Store]):
    """A store that counts its reads, each of which may take a while."""

    reads = 0
    delay = 0.0

    async def _read(self) -> None:
        Watched.reads += 1
        await asyncio.sleep(Watched.delay)

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


@pytest.fixture(scope="module")
def place() -> Watched:
    place = Watched(MemoryStore())
    store = ts.FeatureStore.create(place, projection=ts.ProjectionSpec("sjlt", 16))
    rng = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        for split, rows in (("train", ROWS), ("test", TARGETS)):
            features = rng.normal(size=(rows, 16)).astype(np.float32)
            q = rng.uniform(size=rows).astype(np.float32)
            store.write_split(epoch, split, features, out_to_loss=q)
    store.mask("train", [3])
    return place


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """How many reads a call makes."""
    monkeypatch.setattr(Watched, "reads", 0)

    def count(call: Any) -> int:
        before = Watched.reads
        call()
        return Watched.reads - before

    return count


def test_to_look_at_what_is_open_reads_nothing(place: Watched, reads: Any) -> None:
    store = ts.open_store(place)
    split = store.split(3, "train")
    scores = ts.grad_dot_scores(store)
    for name in ("epochs", "splits", "spec", "format", "location"):
        assert reads(lambda: getattr(store, name)) == 0, name  # noqa: B023
    for name in ("rows", "dim", "columns", "masked", "complete", "state", "path", "row_bytes"):
        assert reads(lambda: getattr(split, name)) == 0, name  # noqa: B023
    for one in (store, split, scores, split.column("features")):
        assert reads(lambda: repr(one)) == 0  # noqa: B023
    assert store.epochs == tuple(range(EPOCHS)) and store.splits == ("test", "train")
    assert split.masked.tolist() == [3]


def test_how_many_reads_each_operation_makes(place: Watched, reads: Any) -> None:
    store = ts.open_store(place)
    assert reads(lambda: ts.open_store(place)) == 2 + EPOCHS  # root, its names, those of each epoch
    # document, marker of the last block, blocks, those of an old mask and of bad rows; and of what is
    # left out names and document
    assert reads(lambda: store.split(0, "train")) <= 5 + 2
    assert reads(lambda: ts.grad_dot_scores(store)) <= 1 + EPOCHS * 2 * 5 + 2 * 2
    split = store.split(0, "train")
    features = split.column("features")
    assert reads(lambda: features.read(0, ROWS)) <= 2  # the chunk, and the marker where it is new
    assert reads(lambda: features.read(0, ROWS)) == 1
    assert reads(split.status) == 1
    assert reads(split.require_complete) == 0


def test_twenty_epochs_are_opened_and_scored_in_a_few_ways_there_and_back(
    place: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, some 250 reads would take 25 seconds."""
    expected = ts.top_k(ts.grad_dot_scores(ts.open_store(place)), 5)
    monkeypatch.setattr(Watched, "delay", 0.1)
    began = time.monotonic()
    top = ts.top_k(ts.grad_dot_scores(ts.open_store(place)), 5)
    seconds = time.monotonic() - began
    np.testing.assert_array_equal(top["train"], expected["train"])
    assert seconds < 5, "reads of epochs wait for one another"
