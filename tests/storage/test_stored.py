"""Parts of a stored column are those of its rows in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts

ROWS = np.arange(200, dtype=np.float32).reshape(50, 4)


@pytest.fixture
def lazy(tmp_path: Path) -> Any:
    projection = ts.ProjectionSpec("sjlt", 4)
    store = ts.FeatureStore.create(tmp_path / "s", projection=projection)
    store.write_split(0, "train", ROWS, block_rows=16)
    return store.features(0, "train").data


@pytest.mark.parametrize(
    "key",
    [
        4, -1, np.int64(3), (4, slice(1, 3)), (17, -1), (slice(None), 2), (slice(15, 18), [1, 2]),
        slice(None, None, -1), slice(40, 10, -3), slice(20, 20),
        (slice(None, None, -2), slice(None, None, -1)),
        [3, 1, 49], np.array([5, 5, 0]), np.arange(50) % 7 == 0, ...,
    ],
)  # fmt: skip
def test_a_part_of_a_lazy_array_is_that_of_its_rows(lazy: Any, key: Any) -> None:
    np.testing.assert_array_equal(lazy[key].compute(), ROWS[key], strict=True)


@pytest.mark.parametrize("key", [50, -51])
def test_a_row_that_is_not_there_is_an_index_error(lazy: Any, key: int) -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        lazy[key]
