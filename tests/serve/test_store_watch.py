"""A watch over a store: what changes is seen, what cannot be opened is told and tried again."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.serve import store_watch
from trakstore.serve.current_query import CurrentQuery
from trakstore.serve.store_watch import StoreWatch


def append(store: ts.FeatureStore, epoch: int | str) -> None:
    rows = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)
    more = {"out_to_loss": np.full(5, 0.5, np.float32), "ids": [f"b{at}" for at in range(5)]}
    columns = store.split(epoch, "train").columns
    given = {name: one for name, one in more.items() if name in (*columns, "ids")}
    store.append(epoch, "train", rows, **given, labels=np.zeros(5, int))


@pytest.fixture
def plain() -> ts.FeatureStore:
    """A store of two epochs that was not made by a job."""
    made = ts.FeatureStore.create(
        f"memory://watched-{np.random.default_rng().integers(2**60)}",
        projection=ts.ProjectionSpec("sjlt", dim=16),
    )
    rng = np.random.default_rng(0)
    for epoch in (1, 2):
        for split, rows in (("train", 40), ("test", 6)):
            features = rng.standard_normal((rows, 16)).astype(np.float32)
            q = rng.uniform(0.1, 1, rows).astype(np.float32)
            ids, labels = [f"{split}{at}" for at in range(rows)], np.zeros(rows, int)
            made.write_split(epoch, split, features, out_to_loss=q, ids=ids, labels=labels)
    return made


def test_a_mask_is_seen_and_a_store_that_is_as_it_was_is_left(plain: ts.FeatureStore) -> None:
    current = CurrentQuery(ts.Query(plain))
    watch, before = StoreWatch(current), current.query
    assert watch.look() >= store_watch.FAR  # it is no local disk
    assert current.query is before
    plain.mask("train", ["train3"])
    watch.look()
    assert current.query.rows == 39 and not current.is_stale
    answer = current.query.ask(target="test1", k=39)
    assert answer.to_dict() == ts.Query(plain).ask(target="test1", k=39).to_dict()
    assert answer.provenance["state"] != before.ask(target="test1", k=1).provenance["state"]


def test_half_of_a_change_is_told_and_the_whole_is_taken(
    plain: ts.FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    current = CurrentQuery(ts.Query(plain).prepare())
    watch, before = StoreWatch(current, every=0.01), current.query
    wanted = before.ask(target="test1", k=5)
    append(plain, 1)
    with caplog.at_level(logging.WARNING, "trakstore"):
        assert watch.look() >= 5
        watch.look()
    assert current.is_stale and current.query is before
    assert [one.message for one in caplog.records] == [
        "the store has changed, and cannot be opened as it is now: split 'train' of epoch 2 has 40 "
        "rows, split 'train' of epoch 1 has 45: choose epochs= of the same samples, masked alike; "
        "answers are of it as it was"
    ]
    assert current.query.ask(target="test1", k=5) == wanted
    append(plain, 2)
    assert watch.look() < 5
    assert not current.is_stale and current.query.rows == 45
    fresh = ts.Query(plain).ask(target="test1", k=45)
    assert current.query.ask(target="test1", k=45).to_dict() == fresh.to_dict()


def test_a_fault_is_logged_and_the_watch_goes_on(
    plain: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    current = CurrentQuery(ts.Query(plain))
    watch = StoreWatch(current)
    plain.mask("train", ["train3"])

    def fault(_: Any) -> Any:
        raise ZeroDivisionError("a fault")

    with monkeypatch.context() as failing:
        failing.setattr(ts.Query, "renewed", fault)
        watch.look()
    assert current.is_stale and "ZeroDivisionError" in caplog.text
    watch.look()
    assert not current.is_stale and current.query.rows == 39


def test_a_store_that_is_gone_is_told(own_store: ts.FeatureStore) -> None:
    import shutil

    current = CurrentQuery(ts.Query(own_store).prepare())
    shutil.rmtree(str(own_store.location))
    StoreWatch(current).look()
    assert current.is_stale


def test_the_thread_ends(plain: ts.FeatureStore) -> None:
    watch = StoreWatch(CurrentQuery(ts.Query(plain)))
    watch.start()
    watch.close()
    assert not watch._thread.is_alive()
