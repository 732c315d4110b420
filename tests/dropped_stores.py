"""Stores whose rows of drawn labels are dropped, or were to be: for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import trakstore as ts
from trakstore.methods.sampled_kernel import store_sampled_gram
from trakstore.storage import layout
from trakstore.storage.dropped_rows import note_dropped

SPLIT, N, DRAWS, DIM = "train~sampled", 30, 2, 12
GONE = "rows of train~sampled at epoch 0 were dropped"
GRAM = f"grams/0/{SPLIT}~loss"
NOTE = layout.document_key(layout.dropped_path(f"0/{SPLIT}"))


def filled(
    where: Any, n: int = N, dim: int = DIM, epochs: Any = (0,), dtype: Any = "float32"
) -> ts.FeatureStore:
    """A store of some train rows, two draws of each, and four targets."""
    rng = np.random.default_rng(1)
    store = ts.FeatureStore.create(where, projection=ts.ProjectionSpec("identity"), dtype=dtype)
    for epoch in epochs:
        for split, rows in (("test", 4), ("train", n), (SPLIT, n * DRAWS)):
            features = rng.standard_normal((rows, dim)).astype(np.float32)
            q = rng.uniform(0.1, 1, rows).astype(np.float32)
            store.write_split(epoch, split, features, out_to_loss=q, block_rows=8)
    return store


def scores_of(store: ts.FeatureStore, **how: Any) -> Any:
    return np.asarray(ts.trak_scores(store, kernel="sampled", **how))


def dropped(store: ts.FeatureStore) -> ts.FeatureStore:
    for epoch in store.epochs:
        store_sampled_gram(store, epoch, "train")
        store.drop_rows(epoch, SPLIT)
    return store


def chunks(store: ts.FeatureStore, column: str = "features") -> list[str]:
    return store.location.find(layout.chunk_folder(f"0/{SPLIT}/{column}"), lambda _: True)


def stopped(store: ts.FeatureStore) -> ts.FeatureStore:
    """Have the gram stored, and the note, as a call that was killed before the first chunk went."""
    store_sampled_gram(store, 0, "train")
    split = store.split(0, SPLIT)
    note_dropped(store.location, split.path, split.spec.nonce, split.rows, GRAM)
    return store


def altered(store: ts.FeatureStore, key: str, change: Callable[[bytes], bytes]) -> None:
    content = store.location.get(key)
    assert content is not None
    store.location.put({key: change(content)})


def flipped(content: bytes) -> bytes:
    return content[:5] + bytes([content[5] ^ 1]) + content[6:]
