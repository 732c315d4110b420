"""One sample dominates a list where its score is three times that of the next."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import trakstore as ts
from trakstore.methods.epochs import EpochPair, epoch_pairs
from trakstore.report.dominance import dominants


@pytest.fixture
def pair(tmp_path: Path) -> EpochPair:
    """Three train rows and two targets; the first target is masked."""
    store = ts.FeatureStore.create(tmp_path / "s", projection=ts.ProjectionSpec("sjlt", dim=2))
    rows = {"train": [[3.0, 4.0], [-4.0, 3.0], [0.0, 0.0]], "test": [[9.0, 9.0], [6.0, 8.0]]}
    for split, features in rows.items():
        ids = [f"{split} {at}" for at in range(len(features))]
        store.write_split(
            0, split, np.array(features, "f4"), out_to_loss=np.ones(len(ids)), ids=ids
        )
    store.mask("test", ["test 0"])
    return epoch_pairs(ts.open_store(tmp_path / "s"), "test", "train", None)[-1]


def listed(scores: list[float], position: int) -> xr.Dataset:
    """A list of one target, whose first sample is the train row ``position``."""
    places = [position, *(at for at in range(3) if at != position)][: len(scores)]
    columns = {"score": scores, "position": places, "train": [f"train {at}" for at in places]}
    return xr.Dataset({name: (("target", "rank"), [one]) for name, one in columns.items()})


@pytest.mark.parametrize(
    ("scores", "times"),
    [
        ([0.9, 0.3], 3.0),
        ([0.8, 0.3], None),
        ([-0.9, -0.2, 0.1], 4.5),
        ([0.5, -0.1], math.inf),
        ([0.5, 0.0], math.inf),
        ([0.0, -1.0], None),
        ([0.5], None),
    ],
)
def test_three_times(pair: EpochPair, scores: list[float], times: float | None) -> None:
    (found,) = dominants(listed(scores, 0), pair, np.array([0]))
    if times is None:
        assert found is None
        return
    assert found is not None and found.name == "train 0"
    assert found.times == pytest.approx(times)


def test_copies_by_their_gradients(pair: EpochPair) -> None:
    def first(position: int) -> tuple[float, bool]:
        (found,) = dominants(listed([1.0, 0.1], position), pair, np.array([0]))
        assert found is not None
        return found.cosine, found.near_copy

    assert first(0) == (pytest.approx(1.0), True)
    assert first(1) == (pytest.approx(0.0), False)
    cosine, copy = first(2)
    assert math.isnan(cosine) and not copy
