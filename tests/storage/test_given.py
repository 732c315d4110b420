"""What is given is stored as given, and nothing else is taken for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import NumericsError, SpecMismatchError, TrakStoreError
from trakstore.storage.writer import BlockWriter

ROWS, DIM = 12, 4
X = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
GIVEN: dict[str, Any] = {
    "features": X,
    "ids": [f"r{i}" for i in range(ROWS)],
    "labels": np.arange(ROWS),
    "out_to_loss": np.linspace(0.1, 0.9, ROWS),
}


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    return ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", DIM))


def changed(values: Any) -> Any:
    other = list(values) if isinstance(values, list) else values.copy()
    other[-1] = "other" if isinstance(values, list) else other[-1] + 1
    return other


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_other_values_are_refused_by_name(store: ts.FeatureStore, name: str) -> None:
    store.write_split(0, "train", **GIVEN, block_rows=5)
    store.write_split(0, "train", **GIVEN, block_rows=5)  # the same: nothing to do
    column = {"ids": "sample_id", "labels": "label"}.get(name, name)
    with pytest.raises(SpecMismatchError, match=f"other values of {column}: drop it"):
        store.write_split(0, "train", **{**GIVEN, name: changed(GIVEN[name])})
    np.testing.assert_array_equal(store.features(0, "train"), X)


def test_a_stopped_write_goes_on_where_what_is_there_is_the_same(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, whole = [], BlockWriter.write

    def few(self: Any, block: int, columns: Any) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(block)
        whole(self, block, columns)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BlockWriter, "write", few)
        store.write_split(0, "train", **GIVEN, block_rows=5)
    first = store.split(0, "train")
    other = {**GIVEN, "features": X + 1}
    with pytest.raises(SpecMismatchError, match="other values of features"):
        store.write_split(0, "train", **other, block_rows=5)
    later = X.copy()
    later[11] += 1  # in a block that is not there yet
    store.write_split(0, "train", **{**GIVEN, "features": later}, block_rows=5)
    np.testing.assert_array_equal(store.features(0, "train"), later)
    rows = {name: first.column(name).read(0, 5) for name in first.columns}
    with pytest.raises(SpecMismatchError, match="replaced while it was being written"):
        BlockWriter(first).write(0, rows)  # that of the first values
    with pytest.raises(SpecMismatchError, match="other values of features"):
        store.write_split(0, "train", **GIVEN, block_rows=5)


def test_lazy_features_are_told_by_some_rows_and_appended_ones_by_all(
    store: ts.FeatureStore,
) -> None:
    lazy = da.from_array(X, chunks=(3, DIM))
    store.write_split(0, "train", lazy)
    store.write_split(0, "train", lazy)
    with pytest.raises(SpecMismatchError, match="other values of features"):
        store.write_split(0, "train", da.from_array(X + 1, chunks=(3, DIM)))
    store.append(0, "train", X[:2], ids=[50, 51])
    both, ids = np.concatenate([X, X[:2]]), [*range(ROWS), 50, 51]
    store.write_split(0, "train", both, ids=ids)
    with pytest.raises(SpecMismatchError, match="other values of sample_id"):
        store.write_split(0, "train", both)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("labels", np.arange(ROWS) + 0.7),
        ("labels", np.full(ROWS, 1e20)),
        ("labels", np.arange(ROWS, dtype=np.uint64) + 2**63),
        ("ids", np.arange(ROWS, dtype=np.uint64) + 2**63),
        ("out_to_loss", np.full(ROWS, 1e300)),
        ("out_to_loss", np.full(ROWS, 1e-60)),
        ("out_to_loss", np.arange(ROWS) + 2**24),
        ("labels", ["a"] * ROWS),
        ("out_to_loss", np.full(ROWS, 1j)),
    ],
)
def test_what_the_stored_dtype_has_not_is_refused(
    store: ts.FeatureStore, name: str, values: Any
) -> None:
    with pytest.raises(TrakStoreError, match=f"{name} (must be|are integers)"):
        store.write_split(0, "train", **{**GIVEN, name: values})
    assert store.splits_of(0) == ()


def test_what_the_stored_dtype_has_is_taken(store: ts.FeatureStore) -> None:
    ids = np.arange(ROWS, dtype=np.uint32)
    labels, q = np.arange(ROWS) * 1.0, np.full(ROWS, 0.1)
    store.write_split(0, "train", X.astype(np.float64), ids=ids, labels=labels, out_to_loss=q)
    split = store.split(0, "train")
    np.testing.assert_array_equal(split.column("label").read(0, ROWS), np.arange(ROWS))
    np.testing.assert_allclose(split.column("out_to_loss").read(0, ROWS), 0.1, rtol=1e-6)
    whole = np.arange(ROWS * DIM).reshape(ROWS, DIM)
    store.write_split(1, "train", whole)
    np.testing.assert_array_equal(store.features(1, "train"), whole)
    with pytest.raises(NumericsError, match="integers that float32 does not"):
        store.write_split(2, "train", whole + 2**24)
