"""A committed store of each format version opens for ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import trakstore as ts
from trakstore.errors import IncompleteError

STORE = Path(__file__).parent.parent / "data" / "format-1"
ROWS = 11
EXACT = np.arange(66, dtype=np.float32).reshape(ROWS, 6) / 8 + 0.5


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    """A copy, so that nothing can change the original."""
    return ts.open_store(shutil.copytree(STORE, tmp_path / "store"))


def test_format_1_gives_what_was_written(store: ts.FeatureStore) -> None:
    assert store.epochs == (1, 2, "final") and store.splits == ("half", "test", "train")
    assert store.spec.projection == ts.ProjectionSpec("sjlt", dim=6, seed=7, s=2)
    for epoch, sign in ((1, -1), (2, 1)):
        split = store.split(epoch, "train").to_xarray().compute()
        np.testing.assert_array_equal(split.features, (sign * EXACT).astype(np.float16))
        np.testing.assert_allclose(split.norm, np.linalg.norm(EXACT, axis=1), rtol=1e-6)
        np.testing.assert_array_equal(split.out_to_loss, np.linspace(0, 1, ROWS, dtype=np.float32))
        np.testing.assert_array_equal(split.label, np.arange(ROWS) % 3)
        assert split.sample_id.values.tolist() == [f"sämple {i}" for i in range(ROWS)]
        assert store.split(epoch, "train").masked.tolist() == [5]
    np.testing.assert_array_equal(store.features("final", "test"), EXACT[:3].astype(np.float16))


def test_format_1_tells_what_is_missing(store: ts.FeatureStore) -> None:
    with pytest.raises(IncompleteError, match="4 of 11 rows; missing 0-3, 8-10"):
        store.features("final", "half")
    read = store.features("final", "half", allow_missing=True).values
    np.testing.assert_array_equal(read[4:8], EXACT[4:8].astype(np.float16))


def test_format_1_is_plain_zarr() -> None:
    plain = xr.open_zarr(STORE, group="2/train", consolidated=False, zarr_format=3)
    np.testing.assert_array_equal(plain.features, EXACT.astype(np.float16))


def test_format_1_can_be_written_on(store: ts.FeatureStore) -> None:
    store.append(1, "train", EXACT[:2], out_to_loss=[0, 1], ids=["a", "b"], labels=[0, 1])
    assert store.split(1, "train").rows == ROWS + 2
