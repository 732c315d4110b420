"""Saved matrices are the scores, whatever the memory; half of one is never taken for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import trakstore as ts
from trakstore.errors import DamagedError, LocationError, NotFoundError, TrakStoreError
from trakstore.kernels.solvers import Damping
from trakstore.methods.influence import influence_scores
from trakstore.methods.similarity import whitened_cos_scores
from trakstore.methods.trak import trak_scores
from trakstore.scores.saving import drop_scores, names_of_scores, open_scores, save_scores
from trakstore.spec import OutputSpec
from trakstore.storage.backends.location import open_location
from trakstore.storage.checking.verification import verify_store
from trakstore.storage.claims import claimed
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import begin_table, read_table, table_arrays, write_table


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    rng = np.random.default_rng(0)
    output = OutputSpec("margin")
    made = ts.FeatureStore.create(
        tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", 16), output=output
    )
    for split, rows in (("train", 90), ("test", 41)):
        X: Any = rng.normal(size=(rows, 16)).astype(np.float32)
        ids = [f"{split} {i}" for i in range(rows)]
        made.write_split(0, split, X, out_to_loss=rng.uniform(size=rows), ids=ids, block_rows=7)
    return made


@pytest.mark.parametrize("memory_limit", [None, "30kB"])
def test_a_saved_matrix_is_the_scores(store: ts.FeatureStore, memory_limit: str | None) -> None:
    scores = trak_scores(store)
    saved = save_scores(scores, store, "first", memory_limit=memory_limit)
    assert saved.dims == ("target", "train")
    np.testing.assert_allclose(saved, np.asarray(scores), rtol=1e-6, atol=1e-7)
    assert saved.target_id.values[3] == "test 3" and saved.train_id.values[-1] == "train 89"
    assert saved.attrs["method"] == "trak" and saved.attrs["epochs"] == [0]
    plain = xr.open_zarr(store.location.address, group="scores/first", consolidated=False)
    np.testing.assert_array_equal(plain.scores, saved)


def test_a_name_is_used_once(store: ts.FeatureStore) -> None:
    save_scores(trak_scores(store), store, "a")
    with pytest.raises(TrakStoreError, match="choose another name"):
        save_scores(trak_scores(store), store, "a")
    with pytest.raises(TrakStoreError, match="cannot name a score matrix"):
        save_scores(trak_scores(store), store, "../a")
    with pytest.raises(NotFoundError, match="no scores 'b'; there are a"):
        open_scores(store, "b")


def test_scores_are_replaced_when_that_is_asked_for(store: ts.FeatureStore) -> None:
    save_scores(trak_scores(store), store, "a", top=3)
    with pytest.raises(TrakStoreError, match="exclude each other"):
        save_scores(trak_scores(store), store, "a", top=3, threshold=0.1, overwrite=True)
    assert open_scores(store, "a").sizes["rank"] == 3  # bad use deletes nothing
    other = trak_scores(store, damping=3.0)
    saved = save_scores(other, store, "a", overwrite=True)
    np.testing.assert_allclose(saved, np.asarray(other), rtol=1e-6, atol=1e-7)
    assert not list(Path(str(store.location)).glob("scores/a/position*"))
    assert verify_store(store).ok


def test_a_save_that_was_stopped_is_not_there_and_is_done_again(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trakstore.scores import saving

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(saving, "for_each_tile", stop)
        save_scores(trak_scores(store), store, "a")
    with pytest.raises(NotFoundError, match="no scores 'a'"):
        open_scores(store, "a")
    folder = Path(str(store.location)) / "scores" / "a"
    assert folder.exists()
    drop_scores(store, "a")
    assert not folder.exists()
    saved = save_scores(trak_scores(store), store, "a")
    np.testing.assert_allclose(saved, np.asarray(trak_scores(store)), rtol=1e-6, atol=1e-7)
    assert store.epochs == (0,)


def test_dropped_scores_are_gone_and_the_others_are_not(store: ts.FeatureStore) -> None:
    for name in ("a", "b"):
        save_scores(trak_scores(store), store, name)
    kept = open_scores(store, "b").values
    drop_scores(str(store.location), "a")
    assert names_of_scores(store.location) == ["b"]
    assert not (Path(str(store.location)) / "scores" / "a").exists()
    np.testing.assert_array_equal(open_scores(store, "b").values, kept)
    for name, said in (("a", "no scores 'a'; there are b"), ("../0", "cannot name a score matrix")):
        with pytest.raises(TrakStoreError, match=said):
            drop_scores(store, name)
    assert verify_store(store).ok and store.epochs == (0,)


@pytest.mark.parametrize("later", ["60kB", "2MB"], ids=["same memory", "more memory"])
def test_written_chunks_are_not_computed_again(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch, later: str
) -> None:
    from trakstore.scores import saving
    from trakstore.scores.parts import Window

    class Stop(Exception):
        pass

    written, computed = [], []
    write, tile = saving._write_tile, Window.tile

    def few(made: Any, location: Any, path: str, *at: Any) -> None:
        if len(written) == 9:
            raise Stop
        written.append(at[:4])
        write(made, location, path, *at)

    options: Any = {"memory_limit": "60kB"}
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(saving, "_write_tile", few)
        save_scores(trak_scores(store), store, "a", **options)
    assert verify_store(store).ok
    with pytest.raises(NotFoundError, match="no scores 'a'"):
        open_scores(store, "a")

    def counted(self: Any, start: int, stop: int, out: Any = None) -> Any:
        computed.append(start)
        return tile(self, start, stop, out)

    with monkeypatch.context() as patch:
        patch.setattr(Window, "tile", counted)
        saved = save_scores(trak_scores(store), store, "a", memory_limit=later)
    everything = -(-41 // saved.data.chunksize[0]) * -(-90 // 7)
    assert 0 < len(computed) <= everything - 9 + 2  # two threads may have been at work on one
    np.testing.assert_allclose(saved, np.asarray(trak_scores(store)), rtol=1e-6, atol=1e-7)
    written.clear()
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(saving, "_write_tile", few)
        save_scores(trak_scores(store), store, "b", **options)
    other = trak_scores(store, damping=3.0)  # of other scores nothing is kept
    found = save_scores(other, store, "b", **options)
    np.testing.assert_allclose(found, np.asarray(other), rtol=1e-6, atol=1e-7)
    assert verify_store(store).ok


@pytest.mark.parametrize("how", ["hessian", "soft threshold", "mix"])
def test_scores_that_differ_in_one_setting_alone_are_never_mixed(
    store: ts.FeatureStore, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trakstore.scores import saving

    fixed = Damping(
        absolute=30.0
    )  # equal λ: only K or what is done to the product tells them apart
    first, other = {
        "hessian": [
            influence_scores(store, hessian=h, damping=fixed) for h in ("gauss_newton", "loss")
        ],
        "soft threshold": [trak_scores(store, soft_threshold=t) for t in (0.0, 0.5)],
        "own thresholds": [trak_scores(store, soft_threshold=t) for t in (0.0, "auto")],
        "mix": [whitened_cos_scores(store, mix=m, damping=fixed) for m in (0.2, 0.7)],
    }[how]
    assert not np.allclose(first, other, rtol=1e-3)
    written, write = [], saving._write_tile

    def few(*given: Any) -> None:
        if len(written) == 9:
            raise KeyboardInterrupt
        written.append(given)
        write(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(saving, "_write_tile", few)
        save_scores(first, store, "a", memory_limit="60kB")
    found = save_scores(other, store, "a", memory_limit="60kB")
    np.testing.assert_allclose(found, np.asarray(other), rtol=1e-5, atol=1e-6)


def test_half_precision(store: ts.FeatureStore) -> None:
    scores = trak_scores(store)
    saved = save_scores(scores, store, "half", dtype="float16")
    assert saved.dtype == np.float16
    np.testing.assert_allclose(saved, np.asarray(scores), rtol=1e-3, atol=1e-4)
    assert verify_store(store).ok
    from dataclasses import replace

    large = replace(scores, parts=tuple(replace(part, weight=1e9) for part in scores.parts))
    with pytest.raises(ts.TrakStoreError, match="not finite in float16"):
        save_scores(large, store, "large", dtype="float16")
    tiny = replace(scores, parts=tuple(replace(part, weight=1e-6) for part in scores.parts))
    for options in ({}, {"top": 3}, {"threshold": 1e-12}):
        with pytest.raises(ts.TrakStoreError, match="too small for float16"):
            save_scores(tiny, store, "tiny", dtype="float16", **options)
        save_scores(tiny, store, f"fits{len(str(options))}", **options)


def test_of_two_saves_of_one_name_the_second_is_refused(store: ts.FeatureStore) -> None:
    with (
        claimed(store.location, "scores/a", "save"),
        pytest.raises(LocationError, match="scores/a is being changed"),
    ):
        save_scores(trak_scores(store), store, "a")


def test_a_save_that_another_one_overtook_is_not_published(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trakstore.scores import saving

    whole = saving.for_each_tile

    def overtaken(*given: Any, **options: Any) -> None:
        whole(*given, **options)
        begin_table(store.location, "scores/a", [])

    monkeypatch.setattr(saving, "for_each_tile", overtaken)
    with pytest.raises(LocationError, match="another process began to write scores/a"):
        save_scores(trak_scores(store), store, "a")
    with pytest.raises(NotFoundError):
        open_scores(store, "a")


@pytest.mark.parametrize("kept", [{}, {"top": 3}, {"threshold": 0.01}], ids=str)
def test_chunks_of_other_scores_are_not_read(store: ts.FeatureStore, kept: dict[str, Any]) -> None:
    place = Path(store.location.address) / "scores"
    save_scores(trak_scores(store), store, "a", **kept)
    save_scores(trak_scores(store, damping=3.0), store, "b", **kept)
    tried = 0
    for other in sorted((place / "b").rglob("c/**/*")):
        own = place / "a" / other.relative_to(place / "b")
        if not other.is_file() or own.read_bytes() == other.read_bytes():
            continue
        whole, tried = own.read_bytes(), tried + 1
        own.write_bytes(other.read_bytes())
        assert "foreign" in {finding.kind for finding in verify_store(store).findings}
        with pytest.raises(DamagedError, match="not the one that was written there"):
            open_scores(store, "a").compute()
        own.write_bytes(whole)
    assert tried
    document = place / "a" / "zarr.json"
    document.write_bytes((place / "b" / "zarr.json").read_bytes())
    with pytest.raises(DamagedError, match="is the document of 'scores/b'"):
        open_scores(store, "a")


def test_parts_of_saved_scores_are_read_as_numpy_reads_them(tmp_path: Path) -> None:
    array = SavedArray("scores", "float32", (7, 9), (3, 4), ("target", "train"))
    values = np.arange(63, dtype=np.float32).reshape(7, 9)
    place = open_location(tmp_path, create=True)
    write_table(place, "scores/a", [(array, values)], {})
    read = table_arrays(read_table(place, "scores/a"))["scores"].open(place, "scores/a")
    for index in (
        *(np.s_[::2], np.s_[::-1], np.s_[1:6:3, ::-2], np.s_[-1], np.s_[2, -4], np.s_[5:2:-1, 3]),
        *(np.s_[...], np.s_[4:4], np.s_[3], np.s_[np.int64(2), 1:3]),
    ):
        np.testing.assert_array_equal(read[index], values[index])
    for wrong in (7, -8, np.array([1, 2]), "a", (0, 9)):
        with pytest.raises(IndexError, match="an index is a slice or a number below"):
            read[wrong]
