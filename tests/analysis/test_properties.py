"""Properties of chosen samples against random draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

from trakstore.analysis.group_influence import contrast
from trakstore.analysis.properties import compare_properties, modular_addition
from trakstore.errors import TrakStoreError
from trakstore.methods.trak import trak_scores_of_arrays


def described(sample: Any) -> dict[str, Any]:
    return {"size": sample[0], "kind": "odd" if sample[1] % 2 else "even", "flag": sample[1] < 20}


def samples(rng: Any, rows: int = 200) -> list[tuple[float, int]]:
    return [(float(rng.normal()), i) for i in range(rows)]


def test_a_planted_property_is_found_and_others_are_not() -> None:
    found = compare_properties(described, samples(np.random.default_rng(0)), range(15), draws=2000)
    by_name = {one.name: one for one in found}
    assert set(by_name) == {"size", "kind=even", "kind=odd", "flag"}
    assert found[0].name == "flag" and found[0].p == 1 / 2001
    assert (found[0].chosen, found[0].all) == (1.0, 0.1)
    assert found[0].corrected == pytest.approx(4 / 2001)
    assert by_name["kind=odd"].chosen == pytest.approx(7 / 15)
    assert by_name["size"].p > 0.01 and by_name["kind=odd"].corrected == 1


def test_p_values_of_random_choices_are_uniform() -> None:
    p = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        chosen = rng.choice(200, 20, replace=False)
        size = compare_properties(
            lambda s: {"size": s[0]}, samples(rng), chosen, draws=400, seed=seed
        )
        p.append(size[0].p)
    assert kstest(p, "uniform").pvalue > 0.01


def test_modular_addition() -> None:
    with pytest.raises(TrakStoreError, match="modulus must be an integer, 1 or more, got 0"):
        modular_addition(0)
    found = modular_addition(11)((7, 9, "label"))
    assert found == {
        "sum": 5,
        "carries": True,
        "equal": False,
        "has zero": False,
        "distance": 2,
        "smaller": 7,
        "larger": 9,
    }
    assert modular_addition(11)((0, 10))["distance"] == 1


def test_refusals() -> None:
    some = samples(np.random.default_rng(0), 9)
    for chosen in ([], [9], [-1], [1, 1]):
        with pytest.raises(TrakStoreError, match="chosen must be some positions"):
            compare_properties(described, some, chosen)
    with pytest.raises(TrakStoreError, match="every sample needs the properties"):
        compare_properties(lambda s: {str(s[1]): 1}, some, [1])
    with pytest.raises(TrakStoreError, match="no samples"):
        compare_properties(described, [], [1])
    with pytest.raises(TrakStoreError, match="NaN"):
        compare_properties(lambda _: {"a": float("nan")}, some, [1])


def test_contrast_is_the_difference_of_two_means() -> None:
    rng = np.random.default_rng(0)
    test, train = rng.normal(size=(9, 5)).astype("f4"), rng.normal(size=(30, 5)).astype("f4")
    scores = trak_scores_of_arrays(test, train, np.ones(30, dtype="f4"))
    aligned, conflicting = np.arange(9) < 3, np.arange(9) >= 5
    dense = np.asarray(scores)
    wanted = dense[:3].mean(0) - dense[5:].mean(0)
    np.testing.assert_allclose(contrast(scores, aligned, conflicting), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(TrakStoreError, match="share none"):
        contrast(scores, aligned, aligned)
    with pytest.raises(TrakStoreError, match="both kinds"):
        contrast(scores, aligned, np.zeros(9, dtype=bool))
