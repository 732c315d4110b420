"""Notes of dropped rows and grams that are kept: repair never deletes what nothing can make again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dropped_stores import (
    DRAWS,
    GRAM,
    NOTE,
    SPLIT,
    N,
    altered,
    chunks,
    dropped,
    filled,
    flipped,
    scores_of,
    stopped,
)

import trakstore as ts
from trakstore.errors import DamagedError, TrakStoreError
from trakstore.methods.sampled_kernel import store_sampled_gram
from trakstore.storage import layout
from trakstore.storage.checking.verification import verify_store
from trakstore.storage.dropped_rows import note_dropped
from trakstore.storage.group_documents import make_groups


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    return filled(tmp_path / "s.zarr")


def test_a_damaged_note_deletes_no_rows(store: ts.FeatureStore) -> None:
    """Neither a note of nothing, beside rows that were never dropped, nor that of a stopped call."""
    rows = store.features(0, SPLIT).values
    for gram in (False, True):
        if gram:
            store_sampled_gram(store, 0, "train")
        make_groups(store.location, layout.dropped_path("0"))
        store.location.put({NOTE: b"{ garbage"})
        (finding,) = verify_store(store, repair=True).findings
        assert (finding.kind, finding.key, finding.repaired) == ("document", NOTE, True)
        assert len(chunks(store)) == 8 and not store.split(0, SPLIT).dropped
        np.testing.assert_array_equal(store.features(0, SPLIT), rows)
        assert verify_store(store).ok
    # Only a note that was read says that rows may go, and this one is of no split that is there.
    note_dropped(store.location, f"0/{SPLIT}", 12345, N * DRAWS, GRAM)
    altered(store, NOTE, lambda note: note.replace(b"12345", b"12346"))
    assert len(verify_store(store, repair=True).findings) == 1
    assert len(chunks(store)) == 8 and verify_store(store).ok


def test_a_damaged_note_is_written_again_only_of_a_gram_that_is_whole(
    store: ts.FeatureStore,
) -> None:
    dropped(store)
    wanted = scores_of(store)
    store.location.put({NOTE: b"{}"})
    assert [one.repaired for one in verify_store(store, repair=True).findings] == [True]
    np.testing.assert_array_equal(scores_of(store), wanted)
    store.location.put({NOTE: b"{}"})
    altered(store, f"{GRAM}/gram/c/0/0", flipped)
    verify_store(store, repair=True)
    assert store.location.get(NOTE) is None
    # The gram stays, with what is wrong with it; the rows are missed.
    assert store.location.get(f"{GRAM}/gram/c/0/0") is not None
    assert {one.kind for one in verify_store(store).findings} >= {"damaged", "missing"}


@pytest.mark.parametrize("document", ["gram/zarr.json", "zarr.json"])
def test_the_kept_gram_is_no_derived_data(store: ts.FeatureStore, document: str) -> None:
    dropped(store)
    wanted = scores_of(store)
    key = f"{GRAM}/{document}"
    whole = store.location.get(key)
    altered(store, key, lambda content: content + b"\n")
    (finding,) = verify_store(store).findings
    assert finding.key == key and not finding.repaired
    assert [one.repaired for one in verify_store(store, repair=True).findings] == [True]
    assert store.location.get(key) == whole and verify_store(store).ok
    np.testing.assert_array_equal(scores_of(store), wanted)


@pytest.mark.parametrize("key", [f"{GRAM}/gram/c/0/0", f"{GRAM}/zarr.json"])
def test_a_kept_gram_that_is_damaged_stays_and_is_not_said_to_be_repaired(
    store: ts.FeatureStore, key: str
) -> None:
    dropped(store)
    whole = store.location.get(key)
    for note in (store.location.get(NOTE), b"{}"):  # a damaged note may be of it too
        assert note is not None and whole is not None
        store.location.put({NOTE: note, key: flipped(whole)})
        findings = verify_store(store, repair=True).findings
        assert [one.repaired for one in findings if one.key.startswith(GRAM)] == [False]
        assert store.location.get(key) == flipped(whole)
    store.location.put({key: whole})


def test_the_gram_of_rows_that_are_there_is_derived_data(store: ts.FeatureStore) -> None:
    store_sampled_gram(store, 0, "train")
    altered(store, f"{GRAM}/gram/c/0/0", flipped)
    assert [one.repaired for one in verify_store(store, repair=True).findings] == [True]
    assert not store.location.find(GRAM, lambda _: True) and verify_store(store).ok


def masked(store: ts.FeatureStore) -> None:
    store.mask("train", [1])


def without_gram(store: ts.FeatureStore) -> None:
    store.location.delete_folder(GRAM)


def with_a_damaged_gram(store: ts.FeatureStore) -> None:
    altered(store, f"{GRAM}/gram/c/0/0", flipped)


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize("change", [masked, without_gram, with_a_damaged_gram])
def test_a_stopped_drop_whose_gram_is_not_that_of_the_rows_is_taken_back(
    store: ts.FeatureStore, change: Callable[[ts.FeatureStore], None], repair: bool
) -> None:
    rows = store.features(0, SPLIT).values
    change(stopped(store))
    assert store.split(0, SPLIT).dropped
    if repair:
        findings = verify_store(store, repair=True).findings
        assert NOTE in {one.key for one in findings} and all(one.repaired for one in findings)
    else:
        with pytest.raises(TrakStoreError, match=r"the rows of train~sampled .* stay: their gram"):
            store.drop_rows(0, SPLIT)
    assert len(chunks(store)) == 8 and not store.split(0, SPLIT).dropped
    np.testing.assert_array_equal(store.features(0, SPLIT), rows)
    assert np.isfinite(scores_of(store)).all()


@pytest.mark.parametrize("repair", [False, True])
def test_rows_that_are_left_without_a_whole_gram_stay(store: ts.FeatureStore, repair: bool) -> None:
    stopped(store).location.delete(chunks(store)[:2])
    with_a_damaged_gram(store)
    if repair:
        report = verify_store(store, repair=True)
        assert [one.repaired for one in report.findings] == [False] and not report.leftovers
    else:
        with pytest.raises(TrakStoreError, match="that are left stay, though some are gone"):
            store.drop_rows(0, SPLIT)
    assert len(chunks(store)) == 6 and store.split(0, SPLIT).dropped


def test_a_foreign_chunk_of_a_dropped_split_is_a_finding(store: ts.FeatureStore) -> None:
    """Its last block is short: such a chunk might be that of a stopped append."""
    dropped(store)
    foreign = store.location.get(f"0/{SPLIT}/norm/c/0")
    assert foreign is not None
    store.location.put({f"0/{SPLIT}/norm/c/7": foreign})
    (finding,) = verify_store(store).findings
    assert (finding.kind, finding.block) == ("foreign", 7)


@pytest.mark.parametrize("gram", ["../x", "/etc/passwd", "a\\b", "grams/0/other", "x" * 3000])
def test_a_note_names_the_gram_of_its_own_place(store: ts.FeatureStore, gram: str) -> None:
    dropped(store)
    wanted, nonce = scores_of(store), store.split(0, SPLIT).spec.nonce
    note_dropped(store.location, f"0/{SPLIT}", nonce, N * DRAWS, gram)
    (finding,) = verify_store(store).findings
    assert finding.key == NOTE and f"as the gram, which is {GRAM}" in finding.message
    with pytest.raises(DamagedError, match="as the gram, which is"):
        scores_of(store)
    assert [one.repaired for one in verify_store(store, repair=True).findings] == [True]
    np.testing.assert_array_equal(scores_of(store), wanted)
    assert verify_store(store).ok
