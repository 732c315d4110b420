from __future__ import annotations

import numpy as np
import pytest

from trakstore.errors import TrakStoreError
from trakstore.sampling import estimate_mean, sample_rows

STRATA = np.repeat([0, 1, 2], [200, 90, 3])


def test_each_stratum_gives_its_share_and_at_least_two() -> None:
    drawn = sample_rows(293, 0.1, strata=STRATA, seed=3)
    counts = np.bincount(STRATA[drawn.positions])
    np.testing.assert_array_equal(counts, [20, 9, 2])
    np.testing.assert_allclose(drawn.probability, (counts / [200, 90, 3])[STRATA[drawn.positions]])
    assert (np.diff(drawn.positions) > 0).all()
    again = sample_rows(293, 0.1, strata=STRATA, seed=3)
    np.testing.assert_array_equal(drawn.positions, again.positions)
    assert (sample_rows(293, 0.1, strata=STRATA, seed=4).positions != drawn.positions).any()


@pytest.mark.parametrize("group", [None, "first"])
def test_the_estimate_is_unbiased_and_its_interval_covers(group: str | None) -> None:
    rng, strata = np.random.default_rng(0), np.repeat([0, 1, 2], [2000, 900, 30])
    values = rng.normal(strata, 0.5 + strata)
    within = None if group is None else (np.arange(2930) % 3 == 0)
    truth = values.mean() if within is None else values[within].mean()
    found = []
    for seed in range(400):
        drawn = sample_rows(2930, 0.2, strata=strata, seed=seed)
        found.append(estimate_mean(drawn, values[drawn.positions], within))
    means, errors = (np.array([getattr(one, name) for one in found]) for name in ("value", "error"))
    assert abs(means.mean() - truth) < 4 * means.std() / 20
    assert 0.85 < errors.mean() / means.std() < 1.15
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.90 < covered < 0.99


def test_all_rows_leave_no_doubt() -> None:
    drawn = sample_rows(10, 1.0)
    one = estimate_mean(drawn, np.arange(10))
    assert (one.value, one.error, one.low) == (4.5, 0.0, 4.5)


def test_what_cannot_be_drawn() -> None:
    for rate in (0, 1.1):
        with pytest.raises(TrakStoreError, match="sampling rate"):
            sample_rows(10, rate)
    with pytest.raises(TrakStoreError, match="needed one for each of 10 rows"):
        sample_rows(10, 0.5, strata=[1, 2])
    drawn = sample_rows(10, 0.5)
    with pytest.raises(TrakStoreError, match="values have shape"):
        estimate_mean(drawn, np.zeros(3))
    with pytest.raises(TrakStoreError, match="at least one true"):
        estimate_mean(drawn, np.zeros(5), np.zeros(10, dtype=bool))
