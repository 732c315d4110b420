"""Rows of drawn labels beside train rows: they are some for each, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dropped_stores import (
    DIM,
    DRAWS,
    SPLIT,
    N,
    filled,
    scores_of,
)

from trakstore.errors import SpecMismatchError
from trakstore.storage import layout
from trakstore.storage.split import split_document


@pytest.mark.parametrize(("named", "recorded"), [(False, True), (True, False), (True, True)])
def test_train_rows_that_grew_to_as_many_as_the_draws_are_told(
    tmp_path: Path, named: bool, recorded: bool
) -> None:
    """Stores of before do not record the draws: there the ids tell, where they can."""
    store = filled(tmp_path / "s.zarr")
    rows = store.split(0, SPLIT).to_xarray()
    values = {name: rows[name].values for name in ("features", "out_to_loss")}
    store.drop(0, SPLIT)
    ids = [f"{i}~{j}" for i in range(N) for j in range(DRAWS)] if named else None
    split = store.write_split(
        0, SPLIT, values["features"], out_to_loss=values["out_to_loss"], ids=ids
    )
    assert split.spec.draws == DRAWS
    if not recorded:
        old = replace(split.spec, draws=0)
        key = layout.document_key(split.path)
        store.location.put({key: split_document(split.path, old)})
        assert b"draws" not in split_document(split.path, old)
    before = scores_of(store)
    more = np.random.default_rng(2).standard_normal((N, DIM)).astype(np.float32)
    store.append(0, "train", more, out_to_loss=np.ones(N), ids=list(range(100, 100 + N)))
    with pytest.raises(SpecMismatchError, match="sampled rows are some for each train row"):
        scores_of(store)
    more = np.random.default_rng(3).standard_normal((N * DRAWS, DIM)).astype(np.float32)
    names = [f"{i}~{j}" for i in range(100, 100 + N) for j in range(DRAWS)]
    store.append(
        0, SPLIT, more, out_to_loss=np.ones(len(more)), ids=names if named else range(100, 160)
    )
    assert scores_of(store).shape == (4, 2 * N) != before.shape
