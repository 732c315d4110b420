"""Ids are stored as they are given, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.storage.ids import as_ids

BIG = 2**63


@pytest.mark.parametrize(
    "ids",
    [
        np.array(["a", "b", "c"], dtype=object),
        np.array(["a", "b", "c"], dtype=np.dtypes.StringDType()),
        np.array([3, 1, 2], dtype=object),
        np.array([1, 2, BIG - 1], dtype=np.uint64),
        [np.int32(1), np.int64(2), -BIG],
        (np.str_("x"), "yy", ""),
    ],
)
def test_ids_come_back_as_they_were_given(tmp_path: Path, ids: Any) -> None:
    store = ts.FeatureStore.create(tmp_path / "s", projection=ts.ProjectionSpec("sjlt", 4))
    split = store.write_split(0, "train", np.ones((3, 4), dtype="f"), ids=ids)
    found = split.column("sample_id").read(0, 3)
    assert found.tolist() == list(ids)
    assert store.mask("train", ids[1:]) == 2
    assert store.split(0, "train").masked.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (np.array([7, BIG + 1], dtype=np.uint64), f"2.*63 - 1 or strings, got {BIG + 1}"),
        ([1, 2**70], f"2.*63 - 1 or strings, got {2**70}"),
        ([1, -(2**70)], "or strings, got -"),
        (["a", 1], "got 1 at position 1"),
        (np.array(["a", 1], dtype=object), "got 1 at position 1"),
        (np.array(["a", None], dtype=object), "got None at position 1"),
        (np.array([True, False], dtype=object), "got True at position 0"),
        ([1.0, 2.0], "got 1.0 at position 0"),
        ([b"a", b"b"], "got b'a' at position 0"),
    ],
)
def test_what_is_no_id_is_refused(ids: Any, said: str) -> None:
    with pytest.raises(TrakStoreError, match=said):
        as_ids(ids)


def test_large_ids_are_not_taken_for_their_neighbours(tmp_path: Path) -> None:
    store = ts.FeatureStore.create(tmp_path / "s", projection=ts.ProjectionSpec("sjlt", 4))
    ids = 2**60 + np.arange(3)
    store.write_split(0, "train", np.ones((3, 4), dtype="f"), ids=ids)
    assert store.mask("train", ids[1:2].astype(np.uint64)) == 1
    with pytest.raises(NotFoundError, match="nothing masked"):
        store.mask("train", np.array([2**60 + 9], dtype=np.uint64))
    with pytest.raises(NotFoundError, match="ids that are integers, got strings"):
        store.mask("train", ["x"])
