"""Samples are found by their ids, whatever these look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.methods.epochs import UnmaskedSplit
from trakstore.serve.sample_ids import SampleIds

LONG = "a long id, as a prompt may be one " * 40
CASES: dict[str, list[Any]] = {
    "numbers": [7, 3, -5, 2**62, 0],
    "texts": ["b", "a", "", "@1", "ä", "10", "9", "a" * 30],
    "long texts": [f"{LONG}{i}" for i in range(50)],
}


@pytest.mark.parametrize("case", CASES)
def test_each_id_has_its_row(case: str, tmp_path: Path) -> None:
    given = CASES[case]
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("identity"))
    store.write_split(0, "train", np.ones((len(given), 2), np.float32), ids=given)
    ids = SampleIds(UnmaskedSplit.of(store.split(0, "train")))
    # A number of 19 digits is refused before it can overflow.
    short = [one for one in given if len(str(one)) <= 18 or isinstance(one, str)]
    assert [ids.row(one) for one in short] == [given.index(one) for one in short]
    assert [ids.row(str(one)) for one in short] == [given.index(one) for one in short]
    assert ids.row("@0") == 0 and ids.row(f"@{len(given) - 1}") == len(given) - 1
    assert ids.row("@1") == (given.index("@1") if "@1" in given else 1)
    assert ids.row("") == (given.index("") if "" in given else None)
    for none in (f"@{len(given)}", "@-1", "@", "c", 11, "1.0", 10**30, "x" * 5000):
        assert ids.row(none) is None
