"""Rows of drawn labels that are dropped once their gram is stored: never wrong numbers, no fault."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from dropped_stores import (
    DIM,
    DRAWS,
    GONE,
    GRAM,
    NOTE,
    SPLIT,
    N,
    chunks,
    dropped,
    filled,
    scores_of,
)

import trakstore as ts
from trakstore.errors import DamagedError, IncompleteError, SpecMismatchError, TrakStoreError
from trakstore.kernels import BlockedCholesky, Cholesky, Dual
from trakstore.kernels import choice as choice_of_solvers
from trakstore.kernels.row_weights import WeightedSplit
from trakstore.kernels.stored_grams import split_gram
from trakstore.kernels.tiled_gram import split_tiles
from trakstore.methods.kernel_report import kernel_report
from trakstore.methods.sampled_kernel import store_sampled_gram
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.checking.verification import verify_store
from trakstore.storage.dropped_rows import note_dropped
from trakstore.storage.exchange.to_files import export_split


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store below, to be copied."""
    return Path(filled(tmp_path_factory.mktemp("built") / "s.zarr").location.address)


@pytest.fixture
def store(built: Path, tmp_path: Path) -> ts.FeatureStore:
    return ts.open_store(shutil.copytree(built, tmp_path / "s.zarr"))


@pytest.mark.parametrize("n", [N, 5])
def test_scores_are_those_of_before(tmp_path: Path, n: int) -> None:
    """With 5 train rows there are fewer sampled rows than features: before, no gram was needed."""
    store = filled(tmp_path / "s.zarr", n)
    before, forced = scores_of(store), scores_of(store, solver=Cholesky())
    influence = np.asarray(ts.influence_scores(store, solver=Cholesky()))
    size = len(chunks(store))
    dropped(store)
    assert size and not chunks(store)
    np.testing.assert_array_equal(scores_of(store), forced)
    np.testing.assert_allclose(scores_of(store), before, rtol=1e-4, atol=1e-5 * before.std())
    np.testing.assert_array_equal(ts.influence_scores(store), influence)
    blocked = scores_of(store, solver=BlockedCholesky())
    np.testing.assert_allclose(blocked, forced, rtol=1e-4, atol=1e-6 * before.std())


def test_the_rest_of_the_split_stays_and_nothing_is_wrong(store: ts.FeatureStore) -> None:
    dropped(store)
    split = store.split(0, SPLIT)
    assert split.dropped and split.complete and not split.missing_blocks()
    status = {one.split: one.dropped for one in store.status()}
    assert status == {"test": False, "train": False, SPLIT: True}
    assert split.column("out_to_loss").read(0, N * DRAWS).shape == (N * DRAWS,)
    report = verify_store(store)
    assert report.ok and not report.leftovers
    assert [one.split for one in report.splits if one.dropped] == [SPLIT]
    plain = zarr.open_group(store.location.address, mode="r")[f"0/{SPLIT}"]
    assert np.isnan(plain["features"][:]).all()  # type: ignore[index]
    assert np.isfinite(plain["norm"][:]).all()  # type: ignore[index]


def test_of_rows_in_8_bits_plain_readers_have_nothing_left(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.zarr", dtype="int8")
    wanted = scores_of(store, solver=Cholesky())
    dropped(store)
    np.testing.assert_array_equal(scores_of(store), wanted)
    plain = zarr.open_group(store.location.address, mode="r")[f"0/{SPLIT}"]
    rows = plain["features"][:] * plain["row_scale"][:][:, None]  # type: ignore[index]
    assert np.isnan(rows).all()
    for name in ("features", "row_scale"):
        with pytest.raises(IncompleteError, match=GONE):
            store.split(0, SPLIT).column(name).read(0, 3)
    report = verify_store(store)
    assert report.ok and not report.leftovers


def test_features_are_asked_for_in_vain(store: ts.FeatureStore, tmp_path: Path) -> None:
    opened = store.split(0, SPLIT)
    lazy = opened.to_xarray()
    dropped(store)
    reads: list[Callable[[], Any]] = [
        lambda: store.features(0, SPLIT),
        lambda: store.features(0, SPLIT, allow_missing=True),
        lambda: opened.column("features").read(3, 5),
        lambda: store.split(0, SPLIT).column("features").read(0, 1),
        lambda: lazy.features.values,
        lambda: export_split(store, 0, SPLIT, tmp_path / "rows.npy"),
        lambda: store.append(0, SPLIT, np.ones((1, DIM), np.float32), out_to_loss=[1.0], ids=[99]),
        lambda: np.asarray(ts.grad_dot_scores(store, targets=SPLIT)),
        lambda: scores_of(store, solver=Dual()),
        lambda: scores_of(store, gram_dtype="float64"),
        lambda: kernel_report(store, 0, SPLIT, weighting="none"),
    ]
    for read in reads:
        with pytest.raises(IncompleteError, match=f"{GONE}.*featurize the draws again"):
            read()
    assert export_split(store, 0, SPLIT, tmp_path / "norm.npy", column="norm") == N * DRAWS
    assert kernel_report(store, 0, SPLIT, weighting="loss").n == N * DRAWS


@pytest.mark.parametrize("workers", [1, 3])
def test_what_may_not_be_dropped(store: ts.FeatureStore, workers: int) -> None:
    def refused(words: str, error: type[Exception] = TrakStoreError) -> None:
        with pytest.raises(error, match=words):
            store.drop_rows(0, SPLIT)
        assert len(chunks(store)) == 8 and not store.split(0, SPLIT).dropped
        assert verify_store(store, workers=workers).ok

    with pytest.raises(TrakStoreError, match="rows of train are what scores are products of"):
        store.drop_rows(0, "train")
    refused("their gram is not stored; trakstore drop")
    kernel_report(store, 0, SPLIT, weighting="none")  # another gram
    refused("their gram is not stored")
    store_sampled_gram(store, 0, "train")
    store.mask("train", [3])
    refused("is stored of 60 rows without 0, and there are 60, of which 2 are masked")
    store.mask("train", [3], masked=False)
    store.mask(SPLIT, [0, 1, 2])
    refused("of which 3 are masked")
    store.mask(SPLIT, [0, 1, 2], masked=False)
    store.append(0, "train", np.ones((1, DIM), np.float32), out_to_loss=[1.0], ids=[99])
    refused("sampled rows are some for each train row", SpecMismatchError)


def test_a_gram_that_is_not_whole_keeps_its_rows(store: ts.FeatureStore) -> None:
    store_sampled_gram(store, 0, "train")
    key = f"grams/0/{SPLIT}~loss/gram/c/0/0"
    content = store.location.get(key)
    assert content is not None
    store.location.put({key: content[:100] + b"x" + content[101:]})
    with pytest.raises(TrakStoreError, match="stay: their gram damaged"):
        store.drop_rows(0, SPLIT)
    assert chunks(store)
    store.location.delete([layout.marker_key(f"0/{SPLIT}", 2)])
    with pytest.raises(IncompleteError, match="missing 16-23"):
        store.drop_rows(0, SPLIT)


def test_masked_train_rows_leave_the_gram_that_is_kept(store: ts.FeatureStore) -> None:
    store.mask("train", [3, 17])
    wanted = scores_of(store, solver=Cholesky())
    dropped(store)
    np.testing.assert_allclose(scores_of(store), wanted, rtol=1e-5, atol=1e-7)
    store.mask("train", [4])
    for how in ({}, {"solver": BlockedCholesky()}):
        with pytest.raises(IncompleteError, match="without 4 masked rows, and 6 are masked now"):
            scores_of(store, **how)
    store.mask("train", [4], masked=False)
    np.testing.assert_allclose(scores_of(store), wanted, rtol=1e-5, atol=1e-7)


def test_appended_train_rows_make_the_kernel_refuse(store: ts.FeatureStore) -> None:
    dropped(store)
    store.append(0, "train", np.ones((1, DIM), np.float32), out_to_loss=[1.0], ids=[99])
    with pytest.raises(SpecMismatchError, match="sampled rows are some for each train row"):
        scores_of(store)
    assert np.isfinite(np.asarray(ts.trak_scores(store, kernel="train"))).all()


def test_other_rows_under_the_name_are_other_rows(store: ts.FeatureStore) -> None:
    dropped(store)
    store.drop(0, SPLIT)
    assert not store.location.find("_dropped", lambda key: "0/" in key and SPLIT in key)
    rows = np.random.default_rng(5).standard_normal((N * DRAWS, DIM)).astype(np.float32)
    store.write_split(0, SPLIT, rows, out_to_loss=np.ones(N * DRAWS))
    assert not store.split(0, SPLIT).dropped
    np.testing.assert_array_equal(store.features(0, SPLIT), rows)
    assert verify_store(store).ok


@pytest.mark.parametrize("at", range(9))
def test_a_drop_that_was_stopped_is_finished(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Stopped before its nth chunk goes: half of them are there, and nobody reads them."""
    store_sampled_gram(store, 0, "train")
    wanted = scores_of(store, solver=Cholesky())

    def some(self: Location, _: str) -> None:
        self.delete(chunks(store)[:at])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Location, "delete_folder", some)
        with pytest.raises(KeyboardInterrupt):
            store.drop_rows(0, SPLIT)
    assert len(chunks(store)) == 8 - min(at, 8)
    with pytest.raises(IncompleteError, match=GONE):
        store.features(0, SPLIT)
    np.testing.assert_array_equal(scores_of(store), wanted)
    report = verify_store(store)
    assert report.ok
    assert report.leftovers == ((f"0/{SPLIT}/features/c",) if at < 8 else ())
    if at % 2:
        assert verify_store(store, repair=True).ok
    else:
        store.drop_rows(0, SPLIT)
    assert not chunks(store) and not verify_store(store).leftovers
    store.drop_rows(0, SPLIT)  # once more is no error


def test_a_drop_that_was_stopped_before_its_note_dropped_nothing(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_sampled_gram(store, 0, "train")
    before = scores_of(store)
    whole, calls = Location.put, itertools.count()

    def put(self: Location, values: Any) -> None:
        if any(key.startswith("_dropped") for key in values):
            next(calls)
            raise KeyboardInterrupt
        whole(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(Location, "put", put)
        with pytest.raises(KeyboardInterrupt):
            store.drop_rows(0, SPLIT)
    assert next(calls) == 1 and len(chunks(store)) == 8
    np.testing.assert_array_equal(scores_of(store), before)
    assert verify_store(store).ok


def test_rows_that_are_masked_meanwhile_are_not_dropped(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trakstore.storage import dropping

    store_sampled_gram(store, 0, "train")
    note = dropping.note_dropped

    def noted(*how: Any) -> None:
        note(*how)
        store.mask("train", [5])

    monkeypatch.setattr(dropping, "note_dropped", noted)
    with pytest.raises(SpecMismatchError, match="was changed by another process"):
        store.drop_rows(0, SPLIT)
    assert len(chunks(store)) == 8 and not store.split(0, SPLIT).dropped
    assert verify_store(store).ok


def test_a_query_of_before_does_not_replace_the_gram_that_is_kept(store: ts.FeatureStore) -> None:
    """A query that opened the rows before they went wants another gram of the same name."""
    store_sampled_gram(store, 0, "train")
    opened = store.split(0, SPLIT)
    wanted = scores_of(store, solver=Cholesky())
    dropped(store)
    for make in (split_gram, split_tiles):
        with pytest.raises(IncompleteError, match=GONE):
            make(WeightedSplit(opened, "loss"), dtype="float64")
    made = split_gram(WeightedSplit(store.split(0, SPLIT), "loss"))
    from trakstore.kernels.stored_grams import origin_of, write_gram

    old = WeightedSplit(opened, "loss")
    write_gram(old, made, origin_of(old, "float64"))  # it had read all rows just before
    np.testing.assert_array_equal(scores_of(store), wanted)


@pytest.mark.parametrize("repair", [False, True])
def test_notes_and_grams_that_are_damaged_are_found(store: ts.FeatureStore, repair: bool) -> None:
    dropped(store)
    key = layout.document_key(layout.dropped_path(f"0/{SPLIT}"))
    note = store.location.get(key)
    assert note is not None
    store.location.put({key: note.replace(b'"rows": 60', b'"rows": 61')})
    with pytest.raises(DamagedError, match="_dropped/0/train~sampled"):
        scores_of(store)
    report = verify_store(store, repair=repair)
    assert [(one.kind, one.key, one.repaired) for one in report.findings] == [
        ("document", key, repair)
    ]
    assert verify_store(store).ok == repair
    store.location.put({key: note})
    store.location.delete_folder(f"grams/0/{SPLIT}~loss")
    with pytest.raises(IncompleteError, match="no gram is that of now"):
        scores_of(store)
    (finding,) = verify_store(store).findings
    assert finding.kind == "missing" and "though the rows of train~sampled" in finding.message


def test_a_note_that_is_deleted_leaves_damage_and_no_numbers(store: ts.FeatureStore) -> None:
    dropped(store)
    key = layout.document_key(layout.dropped_path(f"0/{SPLIT}"))
    store.location.delete([key])
    with pytest.raises(DamagedError, match="missing though its block was committed"):
        store.features(0, SPLIT).values  # noqa: B018
    kinds = {one.kind for one in verify_store(store).findings}
    assert kinds == {"missing", "document"}


def test_a_block_that_is_repaired_is_written_again(store: ts.FeatureStore) -> None:
    wanted = scores_of(store, solver=Cholesky())
    rows, q = (
        store.split(0, SPLIT).to_xarray()[name].values for name in ("features", "out_to_loss")
    )
    dropped(store)
    store.location.delete([f"0/{SPLIT}/norm/c/1"])
    assert [one.block for one in verify_store(store, repair=True).findings] == [1]
    with pytest.raises(IncompleteError, match="missing 8-15"):
        scores_of(store)
    store.write_split(0, SPLIT, rows, out_to_loss=q, block_rows=8)
    np.testing.assert_array_equal(scores_of(store), wanted)
    assert verify_store(store).ok


def test_on_object_storage(bucket: str) -> None:
    store = filled(f"{bucket}/s.zarr", epochs=(0, 1))
    wanted = scores_of(store, solver=Cholesky())
    lazy = store.features(0, SPLIT).data
    dropped(store)
    assert not chunks(store) and verify_store(store).ok
    np.testing.assert_allclose(scores_of(store), wanted, rtol=1e-5, atol=1e-7)
    with pytest.raises(IncompleteError, match=GONE):
        lazy.compute()


@pytest.mark.slow
def test_on_a_cluster(tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    store = filled(tmp_path / "s.zarr", epochs=(0, 1))
    wanted = scores_of(store, solver=Cholesky())
    lazy = store.features(0, SPLIT).data
    dropped(store)
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        np.testing.assert_allclose(scores_of(store), wanted, rtol=1e-5, atol=1e-7)
        with pytest.raises(IncompleteError, match=GONE):
            lazy.compute()


def test_a_solver_for_the_gram_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path / "s.zarr", 5)
    chosen, choose = list[str](), choice_of_solvers.choose_solver

    def noted(*how: Any) -> Any:
        chosen.append(type(solver := choose(*how)).__name__)
        return solver

    monkeypatch.setattr(choice_of_solvers, "choose_solver", noted)
    scores_of(store)
    dropped(store)
    chosen.append("|")
    scores_of(store)
    assert chosen[0] == "Dual" and chosen[-1] == "Cholesky"


def test_a_damaged_note_blocks_its_rows_and_nothing_else(store: ts.FeatureStore) -> None:
    dropped(store)
    store.location.put({NOTE: b"{}"})
    said = {one.split: one.damaged_note for one in store.status()}
    assert said.pop(SPLIT).count("verify --repair") == 1 and set(said.values()) == {""}
    assert np.isfinite(np.asarray(ts.trak_scores(store, kernel="train"))).all()
    reads: list[Callable[[], Any]] = [
        lambda: scores_of(store),
        lambda: store.features(0, SPLIT),
        lambda: store.drop_rows(0, SPLIT),
        lambda: store.split(0, SPLIT).column("features").read(0, 1),
    ]
    for read in reads:
        with pytest.raises(DamagedError, match=f"_dropped/0/{SPLIT}.*verify --repair") as raised:
            read()
        assert "it: " not in str(raised.value)
    store.drop(0, SPLIT)
    assert store.location.get(NOTE) is None and verify_store(store).ok


def test_a_note_of_other_rows_says_nothing(store: ts.FeatureStore) -> None:
    dropped(store)
    wanted, nonce = scores_of(store), store.split(0, SPLIT).spec.nonce
    note_dropped(store.location, f"0/{SPLIT}", nonce, N * DRAWS - 1, GRAM)
    assert not store.split(0, SPLIT).dropped
    with pytest.raises(DamagedError, match="missing though its block was committed"):
        store.features(0, SPLIT).values  # noqa: B018
    findings = verify_store(store).findings
    assert NOTE in {one.key for one in findings}
    note_dropped(store.location, f"0/{SPLIT}", nonce, N * DRAWS, GRAM)
    np.testing.assert_array_equal(scores_of(store), wanted)


def test_a_column_that_stays_is_damaged_where_it_is_missing(store: ts.FeatureStore) -> None:
    dropped(store)
    store.location.delete([f"0/{SPLIT}/norm/c/1"])
    with pytest.raises(DamagedError, match="missing though its block was committed"):
        store.split(0, SPLIT).column("norm").read(8, 9)
