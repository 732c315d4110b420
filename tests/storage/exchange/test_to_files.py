from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import (
    DamagedError,
    IncompleteError,
    LocationError,
    NotFoundError,
    TrakStoreError,
)
from trakstore.spec import SplitSpec, StoreSpec
from trakstore.storage.exchange.to_files import export_split

X = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
Q, Y = np.linspace(0, 1, 50, dtype=np.float32), np.arange(50) % 3
IDS = [f"Bild {i} ü" for i in range(50)]


def make(where: Path, dtype: Any = "float32") -> ts.FeatureStore:
    store = ts.FeatureStore.create(where, projection=ts.ProjectionSpec("sjlt", dim=8), dtype=dtype)
    store.write_split(10, "train", X, out_to_loss=Q, labels=Y, ids=IDS, block_rows=7)
    return store


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_npy(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "trakstore.storage.exchange.to_files.CHUNK_BYTES", 8 * 4 * 14
    )  # several pieces
    store = make(tmp_path / "s.zarr", dtype)
    assert export_split(store, 10, "train", tmp_path / "x.npy") == 50
    got = np.load(tmp_path / "x.npy")
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, X.astype(dtype))
    export_split(store, 10, "train", tmp_path / "y.npy", column="label")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), Y)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parquet(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("trakstore.storage.exchange.to_files.CHUNK_BYTES", 8 * 4 * 14)
    store = make(tmp_path / "s.zarr", dtype)
    assert export_split(tmp_path / "s.zarr", 10, "train", tmp_path / "x.parquet") == 50
    table = pq.read_table(tmp_path / "x.parquet")
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups > 1
    features = table["features"].combine_chunks()
    assert features.type.list_size == 8
    got = features.flatten().to_numpy().reshape(50, 8)
    np.testing.assert_array_equal(got, X.astype(dtype))
    assert table["sample_id"].to_pylist() == IDS and table["label"].to_pylist() == Y.tolist()
    np.testing.assert_array_equal(table["out_to_loss"].to_numpy(), Q)
    told = {k.decode(): json.loads(v) for k, v in table.schema.metadata.items() if b"trak" in k}
    assert StoreSpec.from_dict(told["trakstore.store"]) == store.spec
    assert SplitSpec.from_dict(told["trakstore.split"]) == store.split(10, "train").spec


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"to": "x.csv"}, TrakStoreError, "must end in .npy or .parquet"),
        ({"to": "s.zarr"}, TrakStoreError, "must end in"),
        ({"to": "nowhere/x.npy"}, LocationError, "there is no folder .*; make it"),
        ({"to": "x" * 300 + ".npy"}, LocationError, "cannot write .*choose another place"),
        ({"column": "sample_id"}, TrakStoreError, "strings, which .npy cannot hold"),
        ({"column": "lable"}, NotFoundError, "did you mean 'label'"),
        ({"split": "trian"}, NotFoundError, "did you mean 'train'"),
        ({"epoch": 11}, NotFoundError, "no epoch 11"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    store = make(tmp_path / "s.zarr")
    given = {"epoch": 10, "split": "train", "to": "x.npy", **arguments}
    with pytest.raises(error, match=message):
        export_split(store, **(given | {"to": tmp_path / given["to"]}))
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_text("mine")
    with pytest.raises(LocationError, match="is there already"):
        export_split(make(tmp_path / "s.zarr"), 10, "train", tmp_path / "x.npy")
    assert (tmp_path / "x.npy").read_text() == "mine"


def test_damaged_or_incomplete_splits_leave_no_file(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr")
    (tmp_path / "s.zarr/10/train/features/c/3/0").write_bytes(b"short")
    with pytest.raises(DamagedError):
        export_split(store, 10, "train", tmp_path / "x.npy")
    (tmp_path / "s.zarr/10/train/written/c.3.0").unlink()
    with pytest.raises(IncompleteError, match="missing 21-27"):
        export_split(store, 10, "train", tmp_path / "x.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TrakStoreError, match=r"pip install 'trakstore\[parquet\]'"):
        export_split(make(tmp_path / "s.zarr"), 10, "train", tmp_path / "x.parquet")
