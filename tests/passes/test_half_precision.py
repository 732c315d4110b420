"""Products with float16 rows as they lie are those of float32 rows."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from trakstore.errors import NumericsError
from trakstore.passes.half_precision import few_products, has_instructions, widened
from trakstore.passes.rows import ArrayRows, UnmaskedRows
from trakstore.scores import parts
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part
from trakstore.scores.top_k import top_k

pytestmark = pytest.mark.skipif(not has_instructions(), reason="this processor widens no float16")
EVERY = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(-1, 64)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("CPU_FEATURES", "", False),  # as NUMBA_CPU_NAME=generic sets it
        ("CPU_FEATURES", "+avx,-f16c", False),
        ("CPU_FEATURES", "+avx,+f16c", True),
        ("DISABLE_JIT", 1, False),
    ],
)
def test_what_numba_compiles_for_is_asked(name, value, wanted, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(numba.core.config, name, value)
    assert has_instructions.__wrapped__() is wanted


def test_every_number_becomes_the_one_that_numpy_gives():
    wanted = EVERY.astype(np.float32)
    finite = np.isfinite(wanted)
    got = widened(EVERY)
    np.testing.assert_array_equal(got[finite].view(np.uint32), wanted[finite].view(np.uint32))
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("targets", [1, 3, 4, 9])
@pytest.mark.parametrize("rows", [1, 2, 5, 64])
def test_products_are_those_of_float64_to_rounding(draw, targets, rows):
    left, right = draw(targets, 37), draw(rows, 37, dtype="float16")
    wide = np.full((targets, rows + 3), np.nan, np.float32)
    few_products(left, right, wide[:, :rows])
    exact = left.astype(np.float64) @ right.astype(np.float64).T
    np.testing.assert_allclose(wide[:, :rows], exact, rtol=1e-5, atol=1e-5)
    assert np.isnan(wide[:, rows:]).all()


def test_infinity_and_nan_stay(draw):
    right = draw(5, 8, dtype="float16")
    right[1, 2], right[3, 4] = np.nan, np.inf
    out = np.empty((5, 5), np.float32)
    few_products(np.ones((5, 8), np.float32), right, out)
    assert np.isnan(out[:, 1]).all() and np.isposinf(out[:, 3]).all()
    assert np.isfinite(out[:, [0, 2, 4]]).all()


@pytest.mark.parametrize("average", ["factors", "scores"])
@pytest.mark.parametrize("targets", [2, 20])
def test_lists_and_tiles_of_many_rows(make_scores, monkeypatch, average, targets):
    scores, _ = make_scores(m=targets, n=300, k=24, dtype="float16", average=average)
    wanted, dense = top_k(scores, 12), np.asarray(scores)
    monkeypatch.setattr(parts, "MANY_VALUES", 0)
    calls = []
    if targets <= parts.FEW_TARGETS:
        # Of more targets than that, the matrix product of before, with the same bits.
        monkeypatch.setattr("trakstore.passes.half_precision.few_products", _counted(calls))
    got = top_k(scores, 12)
    assert bool(calls) == (targets <= parts.FEW_TARGETS)
    np.testing.assert_array_equal(got["position"], wanted["position"])
    np.testing.assert_allclose(got["score"], wanted["score"], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(scores), dense, rtol=1e-4, atol=1e-5)
    if not calls:
        np.testing.assert_array_equal(got["score"], wanted["score"])


def _counted(calls):
    def products(lefts, rows, out):
        calls.append(len(rows))
        few_products(lefts, rows, out)

    return products


def test_a_nan_is_named_and_a_masked_one_is_not_met(draw, monkeypatch):
    monkeypatch.setattr(parts, "MANY_VALUES", 0)
    target, train = draw(2, 16), draw(50, 16, dtype="float16")
    train[30, 3] = np.nan
    kept = UnmaskedRows(ArrayRows(train, 8), np.array([30]))
    for rows, bad in ((ArrayRows(train, 8), True), (kept, False)):
        part = Part(0, ArrayRows(target), rows)
        scores = Scores("test", (part,), ArrayRows(np.arange(2)), ArrayRows(np.arange(50)))
        if bad:
            with pytest.raises(NumericsError, match="train row 30 is nan"):
                top_k(scores, 3)
        else:
            assert np.isfinite(top_k(scores, 3)["score"]).all()
