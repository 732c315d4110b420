"""A committed store of each format version opens for ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import trakstore as ts
from trakstore.errors import IncompleteError
from trakstore.evaluation import retrained_models
from trakstore.kernels.stored_grams import origin_of, split_gram, stored_gram
from trakstore.storage.tables.training_records import record_parts

DATA = Path(__file__).parent.parent / "data"
FORMATS = (1, 2)
ROWS = 11
EXACT = np.arange(66, dtype=np.float32).reshape(ROWS, 6) / 8 + 0.5


@pytest.fixture(params=FORMATS)
def number(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def store(number: int, tmp_path: Path) -> ts.FeatureStore:
    """A copy, so that nothing can change the original."""
    return ts.open_store(shutil.copytree(DATA / f"format-{number}", tmp_path / "store"))


def test_a_store_gives_what_was_written(store: ts.FeatureStore, number: int) -> None:
    assert store.format == number
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


def test_a_store_tells_what_is_missing(store: ts.FeatureStore) -> None:
    with pytest.raises(IncompleteError, match="4 of 11 rows; missing 0-3, 8-10"):
        store.features("final", "half")
    read = store.features("final", "half", allow_missing=True).values
    np.testing.assert_array_equal(read[4:8], EXACT[4:8].astype(np.float16))


def test_a_store_is_plain_zarr(number: int) -> None:
    plain = xr.open_zarr(
        DATA / f"format-{number}", group="2/train", consolidated=False, zarr_format=3
    )
    np.testing.assert_array_equal(plain.features, EXACT.astype(np.float16))


def test_a_store_is_sound_and_scored(store: ts.FeatureStore) -> None:
    assert ts.verify_store(store).ok
    scores = np.asarray(ts.grad_dot_scores(store, "train", "train", epochs=[1, 2], of="output"))
    kept = np.delete(EXACT, 5, axis=0)
    np.testing.assert_allclose(scores, kept @ kept.T, rtol=1e-6)
    np.testing.assert_allclose(split_gram(store.split(1, "train")).matrix, kept.T @ kept, rtol=1e-6)


def test_a_store_can_be_written_on(store: ts.FeatureStore) -> None:
    store.append(1, "train", EXACT[:2], out_to_loss=[0, 1], ids=["a", "b"], labels=[0, 1])
    assert store.split(1, "train").rows == ROWS + 2
    assert store.mask("train", ["a"], epochs=[1]) == 1
    assert store.mask("train", ["sämple 3"]) == 2
    masked = [store.split(epoch, "train").masked.tolist() for epoch in (1, 2)]
    assert masked == [[3, 5, 11], [3, 5]]
    assert ts.verify_store(store).ok


def test_tables_of_format_2(tmp_path: Path) -> None:
    store = ts.open_store(shutil.copytree(DATA / "format-2", tmp_path / "store"))
    kept = np.delete(EXACT, 5, axis=0)
    expected = kept @ kept.T
    np.testing.assert_allclose(ts.open_scores(store, "whole"), expected, rtol=1e-6)
    top = ts.open_scores(store, "top")
    np.testing.assert_allclose(top["score"], np.sort(expected)[:, :-3:-1], rtol=1e-6)
    again = retrained_models(store, "again")
    np.testing.assert_array_equal(again["output"], [[0, 1], [2, 3]])
    assert again["subset"].values[1].tolist() == [at % 3 == 1 for at in range(ROWS)]
    (part,) = record_parts(store.location, "train")
    assert part.run.order == 1 and part.read("measures")[2].tolist() == [10, 11, 12, 13, 14]
    split = store.split(1, "train")
    assert stored_gram(split, origin_of(split, "float32")) is not None
