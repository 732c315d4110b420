from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from trakstore.storage.backends.location import Location, open_location
from trakstore.storage.tables.saved_arrays import SavedArray


def place(tmp_path: Path) -> Location:
    return open_location(tmp_path / "s.zarr", create=True)


def by_zarr(location: Location, path: str) -> NDArray[Any]:
    array = zarr.open_array(location.store, path=path, mode="r")
    return np.asarray(array[...])


@pytest.mark.parametrize(
    "values",
    [
        np.arange(23),
        np.linspace(0, 1, 23, dtype=np.float16),
        np.array([*"abcdefghijklmnopqrstuvw"], dtype=np.dtypes.StringDType()),
    ],
)
def test_values_that_are_appended_are_those_of_one_write(
    tmp_path: Path, values: NDArray[Any]
) -> None:
    location = place(tmp_path)
    array = SavedArray.of("v", values, ("entry",), 4)
    array.create(location, "parts")
    count = 0
    for size in (1, 0, 2, 1, 9, 3, 4, 3):
        array.append(location, "parts", values[count : count + size], count)
        count += len(values[count : count + size])
    assert count == len(values)
    array.create(location, "whole")
    array.write(location, "whole", values)
    stored = [[location.get(key) for key in array.keys(group)] for group in ("parts", "whole")]
    assert stored[0] == stored[1] and None not in stored[0]
    np.testing.assert_array_equal(by_zarr(location, "parts/v").tolist(), values.tolist())


def test_blocks_of_chunks_are_written_anywhere(tmp_path: Path) -> None:
    location = place(tmp_path)
    matrix = np.random.default_rng(0).normal(size=(7, 50))
    array = SavedArray("m", "float64", matrix.shape, (3, 4), ("a", "b"))
    array.create(location, "t")
    array.write(location, "t", matrix[3:, 8:], (3, 8))
    array.write_unflushed(location, "t", matrix[:3, 8:], (0, 8))
    array.write(location, "t", matrix[:, :8])
    np.testing.assert_array_equal(by_zarr(location, "t/m"), matrix)
    np.testing.assert_array_equal(array.read(location, "t"), matrix)


def test_blocks_of_a_lazy_array_are_several_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = place(tmp_path)
    matrix = np.random.default_rng(0).normal(size=(7, 50))
    array = SavedArray("m", "float64", matrix.shape, (3, 4), ("a", "b"))
    array.create(location, "t")
    array.write(location, "t", matrix)
    assert array.open(location, "t").to_dask().chunks == ((3, 3, 1), (50,))
    monkeypatch.setattr("trakstore.storage.tables.table_array._TASK_BYTES", 2 * 3 * 4 * 8)
    lazy = array.open(location, "t").to_dask()
    assert lazy.chunks == ((3, 3, 1), (8,) * 6 + (2,))
    np.testing.assert_array_equal(lazy.compute(), matrix)
