"""Records of runs: kept beside the features, and never in the way of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import trakstore as ts
from trakstore.storage.backends.location import Location
from trakstore.storage.group_documents import group_document
from trakstore.storage.layout import document_key
from trakstore.storage.tables.runs import Run, list_runs, record_run

RUN = Run(
    0, "train", "jobs.py:a", "2026-01-01T00:00:00+00:00", "", 0, 1, "cpu", 4, 1, {"torch": "2"}
)


@pytest.fixture
def place(tmp_path: Path) -> Location:
    spec = ts.ProjectionSpec("sjlt", dim=2)
    return ts.FeatureStore.create(tmp_path / "a.zarr", projection=spec).location


def put(place: Location, fields: Any) -> None:
    place.put({document_key("runs/0.train.odd"): group_document(fields)})


ODD: dict[str, Any] = {
    "nothing": {},
    "fewer": {"epoch": 0, "split": "train"},
    "text for a number": {**asdict(RUN), "world_size": "1"},
    "number for a text": {**asdict(RUN), "began": 3},
    "versions": {**asdict(RUN), "versions": ["torch"]},
    "version": {**asdict(RUN), "versions": {"torch": 2}},
    "epoch": {**asdict(RUN), "epoch": None},
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_record_is_left_out_and_told(case: str, place: Location) -> None:
    record_run(place, RUN)
    put(place, ODD[case])
    with pytest.warns(
        UserWarning, match=r"runs/0.train.odd: .*; it is left out: no number depends"
    ):
        assert list_runs(place) == (RUN,)


def test_a_damaged_record_is_left_out_and_told(place: Location) -> None:
    record_run(place, RUN)
    place.put({document_key("runs/0.train.odd"): b"{"})
    with pytest.warns(UserWarning, match="metadata document is damaged .*; it is left out"):
        assert list_runs(place) == (RUN,)


def test_what_a_later_version_adds_is_passed_over(place: Location) -> None:
    put(place, {**asdict(RUN), "energy": 3})
    assert list_runs(place) == (RUN,)
