"""Ids of samples: of any integers and text that people have; none is changed on its way in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.storage.columns import row_column, sample_ids, stored_rows
from trakstore.storage.ids import as_ids

MOST = 2**63 - 1
INTEGERS = [
    [7, MOST, -(2**63)],
    np.array([7, MOST, -(2**63)], dtype=object),
    [np.uint64(7), MOST, -(2**63)],
]
TEXT = [
    ["b", "a", "aé"],
    ("b", "a", "aé"),
    np.array(["b", "a", "aé"]),
    np.array(["b", "a", "aé"], dtype=object),
    np.array(["b", "a", "aé"], dtype=np.dtypes.StringDType()),
    [np.str_("b"), "a", "aé"],
]


@pytest.mark.parametrize("given", INTEGERS, ids=repr)
def test_integers(given: Any) -> None:
    got = sample_ids(given, 3)
    assert got.dtype == np.int64
    assert got.tolist() == [7, MOST, -(2**63)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int16, np.int64])
def test_integers_of_any_width(dtype: Any) -> None:
    assert sample_ids(np.array([3, 100, 4], dtype=dtype), 3).tolist() == [3, 100, 4]
    assert sample_ids(torch.tensor([3, 100, 4]), 3).tolist() == [3, 100, 4]  # type: ignore[arg-type]


@pytest.mark.parametrize("given", TEXT, ids=repr)
def test_text(given: Any) -> None:
    got = sample_ids(given, 3)
    assert got.dtype.kind == "T"
    assert got.tolist() == ["b", "a", "aé"]


@pytest.mark.parametrize("ids", [["a\0", "a"], ["b", "a\0c"]])
def test_text_with_zeros_is_refused(ids: list[str]) -> None:
    """NumPy looks up what comes before them, and would mask another sample."""
    with pytest.raises(TrakStoreError, match="ids are text without null characters, got 'a"):
        sample_ids(ids, 2)


LARGE = [
    np.array([2**63 + 1, 2**64 - 1, 7], dtype=np.uint64),
    [2**63, -1, 3],
    [2**80, 1, 2],
    np.array([1, -(2**63) - 1, 2], dtype=object),
]


@pytest.mark.parametrize("given", LARGE, ids=repr)
def test_integers_that_int64_does_not_hold_are_refused(given: Any) -> None:
    with pytest.raises(
        TrakStoreError, match=r"to 2\*\*63 - 1 or strings, got -?\d+: give .*strings"
    ):
        sample_ids(given, 3)


OTHERS: dict[str, tuple[Any, str]] = {
    "mixed": ([1, "a", 2], "of one kind, got 'a' at position 1"),
    "none": (["a", "b", None], "got None at position 2"),
    "gap": (np.array(["a", float("nan"), "b"], dtype=object), "got nan at position 1"),
    "floats": ([1.0, 2.0, 3.0], "got 1.0 at position 0"),
    "float column": (np.array([1.0, 2.0, 3.0]), "got 1.0 at position 0"),
    "booleans": ([True, False, True], "got True at position 0"),
    "bytes": ([b"a", b"b", b"c"], "got b'a' at position 0"),
    "surrogates": (["\ud800", "a", "b"], "UTF-8"),
    "length": (["a", "b"], r"ids must be 3 integers or strings, got shape \(2,\)"),
    "table": ([["a", "b"]] * 3, r"got shape \(3, 2\)"),
    "repeated": (["a", "b", "a"], "1 of 3 repeat others"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_id(case: str) -> None:
    given, said = OTHERS[case]
    with pytest.raises(TrakStoreError, match=said) as caught:
        sample_ids(given, 3)
    assert "\n" not in str(caught.value)


def test_samples_are_masked_by_ids_that_floats_cannot_tell_apart(tmp_path: Path) -> None:
    ids = 2**62 + np.arange(4)
    store = ts.FeatureStore.create(tmp_path / "a.zarr", projection=ts.ProjectionSpec("sjlt", dim=2))
    store.write_split(0, "train", np.ones((4, 2)), ids=ids)
    assert store.mask("train", ids[1:2].astype(np.uint64)) == 1  # type: ignore[arg-type]
    assert store.split(0, "train").masked.tolist() == [1]
    assert as_ids(ids.astype(object)).tolist() == ids.tolist()


COLUMNS: dict[str, tuple[Any, Any, str]] = {
    "fraction": ([0.5, 1, 2], np.int64, "x must be whole numbers .* got 0.5"),
    "large": (
        np.array([1, 2, 2**63], np.uint64),
        np.int64,
        r"up to 2\*\*63 - 1, got 9223372036854775808",
    ),
    "text": (["a", "b", "c"], np.int64, "x must be real numbers, got <U1"),
    "complex": ([1j, 0, 0], np.float32, "x must be real numbers, got complex128"),
    "overflow": ([1e300, 0, 0], np.float32, "x must be numbers that float32 holds, got 1e[+]300"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns_are_not_changed_on_their_way_in(case: str) -> None:
    values, dtype, said = COLUMNS[case]
    with pytest.raises(TrakStoreError, match=said):
        row_column(values, 3, "x", dtype)
    for kept in ([True, False, True], [1.0, 0.0, 1.0], np.array([1, 0, 1], np.uint64)):
        assert row_column(kept, 3, "x", np.int64).tolist() == [1, 0, 1]  # type: ignore[union-attr]


def test_features_are_real() -> None:
    with pytest.raises(TrakStoreError, match="features are real numbers, got complex64"):
        stored_rows(np.ones((2, 3), np.complex64), "float32", 0)
