"""Stores as people open them without this package: ids as coordinates, nothing of ours among data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from packaging.version import Version

import trakstore as ts
from trakstore.storage.checking.verification import verify_store
from trakstore.storage.split import Split

FIXTURES = Path(__file__).parent.parent / "data"
ROWS, DIM = 300, 16


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    made = ts.FeatureStore.create(
        tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", dim=DIM)
    )
    rng = np.random.default_rng(0)
    for split, rows in (("train", ROWS), ("test", 7)):
        features = rng.normal(size=(rows, DIM)).astype(np.float32)
        ids = [f"{split}{row}" for row in range(rows)]
        made.write_split(0, split, features, out_to_loss=np.ones(rows), ids=ids, block_rows=40)
    return made


def opened(store: ts.FeatureStore, group: str) -> xr.Dataset:
    return xr.open_zarr(str(store.location), group=group, consolidated=False)


def test_a_split_has_its_columns_and_nothing_else(store: ts.FeatureStore) -> None:
    found = opened(store, "0/train")
    assert set(found.data_vars) == {"features", "norm", "out_to_loss"}
    assert "sample_id" in found.coords and "written" in found.coords
    assert set(found.attrs) == {"trakstore"} and found.attrs["trakstore"]["rows"] == ROWS
    one = found.features.swap_dims(sample="sample_id").sel(sample_id="train17")
    np.testing.assert_array_equal(one, store.features(0, "train").values[17])
    assert set(found.mean("sample").data_vars) == {"features", "norm", "out_to_loss"}


@pytest.mark.parametrize("kept", [{}, {"top": 5}, {"threshold": 0.001}])
def test_saved_scores_have_ids_as_coordinates(store: ts.FeatureStore, kept: Any) -> None:
    scores = ts.trak_scores(store)
    ours = ts.save_scores(scores, store, "saved", **kept)
    found = opened(store, "scores/saved")
    assert set(found.attrs) == {"trakstore"} and found.attrs["trakstore"]["method"] == "trak"
    assert "target_id" in found.coords and "target_id" not in found.data_vars
    assert not {"coordinates", "arrays", "place"} & set(ours.attrs)
    if kept:
        return
    assert set(found.data_vars) == {"scores"} and "train_id" in found.coords
    dense = np.asarray(scores)
    if Version(xr.__version__) >= Version("2026.9"):  # makes the index by itself
        np.testing.assert_array_equal(found.scores.sel(target_id="test3"), dense[3])
    both = found.set_xindex("target_id").set_xindex("train_id")
    np.testing.assert_array_equal(both.scores.sel(target_id="test3"), dense[3])
    assert float(both.scores.sel(target_id="test3", train_id="train17")) == dense[3, 17]


def test_all_columns_have_the_same_blocks(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = store.split(0, "train")
    assert split.to_xarray().chunks["sample"] == (ROWS,)
    # Three blocks of 40 rows are a task, whatever the chunks of a column are.
    monkeypatch.setattr("trakstore.storage.split._TASK_BYTES", 3 * 40 * DIM * 4 + 1)
    lazy = split.to_xarray()
    assert lazy.chunks["sample"] == (120, 120, 60)
    np.testing.assert_array_equal(lazy["features"].values, split.column("features").read(0, ROWS))
    monkeypatch.setattr("trakstore.storage.split._TASK_BYTES", 1)
    assert split.to_xarray().chunks["sample"] == (40,) * 7 + (20,)


@pytest.mark.parametrize("name", ["format-1", "format-2"])
def test_documents_of_before_are_read_and_stay_as_they_are(name: str) -> None:
    where = FIXTURES / name
    store = ts.open_store(where)
    for epoch in store.epochs:
        for split in store.splits_of(epoch):
            one = store.split(epoch, split)
            assert isinstance(one, Split) and not one.spec.coordinates
            assert "coordinates" not in one.spec.to_dict()
    assert verify_store(where).ok


def test_a_new_store_is_verified(store: ts.FeatureStore) -> None:
    ts.save_scores(ts.trak_scores(store), store, "saved")
    assert verify_store(store.location).ok
    document = Path(str(store.location)) / "0/train/zarr.json"
    text = document.read_text()
    assert '"coordinates": "sample_id written skipped"' in text
    # What xarray is told is under the checksum too.
    document.write_text(text.replace("sample_id written", "sample_id norm"))
    assert not verify_store(store.location).ok
