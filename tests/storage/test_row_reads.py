"""Checksums of single rows, by compiled loops and one by one."""

from __future__ import annotations

import numpy as np
import pytest
from crc32c import crc32c

from trakstore.storage.backends import row_registers
from trakstore.storage.row_reads import row_checksums


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", "int8"])
@pytest.mark.parametrize(("rows", "dim"), [(0, 8), (1, 8), (3, 24), (5, 64), (37, 6), (40, 5)])
def test_checksums_are_those_of_the_stored_bytes(
    rows: int, dim: int, dtype: str, loops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not loops:
        monkeypatch.setattr(row_registers, "sums_words", lambda: False)
    values = np.random.default_rng(0).integers(-100, 100, (rows, 2 * dim)).astype(dtype)[:, ::2]
    wanted = [crc32c(row.astype(row.dtype.newbyteorder("<")).tobytes()) for row in values]
    got = row_checksums(values)
    assert got.dtype == np.uint32 and got.tolist() == wanted
