"""Features of all that may be asked for, of a sharded model and of one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from features.sharding.language_models import Llama, made
from features.sharding.launched import torchrun
from features.sharding.variants import BAD, VARIANTS, write, write_optimizer

import trakstore as ts

# Features of products in bfloat16 differ by its rounding, where these are summed in another order; in 8
# bits, by a unit where a number was on the edge.
TOLERANCES = {"bfloat16": 0.03, "int8": 0.01}


@pytest.mark.slow
def test_all_that_may_be_asked_for_is_that_of_one_process(tmp_path: Path) -> None:
    write_optimizer(tmp_path)
    for name in VARIANTS:
        write(made(Llama), name, tmp_path, "alone")
    done = torchrun(2, "variants.py", str(tmp_path), "fsdp", "tp")
    assert done.returncode == 0, done.stderr
    for name in VARIANTS:
        alone = ts.open_store(tmp_path / f"alone.{name}.zarr")
        for way in ("fsdp", "tp"):
            store = ts.open_store(tmp_path / f"{way}.{name}.zarr")
            assert store.splits == alone.splits
            for split in alone.splits:
                same_rows(store, alone, split, TOLERANCES.get(name, 1e-5), f"{way} {name} {split}")


def same_rows(
    store: ts.FeatureStore, alone: ts.FeatureStore, split: str, tolerance: float, where: str
) -> None:
    got, expected = (one.split(0, split) for one in (store, alone))
    assert got.spec == expected.spec, where
    bad = np.isnan(np.asarray(store.split(0, split).column("loss").read(0, got.rows)))
    assert np.flatnonzero(bad).tolist() == ([BAD] if "skipped" in where else []), where
    for name in expected.columns:
        ours, theirs = (one.column(name).read(0, one.rows) for one in (got, expected))
        if ours.dtype.kind != "f":
            if name != "features":  # of 8 bits, which are compared as numbers below
                assert np.array_equal(ours, theirs), (where, name)
            continue
        largest = np.nanmax(np.abs(theirs))
        np.testing.assert_allclose(
            ours, theirs, rtol=tolerance, atol=tolerance * largest, err_msg=f"{where} {name}"
        )
    ours, theirs = (np.asarray(one.features(0, split)) for one in (store, alone))
    largest = np.nanmax(np.abs(theirs))
    np.testing.assert_allclose(ours, theirs, atol=tolerance * largest, err_msg=where)
    assert largest > 0
