"""The store of one object: what its calls left, whole or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import NumericsError
from trakstore.storage.embedded import EmbeddedStore
from trakstore.storage.known_rows import KnownRows

N, DIM = 24, 6


def rows_of(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((N, DIM)).astype(np.float32)


def made(where: Any, rows: Any) -> None:
    store = ts.FeatureStore.create(where, projection=ts.ProjectionSpec("identity"))
    q = np.arange(1.0, 1 + len(rows))
    store.write_split(0, "train", rows, out_to_loss=q, checkpoint="w", block_rows=8)


def write(own: EmbeddedStore, rows: Any) -> Any:
    return own.write(0, "train", lambda where: made(where, rows))


def test_a_call_that_failed_is_in_nobodys_way() -> None:
    own, bad = EmbeddedStore(), rows_of(1)
    bad[20] = np.nan
    with pytest.raises(NumericsError, match="NaN"):
        write(own, bad)
    assert not write_status(own)
    for seed in (2, 3):
        rows = rows_of(seed)
        assert write(own, rows).complete
        np.testing.assert_array_equal(own.find("train", rows).out_to_loss, np.arange(1, 1 + N))
    # Rows of the call that failed came back to nobody; those of the one before the last did.
    assert own.find("train", bad[:8]).missing == 8
    assert own.find("train", rows_of(2)[:8]).missing == 0


def write_status(own: EmbeddedStore) -> bool:
    store = own.open()
    assert store is not None
    return store.split(0, "train").complete


def test_rows_are_digested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    own, read = EmbeddedStore(), list[int]()
    write(own, rows_of(1))
    of = KnownRows.of
    monkeypatch.setattr(KnownRows, "of", lambda split: read.append(split.spec.nonce) or of(split))
    for _ in range(3):
        found = own.find("train", rows_of(1)[[5, 2]])
        assert found.out_to_loss.tolist() == [6, 3] and found.weights == {"w"}
    assert len(read) == 1
    write(own, rows_of(2))
    assert own.find("train", rows_of(2)[[4]]).out_to_loss.tolist() == [5]
    assert len(read) == 2


def write_once(own: EmbeddedStore, rows: Any) -> Any:
    """Write as ``featurize`` does, which passes over a split of which it sees no change."""

    def given(where: Any) -> None:
        if own.open() is None or not own.open().splits_of(0):  # type: ignore[union-attr]
            made(where, rows)

    return own.write(0, "train", given)


def test_rows_that_are_written_again_are_those_of_the_last_call() -> None:
    own, rows = EmbeddedStore(), rows_of(1)
    write_once(own, rows)
    changed = rows.copy()
    changed[5] += 1
    again = write_once(own, changed)
    np.testing.assert_array_equal(again.column("features").read(0, N), changed)
    assert own.find("train", rows[:8]).missing == 0 and own.find("train", rows[:8]).chunked
    # Written once more as they are they are no chunks of anything.
    once = EmbeddedStore()
    for _ in range(3):
        write_once(once, rows)
    assert not once.find("train", changed[:8]).chunked
