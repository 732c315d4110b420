"""Bootstrap intervals against the normal ones."""

import numpy as np
import pytest

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.evaluation.intervals import mean_interval


def test_mean_interval(rng: np.random.Generator) -> None:
    values = rng.normal(size=200)
    mean, low, high = mean_interval(values)
    error = values.std(ddof=1) / np.sqrt(200)
    assert mean == pytest.approx(values.mean())
    assert (low - mean) / error == pytest.approx(-1.96, abs=0.25)
    assert (high - mean) / error == pytest.approx(1.96, abs=0.25)
    with pytest.raises(TrakStoreError):
        mean_interval([np.nan])
    for number in (np.inf, -np.inf):
        with pytest.raises(NumericsError, match="infinite"):
            mean_interval([1, number, np.nan])
