"""Stamp of a store: another one where rows or masks change, the same one where others do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import trakstore as ts
from trakstore.serve.query_options import QueryOptions
from trakstore.serve.store_stamp import StoreStamp
from trakstore.storage.backends.location import open_location


@pytest.fixture
def store() -> ts.FeatureStore:
    made = ts.FeatureStore.create(
        f"memory://stamp-{np.random.default_rng().integers(2**60)}",
        projection=ts.ProjectionSpec("sjlt", dim=4),
    )
    for epoch in (0, 1):
        for split, rows in (("train", 9), ("test", 3)):
            made.write_split(
                epoch, split, np.ones((rows, 4), np.float32), out_to_loss=np.ones(rows)
            )
    return made


def append(store: ts.FeatureStore) -> None:
    store.append(1, "train", np.ones((1, 4), np.float32), out_to_loss=np.ones(1))


def another_epoch(store: ts.FeatureStore) -> None:
    store.write_split(2, "train", np.ones((9, 4), np.float32))


def mask_twice(store: ts.FeatureStore) -> None:
    store.mask("train", [1])
    store.mask("train", [1], masked=False)


CHANGES: dict[str, Callable[[ts.FeatureStore], object]] = {
    "append": append,
    "mask": lambda store: store.mask("train", [1]),
    "mask of targets": lambda store: store.mask("test", [1]),
    "mask and back": mask_twice,
    "epoch": another_epoch,
    "drop": lambda store: store.drop(1, "test"),
    "drop of an epoch": lambda store: store.drop(1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name: str, store: ts.FeatureStore) -> None:
    stamp = StoreStamp(store.location, ("test", "train"))
    before = stamp.read()
    assert stamp.read() == before
    CHANGES[name](store)
    after = stamp.read()
    assert after != before and stamp.read() == after


def test_what_answers_do_not_depend_on_is_no_change(store: ts.FeatureStore) -> None:
    stamp = StoreStamp(store.location, ("test", "train"), (0, 1))
    before = stamp.read()
    ts.save_scores(ts.trak_scores(store), store, "some")
    another_epoch(store)
    store.write_split(1, "other", np.ones((2, 4), np.float32))
    store.mask("other", [1])
    assert stamp.read() == before


@pytest.mark.parametrize(
    ("train", "wanted"),
    [("train", ("test", "train", "train~sampled")), ("train~tokens", ("test", "train~tokens"))],
)
def test_rows_of_the_kernel_are_looked_at_too(train: str, wanted: tuple[str, ...]) -> None:
    options = QueryOptions("test", train, 3, "trak", *[None] * 2, False, *[None] * 4)
    stamp = options.stamp(open_location("memory://stamp"))
    assert (stamp.splits, stamp.epochs) == (wanted, (3,))
