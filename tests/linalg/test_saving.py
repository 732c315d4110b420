"""Saved matrices are the scores, whatever the memory; half of one is never taken for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import trakstore as ts
from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.linalg.saving import open_scores, save_scores
from trakstore.scores.trak import trak_scores


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    rng = np.random.default_rng(0)
    made = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", 16))
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


def test_a_save_that_was_stopped_is_not_there_and_is_done_again(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trakstore.linalg import saving

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(saving, "for_each_tile", stop)
        save_scores(trak_scores(store), store, "a")
    with pytest.raises(NotFoundError, match="no scores 'a'"):
        open_scores(store, "a")
    saved = save_scores(trak_scores(store), store, "a")
    np.testing.assert_allclose(saved, np.asarray(trak_scores(store)), rtol=1e-6, atol=1e-7)
    assert store.epochs == (0,)
