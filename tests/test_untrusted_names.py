"""Names from outside are values or are refused: none leaves the store's folder, none runs code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import LocationError, TrakStoreError
from trakstore.storage import layout
from trakstore.storage.tables.runs import Run, record_run

NAMES = [
    "../out",
    "/tmp/out",
    "a/../../out",
    "..",
    "$(touch out)",
    "`touch out`",
    "x\x00y",
    "%2e%2e",
]
FEATURES = np.eye(4, 3, dtype=np.float32)


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    projection = ts.ProjectionSpec("external", dim=3)
    store = ts.FeatureStore.create(tmp_path / "inside" / "s.zarr", projection=projection)
    store.write_split(0, "train", FEATURES, out_to_loss=np.ones(4, np.float32))
    store.write_split(0, "test", FEATURES[:2])
    return store


def outside(tmp_path: Path) -> list[Path]:
    """What is there besides the store."""
    inside = tmp_path / "inside" / "s.zarr"
    return [p for p in tmp_path.rglob("*") if inside not in (p, *p.parents) and p.is_file()]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_places_are_refused(name: str, store: ts.FeatureStore, tmp_path: Path) -> None:
    scores = ts.trak_scores(store, targets="test", train="train")
    uses: list[Any] = [
        lambda: store.write_split(name, "train", FEATURES),
        lambda: store.write_split(1, name, FEATURES),
        lambda: store.features(name, "train"),
        lambda: store.features(0, name),
        lambda: store.drop(name, "train"),
        lambda: store.drop(0, name),
        lambda: store.mask(name, [1]),
        lambda: ts.save_scores(scores, store, name),
        lambda: ts.open_scores(store, name),
        lambda: ts.trak_scores(store, targets=name, train="train"),
    ]
    before = sorted(p for p in (tmp_path / "inside").rglob("*"))
    for use in uses:
        with pytest.raises(TrakStoreError):
            use()
    assert outside(tmp_path) == [] and sorted((tmp_path / "inside").rglob("*")) == before


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_job_names_are_values(name: str, store: ts.FeatureStore, tmp_path: Path) -> None:
    if "\x00" not in name:  # NumPy's own strings end there
        ids = [name, "b", "c", "d"]
        store.write_split(1, "train", FEATURES, ids=ids)
        split = store.split(1, "train")
        assert list(split.column(layout.SAMPLE_ID).read(0, 4)) == ids
        store.mask("train", [name], epochs=[1])
        assert list(store.split(1, "train").masked) == [0]
    now = "2026-01-01T00:00:00+00:00"
    record_run(store.location, Run(0, "train", name, now, now, 0, 1, "cpu", 4, 1, {}))
    assert [one.job for one in store.runs()] == [name]
    assert outside(tmp_path) == []


def test_a_job_is_named_not_evaluated(tmp_path: Path) -> None:
    from trakstore.features import load_job

    (tmp_path / "jobs.py").write_text("")
    for name in ("__import__('os').mkdir('out')", "x.y", "../x", "a b"):
        with pytest.raises(TrakStoreError, match="has no"):
            load_job(f"{tmp_path}/jobs.py:{name}")
    for name in ("os;import x:y", "../jobs:x", ".jobs:x"):
        with pytest.raises(TrakStoreError):
            load_job(name)


@pytest.mark.parametrize(
    "url", ["http://x/run.zarr", "file://../x", "file://x", "ssh://h/x", "s3://a/../b", "\x00"]
)
def test_urls_of_nothing_known_are_refused(url: str, tmp_path: Path) -> None:
    spec = ts.ProjectionSpec("external", dim=3)
    with pytest.raises(TrakStoreError):
        ts.FeatureStore.create(url, projection=spec)
    with pytest.raises(TrakStoreError):
        ts.open_store(url)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["~no-such-user/x", "x" * 300, "\ud800", f"{'y' * 100}/" * 60])
def test_paths_that_no_system_has(path: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    spec = ts.ProjectionSpec("external", dim=3)
    for use in (ts.open_store, lambda where: ts.FeatureStore.create(where, projection=spec)):
        with pytest.raises(LocationError, match=r"no place|no home folder|cannot be a place"):
            use(path)
    assert not list(tmp_path.iterdir())


def test_a_working_folder_that_is_gone(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(
        LocationError, match=r"s.zarr cannot be a place: the working directory is gone"
    ):
        ts.open_store("s.zarr")


def test_epochs_that_no_folder_is_named_by(store: ts.FeatureStore) -> None:
    for epoch in (10**5000, "9" * 5000, -(10**5000), True, -1):
        with pytest.raises(TrakStoreError, match=r"an epoch") as caught:
            store.split(epoch, "train")
        assert len(str(caught.value)) < 400


def test_a_file_url_is_its_path(tmp_path: Path) -> None:
    spec = ts.ProjectionSpec("external", dim=3)
    ts.FeatureStore.create(f"file://{tmp_path}/a%20b.zarr", projection=spec)
    assert ts.open_store(tmp_path / "a b.zarr").spec.projection == spec
