"""Columns of a small run, and stores in memory that hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
from zarr.storage import MemoryStore

import trakstore as ts
from trakstore.storage import layout
from trakstore.storage.stored import StoredColumn

Columns: TypeAlias = dict[tuple[int | str, str], dict[str, Any]]

DIM = 12


@pytest.fixture
def columns() -> Columns:
    """Two epochs of 7 targets and 60 train rows in 12 dimensions."""
    rng = np.random.default_rng(3)

    def drawn(split: str, scale: float) -> dict[str, Any]:
        rows = 7 if split == "test" else 60
        return {
            "features": (scale * rng.standard_normal((rows, DIM))).astype(np.float32),
            "out_to_loss": rng.uniform(size=rows).astype(np.float32),
            "ids": np.arange(rows) + (1000 if split == "test" else 0),
        }

    scales = ((0, 1.0), ("final", 0.1))
    return {(e, split): drawn(split, s) for e, s in scales for split in ("test", "train")}


@pytest.fixture
def store_of() -> Callable[..., ts.FeatureStore]:
    """A function that makes a store of columns; the split ``lacking`` has lost its second block."""

    def make(columns: Columns, lacking: tuple[int | str, str] | None = None) -> ts.FeatureStore:
        store = ts.FeatureStore.create(MemoryStore(), projection=ts.ProjectionSpec("identity"))
        for (epoch, split), given in columns.items():
            store.write_split(epoch, split, **given, block_rows=4)
        if lacking is not None:
            store.location.delete([layout.marker_key(layout.split_path(*lacking), 1)])
        return ts.open_store(store.location)

    return make


@pytest.fixture
def store(columns: Columns, store_of: Callable[..., ts.FeatureStore]) -> ts.FeatureStore:
    return store_of(columns)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the stored columns that are read from now on."""
    seen, read = [], StoredColumn.read

    def noted(self: StoredColumn, start: int, stop: int) -> Any:
        seen.append(self.path)
        return read(self, start, stop)

    monkeypatch.setattr(StoredColumn, "read", noted)
    return seen
