"""Scores saved in part are those of the matrix, and a stopped save goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import trakstore as ts
from trakstore.errors import MemoryLimitError, NotFoundError, TrakStoreError
from trakstore.scores import entries
from trakstore.scores.window_plans import WindowPlan
from trakstore.storage.checking.verification import verify_store

M, N = 41, 90


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    rng = np.random.default_rng(0)
    made = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", 16))
    for split, rows in (("train", N), ("test", M)):
        X: Any = rng.normal(size=(rows, 16)).astype(np.float32)
        ids = [f"{split} {i}" for i in range(rows)]
        made.write_split(0, split, X, out_to_loss=rng.uniform(size=rows), ids=ids, block_rows=7)
    return made


@pytest.mark.parametrize("memory_limit", [None, "40MB"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_top_of_each_target_is_that_of_the_matrix(
    store: ts.FeatureStore, memory_limit: str | None, dtype: Any
) -> None:
    scores = ts.trak_scores(store)
    saved = ts.save_scores(scores, store, "few", top=5, dtype=dtype, memory_limit=memory_limit)
    top = ts.top_k(scores, 5, order="magnitude")
    np.testing.assert_array_equal(saved["position"], top["position"])
    np.testing.assert_array_equal(saved["train"], top["train"])
    np.testing.assert_array_equal(saved["score"], top["score"].values.astype(dtype))
    assert saved["target_id"].values[3] == "test 3" and saved.attrs["top"] == 5
    assert verify_store(store).ok


@pytest.mark.parametrize("share", [0.9, 0.99, None], ids=["many", "few", "none"])
def test_scores_above_a_threshold_are_those_of_the_matrix(
    store: ts.FeatureStore, share: float | None
) -> None:
    scores = ts.trak_scores(store)
    matrix = np.asarray(scores)
    size = np.abs(matrix)
    threshold = float(2 * size.max() if share is None else np.quantile(size, share))
    saved = ts.save_scores(scores, store, "some", threshold=threshold)
    sparse = ts.sparse_scores(store, "some")
    expected = np.where(np.abs(matrix) >= threshold, matrix, 0)
    assert sparse.shape == (M, N) and sparse.nnz == np.count_nonzero(expected)
    assert sparse.has_sorted_indices
    np.testing.assert_allclose(sparse.toarray(), expected, rtol=1e-5)
    assert saved.attrs["threshold"] == threshold and saved["train_id"].values[2] == "train 2"
    plain = xr.open_zarr(store.location.address, group="scores/some", consolidated=False)
    np.testing.assert_array_equal(plain["stop"], np.cumsum((expected != 0).sum(axis=1)))
    assert verify_store(store).ok


@pytest.mark.parametrize("kept", [{"top": 4}, {"threshold": 0.05}], ids=["top", "threshold"])
@pytest.mark.parametrize("later", [10, 25], ids=["same memory", "more memory"])
def test_windows_that_were_written_are_not_computed_again(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch, kept: Any, later: int
) -> None:
    class Stop(Exception):
        pass

    scores = ts.trak_scores(store)
    whole = ts.save_scores(scores, store, "whole", **kept)
    window, made = ts.Scores.window, []

    def windows(stop_at: int) -> Any:
        def counted(self: Any, start: int, stop: int, ahead: int) -> Any:
            if len(made) == stop_at:
                raise Stop
            made.append((start, stop))
            return window(self, start, stop, ahead)

        return counted

    for plan in ("plan_windows", "plan_top_k"):
        monkeypatch.setattr(entries, plan, lambda *_, **__: WindowPlan(10, 2))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(ts.Scores, "window", windows(3))
        ts.save_scores(scores, store, "a", **kept)
    with pytest.raises(NotFoundError, match="no scores 'a'"):
        ts.open_scores(store, "a")
    made.clear()
    for plan in ("plan_windows", "plan_top_k"):
        monkeypatch.setattr(entries, plan, lambda *_, **__: WindowPlan(later, 2))
    with monkeypatch.context() as patch:
        patch.setattr(ts.Scores, "window", windows(-1))
        saved = ts.save_scores(scores, store, "a", **kept)
    assert len(made) == 2  # of five
    for name in whole.variables:
        if whole[name].dtype.kind == "f":
            np.testing.assert_allclose(saved[name], whole[name], rtol=1e-5)
        else:
            np.testing.assert_array_equal(saved[name], whole[name])
    assert verify_store(store).ok


def test_what_cannot_be_kept_is_told(store: ts.FeatureStore) -> None:
    scores = ts.trak_scores(store)
    for kept, message in [
        ({"top": 0}, r"top must be in 1\.\.90"),
        ({"top": 91}, "got 91"),
        ({"threshold": 0.0}, "above 0"),
        ({"threshold": float("nan")}, "above 0"),
        ({"top": 1, "threshold": 1.0}, "exclude each other"),
    ]:
        with pytest.raises(TrakStoreError, match=message):
            ts.save_scores(scores, store, "a", **kept)  # type: ignore[arg-type]
    with pytest.raises(MemoryLimitError, match="raise the threshold"):
        most = entries._Most(1e-9, M, 10_000)
        entries._AbovePass(7, scores.window(0, M), 0, most).over(0, N)
    ts.save_scores(scores, store, "whole")
    with pytest.raises(TrakStoreError, match="not saved with a threshold"):
        ts.sparse_scores(store, "whole")
